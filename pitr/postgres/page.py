"""Pages of relation files: their checksums and what their headers must be.  Pure.

One call checks hundreds of pages: PostgreSQL's checksum is 32 sums that run side by side over a
page, and numpy runs them over all pages of a read at once (5.3 GiB per CPU second at 512 pages; a
loop in Python makes 19 MB).  Of one page alone numpy's calls cost more than the sums, and there one long
integer holds all 32: a cluster of small tables is as many calls as files.

Reference: PostgreSQL src/include/storage/checksum_impl.h, src/include/storage/bufpage.h and
PageIsVerified in src/backend/storage/page/bufpage.c.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pitr.wal.lsn import LSN

PAGE_BYTES = 8192
# With fewer the calls cost more than the sums, and among threads more still, for each lets go of the
# interpreter's lock: two threads use 1.0 CPU seconds per GiB at 128 pages, and 0.5 at 512 as at 2,048.
PAGES_AT_ONCE = 512

_HEADER_WORDS = 6
_FLAGS_VALID = 0x0007
_MAXALIGN = 8
_SUMS = 32
_ROWS = PAGE_BYTES // (4 * _SUMS)
_WORDS = PAGE_BYTES // 4
_PRIME = np.uint32(16777619)
_SHIFT = np.uint32(17)
_ROW = np.dtype("V128")
# checksumBaseOffsets: one start for each of the 32 sums.
_START = np.array(
    [
        *(0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C),
        *(0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB),
        *(0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4),
        *(0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756),
    ],
    dtype=np.uint32,
)
# The same in one integer, 64 bits for each sum: room for its product, so that none runs into the next.
_LANES = sum(1 << 64 * lane for lane in range(_SUMS))
_LANES_SUM = _LANES * 0xFFFF_FFFF
_LANES_SHIFTED = _LANES * 0x7FFF
_LANES_START = int.from_bytes(_START.astype("<u8").tobytes(), "little")
_LANES_ROW_BYTES = 8 * _SUMS
# 56 µs a page, where numpy takes 177 µs for one and 190 µs for four.
_LANES_PAGES_MAX = 2

Words = NDArray[np.uint32]
Blocks = NDArray[np.uint32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BadPage:
    """A page that is not what PostgreSQL would accept; ``lsn`` is what its header claims, if anything."""

    index: int
    lsn: LSN | None
    reason: str


def page_words(content: memoryview) -> Words:
    """Return whole pages as rows of 2,048 words, without a copy.

    The bytes must be little-endian as on disk.
    """
    return np.frombuffer(content, dtype="<u4").reshape(-1, _WORDS)


def page_checksums(content: memoryview, blocks: Blocks) -> NDArray[np.uint16]:
    """Return the checksum that each of up to PAGES_AT_ONCE pages should have.

    ``blocks`` are their block numbers, which count from the relation's first segment; the checksum that is
    stored in a page counts as zero.
    """
    if len(blocks) > _LANES_PAGES_MAX:
        _own.batch.add(content, blocks)
        return _own.batch.checksums()
    folded = [_folded_sums(page) for page in page_words(content)]
    return _checksums(np.array(folded, np.uint32), blocks)


def _checksums(folded: Words, blocks: Blocks) -> NDArray[np.uint16]:
    """Return the checksums of pages whose sums are folded.  Changes ``folded``."""
    # A page copied to another place must not pass: the block number takes part.
    folded ^= blocks
    checksums: NDArray[np.uint16] = (folded % np.uint32(65535) + np.uint32(1)).astype(np.uint16)
    return checksums


def _folded_sums(page: Words) -> int:
    """Return the 32 sums of one page, folded."""
    lanes = page.astype("<u8")
    lanes[2] &= np.uint64(0xFFFF0000)  # pd_checksum, as below
    content = lanes.tobytes()
    rows = [
        int.from_bytes(content[at : at + _LANES_ROW_BYTES], "little")
        for at in range(0, len(content), _LANES_ROW_BYTES)
    ]
    sums, prime = _LANES_START, int(_PRIME)
    for row in (*rows, 0, 0):
        sums ^= row
        sums = (sums * prime & _LANES_SUM) ^ (sums >> 17 & _LANES_SHIFTED)
    found = np.frombuffer(sums.to_bytes(_LANES_ROW_BYTES, "little"), "<u8")
    return int(np.bitwise_xor.reduce(found))


class PageBatch:
    """Up to PAGES_AT_ONCE pages of any files, gathered to be checked together.  Not thread-safe.

    Its 4 MiB are used again and again: fresh memory would cost more than the sums, by its page faults.
    """

    def __init__(self) -> None:
        # Row i of every page side by side: then each step of a sum runs over one long contiguous array.
        self._rows = np.empty((_ROWS, PAGES_AT_ONCE, _SUMS), np.uint32)
        self._blocks = np.empty(PAGES_AT_ONCE, np.uint32)
        self._sums = np.empty(PAGES_AT_ONCE * _SUMS, np.uint32)
        self._shifted = np.empty_like(self._sums)
        self._count = 0

    @property
    def room(self) -> int:
        """How many pages more fit."""
        return PAGES_AT_ONCE - self._count

    def add(self, content: memoryview, blocks: Blocks) -> None:
        """Take whole pages and their block numbers; no more than ``room``."""
        start, end = self._count, self._count + len(blocks)
        places = self._rows[:, start:end].view(_ROW)[:, :, 0]
        np.copyto(places, page_words(content).view(_ROW).T)
        self._blocks[start:end] = blocks
        self._count = end

    def clear(self) -> None:
        """Forget all pages."""
        self._count = 0

    def check(self, *, checksums: bool) -> list[BadPage]:
        """Return the pages that PostgreSQL would refuse, by their places in the batch, and forget all.

        As ``check_pages``.
        """
        rows = self._rows[:, : self._count]
        heads = rows[0, :, :_HEADER_WORDS].copy()

        def is_zero() -> Flags:
            # The stored checksums are no longer in the rows.
            return np.logical_not(rows.any(axis=(0, 2)) | heads.any(axis=1))

        expected = self.checksums() if checksums else None
        self._count = 0
        return _bad_pages(heads, is_zero, expected)

    def checksums(self) -> NDArray[np.uint16]:
        """Return the checksums that the pages should have, and forget all."""
        count, self._count = self._count, 0
        sums, shifted = self._sums[: count * _SUMS], self._shifted[: count * _SUMS]
        # pd_checksum is the lower half of the third word.
        self._rows[0, :count, 2] &= np.uint32(0xFFFF0000)
        sums.reshape(count, _SUMS)[:] = _START
        for number in range(_ROWS):
            np.bitwise_xor(sums, self._rows[number, :count].reshape(-1), sums)
            np.right_shift(sums, _SHIFT, shifted)
            np.multiply(sums, _PRIME, sums)
            np.bitwise_xor(sums, shifted, sums)
        for _ in range(2):  # two rounds of zeros
            np.right_shift(sums, _SHIFT, shifted)
            np.multiply(sums, _PRIME, sums)
            np.bitwise_xor(sums, shifted, sums)
        folded: Words = np.bitwise_xor.reduce(sums.reshape(count, _SUMS), axis=1)
        return _checksums(folded, self._blocks[:count])


class _Own(threading.local):
    """Each thread's batch for ``check_pages``, made when it is first used."""

    @cached_property
    def batch(self) -> PageBatch:
        return PageBatch()


_own = _Own()


def blocks_from(first: int, count: int) -> Blocks:
    """Return the numbers of ``count`` blocks that follow each other."""
    return np.arange(first, first + count, dtype=np.uint64).astype(np.uint32)


def check_pages(content: memoryview, blocks: Blocks, *, checksums: bool) -> list[BadPage]:
    """Return the pages of ``content`` that PostgreSQL would refuse, in order.

    ``content`` is at most PAGES_AT_ONCE whole pages of one relation fork, ``blocks`` their numbers
    (counted from the relation's first segment).  A page of zeros is good: the server extends files so.
    Without ``checksums`` only the headers are judged.
    """
    if len(content) > PAGES_AT_ONCE * PAGE_BYTES or len(content) != len(blocks) * PAGE_BYTES:
        raise ValueError(f"not whole pages, or too many: {len(content)} bytes")
    if not content:
        return []
    if len(blocks) > _LANES_PAGES_MAX:
        _own.batch.add(content, blocks)
        return _own.batch.check(checksums=checksums)
    pages = page_words(content)
    expected = page_checksums(content, blocks) if checksums else None

    def is_zero() -> Flags:
        return np.logical_not(pages.any(axis=1))

    return _bad_pages(pages[:, :_HEADER_WORDS], is_zero, expected)


def _bad_pages(
    heads: Words, is_zero: Callable[[], Flags], expected: NDArray[np.uint16] | None
) -> list[BadPage]:
    """Judge pages by their headers and the checksums that they should have, if those are on."""
    halves = heads.view(np.uint16)
    stored, flags = halves[:, 4], halves[:, 5]
    lower, upper, special = halves[:, 6], halves[:, 7], halves[:, 8]
    is_new = upper == 0
    bad = (
        (flags & ~np.uint16(_FLAGS_VALID) != 0)
        | (lower > upper)
        | (upper > special)
        | (special > PAGE_BYTES)
        | (special % _MAXALIGN != 0)
    )
    if expected is not None:
        bad |= expected != stored
    if is_new.any():
        # pd_upper 0 says "new", and then every byte must be zero.
        bad = np.where(is_new, ~is_zero(), bad)
    return [
        _bad_page(heads[index], int(index), None if expected is None else int(expected[index]))
        for index in np.flatnonzero(bad)
    ]


def changed_pages(content: memoryview, since: LSN) -> Blocks:
    """Return which pages of ``content`` have an LSN of ``since`` or later, or none at all, as new ones."""
    words = page_words(content)
    lsns = words[:, 0].astype(np.uint64) << np.uint64(32) | words[:, 1]
    return np.flatnonzero((lsns >= np.uint64(since.offset)) | (lsns == 0)).astype(np.uint32)


def page_lsn(page: memoryview) -> LSN | None:
    """Return the LSN in a page's header (pd_lsn); None for 0/0."""
    return _lsn(page_words(page[:PAGE_BYTES])[0])


def _lsn(words: Words) -> LSN | None:
    # PageXLogRecPtr: two 32-bit halves, the high one first, each in the machine's order.
    offset = int(words[0]) << 32 | int(words[1])
    return LSN(offset) if offset else None


def _bad_page(words: Words, index: int, expected: int | None) -> BadPage:
    """Say what is wrong with a page that was found bad; ``expected`` is its checksum, if they are on."""
    stored, upper = int(words[2]) & 0xFFFF, int(words[3]) >> 16
    if upper == 0:
        reason = "the page is marked new and is not zero"
    elif expected is not None and stored != expected:
        reason = f"checksum {stored:04X} in the page, {expected:04X} calculated"
    else:
        reason = "the page header is not valid"
    return BadPage(index, _lsn(words), reason)
