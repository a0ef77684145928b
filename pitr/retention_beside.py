"""Retention of what is kept beside an archive: fences, pairs of a mirror, snapshots of Redis.  Pure.

It follows what ``pitr.retention`` keeps.  A target needs fences from before it, and a reader looks at
``FENCES_READ_MAX`` of them at most; so those below the first place that anything can be restored to stay, as
many as that, and what is older nobody can read.  Reference: docs/format.md §6.6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TypeAlias

from pitr.layout import ArchiveId
from pitr.recovery import RecoveryTarget
from pitr.retention import ExpiryPlan, seen_from
from pitr.survey import ArchiveSurvey, survey_ground
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

# A timeline's number and a place on it, in the order that an archive's fences are in.
Position: TypeAlias = tuple[int, LSN]


def first_positions(survey: ArchiveSurvey, plan: ExpiryPlan) -> dict[ArchiveId, Position]:
    """Return, for each archive, the place that no restore which stays begins to look for fences below of.

    An archive that is not named is looked at from its end.  Raises TargetRefused.
    """
    found: dict[ArchiveId, Position] = {}

    def lower(archive: ArchiveId, timeline: TimelineId, at: LSN) -> None:
        place = (timeline.number, at)
        found[archive] = min(found.get(archive, place), place)

    for each in plan.kept:
        lower(each.backup.archive, each.backup.timeline, each.backup.wal_start)
    for archive, timeline in plan.ways:
        target = RecoveryTarget("latest", timeline=timeline)
        way = survey_ground(target, seen_from(survey, archive), None).way
        starts = [
            each.backup.wal_start
            for each in plan.kept
            for span in way
            if (span.archive, span.timeline) == (each.backup.archive, each.backup.timeline)
            and span.holds(each.backup.start_lsn)
        ]
        for span, following in pairwise(way):
            if span.archive == following.archive:
                continue
            # Another epoch left this archive here: from here on downwards its fences are looked at.
            lower(span.archive, span.timeline, following.start)
            if starts and min(starts) < following.start:
                # From a backup of before all of the other one is restored.
                lower(following.archive, following.timeline, following.start)
    return found


@dataclass(frozen=True, slots=True)
class FencesAt:
    """What the signed header of an object of fences says: how many, up to where, sealed with which key."""

    sequence: int
    count: int
    last: Position
    key_id: bytes


@dataclass(frozen=True, slots=True)
class KeptObjects:
    """Objects from ``first`` on stay.  ``key_ids``: keys of theirs that WAL which goes may have used."""

    first: int
    key_ids: frozenset[bytes]


def first_not_below(first: int, last: int, position: Position, look: Callable[[int], FencesAt | None]) -> int:
    """Return the first of the objects ``first`` to ``last`` that does not lie wholly below a position.

    ``look`` gives an object's header, or that of a later one where it is bad.  Found by halving.
    """
    low, high = first, last + 1
    while low < high:
        middle = (low + high) // 2
        found = look(middle)
        is_below = found is not None and found.last < position
        low, high = (middle + 1, high) if is_below else (low, middle)
    return low


def keys_between(
    first: int, last: int, look: Callable[[Sequence[int]], Iterable[FencesAt]]
) -> frozenset[bytes]:
    """Return the data keys of the objects ``first`` to ``last``, however many these are.

    ``look`` gives the headers of some, each or that of a later one where it is bad.  A key serves for a time
    and never again, so between two objects with one key all have it: found by halving, many at a time.
    """
    known: dict[int, FencesAt] = {}
    level = [(first, last)] if first <= last else []
    while level:
        wanted = sorted({end for pair in level for end in pair} - known.keys())
        known.update(zip(wanted, look(wanted), strict=True))
        level = [
            half
            for low, high in level
            if high - low > 1 and known[low].key_id != known[high].key_id
            for half in ((low, (low + high) // 2), ((low + high) // 2, high))
        ]
    return frozenset(found.key_id for found in known.values())


def kept_fences(
    first: int, newest_first: Iterable[FencesAt | None], next_sequence: int, *, read_max: int
) -> KeptObjects:
    """Return which objects stay of those below a position: newest first, from ``next_sequence - 1``.

    So many stay that ``read_max`` fences are in them.  None stands for one that cannot be read: it counts for
    nothing.  ``first`` is the oldest that is there.
    """
    keys: set[bytes] = set()
    count, sequence = 0, next_sequence
    for found in newest_first:
        if count >= read_max:
            break
        sequence -= 1
        if found is not None:
            count += found.count
            keys.add(found.key_id)
    return KeptObjects(sequence if count >= read_max else first, frozenset(keys))


@dataclass(frozen=True, slots=True)
class SnapshotAt:
    """A snapshot of derived state, as far as expiry asks: whose, of when, sealed with which key."""

    snapshot: str
    name: str
    ended_at: datetime
    key_id: bytes


def first_moment(plan: ExpiryPlan) -> datetime:
    """Return a moment before which nothing can be restored to: the window's start, or a kept backup's."""
    return min([plan.since, *(each.backup.started_at for each in plan.kept)])


def expired_snapshots(snapshots: Sequence[SnapshotAt], moment: datetime) -> Iterator[SnapshotAt]:
    """Yield those that no moment from ``moment`` on is restored with; never the newest of a name."""
    before: dict[str, SnapshotAt] = {}
    for one in snapshots:
        if one.ended_at <= moment:
            other = before.get(one.name)
            if other is None or (one.ended_at, one.snapshot) > (other.ended_at, other.snapshot):
                before[one.name] = one
    kept: Mapping[str, SnapshotAt] = before
    yield from (one for one in snapshots if one.ended_at <= moment and kept[one.name] is not one)
