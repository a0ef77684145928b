"""The walk over WAL records: pages, records across pages, switches, crashes, padding, damage."""

from __future__ import annotations

import contextlib

import pytest
from fix_wal_pages import WalWriter, main_data, time_bytes

from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN
from pitr.wal.pages import PAGE_BYTES, WalGeometry, segment_system_identifier
from pitr.wal.records import WalRecord, iter_records
from pitr.wal.transactions import EndKind, iter_restore_points, iter_transaction_ends

MIB = 1 << 20
START = 4 * MIB


def walk(wal: bytes, start: int = START, **options: frozenset[int]) -> list[WalRecord]:
    return list(iter_records([(LSN(start), bytes(wal))], segment_bytes=MIB, **options))


def test_positions_and_lsns_are_each_others_inverse_around_page_and_segment_boundaries() -> None:
    geometry = WalGeometry(MIB)
    for boundary in (4 * MIB, 4 * MIB + PAGE_BYTES, 5 * MIB - PAGE_BYTES, 5 * MIB):
        position = geometry.position_of(boundary)
        assert geometry.start_at(position) == boundary + geometry.header_bytes(boundary)
        assert geometry.end_at(position) == boundary
        for near in range(position - 50, position + 50):
            assert geometry.position_of(geometry.start_at(near)) == near


def test_a_record_across_pages_and_segments_is_one_record() -> None:
    writer = WalWriter(START)
    first = writer.record(b"a" * 100)
    long = writer.record(bytes(range(256)) * 8192)
    last = writer.record(b"z")
    records = walk(writer.wal)
    assert [record.start.offset for record in records] == [first.start, long.start, last.start]
    assert [record.end.offset for record in records] == [first.end, long.end, last.end]
    assert records[1].data == bytes(range(256)) * 8192


def test_a_record_that_ends_with_its_page_ends_at_the_boundary() -> None:
    writer = WalWriter(START)
    writer.fill_to(PAGE_BYTES - 64)
    laid = writer.record(bytes(40))
    assert laid.end % PAGE_BYTES == 0
    writer.record(b"next")
    assert [record.end.offset for record in walk(writer.wal)][1] == laid.end


@pytest.mark.parametrize("in_page", [PAGE_BYTES - 8, PAGE_BYTES - 16, PAGE_BYTES - 24])
def test_a_header_may_be_split_by_a_page_boundary(in_page: int) -> None:
    writer = WalWriter(START)
    writer.fill_to(in_page)
    laid = writer.record(b"split")
    (record,) = walk(writer.wal)[1:]
    assert (record.start.offset, record.data) == (laid.start, b"split")


def test_the_walk_does_not_depend_on_how_the_wal_is_cut() -> None:
    writer = WalWriter(START)
    for size in (1, 5000, 7, 20_000, 40, 8168, 3):
        writer.record(b"x" * size)
    whole = walk(writer.wal)
    for step in (1, 7, 24, 40, 8191, 8193):
        chunks = [
            (LSN(START + at), bytes(writer.wal[at : at + step])) for at in range(0, len(writer.wal), step)
        ]
        assert list(iter_records(chunks, segment_bytes=MIB)) == whole


def test_what_began_before_the_first_page_is_left_out() -> None:
    writer = WalWriter(START)
    writer.record(bytes(3 * PAGE_BYTES))
    first = writer.record(b"first whole one")
    second = writer.record(bytes(PAGE_BYTES))
    for skipped in (PAGE_BYTES, PAGE_BYTES + 100, 2 * PAGE_BYTES):
        records = walk(writer.wal[skipped:], START + skipped)
        assert [record.start.offset for record in records] == [first.start, second.start]


def test_after_a_switch_the_walk_goes_on_in_the_next_segment() -> None:
    writer = WalWriter(START)
    writer.record(b"before")
    switch = writer.switch()
    after = writer.record(b"after")
    records = walk(writer.wal)
    assert [record.data for record in records] == [b"before", b"", b"after"]
    assert records[1].end.offset == switch.end == 5 * MIB
    assert records[2].start.offset == after.start


def test_a_record_that_a_crash_cut_short_is_left_out() -> None:
    writer = WalWriter(START)
    writer.record(b"before")
    writer.fill_to(PAGE_BYTES - 200)
    writer.cut_short(bytes(1000))
    after = writer.record(b"after")
    assert [record.start.offset for record in walk(writer.wal)][-1] == after.start


def test_the_walk_ends_at_padding_and_before_an_unfinished_record() -> None:
    writer = WalWriter(START)
    writer.record(b"whole")
    wal = bytes(writer.wal)
    writer.record(bytes(100))
    assert len(walk(wal + bytes(MIB - len(wal)))) == 1
    assert len(walk(bytes(writer.wal[:-30]))) == 1


def test_stepping_over_records_finds_the_same_ones() -> None:
    writer = WalWriter(START)
    for number in range(300):
        writer.record(bytes(number * 7))
        writer.commit(number)
    assert walk(writer.wal, rmids=frozenset({1})) == [one for one in walk(writer.wal) if one.rmid == 1]


def test_chunks_that_do_not_join_are_refused() -> None:
    writer = WalWriter(START)
    writer.record(bytes(30_000))
    wal = bytes(writer.wal)
    with pytest.raises(MalformedValue, match="does not join"):
        list(iter_records([(LSN(START), wal[:9000]), (LSN(START + 9001), wal[9001:])], segment_bytes=MIB))


def test_wal_of_another_place_or_segment_size_is_refused() -> None:
    writer = WalWriter(START)
    writer.record(b"here")
    with pytest.raises(MalformedValue, match="stands at"):
        walk(writer.wal, START + MIB)
    with pytest.raises(MalformedValue, match="segments"):
        list(iter_records([(LSN(START), bytes(writer.wal))], segment_bytes=2 * MIB))


def test_a_segment_names_its_cluster() -> None:
    writer = WalWriter(START)
    writer.record(b"x")
    assert segment_system_identifier(bytes(writer.wal[:40])) == 7301234567890123456
    with pytest.raises(MalformedValue):
        segment_system_identifier(bytes(40))


def test_transaction_ends_have_their_own_xid_kind_and_time() -> None:
    writer = WalWriter(START)
    writer.commit(1, xid=10)
    writer.record(main_data(time_bytes(2)), rmid=1, info=0x20, xid=11)
    writer.commit(3, xid=12, origin=True, toplevel=True)
    # A prepared one with database, two subtransactions and one relation before its xid.
    xinfo = (0x01 | 0x02 | 0x04 | 0x10).to_bytes(4, "little")
    parts = bytes(8) + (2).to_bytes(4, "little") + bytes(8) + (1).to_bytes(4, "little") + bytes(12)
    prepared = time_bytes(4) + xinfo + parts + (99).to_bytes(4, "little")
    writer.record(main_data(prepared), rmid=1, info=0x30 | 0x80, xid=0)
    writer.record(main_data(time_bytes(9)), rmid=1, info=0x10, xid=13)  # PREPARE ends nothing
    ends = list(iter_transaction_ends([(LSN(START), bytes(writer.wal))], segment_bytes=MIB))
    assert [(end.xid, end.kind, end.is_prepared, end.at.second) for end in ends] == [
        (10, EndKind.COMMIT, False, 1),
        (11, EndKind.ABORT, False, 2),
        (12, EndKind.COMMIT, False, 3),
        (99, EndKind.COMMIT, True, 4),
    ]


def test_restore_points_are_found_by_name() -> None:
    writer = WalWriter(START)
    laid = writer.record(
        main_data(time_bytes(7) + "vor dem Löschen".encode().ljust(64, b"\0")), rmid=0, info=0x70
    )
    writer.record(main_data(bytes(72)), rmid=0, info=0xF0)
    (point,) = iter_restore_points([(LSN(START), bytes(writer.wal))], segment_bytes=MIB)
    assert (point.name, point.start.offset, point.at.second) == ("vor dem Löschen", laid.start, 7)


def test_no_flipped_bit_gives_another_record() -> None:
    writer = WalWriter(START)
    for number in range(40):
        writer.commit(number, xid=number + 3, size=number * 11)
    genuine = walk(writer.wal)
    known = {(record.start, record.xid, record.info, record.rmid, record.data) for record in genuine}
    for offset in range(0, len(writer.wal), 5):
        damaged = bytearray(writer.wal)
        damaged[offset] ^= 1 << offset % 8
        found = []
        with contextlib.suppress(MalformedValue):
            found.extend(iter_records([(LSN(START), bytes(damaged))], segment_bytes=MIB))
        for record in found:
            assert (record.start, record.xid, record.info, record.rmid, record.data) in known
