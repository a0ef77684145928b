"""Tablespaces that WAL makes: the records of CREATE TABLESPACE, found without walking all records.  Pure.

Such a record names a directory of the primary's host, and replay links the cluster to it whatever is there.
They are looked for as transaction ends are (``pitr.wal.candidates``): in all words at once, and what looks
like one is proved by walking to it from its page's first record and by its CRC.

Reference: PostgreSQL src/include/commands/tablespace.h (xl_tblspc_create_rec), src/backend/commands/
tablespace.c (tblspc_redo, create_tablespace_directories); the same in 15 to 18.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from pitr.errors import MalformedValue
from pitr.wal.candidates import Window
from pitr.wal.lsn import LSN
from pitr.wal.pages import LONG_HEADER_BYTES, PAGE_BYTES, WalGeometry
from pitr.wal.records import RECORD_BYTES_MAX, RECORD_HEADER_BYTES
from pitr.wal.transactions import DATA_LONG, DATA_SHORT, ORIGIN, TOPLEVEL_XID

# RM_TBLSPC_ID; XLOG_TBLSPC_CREATE is 0x00, and the lower half of that byte is not the resource manager's.
_RMGR_TABLESPACE: Final = 5
_OID_BYTES: Final = 4
# MAXPGPATH: the server refuses a longer location.
_LOCATION_BYTES_MAX: Final = 1024
_ORIGIN_BYTES, _TOPLEVEL_XID_BYTES, _SHORT_BYTES, _LONG_BYTES = 3, 5, 2, 5
_LENGTH_MIN: Final = RECORD_HEADER_BYTES + _SHORT_BYTES + _OID_BYTES + 1
CREATION_BYTES_MAX: Final = (
    RECORD_HEADER_BYTES + _ORIGIN_BYTES + _TOPLEVEL_XID_BYTES + _LONG_BYTES + _OID_BYTES + _LOCATION_BYTES_MAX
)
# The record before is not further away than the longest one, or the segment that a switch ended.
_PREVIOUS_BYTES_MAX: Final = 2 * RECORD_BYTES_MAX
# Words per step: the temporaries stay in the processor's cache.
_STEP_WORDS: Final = 32 * 1024
_MASK: Final = np.uint64(0xFFFF_FFF0)
_PREFIX: Final = np.uint64(_RMGR_TABLESPACE << 8)
_HEADER: Final = struct.Struct("<IIQBB2xI")
_UINT32: Final = struct.Struct("<I")
_CRC_OFFSET: Final = 20
_THIRD_WORD: Final = 16


@dataclass(frozen=True, slots=True)
class MadeTablespace:
    """One CREATE TABLESPACE in WAL: where its record begins, and after which byte it ends.

    ``location`` is the directory on the primary's host; empty for one that lies in the data directory.
    """

    start: LSN
    end: LSN
    oid: int
    location: bytes


def find_made(geometry: WalGeometry, start: int, content: bytes | memoryview) -> list[MadeTablespace]:
    """Return those whose record lies whole in ``content``, which begins with the page at ``start``; by LSN.

    Raises MalformedValue for a record that is one and cannot be read.
    """
    window = Window(geometry, start, content)
    words = np.frombuffer(content, np.dtype("<u8"), len(content) // 8)
    found = []
    for hit in _likely(words, start, _hits(words)).tolist():
        made = _read(window, start + hit * 8)
        if made is not None:
            found.append(made)
    return found


def find_made_across(geometry: WalGeometry, boundary: int, tail: bytes, head: bytes) -> list[MadeTablespace]:
    """Return the one whose record begins before ``boundary``, a segment's start, and ends after it.

    ``tail`` is the last page before it and ``head`` the first after it: no such record is longer.
    """
    found = find_made(geometry, boundary - len(tail), tail + head)
    return [made for made in found if made.end.offset > boundary]


def may_end_one(geometry: WalGeometry, boundary: int, head: bytes) -> bool:
    """Say whether a segment's first page may hold the end of such a record that began before it.

    Says yes too often, and never no where there is one: it spares the look at the segment before.
    """
    header = Window(geometry, boundary, head).header(boundary)
    if header is None or not header.is_continued:
        return False
    if not 0 < header.remaining_bytes <= CREATION_BYTES_MAX:
        return False
    rest = head[LONG_HEADER_BYTES : LONG_HEADER_BYTES + header.remaining_bytes]
    # It ends with the location and one zero.  A zero before belongs to the header, or the OID, after which
    # the location begins.
    _, zero, location = rest[:-1].rpartition(b"\0")
    return rest[-1] == 0 and (b"/" in location if zero else location != b"" or len(rest) == 1)


def _hits(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the indexes of the words that can be the third of such a record's header."""
    masked = np.empty(_STEP_WORDS, np.uint64)
    is_hit = np.empty(_STEP_WORDS, np.bool_)
    hits = [np.empty(0, np.int64)]
    for start in range(0, len(words), _STEP_WORDS):
        step = words[start : start + _STEP_WORDS]
        np.bitwise_and(step, _MASK, out=masked[: len(step)])
        np.equal(masked[: len(step)], _PREFIX, out=is_hit[: len(step)])
        hits.append(np.flatnonzero(is_hit[: len(step)]) + start)
    return np.concatenate(hits)


def _likely(words: npt.NDArray[np.uint64], start: int, hits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Leave out the hits before which no header stands; one that begins on the page before is kept."""
    is_inner = hits * 8 % PAGE_BYTES >= LONG_HEADER_BYTES + _THIRD_WORD
    inner = hits[is_inner]
    sizes = words[inner - 2] & np.uint64(0xFFFF_FFFF)
    distances = (start + inner * 8 - _THIRD_WORD).astype(np.uint64) - words[inner - 1]
    fits = (sizes >= _LENGTH_MIN) & (sizes <= CREATION_BYTES_MAX)
    fits &= (distances >= RECORD_HEADER_BYTES) & (distances <= _PREVIOUS_BYTES_MAX)
    likely: npt.NDArray[np.int64] = np.sort(np.concatenate((hits[~is_inner], inner[fits])))
    return likely


def _read(window: Window, third_word: int) -> MadeTablespace | None:
    """Read one by the offset of its header's third word; None if it is none, or not whole here."""
    geometry = window.geometry
    if third_word % PAGE_BYTES < geometry.header_bytes(third_word):
        return None
    position = geometry.position_of(third_word) - _THIRD_WORD
    header = window.read(position, RECORD_HEADER_BYTES)
    if header is None:
        return None
    size_bytes, _, _, _, _, crc = _HEADER.unpack(header)
    if not _LENGTH_MIN <= size_bytes <= CREATION_BYTES_MAX:
        return None
    raw = window.read(position, size_bytes)
    if raw is None or google_crc32c.extend(_sum(raw[RECORD_HEADER_BYTES:]), raw[:_CRC_OFFSET]) != crc:
        return None
    start = geometry.start_at(position)
    if not window.is_record(start):
        return None
    oid, location = _parse(raw, LSN(start))
    return MadeTablespace(LSN(start), LSN(geometry.end_at(position + size_bytes)), oid, location)


def _sum(content: bytes) -> int:
    return int(google_crc32c.value(content))


def _parse(raw: bytes, start: LSN) -> tuple[int, bytes]:
    at = RECORD_HEADER_BYTES
    if raw[at] == ORIGIN:
        at += _ORIGIN_BYTES
    if raw[at] == TOPLEVEL_XID:
        at += _TOPLEVEL_XID_BYTES
    kind = raw[at] if at < len(raw) else None
    at += _SHORT_BYTES if kind == DATA_SHORT else _LONG_BYTES
    if kind not in (DATA_SHORT, DATA_LONG) or len(raw) <= at + _OID_BYTES or raw[-1] != 0:
        raise MalformedValue(f"the record at {start} makes a tablespace, and cannot be read")
    location, _, _ = raw[at + _OID_BYTES :].partition(b"\0")
    return _UINT32.unpack_from(raw, at)[0], location
