"""Page checksums and headers, against PostgreSQL's algorithm written out word by word."""

from __future__ import annotations

import random
import struct

import pytest

from pitr.postgres.page import (
    PAGE_BYTES,
    PAGES_AT_ONCE,
    BadPage,
    blocks_from,
    check_pages,
    page_checksums,
    page_lsn,
)
from pitr.wal.lsn import LSN

SEED = 20261123
PRIME = 16777619
BASES = bytes.fromhex(
    "5B1F36E9 B8525960 02AB50AA 1DE66D2A 79FF467A 9BB9F8A3 217E7CD2 83E13D2C"
    "F8D4474F E39EB970 42C6AE16 993216FA 7B093B5D 98DAFF3C F718902A 0B1C9CDB"
    "E58F764B 187636BC 5D7B3BB1 E73DE7DE 92BEC979 CCA6C0B2 304A0979 85AA43D4"
    "783125BB 6CA8EAA2 E407EAC6 4B5CFC3E 9FBF8C76 15CA20BE F2CA9FD3 959BD756"
)


def check(content: bytes | bytearray, first: int, *, checksums: bool) -> list[BadPage]:
    """Check pages that follow each other."""
    numbers = blocks_from(first, len(content) // PAGE_BYTES)
    return check_pages(memoryview(content), numbers, checksums=checksums)


def checksum_by_the_book(page: bytes, block: int) -> int:
    """pg_checksum_page() of checksum_impl.h, step by step."""
    words = list(struct.unpack("<2048I", page))
    words[2] &= 0xFFFF0000
    sums = list(struct.unpack(">32I", BASES))

    def mix(column: int, value: int) -> None:
        mixed = sums[column] ^ value
        sums[column] = (mixed * PRIME & 0xFFFFFFFF) ^ (mixed >> 17)

    for row in range(64):
        for column in range(32):
            mix(column, words[row * 32 + column])
    for _ in range(2):
        for column in range(32):
            mix(column, 0)
    result = block
    for each in sums:
        result ^= each
    return result % 65535 + 1


def good_page(source: random.Random, block: int, lsn: int = 0x1_0000_0028) -> bytes:
    page = bytearray(source.randbytes(PAGE_BYTES))
    struct.pack_into("<IIHHHHHH", page, 0, lsn >> 32, lsn & 0xFFFFFFFF, 0, 0, 24, 8000, 8192, 0x2004)
    struct.pack_into("<H", page, 8, checksum_by_the_book(bytes(page), block))
    return bytes(page)


@pytest.mark.parametrize("count", [1, 2, 7, 33])
def test_checksums_of_many_pages_are_those_of_the_book(count: int) -> None:
    print("seed", SEED)
    source = random.Random(SEED + count)
    first = source.randrange(1 << 32) - count
    pages = [source.randbytes(PAGE_BYTES) for _ in range(count)]
    found = page_checksums(memoryview(b"".join(pages)), blocks_from(first, len(pages)))
    assert found.tolist() == [checksum_by_the_book(page, first + n) for n, page in enumerate(pages)]


@pytest.mark.parametrize("count", [1, 3])
def test_checking_changes_no_byte(count: int) -> None:
    source = random.Random(SEED)
    content = bytearray(b"".join(good_page(source, 5 + n) for n in range(count)))
    before = bytes(content)
    assert check(content, 5, checksums=True) == []
    assert content == before


def test_a_page_in_another_place_is_bad() -> None:
    page = good_page(random.Random(SEED), 131072 + 4)
    assert check(page, 131072 + 4, checksums=True) == []
    (bad,) = check(page, 4, checksums=True)
    assert bad.lsn == LSN(0x1_0000_0028)
    assert "calculated" in bad.reason


def test_every_flipped_bit_of_a_header_and_some_of_the_rest_are_seen() -> None:
    source = random.Random(SEED)
    pages = [bytearray(good_page(source, block)) for block in range(3)]
    bits = [*range(24 * 8), *(source.randrange(24 * 8, PAGE_BYTES * 8) for _ in range(64))]
    for bit in bits:
        pages[1][bit // 8] ^= 1 << bit % 8
        bad = check(b"".join(pages), 0, checksums=True)
        assert [page.index for page in bad] == [1], bit
        pages[1][bit // 8] ^= 1 << bit % 8


def test_new_pages_are_good_only_if_all_zero() -> None:
    content = bytearray(4 * PAGE_BYTES)
    assert check(content, 0, checksums=True) == []
    content[2 * PAGE_BYTES + 5000] = 1
    (bad,) = check(content, 0, checksums=True)
    assert (bad.index, bad.reason, bad.lsn) == (2, "the page is marked new and is not zero", None)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        pytest.param(10, 0x0008, id="unknown flag"),
        pytest.param(12, 8001, id="lower above upper"),
        pytest.param(14, 8193, id="upper above special"),
        pytest.param(16, 8200, id="special after the page"),
        pytest.param(16, 8188, id="special not aligned"),
    ],
)
def test_a_header_that_cannot_be_is_seen_without_checksums(offset: int, value: int) -> None:
    page = bytearray(good_page(random.Random(SEED), 0))
    page[6000] ^= 1
    assert check(page, 0, checksums=False) == []
    struct.pack_into("<H", page, offset, value)
    (bad,) = check(page, 0, checksums=False)
    assert bad.reason == "the page header is not valid"


def test_a_pages_lsn_has_its_high_half_first() -> None:
    page = good_page(random.Random(SEED), 0, lsn=0x16_B374D848)
    assert page_lsn(memoryview(page)) == LSN.parse("16/B374D848")
    assert page_lsn(memoryview(bytes(PAGE_BYTES))) is None


def test_more_pages_than_fit_or_parts_of_one_are_our_mistake() -> None:
    assert check(b"", 0, checksums=True) == []
    for size_bytes in (PAGE_BYTES - 1, (PAGES_AT_ONCE + 1) * PAGE_BYTES):
        with pytest.raises(ValueError, match="pages"):
            check(bytes(size_bytes), 0, checksums=True)
