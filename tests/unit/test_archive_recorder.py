"""The recorder while regions lack what a head speaks of: what is durable is recorded all the same."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_stores import FaultyStore
from fix_wal_archive import REPOSITORY_ID, WAIT_S, Told, WalHouse, now, quick_settings, wait_until

from pitr.archive_flow import Flow
from pitr.archive_heads import BackupList, HeadWriter, IndexWriter
from pitr.archive_intake import Intake
from pitr.archive_pipeline import Parts
from pitr.archive_recorder import Recorder
from pitr.archive_retry import Retry
from pitr.archive_seal import PieceSealer, Writer
from pitr.archive_values import ArchiveSettings
from pitr.datakeys import HostKeys
from pitr.pipeline.keys import DataKey, content_key
from pitr.spool import DirectorySpool
from pitr.wal.lsn import LSN
from pitr.wal.pieces import RunStart
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore

MIB = 1 << 20


class Desk:
    """Three regions with a quorum of two, and a recorder that works for their archive."""

    def __init__(self, folder: Path) -> None:
        self.faulty = {name: FaultyStore(MemoryStore()) for name in "abc"}
        self.queue = RepairQueue(folder / "repair")
        regions = [Region(name, store) for name, store in self.faulty.items()]
        # Longer than any test waits: a put that waits is seen to.
        self.store = ReplicatedStore(regions, quorum=2, queue=self.queue, put_timeout_s=3600.0)
        house = WalHouse(self.store, 7301234567890123456)
        self.spool = DirectorySpool(folder / "spool", bytes_max=MIB)
        self.told = Told()
        settings = quick_settings()
        self.flow = Flow(settings, segment_bytes=MIB, end=None, monotonic=time.monotonic)
        key = content_key(house.signer, REPOSITORY_ID)
        writer = Writer(REPOSITORY_ID, house.archive, MIB, house.signer, key, os.urandom)
        keys = HostKeys(house.repository, house.archive, house.signer, [house.recipient], random=os.urandom)
        retry = Retry(self.told.on_event, random=os.urandom, pause_s_max=0.1)
        parts = Parts(house.repository.puts, self.spool, keys, retry, self.told.on_event, now, time.monotonic)
        self.intake = Intake(writer, PieceSealer(writer, last_sequence=0, last_sha256=None), None)
        self.recorder = Recorder(
            parts,
            self.flow,
            self.told,
            heads=HeadWriter(writer, house.repository.puts, self.spool, None),
            index=IndexWriter(writer, house.repository.puts, None),
            backups=BackupList(list),
            head_interval_s=settings.head_interval_s,
        )
        self.flow.begin(RunStart(TimelineId(1), LSN(16 * MIB), None, follows=False))
        self.thread = threading.Thread(target=self.recorder.run, daemon=True)
        self.thread.start()

    def archive(self) -> None:
        """Let one more piece become durable."""
        self.flow.add(bytes(8192))
        raw = self.flow.take_raw()
        assert raw is not None
        sealed = self.intake.seal(raw, DataKey(bytes(32)), now())
        self.flow.add_sealed(raw, sealed)
        piece = self.flow.take_piece()
        assert piece is not None
        self.store.put(str(piece.key), piece.body, sha256=piece.sha256)
        self.flow.finish_piece(piece)

    def keys(self) -> list[str]:
        return [info.key for info in self.store.list_objects("")]

    def heads(self) -> set[str]:
        return {key for key in self.keys() if key.startswith("heads/")}

    def close(self) -> None:
        for store in self.faulty.values():
            store.heal()
        self.flow.stop()
        self.thread.join(WAIT_S)
        self.store.close()
        self.queue.close()
        self.spool.close()
        self.flow.waker.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def test_what_is_durable_is_recorded_while_a_head_must_wait(desk: Desk) -> None:
    wait_until(lambda: desk.told.heads, "the first head")
    lacking = {region: desk.faulty[region].hold("put", f"wal/{region}") for region in "bc"}
    for region in "bc":
        desk.store.put(f"wal/{region}", b"body")
    heads = len(desk.told.heads)
    for number in range(1, 4):
        desk.archive()
        wait_until(lambda number=number: len(desk.told.pieces) == number, f"piece {number} to be recorded")
        # Meanwhile a head becomes due.
        threading.Event().wait(quick_settings().head_interval_s)
    # One may have begun before.
    assert len(desk.told.heads) <= heads + 1
    for gate in lacking.values():
        gate.release()
    wait_until(lambda: desk.told.heads[-1].piece_sequence == 3, "a head that names them")


def test_the_end_is_signed_anew_while_nothing_is_written_and_nothing_else_is_put(desk: Desk) -> None:
    desk.archive()
    wait_until(lambda: desk.told.heads and desk.told.heads[-1].piece_sequence == 1, "a head that names it")
    before, wal = len(desk.told.heads), set(desk.keys()) - desk.heads()
    wait_until(lambda: len(desk.told.heads) >= before + 3, "three more heads")
    idle = desk.told.heads[before - 1 : before + 3]
    assert len({(head.wal_end, head.piece_sequence) for head in idle}) == 1
    assert [head.sequence for head in idle] == list(range(idle[0].sequence, idle[0].sequence + 4))
    # A freeze is seen by the time, so each says its own.
    assert sorted({head.at for head in idle}) == [head.at for head in idle]
    assert set(desk.keys()) - desk.heads() == wal


def test_the_end_is_signed_every_half_minute() -> None:
    assert ArchiveSettings("pitr").head_interval_s == 30.0
