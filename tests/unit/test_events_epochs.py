"""Signed fences where a restored cluster was promoted and let in again: they are two writers', of one way."""

from __future__ import annotations

from fix_fences import FENCE_AT, fence_of
from fix_repository import RepositoryHouse

from cli.events_fences import SignedFences
from pitr.catalogue.records import EpochParent
from pitr.datakeys import DataKeys, HostKeys
from pitr.events.fence import Fence
from pitr.events.fence_store import FenceReader, FenceWriter, WrittenFence
from pitr.layout import ArchiveId
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from pitr.wal_runs import WalSpan
from storage.memory import MemoryStore

ONE, TWO, THREE = TimelineId(1), TimelineId(2), TimelineId(3)
FORK = LSN(5500)


class TwoEpochs:
    """The first writer's timelines 1 and 2, a failover; and a second writer's, restored to a moment of 1."""

    def __init__(self) -> None:
        self.house = RepositoryHouse(MemoryStore())
        self.first = self.house.archive
        self.second = self.house.add_epoch(2, EpochParent(1, ONE, FORK))
        before = [fence_of(number) for number in range(1, 9)]
        beside = [fence_of(number, timeline=2) for number in (9, 10)]
        # An object holds many: the last that is looked at has some of both timelines.
        self._put(self.first, before[:3], [*before[3:], *beside])

    def _put(self, archive: ArchiveId, *objects: list[Fence]) -> None:
        house = self.house
        keys = HostKeys(
            house.repository, archive, house.host, [house.identity.recipient()], random=house.random
        )
        writer = FenceWriter(house.repository, archive, house.host, keys.wal_key)
        for one in objects:
            assert writer.put([WrittenFence.of(fence) for fence in one], FENCE_AT) == len(one)

    def begin_second(self, timeline: int) -> None:
        self._put(
            self.second,
            [fence_of(number, timeline=timeline, lsn=number * 1000 + 5) for number in (6, 7)],
            [fence_of(12, timeline=timeline)],
        )

    def way(self, timeline: TimelineId) -> list[WalSpan]:
        return [
            WalSpan(self.first, ONE, LSN(1), FORK),
            WalSpan(self.second, timeline, FORK),
        ]

    def found(self, way: list[WalSpan], end: int) -> list[tuple[int, int]]:
        keys, faults = DataKeys(self.house.repository, self.house.identity), list[str]()
        fences = SignedFences(FenceReader(self.house.repository), keys, faults)
        found = [(one.mark.timeline.number, one.mark.lsn.offset) for one in fences.on_way(way, LSN(end))]
        assert faults == []
        return found


def test_the_fences_of_both_writers_are_read_each_as_far_as_it_is_on_the_way() -> None:
    epochs = TwoEpochs()
    epochs.begin_second(3)
    first = [(1, number * 1000) for number in (5, 4, 3, 2, 1)]
    assert epochs.found(epochs.way(THREE), 7500) == [(3, 12_000), (3, 7005), (3, 6005), *first]


def test_what_the_first_writer_wrote_on_a_timeline_of_the_seconds_number_is_not_the_seconds() -> None:
    epochs = TwoEpochs()
    epochs.begin_second(2)
    found = epochs.found(epochs.way(TWO), 10_500)
    assert found[:3] == [(2, 12_000), (2, 7005), (2, 6005)]
    assert {timeline for timeline, _ in found[3:]} == {1}
    assert [lsn for _, lsn in found[3:]] == [5000, 4000, 3000, 2000, 1000]


def test_of_the_last_writer_what_follows_the_end_is_read_too() -> None:
    epochs = TwoEpochs()
    epochs.begin_second(3)
    way = [WalSpan(epochs.first, ONE, LSN(1), FORK)]
    found = epochs.found(way, 2500)
    assert found[-3:] == [(1, 3000), (1, 2000), (1, 1000)]
    assert (2, 10_000) in found
