"""Orphaned ends: WAL of an archive that its newest timeline does not lead to.  Pure.

A failover to a standby that had less leaves some: the archive went on with the new timeline, and what only
the old primary had stays as the end of the old one.  A restore on that timeline reaches it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pitr.catalogue.wal_records import CoverageInterval
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId


@dataclass(frozen=True, slots=True)
class OrphanedEnd:
    """WAL of ``timeline`` from ``start``, where the way to the newest timeline left it, to ``end``."""

    timeline: TimelineId
    start: LSN
    end: LSN
    interval: CoverageInterval


def orphaned_ends(
    newest: TimelineId, histories: Sequence[TimelineHistory], intervals: Iterable[CoverageInterval]
) -> tuple[OrphanedEnd, ...]:
    """Return what of one archive's ``intervals`` lies off the way to its timeline ``newest``.

    Without the newest timeline's history file nothing can be said.
    """
    known = {history.timeline: history for history in histories}
    known.setdefault(TimelineId(1), TimelineHistory(TimelineId(1)))
    way = known.get(newest)
    if way is None:
        return ()
    left_at = {switch.timeline: switch.lsn for switch in way.switches}
    found = []
    for interval in intervals:
        timeline = interval.timeline
        if timeline == newest:
            continue
        own = known.get(timeline)
        begun_at = own.switches[-1].lsn if own is not None and own.switches else interval.start
        start = max(interval.start, left_at.get(timeline, begun_at))
        if start < interval.end:
            found.append(OrphanedEnd(timeline, start, interval.end, interval))
    return tuple(found)
