"""The scan for transaction ends says exactly what the walk over all records says, however the WAL is cut."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import datetime

from fix_wal_pages import WalWriter, main_data, record_bytes, time_bytes
from hypothesis import given
from hypothesis import strategies as st

from pitr.wal.lsn import LSN
from pitr.wal.pages import LONG_HEADER_BYTES, WalGeometry
from pitr.wal.records import iter_records
from pitr.wal.scanner import TransactionScanner
from pitr.wal.transactions import transaction_ends

MIB = 1 << 20
START = 4 * MIB

# What follows the time where a prepared transaction ends: that a xid follows, and the xid.
PREPARED = (0x10).to_bytes(4, "little") + (77).to_bytes(4, "little")

Step = Callable[[WalWriter], object]


def fakes(count: int, second: int) -> bytes:
    """User data that looks like commits, with right CRCs and plausible predecessors."""
    fake = record_bytes(main_data(time_bytes(second)), previous=START + 48, rmid=1)
    return (fake + bytes(-len(fake) % 8)) * count


seconds = st.integers(0, 10_000)
steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(
        lambda second, size, origin, toplevel: (
            lambda writer: writer.commit(second, size=size, origin=origin, toplevel=toplevel)
        ),
        seconds,
        st.one_of(st.just(0), st.integers(0, 300), st.integers(0, 30_000)),
        st.booleans(),
        st.booleans(),
    ),
    st.builds(
        lambda second, info: (
            lambda writer: writer.record(main_data(time_bytes(second) + PREPARED), rmid=1, info=info | 0x80)
        ),
        seconds,
        st.sampled_from([0x00, 0x10, 0x20, 0x30, 0x40, 0x50]),
    ),
    st.builds(lambda size: lambda writer: writer.record(bytes(size)), st.integers(0, 20_000)),
    st.builds(
        lambda pad, count, second: lambda writer: writer.record(bytes(pad) + fakes(count, second)),
        st.integers(0, 7),
        st.integers(1, 400),
        st.integers(20_000, 30_000),
    ),
    st.builds(lambda in_page: lambda writer: writer.fill_to(in_page * 8), st.integers(5, 1023)),
    st.just(lambda writer: writer.switch()),
    st.builds(
        lambda second: lambda writer: writer.cut_short(main_data(time_bytes(second) + bytes(9000))),
        st.integers(20_000, 30_000),
    ),
)


def expected_ends(wal: bytes) -> list[tuple[int, datetime]]:
    """(offset after the last byte, time) of each transaction end, by the exact walk."""
    geometry, found = WalGeometry(MIB), []
    for record in iter_records([(LSN(START), wal)], segment_bytes=MIB):
        for end in transaction_ends([record]):
            last = geometry.position_of(record.start.offset) + 24 + len(record.data)
            found.append((geometry.end_at(last), end.at))
    return found


def check(wal: bytes, cuts: Sequence[int]) -> None:
    ends = expected_ends(wal)
    offsets = [offset for offset, _ in ends]
    scanner, at = TransactionScanner(MIB), 0
    for cut in [*sorted({cut for cut in cuts if 0 < cut < len(wal)}), len(wal)]:
        result = scanner.feed(LSN(START + at), wal[at:cut])
        assert bytes(result.content) == wal[at:cut]
        times = [
            time for _, time in ends[bisect_right(offsets, START + at) : bisect_right(offsets, START + cut)]
        ]
        assert (result.min_at, result.max_at) == ((min(times), max(times)) if times else (None, None))
        assert result.is_exact or cut < LONG_HEADER_BYTES
        assert all(point.at in times for point in result.points)
        at = cut


@given(st.lists(steps, min_size=1, max_size=25), st.lists(st.integers(1, 400_000), max_size=30))
def test_the_scan_equals_the_walk(laid: list[Step], cuts: list[int]) -> None:
    writer = WalWriter(START)
    for step in laid:
        step(writer)
    wal = bytes(writer.wal)
    check(wal, cuts)
    check(wal, [cut % (len(wal) + 1) for cut in cuts])


@given(st.lists(steps, min_size=1, max_size=6), st.integers(1, 200), st.integers(0, 100_000))
def test_the_scan_equals_the_walk_in_tiny_cuts(laid: list[Step], width: int, begin: int) -> None:
    writer = WalWriter(START)
    for step in laid:
        step(writer)
    wal = bytes(writer.wal)
    begin %= len(wal)
    check(wal, range(begin, min(begin + 300 * width, len(wal)), width))
