"""The first transaction id that was taken since a fork: by made-up WAL and snapshots."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from fix_wal_pages import Laid, WalWriter, main_data, time_bytes

from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN
from pitr.wal.pages import LONG_HEADER_BYTES, PAGE_BYTES, SHORT_HEADER_BYTES
from pitr.wal.xids import RunningIds, first_xid_since, nearest_xid, page_start, written_end

MIB = 1 << 20
START = 4 * MIB
_COMMIT_PREPARED, _PREPARE, _ABORT_PREPARED, _HAS_INFO, _HAS_PREPARED = 0x30, 0x10, 0x40, 0x80, 0x10


@dataclass
class Fork:
    """WAL of the old timeline up to mid-page, and what the new one writes behind it."""

    writer: WalWriter = field(default_factory=lambda: WalWriter(START))

    def __post_init__(self) -> None:
        self.writer.record(bytes(PAGE_BYTES), xid=500)
        self.lsn = LSN(self.writer.commit(0, xid=501).end)

    def end_prepared(self, xid: int, info: int) -> Laid:
        body = time_bytes(1) + struct.pack("<II", _HAS_PREPARED, xid)
        return self.writer.record(main_data(body), rmid=1, info=info | _HAS_INFO, xid=0)

    def first(self, xmax: int, running: Iterable[int] = (), prepared: Iterable[int] = ()) -> int:
        start = page_start(self.lsn)
        wal = bytes(self.writer.wal[start.offset - START :])
        # In cuts that are none of its pages'.
        chunks = [(start + at, wal[at : at + 5000]) for at in range(0, len(wal), 5000)]
        ids = RunningIds(xmax, frozenset(running), frozenset(prepared))
        return first_xid_since(chunks, self.lsn, LSN(self.writer.at), ids, segment_bytes=MIB)


def test_the_first_id_is_the_next_one_where_nobody_took_any() -> None:
    fork = Fork()
    assert fork.first(700) == 700
    for _ in range(3):
        fork.writer.record(bytes(MIB // 2), xid=0)
    assert fork.writer.at - fork.lsn.offset > MIB
    assert fork.first(700) == 700


def test_the_first_id_is_the_smallest_in_any_record_since_across_pages_and_segments() -> None:
    fork = Fork()
    fork.writer.record(bytes(MIB), xid=0)
    fork.writer.commit(1, xid=612)
    fork.writer.record(bytes(3 * PAGE_BYTES), xid=610)
    fork.writer.switch()
    assert fork.first(620) == 610
    fork.writer.commit(2, xid=609)
    assert fork.first(620) == 609


def test_an_id_that_has_not_ended_and_logged_nothing_is_in_the_snapshot() -> None:
    fork = Fork()
    fork.writer.commit(1, xid=611)
    assert fork.first(612, running={609, 615}) == 609


def test_what_was_prepared_before_the_fork_is_not_new_whether_it_waits_or_was_ended() -> None:
    fork = Fork()
    fork.end_prepared(490, _COMMIT_PREPARED)
    fork.end_prepared(491, _ABORT_PREPARED)
    fork.writer.commit(1, xid=611)
    # 490 and 491 were ended between the snapshot and the question for prepared ones.
    assert fork.first(612, running={489, 490, 491}, prepared={489}) == 611


def test_what_was_prepared_since_the_fork_is_new_also_when_it_was_ended() -> None:
    fork = Fork()
    fork.writer.record(main_data(bytes(80)), rmid=1, info=_PREPARE, xid=609)
    fork.writer.commit(1, xid=611)
    assert fork.first(612, running={609}, prepared={609}) == 609
    fork.end_prepared(609, _COMMIT_PREPARED)
    assert fork.first(612) == 609


def test_ids_of_32_bits_are_those_of_the_round_that_the_snapshot_is_in() -> None:
    fork = Fork()
    turn = 7 << 32
    fork.writer.commit(1, xid=(1 << 32) - 2)
    fork.writer.commit(2, xid=4)
    assert fork.first(turn + 5) == turn - 2
    assert nearest_xid(3, turn - 1) == turn + 3
    assert nearest_xid((1 << 32) - 1, 10) == (1 << 32) - 1


def test_wal_that_does_not_reach_the_end_is_refused() -> None:
    fork = Fork()
    fork.writer.commit(1, xid=611)
    whole = fork.writer.at
    fork.writer.wal += bytes(64)
    with pytest.raises(MalformedValue, match="must reach"):
        fork.first(612)
    del fork.writer.wal[whole - START - 8 :]
    with pytest.raises(MalformedValue, match="must reach"):
        fork.first(612)


def test_a_fork_between_two_pages_leaves_nothing_out() -> None:
    fork = Fork()
    fork.writer.fill_to(PAGE_BYTES - 64)
    fork.lsn = LSN(fork.writer.record(bytes(40), xid=502).end)
    assert fork.lsn.offset % PAGE_BYTES == 0
    assert fork.first(700) == 700
    fork.writer.commit(1, xid=611)
    assert fork.first(700) == 611


def test_a_page_that_has_only_its_header_to_come_is_not_waited_for() -> None:
    page = START + 3 * PAGE_BYTES
    assert written_end(LSN(page + SHORT_HEADER_BYTES), MIB) == LSN(page)
    assert written_end(LSN(START + LONG_HEADER_BYTES), MIB) == LSN(START)
    assert written_end(LSN(page), MIB) == LSN(page)
    assert written_end(LSN(page + SHORT_HEADER_BYTES + 8), MIB) == LSN(page + SHORT_HEADER_BYTES + 8)
