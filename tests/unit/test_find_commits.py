"""Which transactions may have changed an answer, and what one did, from records of the server's form."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from pitr.errors import MalformedValue
from pitr.wal.changes import Change, Operation, RelationFile, Standing, changes_of, commit_parts, files_of
from pitr.wal.lsn import LSN
from pitr.wal.records import WalRecord
from pitr.wal.transactions import transaction_ends
from verifiers.find_commits import is_before, read_candidates, read_deed

DATABASE = 5
SEEN, UNSEEN = RelationFile(1663, DATABASE, 20_000), RelationFile(1663, DATABASE, 20_001)
NEW, ELSEWHERE = RelationFile(1663, DATABASE, 30_000), RelationFile(1663, 6, 20_000)
PG_CLASS = RelationFile(1663, DATABASE, 1259)
STANDING = Standing(DATABASE, 100, frozenset({SEEN}), frozenset({UNSEEN}), {SEEN: "public.seen"})
HEAP, HEAP2, BTREE = 10, 9, 11
INSERT, DELETE, UPDATE, IN_PLACE = 0x00, 0x10, 0x20, 0x70
START, END = LSN(1000), LSN(1_000_000)


def block(file: RelationFile | None, *, image: bytes = b"", info: int = 0, data_bytes: int = 0) -> bytes:
    """Return a block's header; None: of the same relation as the block before."""
    flags = (0x10 if image else 0) | (0x20 if data_bytes else 0) | (0x80 if file is None else 0)
    header = struct.pack("<BBH", 0, flags, data_bytes)
    if image:
        header += struct.pack("<HHB", len(image), 40, info)
        header += b"\0\0" if info & 0x01 and info & 0x1C else b""
    if file is not None:
        header += struct.pack("<III", file.tablespace, file.database, file.number)
    return header + struct.pack("<I", 7)


def record(
    at: int, xid: int, rmid: int, info: int, headers: bytes, rest: bytes = b"", main: bytes = b""
) -> WalRecord:
    """Return a record; ``rest`` is what the blocks announced."""
    tail = bytes([255, len(main)]) if main else b""
    return WalRecord(LSN(at), LSN(at + 8), xid, rmid, info, headers + tail + rest + main, 0xD116)


def heap(at: int, xid: int, file: RelationFile, info: int = DELETE) -> WalRecord:
    return record(at, xid, HEAP, info, block(file, data_bytes=3), b"row", b"12345678")


def commit(
    at: int, xid: int, *, subs: Sequence[int] = (), removed: Sequence[RelationFile] = (), aborts: bool = False
) -> WalRecord:
    xinfo = 0x01 | (0x02 if subs else 0) | (0x04 if removed else 0)
    main = struct.pack("<qI", 10**6, xinfo) + struct.pack("<II", DATABASE, 1663)
    if subs:
        main += struct.pack(f"<i{len(subs)}I", len(subs), *subs)
    if removed:
        main += struct.pack("<i", len(removed))
        main += b"".join(struct.pack("<III", f.tablespace, f.database, f.number) for f in removed)
    return record(at, xid, 1, 0x80 | (0x20 if aborts else 0), b"", main=main)


def relevant(records: list[WalRecord], standing: Standing | None = STANDING) -> list[int]:
    return list(read_candidates(records, START, END, standing).starts)


def test_only_what_changed_relations_that_the_query_may_read_is_a_candidate() -> None:
    records = [
        heap(1000, 101, UNSEEN), commit(1010, 101),
        heap(1020, 102, SEEN), commit(1030, 102),
        heap(1040, 103, ELSEWHERE), commit(1050, 103),
        heap(1060, 104, PG_CLASS), commit(1070, 104),
        heap(1080, 105, NEW), commit(1090, 105),
        commit(1100, 106, removed=[SEEN]),
        commit(1110, 107),
        heap(1120, 108, PG_CLASS, IN_PLACE), commit(1130, 108),
    ]  # fmt: skip
    assert relevant(records) == [1030, 1070, 1090, 1100]
    assert relevant(records, None) == [1010, 1030, 1050, 1070, 1090, 1100, 1110, 1130]
    found = read_candidates(records, START, END, STANDING)
    assert (found.all_commits, found.is_preceded, list(found.is_followed)) == (8, True, [1, 0, 0, 1])
    # A mass change and a lost table are suspected more than an insertion.
    assert found.suspicion[3] > found.suspicion[0] > 0


def test_subtransactions_count_for_their_transaction_and_what_was_rolled_back_does_not() -> None:
    records = [
        heap(1000, 111, SEEN), commit(1010, 110, subs=[111]),
        heap(1020, 112, SEEN), commit(1030, 112, aborts=True), commit(1040, 112),
    ]  # fmt: skip
    assert relevant(records) == [1010]


def test_what_began_before_the_first_state_is_a_candidate() -> None:
    assert relevant([commit(1000, 99), commit(1010, 100)]) == [1000]
    # A transaction that runs at the first state, newer than all that had ended there.
    assert relevant([heap(900, 120, UNSEEN), commit(1000, 119), commit(1010, 121)]) == [1000]


def test_transaction_ids_go_round() -> None:
    assert is_before(0xFFFF_FFF0, 5)
    assert not is_before(5, 0xFFFF_FFF0)
    assert not is_before(7, 7)


def test_only_commits_between_the_two_states_are_candidates() -> None:
    records = [heap(980, 130, SEEN), commit(990, 130), commit(1000, 131, removed=[SEEN]), commit(2000, 132)]
    found = read_candidates(records, START, LSN(2000), None)
    assert list(found.starts) == [1000]


def test_a_deed_is_counted_by_relation_with_its_subtransactions() -> None:
    records = [
        heap(1000, 140, UNSEEN, INSERT), heap(1010, 141, SEEN), heap(1020, 141, SEEN),
        heap(1030, 999, SEEN), heap(1040, 140, SEEN, UPDATE), heap(1050, 140, PG_CLASS, UPDATE),
        record(1060, 140, BTREE, 0, block(NEW)),
        commit(1070, 140, subs=[141], removed=[UNSEEN]),
    ]  # fmt: skip
    (end,) = transaction_ends(records)
    deed = read_deed(records, START, end, (141,))
    rows = {one.file: one.rows for one in deed.touched}
    assert rows == {
        SEEN: {Operation.DELETE: 2, Operation.UPDATE: 1},
        UNSEEN: {Operation.INSERT: 1, Operation.FILES: 0},
        PG_CLASS: {Operation.UPDATE: 1},
    }
    assert deed.touched[-1].file == PG_CLASS
    assert (deed.began_at, deed.subtransactions, deed.is_complete) == (LSN(1000), 1, True)


@pytest.mark.parametrize("info", [0x00, 0x01, 0x01 | 0x08])
def test_blocks_with_images_and_of_the_same_relation_are_stepped_over(info: int) -> None:
    image = b"p" * 50
    headers = block(SEEN, image=image, info=info, data_bytes=4) + block(None, data_bytes=2)
    found = record(1000, 7, HEAP, UPDATE, headers, image + b"fourtw", b"main")
    assert files_of(found) == [SEEN, SEEN]
    assert list(changes_of(found)) == [Change(SEEN, Operation.UPDATE, 1)]


def test_rows_of_one_record_that_inserts_many_are_counted() -> None:
    main = struct.pack("<BxH", 0, 37)
    found = record(1000, 7, HEAP2, 0x50, block(SEEN, data_bytes=3), b"row", main)
    assert list(changes_of(found)) == [Change(SEEN, Operation.INSERT, 37)]


def test_a_commit_lists_its_subtransactions_and_the_files_that_go() -> None:
    parts = commit_parts(commit(1000, 7, subs=[8, 9], removed=[SEEN, UNSEEN]))
    assert (parts.subtransactions, parts.removed) == ((8, 9), (SEEN, UNSEEN))


@pytest.mark.parametrize("data", [b"\x21aaa", b"\x00\x20\x03", block(None) + b"\xff\x00"])
def test_a_damaged_record_is_told(data: bytes) -> None:
    with pytest.raises(MalformedValue):
        files_of(WalRecord(LSN(1000), LSN(1008), 7, HEAP, 0, data, 0xD116))
