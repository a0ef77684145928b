"""Files that PostgreSQL hands to ``archive_command``: their names, and what to do with each.  Pure.

A segment continues the archive, repeats what it has, waits for what is missing before it, or belongs to
another past.  Reference: PostgreSQL src/include/access/xlog_internal.h, src/backend/postmaster/pgarch.c.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pitr.errors import MalformedValue
from pitr.wal.follow import HINT_FORK, ArchiveFork, ReceivedEnd, run_after, segment_start, timeline_after
from pitr.wal.lsn import LSN
from pitr.wal.pages import LONG_HEADER, LONG_HEADER_BYTES
from pitr.wal.pieces import RunStart
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineHistory, TimelineId, parse_history_file_name

_NAME = re.compile(r"([0-9A-F]{24})(\.partial|\.[0-9A-F]{8}\.backup)?")
_FIRST_PAGE = struct.Struct("<HHIQI4xQII")


class HandedKind(StrEnum):
    """What a file holds, by its name."""

    SEGMENT = "segment"
    PARTIAL = "partial"
    HISTORY = "history"
    LABEL = "label"


@dataclass(frozen=True, slots=True)
class HandedName:
    """The name of a file that was handed over; ``segment`` is None for a history file."""

    text: str
    kind: HandedKind
    timeline: TimelineId
    segment: SegmentName | None

    @property
    def order(self) -> tuple[bool, str]:
        """PostgreSQL's own order: history files first, then by name."""
        return self.kind is not HandedKind.HISTORY, self.text


def parse_handed_name(text: str) -> HandedName | None:
    """Return what a file is; None if ``archive_command`` is never called with such a name."""
    timeline = parse_history_file_name(text)
    if timeline is not None:
        return HandedName(text, HandedKind.HISTORY, timeline, None)
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    try:
        segment = SegmentName.parse(match[1])
    except MalformedValue:
        return None
    suffix = match[2] or ""
    kind = HandedKind.SEGMENT
    if suffix:
        kind = HandedKind.PARTIAL if suffix == ".partial" else HandedKind.LABEL
    return HandedName(text, kind, segment.timeline, segment)


def first_page_fault(
    page: bytes | memoryview, segment: SegmentName, *, system_identifier: int, segment_bytes: int
) -> str | None:
    """Return why a file cannot be ``segment`` of this cluster, by its first page; None if it can be."""
    if len(page) < LONG_HEADER_BYTES:
        return "it is no WAL segment"
    _, flags, _, address, _, identifier, size, _ = _FIRST_PAGE.unpack_from(page)
    if not flags & LONG_HEADER or address != segment.start_offset(segment_bytes):
        return "its first page is not that of this segment"
    if identifier != system_identifier:
        return f"it is of another cluster, with system identifier {identifier}"
    if size != segment_bytes:
        return f"its segments have {size} bytes, the archive's {segment_bytes}"
    return None


@dataclass(frozen=True, slots=True)
class Known:
    """The archive has been here: what it holds up to ``end`` must be the same."""

    end: LSN


@dataclass(frozen=True, slots=True)
class Feed:
    """What the archive lacks: the file from the start of ``run``, up to ``end``.

    ``is_next`` says that it goes on where the archive ended, on a segment's boundary of one timeline.
    """

    run: RunStart
    end: LSN
    is_next: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Something must come first.  ``is_gap``: WAL before it, and maybe never."""

    reason: str
    is_gap: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """This is not the archive's WAL."""

    reason: str


Step = Known | Feed | Wait | Refuse


def handed_end(
    name: HandedName, histories: Mapping[TimelineId, TimelineHistory], segment_bytes: int
) -> LSN | None:
    """Return where the WAL of a file ends; None if no history says so yet.

    A ``.partial`` file is as long as any other, but after the switch it holds what lay there before.  Where
    several timelines left this one in the segment, nobody knows which of them the file's server is on: it is
    right up to the first switch, and the next timeline's first segment repeats what comes after.
    """
    assert name.segment is not None
    start, end = name.segment.start_offset(segment_bytes), name.segment.end(segment_bytes)
    if name.kind is not HandedKind.PARTIAL:
        return end
    switches = (switch for history in histories.values() for switch in history.switches)
    ends = [one.lsn for one in switches if one.timeline == name.timeline and start < one.lsn.offset]
    return min((lsn for lsn in ends if lsn <= end), default=None)


def next_step(
    name: HandedName,
    received: ReceivedEnd | None,
    histories: Mapping[TimelineId, TimelineHistory],
    *,
    segment_bytes: int,
) -> Step:
    """Decide what becomes of a segment, given where the archive ends and the known history files."""
    assert name.segment is not None
    start = LSN(name.segment.start_offset(segment_bytes))
    end = handed_end(name, histories, segment_bytes)
    if end is None:
        return Wait("no history file says where it ends")
    if received is None:
        return Feed(RunStart(name.timeline, start, None, follows=False), end)
    if name.timeline == received.timeline:
        return _on_same(received, start, end)
    own = _history(name.timeline, histories)
    if own is None:
        return Wait(f"the history file of timeline {name.timeline} has not come")
    left_at = _left_at(own, received.timeline)
    if left_at is not None:
        return _on_later(own, received, left_at, start, end, segment_bytes)
    past = _history(received.timeline, histories)
    left_at = None if past is None else _left_at(past, name.timeline)
    if left_at is None:
        return Refuse(f"timeline {name.timeline} and the archive's, {received.timeline}, have other pasts")
    if end > left_at:
        return Refuse(f"the archive left timeline {name.timeline} at {left_at}")
    return Known(end)


def step_on_fork(
    name: HandedName, fork: ArchiveFork, since: LSN | None, end: LSN, *, segment_bytes: int
) -> Step:
    """Decide on a segment of a timeline that left the archive below its end, in a failover that lost WAL.

    ``since`` is where the archive's WAL begins that has no hole up to its end, ``end`` the segment's end.
    What is missing is no gap to begin anew after: PostgreSQL offers the timeline's first segment first.
    """
    assert name.segment is not None
    start = LSN(name.segment.start_offset(segment_bytes))
    run = run_after(fork, since, segment_bytes=segment_bytes)
    if name.timeline != fork.following:
        return Wait(f"WAL of timeline {fork.following} is missing")
    if start < run.start:
        return Refuse(f"timeline {name.timeline} begins at {fork.follows_at}")
    if start > run.start:
        return Wait(f"WAL from {fork.follows_at} to {start} is missing")
    return Feed(run, end)


def _on_same(received: ReceivedEnd, start: LSN, end: LSN) -> Step:
    if end <= received.end:
        return Known(end)
    if received.end < start:
        return Wait(f"WAL from {received.end} to {start} is missing", is_gap=True)
    known_to = received.end if start < received.end else None
    return Feed(RunStart(received.timeline, start, known_to, follows=True), end, is_next=known_to is None)


def _on_later(
    history: TimelineHistory, received: ReceivedEnd, left_at: LSN, start: LSN, end: LSN, segment_bytes: int
) -> Step:
    """Decide on a segment of a timeline that branched off the archive's."""
    timeline = history.timeline
    if left_at < received.end:
        return Refuse(
            f"timeline {timeline} left the archive's at {left_at}, below its end {received.end}: {HINT_FORK}"
        )
    # The first segment of a timeline repeats the one before it up to the switch.
    first = segment_start(left_at, segment_bytes)
    following = timeline_after(history, received.timeline)
    if received.end < left_at:
        if following == timeline and start == first <= received.end:
            known_to = received.end if start < received.end else None
            return Feed(RunStart(received.timeline, start, known_to, follows=True), left_at)
        return Wait(f"WAL from {received.end} to {left_at} is missing", is_gap=True)
    if following != timeline:
        return Wait(f"WAL of timeline {following} is missing", is_gap=True)
    if start == first:
        return Feed(RunStart(timeline, start, None, follows=True), end)
    if start < first:
        return Refuse(f"timeline {timeline} begins at {left_at}")
    return Wait(f"WAL from {left_at} to {start} is missing", is_gap=True)


def _history(timeline: TimelineId, histories: Mapping[TimelineId, TimelineHistory]) -> TimelineHistory | None:
    return TimelineHistory(timeline) if timeline.number == 1 else histories.get(timeline)


def _left_at(history: TimelineHistory, timeline: TimelineId) -> LSN | None:
    return next((one.lsn for one in history.switches if one.timeline == timeline), None)
