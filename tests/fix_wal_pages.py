"""WAL made up record by record, for tests of its walk and scan: pages as PostgreSQL 17 writes them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import google_crc32c

from pitr.wal.pages import (
    FIRST_IS_CONTRECORD,
    FIRST_IS_OVERWRITE_CONTRECORD,
    LONG_HEADER,
    PAGE_BYTES,
    WalGeometry,
)

MAGIC_17 = 0xD116
SYSTEM = 7301234567890123456
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def record_bytes(data: bytes, *, previous: int, rmid: int = 10, info: int = 0, xid: int = 700) -> bytes:
    """One record with its CRC, without padding."""
    head = struct.pack("<IIQBB2x", 24 + len(data), xid, previous, info, rmid)
    return head + struct.pack("<I", google_crc32c.extend(google_crc32c.value(data), head)) + data


def main_data(content: bytes, *, origin: bool = False, toplevel: bool = False) -> bytes:
    """Main data behind its header, as a record without blocks has it."""
    head = (b"\xfd\x01\x00" if origin else b"") + (b"\xfc" + bytes(4) if toplevel else b"")
    if len(content) < 256:
        return head + bytes([255, len(content)]) + content
    return head + b"\xfe" + struct.pack("<I", len(content)) + content


def time_bytes(second: float) -> bytes:
    """A TimestampTz, in seconds since 2026-11-23 12:00 UTC."""
    at = datetime(2026, 11, 23, 12, tzinfo=UTC) + timedelta(seconds=second)
    return struct.pack("<q", (at - EPOCH) // timedelta(microseconds=1))


@dataclass
class Laid:
    """Where a record was laid."""

    start: int
    last: int  # offset after its last byte
    end: int  # EndRecPtr


@dataclass
class WalWriter:
    """Lays records on pages from ``start`` on, which must be a page's start."""

    start: int
    segment_bytes: int = 1 << 20
    timeline: int = 1
    wal: bytearray = field(default_factory=bytearray)
    previous: int = 0

    def __post_init__(self) -> None:
        self.geometry = WalGeometry(self.segment_bytes)

    @property
    def at(self) -> int:
        return self.start + len(self.wal)

    def header(self, flags: int, remaining: int) -> None:
        is_long = self.at % self.segment_bytes == 0
        flags |= LONG_HEADER if is_long else 0
        self.wal += struct.pack("<HHIQI4x", MAGIC_17, flags, self.timeline, self.at, remaining)
        if is_long:
            self.wal += struct.pack("<QII", SYSTEM, self.segment_bytes, PAGE_BYTES)

    def record(self, data: bytes, *, rmid: int = 10, info: int = 0, xid: int = 700) -> Laid:
        """Lay one record, across pages where it must."""
        if self.at % PAGE_BYTES == 0:
            self.header(0, 0)
        start = self.at
        left = record_bytes(data, previous=self.previous, rmid=rmid, info=info, xid=xid)
        while left:
            room = PAGE_BYTES - self.at % PAGE_BYTES
            self.wal += left[:room]
            left = left[room:]
            if left:
                self.header(FIRST_IS_CONTRECORD, len(left))
        last = self.at
        self.wal += bytes(-self.at % 8)
        self.previous = start
        return Laid(start, last, self.at)

    def commit(self, second: float, *, xid: int = 700, size: int = 0, info: int = 0, **head: bool) -> Laid:
        """Lay the record of a commit, ``size`` bytes longer than it need be."""
        return self.record(main_data(time_bytes(second) + bytes(size), **head), rmid=1, info=info, xid=xid)

    def cut_short(self, data: bytes) -> None:
        """Begin a record that a crash ends at the page's end, and begin anew after it."""
        if self.at % PAGE_BYTES == 0:
            self.header(0, 0)
        raw = record_bytes(data, previous=self.previous, rmid=1)
        room = PAGE_BYTES - self.at % PAGE_BYTES
        assert len(raw) > room
        self.wal += raw[:room]
        self.header(FIRST_IS_OVERWRITE_CONTRECORD, 0)

    def switch(self) -> Laid:
        """End the segment."""
        laid = self.record(b"", rmid=0, info=0x40)
        rest = -self.at % self.segment_bytes
        self.wal += bytes(rest)
        return Laid(laid.start, laid.last, self.at)

    def fill_to(self, in_page: int) -> None:
        """Lay a record so that the next one begins at ``in_page`` of a page."""
        if self.at % PAGE_BYTES == 0:
            self.header(0, 0)
        target = self.at + (in_page - self.at) % PAGE_BYTES
        while (room := self.geometry.position_of(target) - self.geometry.position_of(self.at)) < 24:
            target += PAGE_BYTES
        self.record(bytes(room - 24))
        assert self.at % PAGE_BYTES == in_page
