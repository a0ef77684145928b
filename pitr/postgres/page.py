"""Pages of relation files: their checksums and what their headers must be.  Pure.

One call checks hundreds of pages: PostgreSQL's checksum is 32 sums that run side by side over a
page, and numpy runs them over all pages of a read at once (5.3 GiB per CPU second at 512 pages; a
loop in Python makes 19 MB).

Reference: PostgreSQL src/include/storage/checksum_impl.h, src/include/storage/bufpage.h and
PageIsVerified in src/backend/storage/page/bufpage.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pitr.wal.lsn import LSN

PAGE_BYTES = 8192
# More at once no longer fits the second-level cache, and the sums slow down again.
PAGES_AT_ONCE = 512

_HEADER_BYTES = 24
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

Words = NDArray[np.uint32]
Blocks = NDArray[np.uint32]


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


def page_checksums(pages: Words, blocks: Blocks) -> NDArray[np.uint16]:
    """Return the checksum that each page should have; ``blocks`` are their block numbers.

    The numbers count from the relation's first segment, and the checksum stored in a page counts as
    zero.
    """
    count = len(pages)
    # Row i of every page side by side: then each step runs over one long contiguous array.  Always a
    # copy (``ascontiguousarray`` makes none of a single page), since the next line writes to it.
    rows = pages.view(_ROW).T.copy().view(np.uint32).reshape(_ROWS, count * _SUMS)
    # pd_checksum is the lower half of the third word.
    rows[0, 2::_SUMS] &= np.uint32(0xFFFF0000)
    sums = np.tile(_START, count)
    shifted = np.empty_like(sums)
    for row in rows:
        np.bitwise_xor(sums, row, sums)
        np.right_shift(sums, _SHIFT, shifted)
        np.multiply(sums, _PRIME, sums)
        np.bitwise_xor(sums, shifted, sums)
    for _ in range(2):  # two rounds of zeros
        np.right_shift(sums, _SHIFT, shifted)
        np.multiply(sums, _PRIME, sums)
        np.bitwise_xor(sums, shifted, sums)
    folded = np.bitwise_xor.reduce(sums.reshape(count, _SUMS), axis=1)
    # A page copied to another place must not pass: the block number takes part.
    folded ^= blocks.astype(np.uint32)
    checksums: NDArray[np.uint16] = (folded % np.uint32(65535) + np.uint32(1)).astype(np.uint16)
    return checksums


def blocks_from(first: int, count: int) -> Blocks:
    """Return the numbers of ``count`` blocks that follow each other."""
    return np.arange(first, first + count, dtype=np.uint64).astype(np.uint32)


def blocks_of(numbers: Sequence[int]) -> Blocks:
    """Return block numbers that need not follow each other; they wrap as in ``blocks_from``."""
    return np.array([number & 0xFFFF_FFFF for number in numbers], np.uint32)


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
    pages = page_words(content)
    halves = pages[:, : _HEADER_BYTES // 4].view(np.uint16)
    stored, flags = halves[:, 4], halves[:, 5]
    lower, upper, special = halves[:, 6], halves[:, 7], halves[:, 8]
    is_new = upper == 0
    bad_header = (
        (flags & ~np.uint16(_FLAGS_VALID) != 0)
        | (lower > upper)
        | (upper > special)
        | (special > PAGE_BYTES)
        | (special % _MAXALIGN != 0)
    )
    if is_new.any():
        # pd_upper 0 says "new", and then every byte must be zero.
        bad_header = np.where(is_new, pages.any(axis=1), bad_header)
    expected = page_checksums(pages, blocks) if checksums else None
    bad = bad_header if expected is None else bad_header | ((expected != stored) & ~is_new)
    if not bad.any():
        return []
    return [
        _bad_page(pages[index], int(index), None if expected is None else int(expected[index]))
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
