"""The way of WAL to a target, and which stretches of it are stored without a hole.  Pure.

A way leads across timelines (history files say where each was left) and across writer epochs (each
names its parent and where it left it).  Along one way LSNs only grow, so a position on it is an LSN.
What a superseded epoch or an abandoned timeline wrote after it was left is not on the way.

Reference: docs/format.md §6; PostgreSQL src/backend/access/transam/timeline.c.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeAlias

from pitr.catalogue.records import EpochRecord
from pitr.catalogue.wal_records import WalUnit
from pitr.errors import TargetRefused
from pitr.layout import ArchiveId
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId

# An archive's own histories; two archives may each have a timeline 2 of their own.
Histories: TypeAlias = Mapping[ArchiveId, Sequence[TimelineHistory]]
FIRST_LSN: Final = LSN(1)


@dataclass(frozen=True, slots=True)
class WalSpan:
    """One stretch of the way: WAL of one archive and timeline; ``end`` None where nothing left it yet."""

    archive: ArchiveId
    timeline: TimelineId
    start: LSN
    end: LSN | None = None

    def holds(self, lsn: LSN) -> bool:
        """Tell whether the byte at ``lsn`` is of this span."""
        return self.start <= lsn and (self.end is None or lsn < self.end)


@dataclass(frozen=True, slots=True)
class WalLink:
    """A stored unit as part of the way: of its WAL, ``start`` to ``until`` is used.

    ``is_whole``: all of the unit is on the way.  ``is_first``: the unit before it on the way is of
    another archive or timeline, or missing; then a record that began there may end here uncounted.
    """

    unit: WalUnit
    start: LSN
    until: LSN
    is_whole: bool
    is_first: bool

    @property
    def known_max_at(self) -> datetime | None:
        """Return the latest known time of a transaction that ends here and on the way, or None."""
        times = self.unit.transactions
        return times.max_at if times is not None and self.is_whole else None

    def may_hold_later(self, instant: datetime) -> bool:
        """Tell whether a transaction later than ``instant`` may end here: only then it must be read."""
        times = self.unit.transactions
        if self.is_first or (times is not None and not times.is_exact):
            return True
        return times is not None and times.max_at > instant


@dataclass(frozen=True, slots=True)
class WalRun:
    """A longest stretch of the way without a hole."""

    start: LSN
    end: LSN
    links: tuple[WalLink, ...]


def way_to(
    archive: ArchiveId, timeline: TimelineId, epochs: Iterable[EpochRecord], histories: Histories
) -> tuple[WalSpan, ...]:
    """Return the way to ``timeline`` as ``archive`` sees it, the oldest span first.

    Raises TargetRefused if an epoch or a history file that it needs is missing.
    """
    known = {record.archive: record for record in epochs}
    chain: list[EpochRecord] = []
    at: ArchiveId | None = archive
    while at is not None:
        if at not in known:
            raise TargetRefused(
                f"the epoch record of archive {at} is missing",
                detail=f"archive {archive} comes from it",
                hint="ask all regions, or choose another archive",
            )
        chain.append(known[at])
        parent = known[at].parent
        # A parent's number is smaller (EpochRecord checks it), so this ends.
        at = None if parent is None else ArchiveId(at.system_identifier, parent.epoch)
    history = _history_of(timeline, chain, histories)
    return tuple(_join(_epoch_ranges(chain), _timeline_ranges(history)))


def _history_of(timeline: TimelineId, chain: Sequence[EpochRecord], histories: Histories) -> TimelineHistory:
    for record in chain:
        for history in histories.get(record.archive, ()):
            if history.timeline == timeline:
                return history
    if timeline.number == 1:
        return TimelineHistory(timeline)
    raise TargetRefused(
        f"the history file of timeline {timeline} is missing",
        detail="without it nobody can tell which WAL leads there",
        hint="ask all regions, or name another timeline with --timeline",
    )


@dataclass(frozen=True, slots=True)
class _Range:
    start: LSN
    end: LSN | None
    archive: ArchiveId | None = None
    timeline: TimelineId | None = None


def _epoch_ranges(chain: Sequence[EpochRecord]) -> list[_Range]:
    ranges: list[_Range] = []
    upper: LSN | None = None
    for record in chain:
        lower = FIRST_LSN if record.parent is None else record.parent.lsn
        # An epoch that was left before its own beginning adds nothing: its past is its parent's.
        if upper is None or lower < upper:
            ranges.append(_Range(lower, upper, archive=record.archive))
            upper = lower
    return ranges[::-1]


def _timeline_ranges(history: TimelineHistory) -> list[_Range]:
    ranges: list[_Range] = []
    lower = FIRST_LSN
    for switch in history.switches:
        if lower < switch.lsn:
            ranges.append(_Range(lower, switch.lsn, timeline=switch.timeline))
            lower = switch.lsn
    ranges.append(_Range(lower, None, timeline=history.timeline))
    return ranges


def _join(epochs: Sequence[_Range], timelines: Sequence[_Range]) -> Iterable[WalSpan]:
    for epoch in epochs:
        for timeline in timelines:
            start = max(epoch.start, timeline.start)
            ends = [end for end in (epoch.end, timeline.end) if end is not None]
            end = min(ends) if ends else None
            if (end is None or start < end) and epoch.archive is not None and timeline.timeline is not None:
                yield WalSpan(epoch.archive, timeline.timeline, start, end)


def find_runs(way: Sequence[WalSpan], units: Iterable[WalUnit]) -> tuple[WalRun, ...]:
    """Return the stretches of the way that are stored without a hole, in the order of the way.

    The fewest units are taken: at each place the one that reaches farthest, a whole segment first.
    """
    stored: dict[tuple[ArchiveId, TimelineId], list[WalUnit]] = {}
    for unit in units:
        stored.setdefault((unit.archive, unit.timeline), []).append(unit)
    for held in stored.values():
        held.sort(key=lambda unit: (unit.start, -unit.end.offset))
    links: list[WalLink] = []
    for number, span in enumerate(way):
        pool = list(stored.get((span.archive, span.timeline), ()))
        if span.end is not None and number + 1 < len(way):
            later = way[number + 1]
            pool += _copied(stored.get((later.archive, later.timeline), ()), span.end)
            pool.sort(key=lambda unit: (unit.start, -unit.end.offset))
        for link in _cover(span, pool):
            _append(links, link)
    return tuple(_split(links))


def _copied(units: Iterable[WalUnit], left_at: LSN) -> list[WalUnit]:
    """Return the units that repeat the end of the span before them.

    A server that begins a timeline copies the segment in which the old one was left, up to there
    (xlog.c, XLogInitNewTimeline), and streaming begins at a segment boundary.  So what the dead primary's
    last second lacks is often held under the new timeline.
    """
    return [unit for unit in units if _segment_start(left_at, unit) <= unit.start.offset < left_at.offset]


def _segment_start(lsn: LSN, unit: WalUnit) -> int:
    return lsn.offset - lsn.offset % unit.segment_bytes


def _cover(span: WalSpan, pool: Sequence[WalUnit]) -> Iterable[WalLink]:
    """Yield links that cover the span as far as they go; a later one may begin after a hole."""
    at, following = span.start, 0
    best: WalUnit | None = None
    while span.end is None or at < span.end:
        while following < len(pool) and pool[following].start <= at:
            if best is None or pool[following].end > best.end:
                best = pool[following]
            following += 1
        if best is None or best.end <= at:
            if following == len(pool) or (span.end is not None and pool[following].start >= span.end):
                return
            at = pool[following].start
            continue
        until = best.end if span.end is None else min(best.end, span.end)
        is_own = (best.archive, best.timeline) == (span.archive, span.timeline)
        # Before its own start a span repeats its segment's beginning, which is on the way as well.
        is_whole = best.start.offset >= _segment_start(span.start, best) and (
            not is_own or span.end is None or best.end <= span.end
        )
        yield WalLink(best, at, until, is_whole and is_own, is_first=False)
        at = until


def _append(links: list[WalLink], link: WalLink) -> None:
    """Add a link; one that goes on with the same unit, across a switch, becomes one with it."""
    if not links:
        links.append(replace(link, is_first=True))
        return
    last = links[-1]
    if last.unit.key == link.unit.key and last.until == link.start:
        links[-1] = replace(link, start=last.start, is_first=last.is_first)
        return
    same_source = (last.unit.archive, last.unit.timeline) == (link.unit.archive, link.unit.timeline)
    links.append(replace(link, is_first=not same_source or last.until != link.start))


def _split(links: Sequence[WalLink]) -> Iterable[WalRun]:
    first = 0
    for number, link in enumerate(links):
        if number + 1 == len(links) or links[number + 1].start != link.until:
            yield WalRun(links[first].start, link.until, tuple(links[first : number + 1]))
            first = number + 1
