"""WAL pages: where on a page records lie, and the arithmetic between record bytes and LSNs.  Pure.

WAL is a stream of record bytes cut into pages; each page begins with a header that the stream
steps over.  A *byte position* counts record bytes only, so that a record that crosses pages is
contiguous in it.

Reference: PostgreSQL src/include/access/xlog_internal.h (XLogPageHeaderData,
XLogLongPageHeaderData) and src/backend/access/transam/xlog.c (XLogBytePosToRecPtr).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pitr.errors import MalformedValue
from pitr.wal.segment import check_segment_bytes

# XLOG_BLCKSZ.  A server built with another one says so in each segment's first page, and is refused.
PAGE_BYTES = 8192
SHORT_HEADER_BYTES = 24
LONG_HEADER_BYTES = 40
# XLogPageHeaderData.xlp_info
FIRST_IS_CONTRECORD = 0x0001
LONG_HEADER = 0x0002
FIRST_IS_OVERWRITE_CONTRECORD = 0x0008
_ALL_FLAGS = 0x000F
# XLOG_PAGE_MAGIC of PostgreSQL 15 is 0xD110, of 16 0xD113, of 17 0xD116, of 18 0xD118.
PAGE_MAGIC_18 = 0xD118
_MAGIC_FAMILY = 0xD1
_SHORT = struct.Struct("<HHIQI4x")
_LONG = struct.Struct("<QII")


@dataclass(frozen=True, slots=True)
class PageHeader:
    """One page's header; ``remaining_bytes`` are those of a record that began on an earlier page."""

    magic: int
    flags: int
    timeline: int
    remaining_bytes: int

    @property
    def is_continued(self) -> bool:
        """Say whether the page begins with the rest of a record."""
        return bool(self.flags & FIRST_IS_CONTRECORD)

    @property
    def overwrites(self) -> bool:
        """Say whether the record that was open before this page was lost in a crash, and is given up."""
        return bool(self.flags & FIRST_IS_OVERWRITE_CONTRECORD)


@dataclass(frozen=True, slots=True)
class WalGeometry:
    """The arithmetic of one cluster's WAL, on plain offsets: it is the hot path."""

    segment_bytes: int

    def __post_init__(self) -> None:
        check_segment_bytes(self.segment_bytes)

    @property
    def _segment_usable(self) -> int:
        pages = self.segment_bytes // PAGE_BYTES
        return pages * (PAGE_BYTES - SHORT_HEADER_BYTES) - (LONG_HEADER_BYTES - SHORT_HEADER_BYTES)

    def header_bytes(self, offset: int) -> int:
        """Return the size of the header of the page that holds ``offset``."""
        return LONG_HEADER_BYTES if offset % self.segment_bytes < PAGE_BYTES else SHORT_HEADER_BYTES

    def position_of(self, offset: int) -> int:
        """Return the byte position of an LSN; one within a page header is the page's first record byte."""
        segment, within = divmod(offset, self.segment_bytes)
        page, in_page = divmod(within, PAGE_BYTES)
        before = 0
        if page:
            before = page * (PAGE_BYTES - SHORT_HEADER_BYTES) - (LONG_HEADER_BYTES - SHORT_HEADER_BYTES)
        header = SHORT_HEADER_BYTES if page else LONG_HEADER_BYTES
        return segment * self._segment_usable + before + max(in_page - header, 0)

    def start_at(self, position: int) -> int:
        """Return the LSN of the record byte at ``position``: never within a page header."""
        segment, within = divmod(position, self._segment_usable)
        first_page = PAGE_BYTES - LONG_HEADER_BYTES
        if within < first_page:
            return segment * self.segment_bytes + LONG_HEADER_BYTES + within
        page, in_page = divmod(within - first_page, PAGE_BYTES - SHORT_HEADER_BYTES)
        return segment * self.segment_bytes + (page + 1) * PAGE_BYTES + SHORT_HEADER_BYTES + in_page

    def end_at(self, position: int) -> int:
        """Return the LSN after the record byte before ``position``: never the next page's start."""
        return self.start_at(position - 1) + 1


def decode_page_header(raw: bytes | memoryview, offset: int, geometry: WalGeometry) -> PageHeader | None:
    """Read the header of the page at ``offset`` from its first 24 or 40 bytes; None for a page of zeros.

    Raises MalformedValue if it is no header, or one of another place.
    """
    magic, flags, timeline, address, remaining = _SHORT.unpack_from(raw)
    if magic == 0 and address == 0 and flags == 0:
        return None
    is_first = offset % geometry.segment_bytes == 0
    if magic >> 8 != _MAGIC_FAMILY or flags & ~_ALL_FLAGS or bool(flags & LONG_HEADER) != is_first:
        raise MalformedValue(f"no WAL page at {offset >> 32:X}/{offset & 0xFFFFFFFF:X}: magic {magic:04X}")
    if address != offset:
        raise MalformedValue(f"WAL page of {address:016X} stands at {offset:016X}")
    if is_first:
        _, segment_bytes, page_bytes = _LONG.unpack_from(raw, SHORT_HEADER_BYTES)
        if segment_bytes != geometry.segment_bytes or page_bytes != PAGE_BYTES:
            raise MalformedValue(
                f"WAL of {segment_bytes}-byte segments and {page_bytes}-byte pages at {offset:016X};"
                f" {geometry.segment_bytes} and {PAGE_BYTES} are expected"
            )
    return PageHeader(magic, flags, timeline, remaining)


def segment_system_identifier(segment_start: bytes | memoryview) -> int:
    """Return the system identifier in a segment's first page, of which 40 bytes are needed.

    Raises MalformedValue if they are no long page header.
    """
    if len(segment_start) < LONG_HEADER_BYTES or not _SHORT.unpack_from(segment_start)[1] & LONG_HEADER:
        raise MalformedValue("no WAL segment begins here")
    return int(_LONG.unpack_from(segment_start, SHORT_HEADER_BYTES)[0])
