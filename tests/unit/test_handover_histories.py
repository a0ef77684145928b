"""History files that were handed over, while one region lists histories that nobody signed, or is away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fix_stores import FaultyStore
from fix_wal_archive import REPOSITORY_ID, Told, WalHouse

from pitr.archive_flow import Flow
from pitr.archive_gate import GateSource
from pitr.archive_handover import Handover
from pitr.archive_histories import Histories
from pitr.archive_retry import Retry
from pitr.archive_seal import Writer
from pitr.archive_values import MIB, ArchiveEventKind, ArchiveSettings, NoJudge
from pitr.catalogue.records import HistoryRecord
from pitr.gate_folder import GateFolder
from pitr.layout import history_key
from pitr.pipeline.keys import content_key
from pitr.wal.timeline import TimelineHistory, TimelineId
from storage.memory import MemoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from storage.store import StoreUnavailable

SYSTEM = 7301234567890123456
HISTORY = b"1\t0/3000000\tno recovery target specified\n"
NAME = "00000002.history"


class Site:
    """The gate of one host that only hands over, and three regions at a quorum of two."""

    def __init__(self, root: Path, queue: RepairQueue) -> None:
        self.stores = {name: FaultyStore(MemoryStore()) for name in "abc"}
        self.store = ReplicatedStore(
            [Region(name, store) for name, store in self.stores.items()], quorum=2, queue=queue
        )
        self.house = WalHouse(self.store, SYSTEM)
        self.store.wait_idle(60.0)
        self.told = Told()
        self.folder = GateFolder(root)
        self.folder.make()
        self.folder.begin()
        self.todo = root / "todo"
        settings = ArchiveSettings(slot="pitr")
        flow = Flow(settings, segment_bytes=16 * MIB, end=None, monotonic=lambda: 0.0)
        signer = self.house.signer
        key = content_key(signer, REPOSITORY_ID)
        self.handover = Handover(
            self.folder,
            Writer(REPOSITORY_ID, self.house.archive, 16 * MIB, signer, key, bytes),
            self.house.repository,
            flow,
            Retry(self.told.on_event, random=bytes, pause_s_max=0.1),
            self.told,
            feeder=GateSource(
                self.folder, flow, self.told.on_event, stopping=threading.Event(), check=lambda: None
            ),
            judge=NoJudge(),
            gap_wait_s=60.0,
            monotonic=lambda: 0.0,
        )

    def hand_over(self) -> bool:
        """Hand the history of timeline 2 over; tell whether it was acknowledged."""
        (self.todo / NAME).write_bytes(HISTORY)
        self.handover.look()
        return not (self.todo / NAME).exists() and not self.told.has(ArchiveEventKind.HANDED_REFUSED)

    def archived(self) -> bytes:
        return self.house.repository.get_history(self.house.archive, TimelineId(2)).content


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with closing(RepairQueue(tmp_path / "repairs")) as queue:
        found = Site(tmp_path / "gate", queue)
        with closing(found.store):
            yield found


@pytest.mark.parametrize("region", "abc")
@pytest.mark.parametrize("timeline", [2, 9])
def test_a_history_that_nobody_signed_in_one_region_does_not_end_the_handover(
    site: Site, region: str, timeline: int
) -> None:
    junk = history_key(site.house.archive, TimelineId(timeline))
    site.stores[region].inner.put(junk, b"junk")
    assert site.hand_over()
    assert site.archived() == HISTORY
    # What is asked for each segment reads them all.
    site.handover._know_histories(TimelineId(2))
    assert TimelineId(2) in site.handover._histories
    assert any(fault.key == junk for fault in site.store.damaged())
    assert [one.timeline.number for one in site.house.repository.histories(site.house.archive)] == [2]


@pytest.mark.parametrize("region", "abc")
def test_a_region_that_is_away_does_not_keep_a_history_from_the_others(site: Site, region: str) -> None:
    site.stores[region].fail(StoreUnavailable("down"), "get", "put")
    assert site.hand_over()
    assert site.told.histories[0].content == HISTORY


def test_the_same_history_again_is_acknowledged_and_another_is_not(site: Site) -> None:
    assert site.hand_over()
    assert site.hand_over()
    (site.todo / NAME).write_bytes(HISTORY.replace(b"3", b"4"))
    site.handover.look()
    assert site.told.has(ArchiveEventKind.HANDED_DIFFERS)


@pytest.mark.parametrize("left", ["good", "missing", "rotten"])
def test_a_stream_goes_on_though_no_region_has_a_good_copy_of_the_history_that_it_ends_on(
    site: Site, left: str
) -> None:
    """It is read once, before the first WAL: an archiver that waits for it archives nothing more."""
    house, two = site.house, TimelineId(2)
    if left == "good":
        house.repository.put_history(HistoryRecord(REPOSITORY_ID, house.archive, two, HISTORY), house.signer)
    elif left == "rotten":
        for store in site.stores.values():
            store.put(history_key(house.archive, two), b"rotten")
    key = content_key(house.signer, REPOSITORY_ID)
    retry = Retry(site.told.on_event, random=bytes, pause_s_max=0.1)
    timer = threading.Timer(5.0, retry.give_up)
    timer.start()
    writer = Writer(REPOSITORY_ID, house.archive, 16 * MIB, house.signer, key, bytes)
    histories = Histories(writer, house.repository, retry, lambda _record: None)
    server = TimelineHistory.parse(
        TimelineId(3), HISTORY.replace(b"3000000", b"2F00000") + b"2\t0/5000000\tx\n"
    )
    own = histories.own(two, server)
    timer.cancel()
    ours = TimelineHistory.parse(two, HISTORY)
    assert own == (ours if left == "good" else server.up_to(two))
    assert ours != server.up_to(two)
