"""The objects behind each segment of a WAL path: found in listings, checked for holes.  Pure.

A hole found here refuses the restore before anything is written.  What a name claims is believed for
planning only; the bytes are believed when their signed header and tags hold (``pitr.wal_reader``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pitr.errors import MalformedValue, WalMissing
from pitr.layout import ArchiveId, PieceKey, SegmentKey
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_path import HistoryFile, PathSegment, PathSpan, WalPath, WalSource

# Pieces of one segment and their repeated attempts; a 1 GiB segment that fills in hours has fewer.
SOURCES_MAX = 100_000

# Lists the WAL objects of a timeline in an archive by segment, from a segment on.
ListWal = Callable[[ArchiveId, TimelineId, SegmentName], Iterable[PieceKey | SegmentKey]]


@dataclass(frozen=True, slots=True)
class ArchivedSpan:
    """WAL of one timeline in one archive, from ``start`` to ``end`` (exclusive), on the way to the target."""

    archive: ArchiveId
    timeline: TimelineId
    start: LSN
    end: LSN

    def __post_init__(self) -> None:
        if not self.start < self.end:
            raise MalformedValue(f"span of timeline {self.timeline} ends at {self.end}, before {self.start}")


def lay_path(
    spans: Sequence[ArchivedSpan],
    histories: Sequence[HistoryFile],
    *,
    segment_bytes: int,
    taken: Sequence[HistoryFile] = (),
) -> WalPath:
    """Return the path along ``spans``, each of which begins where the one before it ends.

    A segment in which a timeline was left is asked for by its successor's name: the successor begins
    with a copy of it (PostgreSQL src/backend/access/transam/xlog.c, XLogInitNewTimeline).
    Raises MalformedValue if the spans do not join.
    """
    if not spans:
        raise MalformedValue("a WAL path without a span")
    for before, after in pairwise(spans):
        if before.end != after.start:
            raise MalformedValue(f"WAL path breaks between {before.end} and {after.start}")
    path: list[PathSpan] = []
    for span in spans:
        first = span.start.offset // segment_bytes
        last = span.end.last_segment_number(segment_bytes)
        if path and path[-1].timeline == span.timeline:
            first = path.pop().first
        while path and path[-1].last >= first:
            left = path.pop()
            if left.first < first:
                path.append(PathSpan(left.timeline, left.first, first - 1))
        path.append(PathSpan(span.timeline, first, last))
    system_identifiers = {span.archive.system_identifier for span in spans}
    if len(system_identifiers) != 1:
        raise MalformedValue(f"WAL path of several clusters: {sorted(system_identifiers)}")
    return WalPath(
        system_identifiers.pop(),
        segment_bytes,
        tuple(path),
        tuple(histories),
        end=spans[-1].end,
        taken=tuple(taken),
    )


def find_segments(path: WalPath, spans: Sequence[ArchivedSpan], list_wal: ListWal) -> Iterator[PathSegment]:
    """Yield the path's segments in order, each with the objects that hold its WAL.

    Raises WalMissing at the first segment that they do not cover.
    """
    groups = [_Groups(span, path, list_wal, is_last=span is spans[-1]) for span in spans]
    for name in path.segment_names():
        number = name.number(path.segment_bytes)
        found: list[WalSource] = []
        # The newest writer first: where copies are equal, the one on the target's own timeline is asked.
        for group in reversed(groups):
            found += group.take(number)
        if len(found) > SOURCES_MAX:
            raise MalformedValue(f"{name} has more than {SOURCES_MAX} objects")
        segment = PathSegment(name, min(name.end(path.segment_bytes), path.end), tuple(found))
        hole = first_hole(segment, path.segment_bytes)
        if hole is not None:
            raise WalMissing(
                f"WAL of segment {name} is missing from {hole} on",
                detail=f"WAL up to {segment.needed_end} is needed; the segment has {len(found)} objects",
                hint="ask for an earlier target, or bring back the region that holds it",
            )
        yield segment


def first_hole(segment: PathSegment, segment_bytes: int) -> LSN | None:
    """Return where the first missing byte of the segment's needed WAL is; None if all is there."""
    position = segment.name.start_offset(segment_bytes)
    for source in sorted(segment.sources, key=lambda source: source.start):
        if source.start.offset > position:
            break
        position = max(position, source.until.offset)
    return LSN(position) if position < segment.needed_end.offset else None


class _Groups:
    """The sources of one span, taken segment by segment in ascending order."""

    def __init__(self, span: ArchivedSpan, path: WalPath, list_wal: ListWal, *, is_last: bool) -> None:
        self._span = span
        self._segment_bytes = path.segment_bytes
        # What the last writer wrote after the planned end does no harm: recovery stops before it.
        self._until = None if is_last else span.end
        self._first = span.start.offset // path.segment_bytes
        self._last = span.end.last_segment_number(path.segment_bytes)
        first_name = SegmentName.of(span.timeline, self._first, path.segment_bytes)
        self._keys = iter(list_wal(span.archive, span.timeline, first_name))
        self._next: PieceKey | SegmentKey | None = None
        self._is_begun = False

    def take(self, number: int) -> list[WalSource]:
        """Return the sources in segment ``number``; ask with ascending numbers only."""
        if not self._first <= number <= self._last:
            return []
        if not self._is_begun:
            self._is_begun = True
            self._next = next(self._keys, None)
        wholes: list[WalSource] = []
        pieces: list[WalSource] = []
        while self._next is not None:
            key = self._next
            at = key.segment.number(self._segment_bytes)
            if at > number:
                break
            if at == number:
                source = self._source(key)
                if source is not None:
                    (wholes if isinstance(key, SegmentKey) else pieces).append(source)
            self._next = next(self._keys, None)
        return wholes + pieces

    def _source(self, key: PieceKey | SegmentKey) -> WalSource | None:
        end = key.segment.end(self._segment_bytes)
        start = LSN(end.offset - self._segment_bytes)
        if isinstance(key, PieceKey):
            start, end = key.start, key.end
        until = end if self._until is None else min(end, self._until)
        return WalSource(key, start, end, until) if start < until else None
