"""The commits just before and just after the place where recovery stops.  Pure.

A reader who opens WAL finds them exactly.  Signed headers alone give limits: between which LSNs and times the
last transaction that stays has ended, and the first that goes.  They count aborts too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pitr.restore_plan import CommitsAround, RestorePlan, StopPoint
from pitr.wal.lsn import LSN
from pitr.wal.transactions import EndKind, TransactionEnd, iter_transaction_ends
from pitr.wal_runs import WalLink
from pitr.wal_walk import WalWalk

# Units in each direction that may hold a commit and are read for one.  Most hold many; only where every
# transaction was rolled back it takes more, and a plan must not read an archive for a courtesy.
UNITS_READ_MAX: Final = 32
# An LSN may lie in a record that ends a transaction, and the next record may end one too: both stay.
_ENDS_KEPT_MAX: Final = 2


def find_commits(plan: RestorePlan, stop: StopPoint, walk: WalWalk) -> CommitsAround:
    """Return the commits around ``stop``; ``plan`` still has the WAL after it.  Raises as ``ReadWal``."""
    at = stop.replay_end
    holding = [link for link in plan.links if _may_hold_end(link)]
    earlier = [link for link in reversed(holding) if link.start < at]
    later = [link for link in holding if at < link.until]
    before = after = None
    for link in earlier[:UNITS_READ_MAX]:
        kept = [end for end in _commits(walk, link) if end.start < at]
        if kept:
            before = kept[-1]
            break
    for link in later[:UNITS_READ_MAX]:
        after = next((end for end in _commits(walk, link) if at <= end.start), None)
        if after is not None:
            break
    is_searched = (before is not None or len(earlier) <= UNITS_READ_MAX) and (
        after is not None or len(later) <= UNITS_READ_MAX
    )
    return CommitsAround(before, after, is_searched)


def _may_hold_end(link: WalLink) -> bool:
    times = link.unit.transactions
    return times is not None or link.is_first or not link.is_whole


def _commits(walk: WalWalk, link: WalLink) -> Iterator[TransactionEnd]:
    ends = iter_transaction_ends(walk.chunks(link.start, link.until), segment_bytes=walk.segment_bytes)
    return (end for end in ends if end.kind is EndKind.COMMIT)


@dataclass(frozen=True, slots=True)
class EndLimits:
    """Between which LSNs the record of a transaction's end lies, and between which times it ended.

    None: no limit of its time is known.
    """

    since: LSN
    until: LSN
    since_at: datetime | None
    until_at: datetime | None


@dataclass(frozen=True, slots=True)
class StopLimits:
    """What signed headers tell of a stop: recovery ends between ``since`` and ``until``.

    ``before``: the last transaction that stays; ``after``: the first that goes; None where there is none, or
    nothing is known of it.
    """

    since: LSN
    until: LSN
    before: EndLimits | None
    after: EndLimits | None


def stop_limits(plan: RestorePlan) -> StopLimits | None:
    """Return the limits of a plan whose stop is not known; None where WAL must be searched for the target."""
    kind = plan.target.kind
    if kind == "latest" or (kind == "time" and not plan.candidates):
        end = plan.wal_end
        return StopLimits(plan.links[-1].start, end, _limits(plan, _last_before(plan, end), end), None)
    if kind == "time":
        return _limits_of_time(plan)
    if kind == "lsn" and plan.target.lsn is not None:
        return _limits_of_lsn(plan, plan.target.lsn, _ENDS_KEPT_MAX)
    if kind == "immediate":
        return _limits_of_lsn(plan, plan.backup.stop_lsn, 0)
    return None


def _limits_of_time(plan: RestorePlan) -> StopLimits:
    first, last = plan.candidates[0], plan.candidates[-1]
    until = plan.wal_end if plan.is_past_end else last.until
    before = _limits(plan, _last_before(plan, first.start), until)
    instant = plan.target.instant
    if before is not None and instant is not None and before.since >= plan.backup.stop_lsn:
        # What stays has ended by then: this is what the target means.
        before = EndLimits(before.since, before.until, before.since_at, instant)
    after = None
    if not plan.is_past_end:
        widest = _limits(plan, first.start, until)
        after = EndLimits(first.start, until, instant, None if widest is None else widest.until_at)
    return StopLimits(first.start, until, before, after)


def _limits_of_lsn(plan: RestorePlan, lsn: LSN, kept_max: int) -> StopLimits:
    """Each unit with times holds at least one transaction's end; so few of those after ``lsn`` may stay."""
    later = [link for link in plan.links if lsn <= link.start and link.unit.transactions is not None]
    end = plan.wal_end
    stays = later[kept_max - 1].until if len(later) >= kept_max > 0 else (lsn if kept_max == 0 else end)
    before = _limits(plan, _last_before(plan, lsn), max(stays, lsn))
    goes = later[kept_max].until if len(later) > kept_max else None
    after = None if goes is None else _limits(plan, lsn, goes)
    return StopLimits(lsn, max(stays, lsn), before, after)


def _last_before(plan: RestorePlan, lsn: LSN) -> LSN | None:
    """Return the start of the last unit before ``lsn`` in which a transaction is known to have ended."""
    for link in reversed(plan.links):
        if link.until <= lsn and link.unit.transactions is not None:
            return link.start
    return None


def _limits(plan: RestorePlan, since: LSN | None, until: LSN) -> EndLimits | None:
    if since is None:
        return None
    within = [link for link in plan.links if link.start < until and since < link.until]
    times = [link.unit.transactions for link in within if link.unit.transactions is not None]
    is_known = bool(times) and all(not link.is_first and link.is_whole for link in within)
    is_known = is_known and all(one.is_exact for one in times)
    return EndLimits(
        since,
        until,
        min(one.min_at for one in times) if is_known else None,
        max(one.max_at for one in times) if is_known else None,
    )
