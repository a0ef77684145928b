"""Candidates: what looks like a record that ends a transaction, found in many pages at once.  Pure.

A record's header is three 8-byte words.  The third holds the resource manager's id, its kind and two
bytes of zero, so it is looked for in all words at a time; the other two must then fit.  Old
records inside of user data can look the same, which is why a candidate can be proved: records are
walked from the first one on its page, whose place the page's header gives and no user can write.

Reference: PostgreSQL src/include/access/xlogrecord.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import google_crc32c
import numpy as np
import numpy.typing as npt

from pitr.errors import MalformedValue
from pitr.wal.pages import LONG_HEADER_BYTES, PAGE_BYTES, PageHeader, WalGeometry, decode_page_header
from pitr.wal.records import RECORD_BYTES_MAX, RECORD_HEADER_BYTES, RMGR_TRANSACTION
from pitr.wal.transactions import (
    DATA_LONG,
    DATA_SHORT,
    MICROSECONDS_MAX,
    MICROSECONDS_MIN,
    ORIGIN,
    TOPLEVEL_XID,
    TRANSACTION_END_INFOS,
    TRANSACTION_MASK,
)

POINTS_MAX = 64
# One sampled time per 64 KiB: finer than any piece, and a hundredth of the cost of all.
_POINT_BITS = 16
_MANY, _NEAR_BYTES = 1000, 1024
# Header, origin, top-level xid, data header, time: all that is read of a record lies in these bytes.
_KEY_BYTES = RECORD_HEADER_BYTES + 3 + 5 + 5 + 8
_LENGTH_MIN = RECORD_HEADER_BYTES + 2 + 8
# A key with a page header in it is not longer than this.
_REACH_BYTES = 128
# The record before is not further away than the longest one.
_PREVIOUS_BYTES_MAX = 2 * RECORD_BYTES_MAX
# Beyond this a CRC is not worth its cost: that it is a record is proved without.
_CRC_BYTES_MAX = 1024 * 1024
# Words per step: the temporaries stay in the processor's cache.
_STEP_WORDS = 32 * 1024
# After so many false candidates somebody is writing them on purpose; then all are checked at once.
_FALSE_MAX = 16
# Of whole words: to pick out halves of them would cost half as much again.
_PREFIX_MASK = np.uint64(0xFFFF_FF00)
_PREFIX = np.uint64(RMGR_TRANSACTION << 8)
_IS_END = np.array(
    [info & TRANSACTION_MASK in TRANSACTION_END_INFOS and not info & 0x0C for info in range(256)]
)
_HEADER = struct.Struct("<IIQBB2xI")
_LENGTH = struct.Struct("<I")
_TIME = struct.Struct("<q")
_CRC_OFFSET = 20
_THIRD_WORD = 16
# What each part of a record's header adds, its block id included.
_ORIGIN_BYTES, _TOPLEVEL_XID_BYTES, _SHORT_BYTES, _LONG_BYTES = 3, 5, 2, 5

_Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EndCandidate:
    """What may be a transaction-end record: offsets of its first byte and after its last; microseconds."""

    start: int
    end: int
    time: int


@dataclass(slots=True)
class _PageWalk:
    """How far one page has been walked: where records begin, and where the next one does."""

    next: int
    starts: set[int] = field(default_factory=set)


class Window:
    """A stretch of WAL that begins with a page, and what can be said about the records in it."""

    def __init__(self, geometry: WalGeometry, start: int, content: bytes | memoryview) -> None:
        self.geometry = geometry
        self.start = start
        self.content = content
        self.end = start + len(content)
        self._walks: dict[int, _PageWalk] = {}

    @property
    def tail_offset(self) -> int:
        """Return where the last page begins that a record may begin on whose key is not complete."""
        page = (self.end - _REACH_BYTES) // PAGE_BYTES * PAGE_BYTES
        return max(page - self.start, 0)

    def read(self, position: int, size_bytes: int) -> bytes | None:
        """Return record bytes from a byte position on, page headers left out; None if not all are here."""
        parts, geometry = [], self.geometry
        while size_bytes > 0:
            offset = geometry.start_at(position)
            take = min(PAGE_BYTES - offset % PAGE_BYTES, size_bytes)
            if offset < self.start or offset + take > self.end:
                return None
            parts.append(self.content[offset - self.start : offset - self.start + take])
            position += take
            size_bytes -= take
        return b"".join(parts)

    def header(self, page: int) -> PageHeader | None:
        """Return the header of the page at an offset; None if it is not all here, void or damaged."""
        index = page - self.start
        if index < 0 or index + self.geometry.header_bytes(page) > len(self.content):
            return None
        try:
            return decode_page_header(memoryview(self.content)[index:], page, self.geometry)
        except MalformedValue:
            return None  # what the server wrote is archived as it is; nothing there counts as a record

    def first_record(self, page: int) -> int | None:
        """Return where the first record at or after a page's start begins; None if its header is not here."""
        header = self.header(page)
        if header is None:
            return None
        if not header.is_continued:
            return page
        rest = (header.remaining_bytes + 7) & ~7
        return self.geometry.start_at(self.geometry.position_of(page) + rest)

    def is_record(self, start: int) -> bool:
        """Say whether a record begins at an offset, by walking there from the page's first."""
        page = start // PAGE_BYTES * PAGE_BYTES
        walk = self._walks.get(page)
        if walk is None:
            first = self.first_record(page)
            if first is None:
                return False
            walk = self._walks[page] = _PageWalk(max(first, page + self.geometry.header_bytes(page)))
        at, limit = walk.next, min(start + 1, self.end - _LENGTH.size)
        while at < limit:
            length = _LENGTH.unpack_from(self.content, at - self.start)[0]
            if length < RECORD_HEADER_BYTES:
                break  # zeros: nothing more on this page
            walk.starts.add(at)
            at += (length + 7) & ~7
        walk.next = at
        return start in walk.starts

    def is_unbroken(self, candidate: EndCandidate) -> bool:
        """Say whether each page that a record goes on to, as far as it is here, continues it.

        A crash may have cut a record short; then the server begins anew on the next page.
        """
        geometry = self.geometry
        page = max(candidate.start // PAGE_BYTES * PAGE_BYTES + PAGE_BYTES, self.start)
        last = geometry.position_of(candidate.end - 1) + 1
        while page < min(candidate.end, self.end):
            if self.end - page >= geometry.header_bytes(page):
                header = self.header(page)
                if header is None or not header.is_continued:
                    return False
                if header.remaining_bytes != last - geometry.position_of(page):
                    return False
            page += PAGE_BYTES
        return True

    def has_good_crc(self, candidate: EndCandidate) -> bool:
        """Say whether a record's CRC holds; true for one that is not all here or very long."""
        position = self.geometry.position_of(candidate.start)
        size_bytes = self.geometry.position_of(candidate.end - 1) + 1 - position
        raw = self.read(position, size_bytes) if size_bytes <= _CRC_BYTES_MAX else None
        if raw is None:
            return True
        crc = google_crc32c.extend(google_crc32c.value(raw[RECORD_HEADER_BYTES:]), raw[:_CRC_OFFSET])
        return bool(crc == _LENGTH.unpack_from(raw, _CRC_OFFSET)[0])


class FoundEnds:
    """The candidates of one window that end in it; and those that end beyond it."""

    def __init__(self, window: Window, starts: _Offsets, ends: _Offsets, times: _Offsets) -> None:
        self._window = window
        self._columns = np.stack((starts, ends, times))
        self._added: list[EndCandidate] = []
        self._proven: EndCandidate | None = None
        self.unfinished: list[EndCandidate] = []

    def add(self, candidate: EndCandidate) -> None:
        """Add a candidate, as one that ends in the window or as an unfinished one."""
        ends_here = candidate.end <= self._window.end
        (self._added if ends_here else self.unfinished).append(candidate)

    def add_proven(self, candidate: EndCandidate) -> None:
        """Add the one that began in an earlier window, where it was proved."""
        self._proven = candidate
        self._added.append(candidate)

    def least(self) -> int | None:
        """Return the least time of the candidates that are records; None if none is."""
        return self._extreme(np.argmin)

    def greatest(self) -> int | None:
        """Return the greatest time of the candidates that are records; None if none is."""
        return self._extreme(np.argmax)

    def sample(self) -> list[EndCandidate]:
        """Return about one record per 64 KiB, by LSN; at most POINTS_MAX."""
        self._merge()
        starts = self._columns[0]
        chosen = np.arange(len(starts))
        if len(starts) > _MANY:
            # Those near a page's beginning are proved by a short walk.
            chosen = np.flatnonzero(starts % PAGE_BYTES < _NEAR_BYTES)
        firsts = chosen[np.flatnonzero(np.diff(starts[chosen] >> _POINT_BITS, prepend=-1))]
        step = max(-(-len(firsts) // POINTS_MAX), 1)
        return [point for i in firsts[::step].tolist() if self._is_proved(point := self._at(i))]

    def _extreme(self, choose: Callable[[_Offsets], np.intp]) -> int | None:
        self._merge()
        for tried in range(self._columns.shape[1] + 1):
            if not self._columns.shape[1]:
                break
            if tried == _FALSE_MAX:
                kept = [i for i in range(self._columns.shape[1]) if self._is_proved(self._at(i))]
                self._columns = self._columns[:, kept]
                continue
            index = int(choose(self._columns[2]))
            if self._is_proved(self._at(index)):
                return int(self._columns[2, index])
            self._columns = np.delete(self._columns, index, axis=1)
        return None

    def _merge(self) -> None:
        if self._added:
            added = np.array([(one.start, one.end, one.time) for one in self._added], np.int64).T
            columns = np.concatenate((self._columns, added), axis=1)
            self._columns = columns[:, np.argsort(columns[0], kind="stable")]
            self._added.clear()

    def _at(self, index: int) -> EndCandidate:
        return EndCandidate(*self._columns[:, index].tolist())

    def _is_proved(self, candidate: EndCandidate) -> bool:
        window = self._window
        if candidate == self._proven:
            return True
        return (
            window.is_record(candidate.start)
            and window.is_unbroken(candidate)
            and window.has_good_crc(candidate)
        )


def find_ends(window: Window, begin: int) -> FoundEnds:
    """Return the candidates whose key has been complete only since the byte at ``begin`` came."""
    words = np.frombuffer(window.content, np.dtype("<u8"), len(window.content) // 8)
    hits = _hits(words, max(begin - _REACH_BYTES - window.start, 0) // 8)
    in_page = hits * 8 % PAGE_BYTES
    # A header that begins on the page before, or that was in part there before, is looked at alone.
    is_inner = (in_page >= LONG_HEADER_BYTES + _THIRD_WORD) & (hits * 8 + window.start >= begin)
    inner = hits[is_inner]
    starts = inner * 8 - _THIRD_WORD
    sizes = (words[inner - 2] & np.uint64(0xFFFF_FFFF)).astype(np.int64)
    distances = (starts + window.start).astype(np.uint64) - words[inner - 1]
    fits = (sizes >= _LENGTH_MIN) & (sizes <= RECORD_BYTES_MAX)
    fits &= (distances >= RECORD_HEADER_BYTES) & (distances <= _PREVIOUS_BYTES_MAX)
    is_whole = (starts % PAGE_BYTES + sizes <= PAGE_BYTES) & (starts + sizes <= len(window.content))
    whole = fits & is_whole
    found = _read_times(window, starts[whole], sizes[whole])
    alone = np.concatenate((hits[~is_inner], inner[fits & ~is_whole])) * 8 + window.start
    for offset in np.sort(alone).tolist():
        candidate = _read_alone(window, offset, begin)
        if candidate is not None:
            found.add(candidate)
    return found


def _hits(words: npt.NDArray[np.uint64], first: int) -> _Offsets:
    """Return the indexes of the words that can be the third of a transaction-end record's header."""
    masked = np.empty(_STEP_WORDS, np.uint64)
    is_hit = np.empty(_STEP_WORDS, np.bool_)
    hits = [np.empty(0, np.int64)]
    for start in range(first, len(words), _STEP_WORDS):
        step = words[start : start + _STEP_WORDS]
        np.bitwise_and(step, _PREFIX_MASK, out=masked[: len(step)])
        np.equal(masked[: len(step)], _PREFIX, out=is_hit[: len(step)])
        hits.append(np.flatnonzero(is_hit[: len(step)]) + start)
    found: _Offsets = np.concatenate(hits)
    ends: _Offsets = found[_IS_END[words[found] & np.uint64(0xFF)]]
    return ends


def _read_times(window: Window, starts: _Offsets, sizes: _Offsets) -> FoundEnds:
    """Read the times of records that lie whole on one page; offsets are from the window's start."""
    content = np.frombuffer(window.content, np.uint8)
    at = starts + RECORD_HEADER_BYTES
    at += (content[at] == ORIGIN) * _ORIGIN_BYTES
    at += (content[at] == TOPLEVEL_XID) * _TOPLEVEL_XID_BYTES
    block_ids = content[at]
    at += np.where(block_ids == DATA_SHORT, _SHORT_BYTES, _LONG_BYTES)
    fits = ((block_ids == DATA_SHORT) | (block_ids == DATA_LONG)) & (at + _TIME.size <= starts + sizes)
    starts, sizes, at = starts[fits], sizes[fits], at[fits]
    times = content[at[:, None] + np.arange(_TIME.size)].view(np.dtype("<i8"))[:, 0]
    fits = (times >= MICROSECONDS_MIN) & (times <= MICROSECONDS_MAX)
    offsets = starts[fits] + window.start
    return FoundEnds(window, offsets, offsets + sizes[fits], times[fits])


def _read_alone(window: Window, third_word: int, begin: int) -> EndCandidate | None:
    """Read one candidate by the offset of its third word; None if it is none, or was read before."""
    geometry = window.geometry
    if third_word % PAGE_BYTES < geometry.header_bytes(third_word):
        return None
    position = geometry.position_of(third_word) - _THIRD_WORD
    header = window.read(position, RECORD_HEADER_BYTES)
    if header is None:
        return None
    start = geometry.start_at(position)
    size_bytes, _, previous, _, _, _ = _HEADER.unpack(header)
    if not _LENGTH_MIN <= size_bytes <= RECORD_BYTES_MAX:
        return None
    if not RECORD_HEADER_BYTES <= start - previous <= _PREVIOUS_BYTES_MAX:
        return None
    key = window.read(position, min(size_bytes, _KEY_BYTES))
    if key is None or geometry.end_at(position + len(key)) <= begin:
        return None
    at = RECORD_HEADER_BYTES
    if key[at] == ORIGIN:
        at += _ORIGIN_BYTES
    if key[at] == TOPLEVEL_XID:
        at += _TOPLEVEL_XID_BYTES
    if key[at] not in (DATA_SHORT, DATA_LONG):
        return None
    at += _SHORT_BYTES if key[at] == DATA_SHORT else _LONG_BYTES
    if at + _TIME.size > len(key):
        return None
    time: int = _TIME.unpack_from(key, at)[0]
    if not MICROSECONDS_MIN <= time <= MICROSECONDS_MAX:
        return None
    return EndCandidate(start, geometry.end_at(position + size_bytes), time)
