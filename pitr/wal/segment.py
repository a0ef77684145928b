"""WAL segments: the files that WAL is cut into, by name and by number.

Reference: PostgreSQL src/include/access/xlog_internal.h (XLogFileName, XLogSegNo).  The
segment size is a property of the cluster (initdb --wal-segsize), never assumed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

SEGMENT_BYTES_MIN = 1 << 20
SEGMENT_BYTES_MAX = 1 << 30
_NAME = re.compile(r"[0-9A-F]{24}")


def check_segment_bytes(segment_bytes: int) -> int:
    """Return ``segment_bytes`` if a cluster can have it: a power of two, 1 MiB to 1 GiB.

    Raises MalformedValue.
    """
    if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX or segment_bytes & (segment_bytes - 1):
        raise MalformedValue(f"not a WAL segment size: {segment_bytes}")
    return segment_bytes


@dataclass(frozen=True, order=True, slots=True)
class SegmentName:
    """A segment by timeline and the two halves of its name; its number needs the segment size."""

    timeline: TimelineId
    high: int
    low: int

    @classmethod
    def parse(cls, text: str) -> SegmentName:
        """Read 24 upper-case hexadecimal digits.  Raises MalformedValue."""
        if _NAME.fullmatch(text) is None:
            raise MalformedValue(f"not a WAL segment's name: {text!r}")
        return cls(TimelineId(int(text[:8], 16)), int(text[8:16], 16), int(text[16:], 16))

    @classmethod
    def of(cls, timeline: TimelineId, number: int, segment_bytes: int) -> SegmentName:
        """Return the name of segment ``number`` (LSN offset // segment size)."""
        per_high = (1 << 32) // check_segment_bytes(segment_bytes)
        return cls(timeline, number // per_high, number % per_high)

    @classmethod
    def holding(cls, timeline: TimelineId, lsn: LSN, segment_bytes: int) -> SegmentName:
        """Return the segment that holds the byte at ``lsn``."""
        return cls.of(timeline, lsn.offset // segment_bytes, segment_bytes)

    def __str__(self) -> str:
        return f"{self.timeline}{self.high:08X}{self.low:08X}"

    def number(self, segment_bytes: int) -> int:
        """Return the segment's number.  Raises MalformedValue if no segment of that size has this name."""
        per_high = (1 << 32) // check_segment_bytes(segment_bytes)
        if self.low >= per_high:
            raise MalformedValue(f"{self} is no name of a segment of {segment_bytes} bytes")
        return self.high * per_high + self.low

    def start_offset(self, segment_bytes: int) -> int:
        """Return the offset of the segment's first byte; an int, for that of segment 0 is no LSN."""
        return self.number(segment_bytes) * segment_bytes

    def end(self, segment_bytes: int) -> LSN:
        """Return the first LSN after the segment."""
        return LSN((self.number(segment_bytes) + 1) * segment_bytes)
