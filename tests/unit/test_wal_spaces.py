"""Tablespaces that WAL makes are found wherever their records lie, and nothing else is taken for one."""

from __future__ import annotations

import struct

import pytest
from fix_wal_pages import WalWriter, main_data, record_bytes

from pitr.errors import MalformedValue
from pitr.wal.pages import PAGE_BYTES, WalGeometry
from pitr.wal.spaces import CREATION_BYTES_MAX, MadeTablespace, find_made, find_made_across, may_end_one

MIB = 1 << 20
START = 4 * MIB
GEOMETRY = WalGeometry(MIB)
PLACE = b"/srv/a place/space"


def creation(oid: int = 16500, place: bytes = PLACE) -> bytes:
    return main_data(struct.pack("<I", oid) + place + b"\0")


def found(writer: WalWriter) -> list[MadeTablespace]:
    return find_made(GEOMETRY, writer.start, bytes(writer.wal))


def test_a_tablespace_is_found_with_its_place_and_where_it_stands() -> None:
    writer = WalWriter(START)
    writer.commit(1)
    first = writer.record(creation(), rmid=5)
    writer.record(main_data(struct.pack("<I", 16500)), rmid=5, info=0x10)  # DROP TABLESPACE
    long = writer.record(creation(16501, b"/" + b"x" * 1022), rmid=5)
    in_place = writer.record(creation(16502, b""), rmid=5)
    writer.commit(2)
    made = found(writer)
    assert [(one.start.offset, one.end.offset) for one in made] == [
        (laid.start, laid.last) for laid in (first, long, in_place)
    ]
    assert [(one.oid, one.location) for one in made] == [
        (16500, PLACE), (16501, b"/" + b"x" * 1022), (16502, b"")
    ]  # fmt: skip


@pytest.mark.parametrize("place", [PLACE, b"/" + b"long" * 255], ids=["short", "long"])
def test_a_record_is_found_wherever_it_goes_over_a_page(place: bytes) -> None:
    size_bytes = 24 + len(creation(place=place))
    assert size_bytes <= CREATION_BYTES_MAX
    for before in range(8, size_bytes + 16, 8):
        writer = WalWriter(START + 2 * PAGE_BYTES)
        writer.fill_to(PAGE_BYTES - before)
        laid = writer.record(creation(place=place), rmid=5)
        writer.commit(1)
        (made,) = found(writer)
        assert (made.start.offset, made.end.offset, made.location) == (laid.start, laid.last, place)


@pytest.mark.parametrize("place", [b"/x", PLACE, b"/" + b"long" * 255], ids=["short", "middle", "long"])
def test_a_record_over_a_segments_end_is_found_with_the_tail_and_only_with_the_tail(place: bytes) -> None:
    boundary = START + MIB
    crossed = 0
    for before in range(8, 24 + len(creation(place=place)) + 8, 8):
        writer = WalWriter(boundary - 2 * PAGE_BYTES)
        writer.fill_to(PAGE_BYTES - 8)
        writer.fill_to(PAGE_BYTES - before)
        laid = writer.record(creation(place=place), rmid=5)
        writer.commit(1)
        wal = bytes(writer.wal)
        here = boundary - writer.start
        tail, head = wal[here - PAGE_BYTES : here], wal[here:]
        across = find_made_across(GEOMETRY, boundary, tail, head)
        if laid.last > boundary:
            crossed += 1
            assert [one.location for one in across] == [place]
            assert may_end_one(GEOMETRY, boundary, head)
            assert not find_made(GEOMETRY, boundary, head)
            assert not find_made(GEOMETRY, writer.start, wal[:here])
        else:
            # It was judged with the segment before.
            assert not across
    assert crossed >= 3


def test_most_other_records_over_a_segments_end_do_not_ask_for_the_segment_before() -> None:
    boundary = START + MIB
    for content in (b"", bytes(500), b"text" * 100, bytes(3 * PAGE_BYTES)):
        writer = WalWriter(boundary - 2 * PAGE_BYTES)
        writer.fill_to(PAGE_BYTES - 8)
        writer.fill_to(PAGE_BYTES - 32)
        writer.record(content)
        writer.commit(1)
        assert not may_end_one(GEOMETRY, boundary, bytes(writer.wal)[boundary - writer.start :])
    assert not may_end_one(GEOMETRY, boundary, bytes(PAGE_BYTES))


def test_user_data_that_looks_like_one_is_none() -> None:
    fake = record_bytes(creation(), previous=START + 48, rmid=5)
    writer = WalWriter(START)
    writer.commit(1)
    writer.record((fake + bytes(-len(fake) % 8)) * 500)
    # A number that a table of 64-bit integers may well have.
    writer.record(struct.pack("<Q", 5 << 8) * 20_000)
    assert found(writer) == []


def test_a_record_that_a_crash_cut_short_is_none() -> None:
    writer = WalWriter(START)
    writer.fill_to(PAGE_BYTES - 40)
    raw = record_bytes(creation(), previous=writer.previous, rmid=5)
    writer.wal += raw[:40]
    writer.header(0x0008, 0)
    writer.commit(1)
    assert found(writer) == []


def test_one_that_cannot_be_read_is_refused_and_not_passed_over() -> None:
    for content in (
        main_data(struct.pack("<I", 16500) + b"/no/end"),
        b"\x07" * 40,
        b"\xfd\0\0\xfc" + bytes(4),
    ):
        writer = WalWriter(START)
        writer.record(content, rmid=5)
        with pytest.raises(MalformedValue, match="makes a tablespace"):
            found(writer)
