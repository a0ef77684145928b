"""Timelines: one branch each of a cluster's history, and the history files that join them.

A history file says, for each ancestor, where this timeline left it.  So it answers which
timeline's WAL holds a given LSN on the way to a target, and no guess is ever needed.

Reference: PostgreSQL src/backend/access/transam/timeline.c; a timeline id is hexadecimal in
file names (lesson: readers that took it for decimal broke at timeline 10).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN

_HEX8 = re.compile(r"[0-9A-F]{8}")
_HISTORY_NAME = re.compile(r"([0-9A-F]{8})\.history")
# A file of one line per failover; a million of them is no history but an attack.
HISTORY_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, order=True, slots=True)
class TimelineId:
    """A timeline's number, from 1 to 2**32 - 1.  Larger is not later: branches have no order."""

    number: int

    def __post_init__(self) -> None:
        if not 0 < self.number < 1 << 32:
            raise MalformedValue(f"timeline out of range: {self.number}")

    @classmethod
    def parse(cls, text: str) -> TimelineId:
        """Read eight hexadecimal digits, as in a WAL segment's name."""
        if _HEX8.fullmatch(text) is None:
            raise MalformedValue(f"not a timeline: {text!r}")
        return cls(int(text, 16))

    def __str__(self) -> str:
        return f"{self.number:08X}"


@dataclass(frozen=True, slots=True)
class TimelineSwitch:
    """The ancestor ``timeline`` was left at ``lsn``: WAL at and after it belongs to the next one."""

    timeline: TimelineId
    lsn: LSN


@dataclass(frozen=True, slots=True)
class TimelineHistory:
    """The way to ``timeline``: its ancestors from the oldest on, each with the LSN where it was left."""

    timeline: TimelineId
    switches: tuple[TimelineSwitch, ...] = ()

    def __post_init__(self) -> None:
        last: TimelineSwitch | None = None
        for switch in self.switches:
            if switch.timeline == self.timeline or (last is not None and switch.timeline == last.timeline):
                raise MalformedValue(f"timeline {self.timeline} names an ancestor twice: {switch.timeline}")
            if last is not None and switch.lsn < last.lsn:
                raise MalformedValue(f"history of timeline {self.timeline} goes back at {switch.lsn}")
            last = switch

    @classmethod
    def parse(cls, timeline: TimelineId, content: bytes) -> TimelineHistory:
        """Read a history file: lines of parent timeline (decimal), switch LSN, reason.

        Raises MalformedValue.
        """
        if len(content) > HISTORY_BYTES_MAX:
            raise MalformedValue(
                f"history file of timeline {timeline} is larger than {HISTORY_BYTES_MAX} bytes"
            )
        switches = []
        # A restore point's name may hold what Unicode takes for the end of a line; PostgreSQL does not.
        for number, raw in enumerate(content.split(b"\n"), 1):
            line = raw.decode("utf-8", "replace").strip()
            if not line or line.startswith("#"):
                continue
            fields = line.split(None, 2)
            if len(fields) < 2 or not fields[0].isascii() or not fields[0].isdigit():
                raise MalformedValue(f"history file of timeline {timeline}, line {number}: {line!r}")
            switches.append(TimelineSwitch(TimelineId(int(fields[0])), LSN.parse(fields[1])))
        return cls(timeline, tuple(switches))

    def up_to(self, timeline: TimelineId) -> TimelineHistory:
        """Return the history of an ancestor; that of a timeline which is none has no switch."""
        for number, switch in enumerate(self.switches):
            if switch.timeline == timeline:
                return TimelineHistory(timeline, self.switches[:number])
        return self if timeline == self.timeline else TimelineHistory(timeline)

    def timeline_at(self, lsn: LSN) -> TimelineId:
        """Return the timeline whose WAL holds the byte at ``lsn`` on the way to this timeline."""
        for switch in self.switches:
            if lsn < switch.lsn:
                return switch.timeline
        return self.timeline

    def end_of(self, timeline: TimelineId) -> LSN | None:
        """Return where ``timeline`` was left; None if it is the last one.

        Raises MalformedValue if it is no ancestor.
        """
        if timeline == self.timeline:
            return None
        for switch in self.switches:
            if switch.timeline == timeline:
                return switch.lsn
        raise MalformedValue(f"timeline {timeline} is no ancestor of {self.timeline}")


def history_file_name(timeline: TimelineId) -> str:
    """Return the name that PostgreSQL asks for: ``00000002.history``."""
    return f"{timeline}.history"


def parse_history_file_name(name: str) -> TimelineId | None:
    """Return the timeline of a history file's name; None if it is no such name."""
    match = _HISTORY_NAME.fullmatch(name)
    return TimelineId(int(match[1], 16)) if match and int(match[1], 16) else None
