"""WAL records: the exact walk over contiguous WAL, each record's CRC checked.  Pure; the reader's side.

It costs some 5 CPU seconds per GiB, so the archiver, which sees all WAL, uses ``pitr.wal.scanner``.

Reference: PostgreSQL src/include/access/xlogrecord.h, src/backend/access/transam/xlogreader.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import google_crc32c

from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN
from pitr.wal.pages import PAGE_BYTES, PageHeader, WalGeometry, decode_page_header

RECORD_HEADER_BYTES = 24
# XLogRecordMaxSize: the server refuses to write a longer one.
RECORD_BYTES_MAX = 1020 * 1024 * 1024
RMGR_XLOG = 0
RMGR_TRANSACTION = 1
# XLR_RMGR_INFO_MASK: the lower bits are not the resource manager's.
INFO_MASK = 0xF0
XLOG_SWITCH = 0x40
_CRC_OFFSET = 20
_HEADER = struct.Struct("<IIQBB2xI")
_PEEK = struct.Struct("<16xBB")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class WalRecord:
    """One record from its header's LSN to PostgreSQL's EndRecPtr, where the next may begin.

    ``data`` is all that follows the 24-byte header: block headers, block data, main data.
    ``page_magic`` tells the format, and so the major version, of the page where it begins.
    """

    start: LSN
    end: LSN
    xid: int
    rmid: int
    info: int
    data: bytes
    page_magic: int


def iter_records(
    chunks: Iterable[tuple[LSN, bytes]], *, segment_bytes: int, rmids: frozenset[int] | None = None
) -> Iterator[WalRecord]:
    """Yield each record that lies wholly in contiguous WAL, given as (start, bytes) in order.

    With ``rmids`` only those of these resource managers: the others are stepped over, their CRC
    unchecked, some six times as fast.

    A record that begins before the first page boundary, and the rest of one that began before
    the first chunk, are left out.  The walk ends at zeros (padding), at the end of the chunks,
    and so before an unfinished record.  A record that a crash cut short, and that the server
    gave up (XLP_FIRST_IS_OVERWRITE_CONTRECORD), is left out.

    Raises MalformedValue if chunks do not join, or WAL is damaged: never taken for its end.
    """
    walk = _Walk(segment_bytes, rmids)
    for start, chunk in chunks:
        yield from walk.feed(start.offset, chunk)
        if walk.has_ended:
            return


class _Walk:
    """The state between two chunks: an unfinished page header, and the record bytes not yet yielded."""

    def __init__(self, segment_bytes: int, rmids: frozenset[int] | None) -> None:
        self._geometry = WalGeometry(segment_bytes)
        self._rmids = rmids
        self._next: int | None = None  # offset of the next byte to come
        self._header = b""  # the beginning of a page header
        self._open = bytearray()  # record bytes not yet yielded; the first of them at _position
        self._position = 0
        self._skip_bytes = 0  # record bytes still to come that belong to nothing yielded
        self._void_until = 0  # after a segment switch: nothing counts before this offset
        self._is_synced = False
        self._magic = 0
        self._record_magic = 0  # of the page where the open record begins
        self._previous: int | None = None  # byte position of the record before the open one
        self.has_ended = False

    def feed(self, start: int, chunk: bytes) -> Iterator[WalRecord]:
        if self._next is not None and start != self._next:
            raise MalformedValue(f"WAL does not join: {start:016X} follows {self._next:016X}")
        self._next = start + len(chunk)
        at = start - len(self._header)
        view = memoryview(self._header + chunk if self._header else chunk)
        self._header = b""
        while view and not self.has_ended:
            take = min(len(view), PAGE_BYTES - at % PAGE_BYTES)
            if at < self._void_until:
                pass  # stepped over as a whole: what follows a switch is void up to the segment's end
            elif at % PAGE_BYTES == 0:
                take = self._geometry.header_bytes(at)
                if len(view) < take:
                    self._header = bytes(view)
                    return
                self._turn_page(decode_page_header(view[:take], at, self._geometry), at)
            elif self._is_synced:
                self._append(view[:take])
                yield from self._complete_records()
            view = view[take:]
            at += take

    def _turn_page(self, header: PageHeader | None, at: int) -> None:
        if header is None:
            self.has_ended = True
            return
        self._magic = header.magic
        if not self._is_synced:
            self._is_synced = True
            self._position = self._geometry.position_of(at)
            self._skip_bytes = _aligned(header.remaining_bytes) if header.is_continued else 0
            return
        missing = self._skip_bytes or self._missing_bytes()
        if header.overwrites:
            # The server crashed before the rest of this record was safe, and began anew here.
            self._open.clear()
            self._position = self._geometry.position_of(at)
            self._skip_bytes = 0
            self._previous = None
        elif (_aligned(header.remaining_bytes) if header.is_continued else 0) != missing:
            raise MalformedValue(
                f"WAL page {at:016X} goes on with {header.remaining_bytes} bytes where {missing} are missing"
            )

    def _missing_bytes(self) -> int:
        """Return what an unfinished record lacks, alignment included; 0 if none is open."""
        return _aligned(_LENGTH.unpack_from(self._open)[0]) - len(self._open) if self._open else 0

    def _append(self, content: memoryview) -> None:
        skipped = min(self._skip_bytes, len(content))
        self._skip_bytes -= skipped
        self._position += skipped
        if not self._open:
            self._record_magic = self._magic
        self._open += content[skipped:]

    def _complete_records(self) -> Iterator[WalRecord]:
        """Yield what is complete and keep the rest."""
        used, available, unpack, wanted = 0, len(self._open), _PEEK.unpack_from, self._rmids
        while available - used >= _LENGTH.size:
            length = _LENGTH.unpack_from(self._open, used)[0]
            if length == 0:
                self.has_ended = True
                return
            if not RECORD_HEADER_BYTES <= length <= RECORD_BYTES_MAX:
                at = self._geometry.start_at(self._position + used)
                raise MalformedValue(f"WAL record of {length} bytes at {at:016X}")
            if available - used < length:
                break
            info, rmid = unpack(self._open, used)
            is_switch = rmid == RMGR_XLOG and info & INFO_MASK == XLOG_SWITCH
            if is_switch or wanted is None or rmid in wanted:
                record = self._decode(used, length)
                if wanted is None or rmid in wanted:
                    yield record
                if is_switch:
                    self._previous = self._position + used
                    self._void_until = record.end.offset
                    self._open.clear()
                    self._position = self._geometry.position_of(record.end.offset)
                    return
            self._previous = self._position + used
            self._record_magic = self._magic
            used += (length + 7) & ~7
        # The padding is the record's, but a record is whole without it.
        self._skip_bytes += max(used - available, 0)
        self._position += min(used, available)
        del self._open[:used]

    def _decode(self, used: int, length: int) -> WalRecord:
        raw = bytes(memoryview(self._open)[used : used + length])
        _, xid, previous, info, rmid, crc = _HEADER.unpack_from(raw)
        position_of_end = self._position + used + _aligned(length)
        start = self._geometry.start_at(self._position + used)
        end = self._geometry.end_at(position_of_end)
        if google_crc32c.extend(google_crc32c.value(raw[RECORD_HEADER_BYTES:]), raw[:_CRC_OFFSET]) != crc:
            raise MalformedValue(f"WAL record at {start:016X} has a wrong CRC")
        if self._previous is not None and self._geometry.start_at(self._previous) != previous:
            raise MalformedValue(f"WAL record at {start:016X} does not follow the one before it")
        if rmid == RMGR_XLOG and info & INFO_MASK == XLOG_SWITCH:
            # The rest of the segment is void, and EndRecPtr the segment's end.
            end = -(-end // self._geometry.segment_bytes) * self._geometry.segment_bytes
        return WalRecord(LSN(start), LSN(end), xid, rmid, info, raw[RECORD_HEADER_BYTES:], self._record_magic)


def _aligned(length: int) -> int:
    """Round up to 8: MAXALIGN, as on every 64-bit platform."""
    return (length + 7) & ~7
