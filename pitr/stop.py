"""Where recovery stops, exactly: found by the reader, who can open WAL, in the pieces that the plan names.

Every target becomes an LSN.  For a time, recovery stops before the first transaction-end record that
is later; for an xid or a name after its record; for ``latest`` after the last complete record.

Reference: PostgreSQL src/backend/access/transam/xlogrecovery.c (recoveryStopsBefore,
recoveryStopsAfter): an LSN target compares with the *start* of each record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Final

from pitr.commits_around import find_commits
from pitr.errors import NotAuthentic, TargetRefused
from pitr.planner import plan_restore, search_limits
from pitr.recovery import RecoveryTarget, instant_text
from pitr.restore_plan import RestorableMoment, RestorePlan, StopPoint, TargetNotRestorable
from pitr.survey import ArchiveSurvey
from pitr.wal.lsn import LSN
from pitr.wal.pages import LONG_HEADER_BYTES, PAGE_BYTES, SHORT_HEADER_BYTES
from pitr.wal.records import WalRecord, iter_records
from pitr.wal.transactions import (
    EndKind,
    RestorePoint,
    TransactionEnd,
    iter_restore_points,
    iter_transaction_ends,
)
from pitr.wal_runs import WalLink
from pitr.wal_walk import ReadWal, WalWalk

# More records of one xid or name than this are not listed: the target is refused all the same.
_MATCHES_MAX: Final = 10
# Names that are offered where the one that was asked for is not there.
_OTHERS_MAX: Final = 5


def resolve_plan(
    target: RecoveryTarget, survey: ArchiveSurvey, read_wal: ReadWal, *, backup: str | None = None
) -> RestorePlan:
    """Return the plan for a target with its exact stop.

    Raises as ``plan_restore``; TargetRefused if an xid or name is not found, or more than once;
    what ``read_wal`` raises; MalformedValue for damaged WAL, which is never taken for its end.
    """
    plan = plan_restore(target, survey, backup=backup)
    if target.kind not in ("xid", "name"):
        return _with_stop(plan, read_wal)
    # The record is at an LSN, and to that the newest backup before it leads.
    found = _search(plan, WalWalk(plan, read_wal), search_limits(target, survey, backup))
    by_lsn = RecoveryTarget("lsn", lsn=found, is_inclusive=target.is_inclusive, timeline=target.timeline)
    plan = plan_restore(by_lsn, survey, backup=backup)
    return replace(_with_stop(plan, read_wal), target=target)


def _with_stop(plan: RestorePlan, read_wal: ReadWal) -> RestorePlan:
    """Return the plan with its stop and the commits around it, for which WAL past the stop is looked at."""
    walk = WalWalk(plan, read_wal)
    stop = _stop(plan, walk)
    return replace(plan.with_stop(stop, *_notes(plan, stop)), commits=find_commits(plan, stop, walk))


def resolve_stop(plan: RestorePlan, read_wal: ReadWal) -> StopPoint:
    """Return where recovery of the plan stops; for xid and name see ``resolve_plan``.

    Raises TargetNotRestorable if that lies before the backup is consistent, NotAuthentic if a signed
    header and its WAL disagree, and as ``resolve_plan``.
    """
    return _stop(plan, WalWalk(plan, read_wal))


def _stop(plan: RestorePlan, walk: WalWalk) -> StopPoint:
    target = plan.target
    if target.kind == "immediate":
        consistent = plan.backup.stop_lsn
        return StopPoint(None, True, consistent, consistent)
    if target.kind == "time" and target.instant is not None:
        stop = _stop_at_time(plan, walk, target.instant, is_inclusive=target.is_inclusive)
    elif target.kind == "lsn" and target.lsn is not None:
        stop = _stop_at_lsn(plan, walk, target.lsn, is_inclusive=target.is_inclusive)
    elif target.kind == "latest":
        stop = _stop_at_end(plan, walk)
    else:
        raise TargetRefused(f"{target} must be searched for before it is a place to stop")
    if stop.replay_end < plan.backup.stop_lsn:
        raise TargetNotRestorable(
            f"{target} lies before backup {plan.backup.backup} is consistent",
            detail=f"recovery would stop at {stop.replay_end}, consistency comes at {plan.backup.stop_lsn}",
            after=RestorableMoment(plan.backup.stop_lsn),
        )
    return stop


def _stop_at_time(plan: RestorePlan, walk: WalWalk, instant: datetime, *, is_inclusive: bool) -> StopPoint:
    last_commit: TransactionEnd | None = None
    for link in plan.candidates:
        since = max(link.start, plan.backup.start_lsn)
        ends = iter_transaction_ends(walk.chunks(since, link.until), segment_bytes=walk.segment_bytes)
        for ending in ends:
            if ending.start < plan.backup.start_lsn:
                continue
            if ending.at > instant or (ending.at == instant and not is_inclusive):
                end = end_before(ending.start, walk.segment_bytes)
                return StopPoint(ending.start, False, end, ending.end, last_commit, ending)
            if ending.kind is EndKind.COMMIT:
                last_commit = ending
    if not plan.is_past_end:
        raise NotAuthentic(
            "WAL is not what its signed header says",
            detail=f"a transaction later than {instant_text(instant)} should end between"
            f" {plan.candidates[0].start} and {plan.candidates[-1].until}, and none does",
        )
    return _stop_at_end(plan, walk)


def _stop_at_lsn(plan: RestorePlan, walk: WalWalk, lsn: LSN, *, is_inclusive: bool) -> StopPoint:
    for record in iter_records(walk.chunks(lsn), segment_bytes=walk.segment_bytes):
        if record.start >= lsn:
            end = record.end if is_inclusive else end_before(record.start, walk.segment_bytes)
            return StopPoint(record.start, is_inclusive, end, min(record.end, plan.wal_end))
    return _stop_at_end(plan, walk)


def _stop_at_end(plan: RestorePlan, walk: WalWalk) -> StopPoint:
    """Stop after the last complete record of the plan's WAL."""
    for link in reversed(plan.links):
        records = iter_records(walk.chunks(link.start), segment_bytes=walk.segment_bytes)
        kept: deque[WalRecord] = deque(records, maxlen=1)
        if kept:
            last = kept[0]
            commit = _last_commit(walk, link)
            # A segment switch counts as long as the rest of its segment, which need not be there.
            return StopPoint(last.start, True, last.end, min(last.end, plan.wal_end), commit)
    raise TargetNotRestorable(
        "the WAL of the plan holds no complete record",
        detail=f"from {plan.links[0].start} to {plan.wal_end}",
    )


def _last_commit(walk: WalWalk, link: WalLink) -> TransactionEnd | None:
    last: TransactionEnd | None = None
    for ending in iter_transaction_ends(walk.chunks(link.start), segment_bytes=walk.segment_bytes):
        last = ending if ending.kind is EndKind.COMMIT else last
    return last


@dataclass(frozen=True, slots=True)
class _Match:
    start: LSN
    at: datetime


def _search(plan: RestorePlan, walk: WalWalk, limits: str | None) -> LSN:
    """Return the start of the one record that an xid or name target means; ``limits``: where it is not."""
    target = plan.target
    since = plan.backup.stop_lsn
    others: deque[str] = deque(maxlen=_OTHERS_MAX)
    chunks = walk.chunks(since)
    if target.xid is not None:
        ends = iter_transaction_ends(chunks, segment_bytes=walk.segment_bytes)
        found = (_Match(e.start, e.at) for e in ends if e.xid == target.xid and e.start >= since)
    else:
        points = iter_restore_points(chunks, segment_bytes=walk.segment_bytes)
        found = (_Match(p.start, p.at) for p in _named(points, target.name, others) if p.start >= since)
    matches = list(islice(found, _MATCHES_MAX))
    if not matches:
        raise TargetNotRestorable(
            f"{target} is not in the WAL",
            detail=f"searched from {since} (backup {plan.backup.backup}) to {plan.wal_end}"
            + (f"; {limits}" if limits is not None else ""),
            before=RestorableMoment(plan.wal_end),
            hint=_names_hint(others) if target.name is not None else None,
        )
    if len(matches) > 1:
        places = ", ".join(f"lsn:{match.start} at {instant_text(match.at)}" for match in matches)
        raise TargetRefused(f"{target} is there more than once", detail=places, hint="say which by its LSN")
    return matches[0].start


def _named(points: Iterable[RestorePoint], name: str | None, others: deque[str]) -> Iterator[RestorePoint]:
    """Yield those of the name; note the names of the others, of which the last are kept."""
    for point in points:
        if point.name == name:
            yield point
        else:
            others.append(point.name)


def _names_hint(others: Sequence[str]) -> str:
    if not others:
        return "there is no restore point in this WAL: name a time or an LSN"
    return f"the last restore points there are {', '.join(f'name:{name}' for name in others)}"


def end_before(record_start: LSN, segment_bytes: int) -> LSN:
    """Return the end of the record before the one that starts here, as PostgreSQL reports replay.

    Records follow each other without a gap but for page headers: one that ends with its page ends at
    the page boundary, and the next starts after the header (xlogreader.c, EndRecPtr).
    """
    in_page = record_start.offset % PAGE_BYTES
    is_segment_start = record_start.offset % segment_bytes < PAGE_BYTES
    header = LONG_HEADER_BYTES if is_segment_start else SHORT_HEADER_BYTES
    return LSN(record_start.offset - in_page) if in_page == header else record_start


def _notes(plan: RestorePlan, stop: StopPoint) -> Sequence[str]:
    """Say what the stop says that the plan could not."""
    target = plan.target
    is_at_end = stop.next_commit is None and stop.is_inclusive and stop.target_lsn is not None
    if target.kind == "time" and is_at_end:
        last = stop.last_commit
        when = (
            "no commit in the WAL that was read"
            if last is None
            else f"last commit at {instant_text(last.at)}"
        )
        return (f"nothing in the archive is later than the target: recovery stops at its end, {when}",)
    if target.lsn is not None and stop.target_lsn is not None and stop.target_lsn < target.lsn:
        return (f"no complete record begins at or after {target.lsn}: recovery stops after the last one",)
    return ()
