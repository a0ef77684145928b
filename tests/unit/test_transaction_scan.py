"""The scan for transaction ends at its edges: lookalikes in user data, crashes, starts in mid-record."""

from __future__ import annotations

import pytest
from fix_wal_pages import WalWriter, main_data, record_bytes, time_bytes

from pitr.errors import MalformedValue
from pitr.wal.candidates import POINTS_MAX
from pitr.wal.lsn import LSN
from pitr.wal.pages import PAGE_BYTES
from pitr.wal.scanner import ScanResult, TransactionScanner

MIB = 1 << 20
START = 4 * MIB


def scan(wal: bytes | bytearray, start: int = START) -> ScanResult:
    return TransactionScanner(MIB).feed(LSN(start), bytes(wal))


def second_of(result: ScanResult) -> tuple[int, int]:
    assert result.min_at is not None
    assert result.max_at is not None
    noon = result.min_at.replace(hour=12, minute=0, second=0, microsecond=0)
    return int((result.min_at - noon).total_seconds()), int((result.max_at - noon).total_seconds())


@pytest.mark.parametrize("count", [1, 10, 100, 3000])
def test_user_data_that_looks_like_commits_is_not_counted(count: int) -> None:
    writer = WalWriter(START)
    writer.commit(100)
    # Right CRCs, a predecessor that may be, times beyond all others: only the page's header tells.
    fakes = b"".join(
        fake + bytes(-len(fake) % 8)
        for fake in (
            record_bytes(main_data(time_bytes(second)), previous=START + 48, rmid=1) for second in (1, 9000)
        )
    )
    writer.record(fakes * count)
    writer.commit(200)
    result = scan(writer.wal)
    assert second_of(result) == (100, 200)
    assert {point.at.minute for point in result.points} <= {1, 3}


def test_a_long_commit_that_a_crash_cut_short_is_not_counted_wherever_it_is_cut() -> None:
    writer = WalWriter(START)
    writer.commit(100)
    writer.fill_to(PAGE_BYTES - 200)
    # So long that its CRC is not looked at: only the next page's header says that it was given up.
    writer.cut_short(main_data(time_bytes(9000) + bytes(MIB + MIB // 2)))
    for second in range(200, 260):
        writer.commit(second, size=30_000)
    wal = bytes(writer.wal)
    assert second_of(scan(wal)) == (100, 259)
    for cut in range(PAGE_BYTES - 300, 2 * PAGE_BYTES + 100, 37):
        scanner = TransactionScanner(MIB)
        first = scanner.feed(LSN(START), wal[:cut])
        rest = scanner.feed(LSN(START + cut), wal[cut:])
        assert second_of(first) == (100, 100)
        assert second_of(rest) == (200, 259)


def test_a_scan_that_begins_in_mid_record_says_that_it_may_lack_one() -> None:
    writer = WalWriter(START)
    writer.commit(100, size=3 * PAGE_BYTES)
    laid = writer.commit(200)
    wal = bytes(writer.wal)
    scanner = TransactionScanner(MIB)
    middle, rest = PAGE_BYTES + 100, laid.start - START
    assert not scanner.feed(LSN(START + middle), wal[middle:rest]).is_exact
    result = scanner.feed(LSN(START + rest), wal[rest:])
    assert result.is_exact
    assert second_of(result) == (200, 200)


def test_a_scan_that_begins_with_a_record_is_exact() -> None:
    writer = WalWriter(START)
    writer.commit(100)
    assert scan(writer.wal).is_exact


def test_wal_without_transaction_ends_has_no_times() -> None:
    writer = WalWriter(START)
    writer.record(bytes(50_000))
    result = scan(writer.wal)
    assert (result.min_at, result.max_at, result.points, result.is_exact) == (None, None, (), True)


def test_points_are_few_and_ascend() -> None:
    writer = WalWriter(START, segment_bytes=MIB)
    for second in range(9000):
        writer.commit(second, size=700)
    points = scan(writer.wal).points
    assert 40 <= len(points) <= POINTS_MAX
    assert [point.lsn for point in points] == sorted({point.lsn for point in points})
    assert points[0].lsn.offset < START + 64 * 1024


def test_each_feed_gives_what_was_fed_whatever_its_size_and_the_one_before() -> None:
    scanner, at = TransactionScanner(MIB), START
    for number, size_bytes in enumerate((MIB, 10, 3 * MIB + 5, 2 * MIB, 0, 9000)):
        wal = bytes([number + 1]) * size_bytes
        content = scanner.feed(LSN(at), wal[: size_bytes // 3], memoryview(wal)[size_bytes // 3 :]).content
        assert content == wal
        at += size_bytes


def test_wal_that_does_not_join_is_refused() -> None:
    scanner = TransactionScanner(MIB)
    scanner.feed(LSN(START), bytes(100))
    with pytest.raises(MalformedValue, match="does not join"):
        scanner.feed(LSN(START + 101), bytes(100))


def test_pages_that_are_none_count_as_nothing() -> None:
    assert scan(b"\xff" * 100_000).min_at is None
    assert scan(bytes(100_000)).min_at is None
