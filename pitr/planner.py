"""The planner: which backup and which WAL lead to a target, or why none do.  Pure.

It decides from manifests and signed headers alone, so it runs where no WAL can be opened.  For a
time it finds the pieces that may hold the stop; ``pitr.stop`` then reads those few.

The rule for a time T: recovery stops before the first transaction-end record, in LSN order from the
backup, that is later than T.  A backup serves T if it had ended by T, and if WAL without a hole leads
from it to such a record, or to the certain end of the archive.  The newest such backup is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from pitr.errors import TargetRefused
from pitr.recovery import RecoveryTarget, instant_text
from pitr.restore_plan import RestorableMoment, RestorePlan, SkippedBackup, TargetNotRestorable
from pitr.survey import TICK, ArchiveSurvey, Ground, Window, first_moment, last_moment, survey_ground
from pitr.wal.lsn import LSN
from pitr.wal_runs import WalLink, WalRun

_OLDEST = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RestorableStretch:
    """From one backup's consistency point to the end of the WAL that follows it without a hole."""

    backup: str
    first: RestorableMoment
    last: RestorableMoment


def plan_restore(target: RecoveryTarget, survey: ArchiveSurvey, *, backup: str | None = None) -> RestorePlan:
    """Return the plan for a target; ``backup`` takes that one and no other.

    For xid and name the plan covers what must be searched; see ``pitr.stop.resolve_plan``.
    Raises TargetNotRestorable with the nearest moments that can be restored; TargetRefused if the
    way to the timeline is not known.
    """
    return plan_along(target, survey_ground(target, survey, backup))


def plan_along(target: RecoveryTarget, ground: Ground) -> RestorePlan:
    """Return the same for ground that is surveyed already: who asks for many targets of one way does it once.

    Raises TargetNotRestorable.
    """
    if target.kind == "time":
        return _plan_time(target, ground)
    if target.kind == "lsn":
        return _plan_lsn(target, ground)
    if target.kind == "immediate":
        return _plan_immediate(target, ground)
    if target.kind == "latest":
        return _plan_latest(target, ground)
    return _plan_search(target, ground)


def restorable_stretches(survey: ArchiveSurvey) -> tuple[RestorableStretch, ...]:
    """Return what each usable backup on the way to the newest timeline can be taken to, oldest first."""
    ground = survey_ground(RecoveryTarget("latest"), survey, None)
    return tuple(RestorableStretch(w.backup.backup, first_moment(w), last_moment(w)) for w in ground.windows)


def _plan_time(target: RecoveryTarget, ground: Ground) -> RestorePlan:
    instant = _effective_instant(target)
    chosen = next((w for w in reversed(ground.windows) if w.holds_time(instant)), None)
    if chosen is None:
        raise _refuse_time(target, instant, ground)
    candidates: list[WalLink] = []
    is_past_end = True
    for link in chosen.run.links:
        if link.until <= chosen.backup.start_lsn or not link.may_hold_later(instant):
            continue
        candidates.append(link)
        at = link.known_max_at
        if at is not None and at > instant and link.start >= chosen.backup.stop_lsn:
            is_past_end = False
            break
    return _plan(target, ground, chosen, tuple(candidates), is_past_end)


def _effective_instant(target: RecoveryTarget) -> datetime:
    """Return the last time that stays: commit times have microseconds, so exclusive is one earlier."""
    if target.instant is None:
        raise TargetRefused("a time target without a time")
    return target.instant if target.is_inclusive else target.instant - TICK


def _plan_lsn(target: RecoveryTarget, ground: Ground) -> RestorePlan:
    lsn = target.lsn
    if lsn is None:
        raise TargetRefused("an LSN target without an LSN")
    chosen = next((w for w in reversed(ground.windows) if w.holds_lsn(lsn)), None)
    if chosen is None:
        before = [w for w in ground.windows if w.run.end < lsn]
        after = [w for w in ground.windows if w.backup.stop_lsn > lsn]
        raise TargetNotRestorable(
            f"{lsn} is not restorable",
            detail=_why_lsn(lsn, ground),
            before=last_moment(max(before, key=lambda w: w.run.end)) if before else None,
            after=first_moment(min(after, key=lambda w: w.backup.stop_lsn)) if after else None,
        )
    links = tuple(link for link in chosen.run.links if lsn < link.until) or chosen.run.links[-1:]
    return _plan(target, ground, chosen, links, is_past_end=lsn >= chosen.run.end)


def _plan_immediate(target: RecoveryTarget, ground: Ground) -> RestorePlan:
    if not ground.windows:
        raise TargetNotRestorable("no backup can be restored", detail=_why_no_backup(ground))
    return _plan(target, ground, ground.windows[-1], (), is_past_end=False)


def _plan_latest(target: RecoveryTarget, ground: Ground) -> RestorePlan:
    newest = ground.windows[-1] if ground.windows else None
    before = last_moment(newest) if newest is not None else None
    if newest is not None and newest.is_to_end:
        return _plan(target, ground, newest, newest.run.links[-1:], is_past_end=True)
    if not ground.survey.end.is_certain:
        raise TargetNotRestorable(
            "the end of the archive is not certain",
            detail=_why_no_backup(ground) if newest is None else _missing_after(newest.run, ground),
            before=before,
            hint=_accept(newest, ground),
        )
    why = _why_no_backup(ground) if newest is None else _missing_after(newest.run, ground)
    raise TargetNotRestorable("the end of the archive is not restorable", detail=why, before=before)


def _plan_search(target: RecoveryTarget, ground: Ground) -> RestorePlan:
    """Plan to search: from the oldest backup in the newest run that has one, to the run's end."""
    if not ground.windows:
        raise TargetNotRestorable(f"{target} is not restorable", detail=_why_no_backup(ground))
    newest = ground.windows[-1]
    oldest = next(w for w in ground.windows if w.run is newest.run)
    links = tuple(link for link in oldest.run.links if oldest.backup.stop_lsn < link.until)
    return _plan(target, ground, oldest, links, is_past_end=False)


def _plan(
    target: RecoveryTarget,
    ground: Ground,
    window: Window,
    candidates: tuple[WalLink, ...],
    is_past_end: bool,
) -> RestorePlan:
    backup = window.backup
    first = backup.wal_start.offset
    links = tuple(link for link in window.run.links if first < link.until.offset)
    links = (replace(links[0], start=LSN(max(first, links[0].start.offset))), *links[1:])
    skipped = [found for found in ground.unusable if found.backup > backup.backup]
    skipped += [
        _skipped(w, target)
        for w in ground.windows
        if w.backup.stop_lsn > backup.stop_lsn and target.kind in ("time", "lsn")
    ]
    warnings = _warnings(ground, links, window if is_past_end and target.kind != "lsn" else None)
    warnings += [
        f"backup {each.backup} has {len(each.findings)} pages that failed their checksum"
        for each in (backup, *window.parents)
        if each.findings
    ]
    return RestorePlan(
        target=target,
        archive=ground.survey.archive,
        timeline=ground.timeline,
        backup=backup,
        spans=tuple(s for s in ground.way if s.end is None or first < s.end.offset),
        links=links,
        candidates=candidates,
        is_past_end=is_past_end,
        skipped=tuple(sorted(skipped, key=lambda s: s.backup)),
        warnings=tuple(warnings),
        parents=window.parents,
    )


def _skipped(window: Window, target: RecoveryTarget) -> SkippedBackup:
    backup = window.backup
    if target.kind == "time":
        if _effective_instant(target) < window.from_at:
            reason = f"it had not ended by then (consistent at {instant_text(window.from_at)})"
            return SkippedBackup(backup.backup, reason, is_later=True)
        return SkippedBackup(backup.backup, f"WAL after {window.run.end} is missing")
    return SkippedBackup(backup.backup, f"its consistency point {backup.stop_lsn} is later", is_later=True)


def _refuse_time(target: RecoveryTarget, instant: datetime, ground: Ground) -> TargetNotRestorable:
    # The moments are offered to be typed again, with the same --exclusive.
    shift = timedelta() if target.is_inclusive else TICK
    earlier = [w for w in ground.windows if w.from_at <= instant]
    later = [w for w in ground.windows if w.from_at > instant]
    before = max(earlier, key=lambda w: (last_moment(w).at or _OLDEST, w.run.end), default=None)
    after = max(later, key=lambda w: (first_moment(w).at is not None, -w.from_at.timestamp()), default=None)
    if not ground.windows:
        detail = _why_no_backup(ground)
    elif not earlier:
        detail = f"the oldest usable backup was complete at {instant_text(ground.windows[0].from_at)}"
    else:
        detail = _missing_after(max(earlier, key=lambda w: w.run.end).run, ground)
    return TargetNotRestorable(
        f"{target} is not restorable",
        detail=detail,
        before=None if before is None else last_moment(before, shift),
        after=None if after is None else first_moment(after, shift),
        hint=_accept(before, ground) if after is None else None,
    )


def _why_lsn(lsn: LSN, ground: Ground) -> str:
    if not ground.windows:
        return _why_no_backup(ground)
    first = ground.windows[0].backup
    if lsn < first.stop_lsn:
        return f"the oldest usable backup {first.backup} is consistent at {first.stop_lsn}"
    earlier = [w for w in ground.windows if w.run.end < lsn]
    if not earlier:
        return f"the next usable backup is consistent only after {lsn}"
    return _missing_after(max(earlier, key=lambda w: w.run.end).run, ground)


def _why_no_backup(ground: Ground) -> str:
    if not ground.unusable:
        return "there is no backup"
    last = ground.unusable[-1]
    return f"backup {last.backup} cannot be used: {last.reason}"


def _accept(window: Window | None, ground: Ground) -> str | None:
    """Say how to go on from an end that is not certain: to know more, or to accept it by name."""
    if ground.survey.end.is_certain or window is None or window.run is not ground.runs[-1]:
        return None
    return f"read more regions, or accept what these hold by its name: --to lsn:{window.run.end}"


def search_limits(target: RecoveryTarget, survey: ArchiveSurvey, backup: str | None) -> str | None:
    """Say which WAL a search for an xid or a name cannot look into for a hole before or after; None: none."""
    ground = survey_ground(target, survey, backup)
    searched = ground.windows[-1].run if ground.windows else None
    if searched is None or searched not in ground.runs:
        return None
    place = ground.runs.index(searched)
    beyond = []
    if place > 0:
        beyond.append(f"{_missing_after(ground.runs[place - 1], ground)}; what is older was not searched")
    if place + 1 < len(ground.runs):
        beyond.append(f"{_missing_after(searched, ground)}; what follows has no backup to search it from")
    return "; ".join(beyond) or None


def _missing_after(run: WalRun, ground: Ground) -> str:
    """Say what is missing after a run: a hole with its LSNs and times, or the unknown after the end."""
    times = [at for link in run.links if (at := link.known_max_at) is not None]
    since = f", after {instant_text(max(times))}" if times else ""
    following = [later for later in ground.runs if later.start > run.end]
    if following:
        starts = [t.min_at for link in following[0].links if (t := link.unit.transactions) is not None]
        until = f", before {instant_text(min(starts))}" if starts else ""
        return f"WAL from {run.end} to {following[0].start} is in no region{since}{until}"
    head = ground.survey.end.head
    if (
        head is not None
        and head.wal_end is not None
        and (head.archive, head.timeline) == (ground.way[-1].archive, ground.way[-1].timeline)
        and head.wal_end > run.end
    ):
        return f"WAL from {run.end} to the signed end {head.wal_end} is in no region{since}"
    end = ground.survey.end
    elsewhere = "" if end.is_certain else "; what came later may be in the others"
    return f"WAL ends at {run.end}{since}; {end.detail}{elsewhere}"


def _warnings(ground: Ground, plan_links: Sequence[WalLink], past_end: Window | None) -> list[str]:
    warnings: list[str] = []
    if past_end is not None:
        times = [at for link in past_end.run.links if (at := link.known_max_at) is not None]
        last = (
            f"the last known transaction ended at {instant_text(max(times))}" if times else "no transaction"
        )
        warnings.append(f"recovery goes to the end of the archive: {last}; {ground.survey.end.detail}")
    if any(link.unit.transactions and not link.unit.transactions.is_exact for link in plan_links):
        warnings.append("the times of some WAL are not exact, so it is read to find the stop")
    return warnings
