"""Heads one after the other, also over failures and restarts; and the hourly index of headers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fix_stores import FaultyStore
from fix_wal_archive import REPOSITORY_ID, WalHouse, now

from pitr.archive_heads import HeadWriter, IndexWriter
from pitr.archive_resume import put_spooled
from pitr.archive_seal import Writer
from pitr.archive_values import DurableEnd
from pitr.catalogue.records import HeadRecord
from pitr.catalogue.wal_records import IndexedHeader, PieceHeader
from pitr.errors import ArchiveDiverged, MalformedValue
from pitr.layout import PieceKey, head_key
from pitr.pipeline.keys import content_key
from pitr.quorum import WriteQuorum
from pitr.spool import DirectorySpool
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from storage.store import StoreUnavailable

MIB = 1 << 20
SYSTEM = 7301234567890123456
ONE = TimelineId(1)


class Host:
    def __init__(self, folder: Path) -> None:
        self.store = FaultyStore(MemoryStore())
        self.house = WalHouse(self.store, SYSTEM)
        self.spool = DirectorySpool(folder, bytes_max=MIB)
        signer = self.house.signer
        key = content_key(signer, REPOSITORY_ID)
        self.writer = Writer(REPOSITORY_ID, self.house.archive, MIB, signer, key, bytes)

    def heads(self) -> HeadWriter:
        newest = self.house.repository.find_head(self.house.archive).newest
        return HeadWriter(self.writer, self.house.repository.puts, self.spool, newest)

    def head_bytes(self, sequence: int) -> bytes:
        return self.store.inner.get(head_key(self.house.archive, sequence))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def end_at(mib: int) -> DurableEnd:
    return DurableEnd(ONE, LSN(16 * MIB), LSN((16 + mib) * MIB), mib, bytes([mib]) * 32)


def test_each_head_names_the_one_before_it(host: Host) -> None:
    heads = host.heads()
    first, second = heads.write(end_at(1), [], now()), heads.write(end_at(2), [], now())
    assert (first.head.sequence, first.head.previous) == (1, None)
    assert (second.head.sequence, second.head.previous) == (2, first.payload_sha256)
    third = host.heads().write(end_at(3), [], now())
    assert third.head.previous == second.payload_sha256
    assert not list(host.spool.objects())


def test_a_head_says_the_quorum_and_one_of_before_it_did_is_read(host: Host) -> None:
    quorum = WriteQuorum(3, 2)
    writer = HeadWriter(host.writer, host.house.repository.puts, host.spool, None, quorum=quorum)
    head = writer.write(end_at(1), [], now()).head
    stored = host.house.repository.get_head(host.house.archive, 1).head
    assert stored == head
    assert stored.quorum == quorum
    payload = dict(head.to_payload())
    del payload["quorum"]
    assert HeadRecord.from_payload(payload) == replace(head, quorum=None)
    for wrong in (
        {"regions": 2, "acknowledged_by": 3},
        {"regions": 3},
        {"regions": 99, "acknowledged_by": 1},
        3,
    ):
        with pytest.raises(MalformedValue):
            HeadRecord.from_payload({**payload, "quorum": wrong})


def test_a_head_that_could_not_be_put_is_put_as_it_was_before_the_next(host: Host) -> None:
    heads = host.heads()
    host.store.fail(StoreUnavailable("down"), "put", times=2)
    with pytest.raises(StoreUnavailable):
        heads.write(end_at(1), [], now())
    with pytest.raises(StoreUnavailable):
        heads.finish_pending()
    written = heads.finish_pending()
    assert written is not None
    assert written.head.wal_end == end_at(1).end
    assert heads.finish_pending() is None
    assert heads.write(end_at(2), [], now()).head.sequence == 2


def test_a_head_that_may_be_somewhere_outlives_a_crash(host: Host) -> None:
    host.store.fail(StoreUnavailable("down"), "put", times=1)
    with pytest.raises(StoreUnavailable):
        host.heads().write(end_at(1), [], now())
    # After the crash another head of this sequence would be a conflict wherever the first one arrived.
    (held,) = host.spool.objects()
    put_spooled(host.house.repository, host.spool, lambda _: None)
    assert host.head_bytes(1) == held.body
    assert host.heads().write(end_at(2), [], now()).head.sequence == 2


def test_a_head_of_another_writer_is_never_overwritten(host: Host) -> None:
    mine, other = host.heads(), host.heads()
    other.write(end_at(1), [], now())
    before = host.head_bytes(1)
    with pytest.raises(ArchiveDiverged, match="another writer"):
        mine.write(end_at(2), [], now())
    assert host.head_bytes(1) == before


def entry(host: Host, sequence: int, key_id: bytes) -> IndexedHeader:
    start = LSN(16 * MIB + sequence * 100)
    header = PieceHeader(
        REPOSITORY_ID,
        host.house.archive,
        ONE,
        MIB,
        start,
        start + 100,
        sequence,
        None if sequence == 1 else bytes(32),
        bytes(32),
        key_id,
        now(),
    )
    key = PieceKey(host.house.archive, header.segment, start, start + 100, sequence, "00000000")
    return IndexedHeader(key, bytes([sequence]) * 32, header)


def test_an_index_is_written_when_the_data_key_changes_and_names_the_one_before_it(host: Host) -> None:
    index = IndexWriter(host.writer, host.house.repository.puts, None)
    for sequence in (1, 2, 3):
        index.add_piece(entry(host, sequence, b"a" * 16))
    index.put_pending()
    assert not list(host.house.repository.wal.indexes(host.house.archive))
    index.add_piece(entry(host, 4, b"b" * 16))
    host.store.fail(StoreUnavailable("down"), "put", times=1)
    with pytest.raises(StoreUnavailable):
        index.put_pending()
    index.put_pending()
    index.close()
    index.put_pending()
    first, second = host.house.repository.wal.indexes(host.house.archive)
    assert [(one.first, one.last) for one in (first, second)] == [(1, 3), (4, 4)]
    assert first.previous is None
    assert second.previous is not None
