"""The WAL path of a restore: which files recovery may ask for, and which answer each name gets.  Pure.

PostgreSQL takes exit codes 1 to 125 of a ``restore_command`` for "the archive has no such file", and
then ends recovery and opens the cluster.  So "no" is said only for names that the plan itself leaves
out; whatever the plan names and cannot be had is *doubt*, which must stop recovery.

Reference: PostgreSQL src/backend/access/transam/xlogarchive.c (RestoreArchivedFile) and
xlogrecovery.c (XLogFileReadAnyTLI: the newest timeline whose first segment is not later is asked first).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from pitr.errors import MalformedValue
from pitr.layout import PieceKey, SegmentKey
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName, check_segment_bytes
from pitr.wal.timeline import TimelineId, parse_history_file_name

EXIT_DELIVERED = 0
EXIT_OUTSIDE_PATH = 1
# Above 125, so that recovery stops; no number that a shell uses itself (126, 127, 128 + signal).
EXIT_DOUBT = 200

# Backup history files and partial segments: names that PostgreSQL knows and that no plan holds.
_NEVER_HELD = re.compile(r"[0-9A-F]{24}(?:\.[0-9A-F]{8}\.backup|\.partial)")


@dataclass(frozen=True, slots=True)
class WalSource:
    """One stored object that holds WAL from ``start`` to ``end``, of which the bytes before ``until`` count.

    ``until`` lies before ``end`` where a timeline or a writer was left in mid-object.
    """

    key: PieceKey | SegmentKey
    start: LSN
    end: LSN
    until: LSN

    def __post_init__(self) -> None:
        if not self.start < self.until <= self.end:
            raise MalformedValue(f"{self.key} is used from {self.start} to {self.until}, out of its range")


@dataclass(frozen=True, slots=True)
class PathSegment:
    """One WAL segment of the path: WAL up to ``needed_end`` must be there, whole but for the path's last."""

    name: SegmentName
    needed_end: LSN
    sources: tuple[WalSource, ...]


@dataclass(frozen=True, slots=True)
class PathSpan:
    """The segments ``first`` to ``last`` (numbers, both included) that recovery reads from one timeline."""

    timeline: TimelineId
    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last:
            raise MalformedValue(
                f"WAL path of timeline {self.timeline} goes from {self.first} to {self.last}"
            )


@dataclass(frozen=True, slots=True)
class HistoryFile:
    """A timeline history file, as recovery gets it."""

    timeline: TimelineId
    content: bytes


@dataclass(frozen=True, slots=True)
class WalPath:
    """The way of one recovery: spans that follow each other without a gap, and the history files on it.

    ``end``: WAL before this LSN is needed, later WAL is not part of the plan.  ``taken`` are the history
    files of all other timelines that the cluster ever had: their numbers must not be given again.
    """

    system_identifier: int
    segment_bytes: int
    spans: tuple[PathSpan, ...]
    histories: tuple[HistoryFile, ...]
    end: LSN
    taken: tuple[HistoryFile, ...] = ()

    def __post_init__(self) -> None:
        check_segment_bytes(self.segment_bytes)
        if not self.spans:
            raise MalformedValue("a WAL path without a segment")
        for before, after in pairwise(self.spans):
            if after.first != before.last + 1 or after.timeline == before.timeline:
                raise MalformedValue(f"WAL path breaks between {before} and {after}")
        if self.end.last_segment_number(self.segment_bytes) != self.spans[-1].last:
            raise MalformedValue(f"WAL path ends at {self.end}, outside its last segment")

    @property
    def first_segment(self) -> SegmentName:
        span = self.spans[0]
        return SegmentName.of(span.timeline, span.first, self.segment_bytes)

    @property
    def last_segment(self) -> SegmentName:
        span = self.spans[-1]
        return SegmentName.of(span.timeline, span.last, self.segment_bytes)

    def name_of(self, number: int) -> SegmentName | None:
        """Return the name under which recovery asks for a segment; None if that is not on the path."""
        for span in self.spans:
            if span.first <= number <= span.last:
                return SegmentName.of(span.timeline, number, self.segment_bytes)
        return None

    def segment_names(self) -> Iterable[SegmentName]:
        """Yield the names of the path's segments in the order of replay."""
        for span in self.spans:
            for number in range(span.first, span.last + 1):
                yield SegmentName.of(span.timeline, number, self.segment_bytes)


@dataclass(frozen=True, slots=True)
class ServeSegment:
    """The plan names this segment, so it must be delivered.  ``is_last``: zeros may follow its WAL."""

    segment: SegmentName
    is_last: bool


@dataclass(frozen=True, slots=True)
class ServeHistory:
    """The plan names this history file and holds its content."""

    history: HistoryFile


@dataclass(frozen=True, slots=True)
class OutsidePath:
    """The plan leaves this name out: recovery shall do without it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Doubt:
    """Nothing certain can be said: recovery must stop.

    ``ends_standby``: a standby, too, must not go on, for it would get the same WAL from its primary.
    """

    reason: str
    ends_standby: bool = False


Decision: TypeAlias = ServeSegment | ServeHistory | OutsidePath | Doubt


def decide(name: str, path: WalPath, *, is_standby: bool = False) -> Decision:
    """Return what to answer when PostgreSQL asks for ``name``.

    A server that is promoted takes the number after the last one that has a history file
    (timeline.c, findNewestTimeLine), so it is shown those of other branches as well.  Not so a
    standby: it follows the newest timeline that it finds, and must find none but its own.
    """
    timeline = parse_history_file_name(name)
    if timeline is not None:
        for history in path.histories + (() if is_standby else path.taken):
            if history.timeline == timeline:
                return ServeHistory(history)
        return OutsidePath(f"timeline {timeline} is not on the way to the target")
    if _NEVER_HELD.fullmatch(name):
        return OutsidePath(f"recovery to a target does not use {name}")
    try:
        segment = SegmentName.parse(name)
        number = segment.number(path.segment_bytes)
    except MalformedValue as wrong:
        return Doubt(wrong.message)
    return _decide_segment(segment, number, path)


def _decide_segment(segment: SegmentName, number: int, path: WalPath) -> Decision:
    for span in path.spans:
        if span.timeline == segment.timeline and span.first <= number <= span.last:
            return ServeSegment(segment, is_last=span is path.spans[-1] and number == span.last)
    if number < path.spans[0].first and segment.timeline == path.spans[0].timeline:
        # The backup says where its WAL begins.  A server that asks for earlier WAL reads another
        # backup_label than the planner did.
        return Doubt(f"{segment} lies before the backup's first segment {path.first_segment}")
    if number > path.spans[-1].last:
        return OutsidePath(f"{segment} lies after the plan's last segment {path.last_segment}")
    return OutsidePath(f"timeline {segment.timeline} does not hold segment {number} on the way to the target")


def exit_code(decision: Decision, *, is_delivered: bool, is_standby: bool) -> int:
    """Return the exit code of ``restore_command``.

    A standby asks again and again and would be shut down by any code above 125 (measured), and it never
    promotes by itself; so to a standby doubt is "not now", unless waiting would not save it.
    """
    if isinstance(decision, ServeSegment | ServeHistory) and is_delivered:
        return EXIT_DELIVERED
    if isinstance(decision, Doubt) and decision.ends_standby:
        return EXIT_DOUBT
    return EXIT_OUTSIDE_PATH if isinstance(decision, OutsidePath) or is_standby else EXIT_DOUBT
