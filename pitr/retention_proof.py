"""The proof of an expiry plan: the planner's own answers, before and after, for every kind of target.  Pure.

The decision (``pitr.retention``) reasons about times and positions; here nothing is reasoned: a restore is
planned with all that is there and with only what would be kept, and both must be the same restore.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pitr.errors import ExpiryRefused, TargetRefused
from pitr.planner import plan_restore
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan
from pitr.retention import ExpiryPlan, Place, seen_from, what_stays
from pitr.survey import TICK, ArchiveSurvey, survey_ground

# Evenly over the window, beside those that the caller names and every border that is known.
_INSTANTS: Final = 32
_LOST_TOLD_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class ProvenTargets:
    """How many targets were planned twice, and how many of them can be restored."""

    targets: int
    restorable: int


@dataclass(frozen=True, slots=True)
class _Question:
    """One restore to plan: a target on the way to a place, with a backup that is named or not."""

    place: Place
    target: RecoveryTarget
    backup: str | None = None

    def __str__(self) -> str:
        archive, timeline = self.place
        named = "" if self.backup is None else f" of backup {self.backup}"
        return f"{self.target}{named} on timeline {timeline} of archive {archive}"


def prove_plan(
    survey: ArchiveSurvey, plan: ExpiryPlan, *, now: datetime, instants: Sequence[datetime] = ()
) -> ProvenTargets:
    """Plan restores with what is there and with what would stay, and compare them.

    Asked are, on every way that anything inside the window lies on: the window's start, moments over the
    window and ``instants``, both ends of what each kept backup can be taken to, its consistency, and the end.
    Raises ExpiryRefused with what would be lost.
    """
    stays = what_stays(survey, plan)
    lost: list[str] = []
    asked = restorable = 0
    for question in _questions(survey, plan, now, instants):
        before, after = _answer(survey, question), _answer(stays, question)
        asked += 1
        restorable += before is not None
        if before != after:
            lost.append(str(question))
    if lost:
        more = f" and {len(lost) - _LOST_TOLD_MAX} more" if len(lost) > _LOST_TOLD_MAX else ""
        raise ExpiryRefused(
            f"{len(lost)} of {asked} targets inside the window would be lost or change; nothing was deleted",
            detail="; ".join(lost[:_LOST_TOLD_MAX]) + more,
            hint="this is a mistake in pitr itself: report it, with what `pitr expire --json` says",
        )
    return ProvenTargets(asked, restorable)


def _questions(
    survey: ArchiveSurvey, plan: ExpiryPlan, now: datetime, instants: Sequence[datetime]
) -> Iterator[_Question]:
    kept = {each.backup.backup for each in plan.kept}
    step = (now - plan.since) / _INSTANTS
    spread = [plan.since + number * step for number in range(_INSTANTS + 1)]
    for place in plan.ways:
        archive, timeline = place
        times = {at for at in (*spread, *instants) if at >= plan.since}
        for window in survey_ground(_latest(place), seen_from(survey, archive), None).windows:
            borders = [at for at in (window.from_at, window.until_at) if at is not None]
            times |= {at + shift for at in borders for shift in (-TICK, timedelta(), TICK)}
            if window.backup.backup not in kept:
                continue
            for lsn in (window.backup.stop_lsn, window.run.end):
                yield _Question(
                    place, RecoveryTarget("lsn", lsn=lsn, timeline=timeline), window.backup.backup
                )
            consistency = RecoveryTarget("immediate", timeline=timeline)
            yield _Question(place, consistency, window.backup.backup)
        for at in sorted(times):
            if at >= plan.since:
                yield _Question(place, RecoveryTarget("time", instant=at, timeline=timeline))
        yield _Question(place, _latest(place))


def _latest(place: Place) -> RecoveryTarget:
    return RecoveryTarget("latest", timeline=place[1])


# The backups of a restore, its WAL with the objects that hold it, and whether it goes to the end.
_Restore = tuple[str, tuple[str, ...], tuple[tuple[str, int, int], ...], bool]


def _answer(survey: ArchiveSurvey, question: _Question) -> _Restore | None:
    """Return the restore that is planned, None where it is refused."""
    try:
        view = seen_from(survey, question.place[0])
        plan = plan_restore(question.target, view, backup=question.backup)
    except TargetRefused:
        return None
    return _restore(plan)


def _restore(plan: RestorePlan) -> _Restore:
    links = tuple((str(link.unit.key), link.start.offset, link.until.offset) for link in plan.links)
    parents = tuple(parent.backup for parent in plan.parents)
    return plan.backup.backup, parents, links, plan.is_past_end
