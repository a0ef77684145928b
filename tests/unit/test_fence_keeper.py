"""The daemon's fences: taken whatever is away, and brought to the regions when they are there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from fix_cli import wait_until
from fix_fences import PlayedCluster, PlayedMarker, fence_of
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore

from cli.control import REPLY_BYTES_MAX, encode_line
from cli.events_parts import fence_now, with_fence
from cli.events_settings import EventsSettings
from cli.fence_keeper import FenceKeeper, fence_fields
from pitr.catalogue.backup_record import BackupManifest
from pitr.datakeys import DataKeys, HostKeys
from pitr.errors import BackupFailed, NotInitialised, ServerUnavailable
from pitr.events.broker import BrokerUnavailable
from pitr.events.fence import PartitionFence, TopicFence
from pitr.events.fence_code import PARTITIONS_MAX
from pitr.events.fence_store import FenceReader, FenceWriter
from pitr.events.fence_take import TakenFence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.partition import OFFSET_MAX, TopicPartition
from pitr.repository import Repository
from storage.memory import MemoryStore

ORDERS = TopicPartition("orders", 0)


class PlayedSession(PlayedMarker):
    """A marker that can be closed, as one with a session."""

    unpruned: str | None = None

    def close(self) -> None:
        self.asked.append("close")


class World:
    def __init__(self, *, every_s: float, store_every_s: float) -> None:
        self.store = MemoryStore()
        self.faulty = FaultyStore(self.store)
        house = self.house = RepositoryHouse(self.store)
        repository = Repository(self.faulty, house.repository.repository_id, house.root.public)
        keys = HostKeys(
            repository, house.archive, house.host, [house.identity.recipient()], random=house.random
        )
        self.cluster = PlayedCluster({ORDERS: 10})
        self.marker = PlayedSession(self.cluster.asked)
        self.counted: list[str] = []
        self.logged: list[str] = []
        settings = EventsSettings(
            "k:9092", None, (FlowDeclaration("orders", Flow.DB_FIRST),), every_s, store_every_s
        )
        self.keeper = FenceKeeper(
            self.cluster,
            self.marker,  # type: ignore[arg-type]  # it has the parts that are used
            FenceWriter(repository, house.archive, house.host, keys.wal_key),
            settings,
            structlog.wrap_logger(None, processors=[self._log]),
            self.counted.append,
        )

    def _log(self, _logger: object, level: str, event: dict[str, object]) -> str:
        self.logged.append(f"{level}: {event['event']}")
        raise structlog.DropEvent

    def stored(self) -> list[int]:
        reader, keys = (
            FenceReader(self.house.repository),
            DataKeys(self.house.repository, self.house.identity),
        )
        found = []
        for sequence in reversed(reader.sequences(self.house.archive)):
            found += [one.mark.number for one in reader.read(self.house.archive, sequence, keys)]
        return found


@pytest.fixture
def often() -> Iterator[World]:
    world = World(every_s=0.02, store_every_s=0.02)
    yield world
    world.keeper.stop()


@pytest.fixture
def rarely() -> Iterator[World]:
    """None but those that are asked for, after the first."""
    world = World(every_s=3600, store_every_s=3600)
    yield world
    world.keeper.stop()


def test_fences_are_taken_and_stored_in_order_and_the_last_ones_at_the_end(often: World) -> None:
    often.keeper.start()
    wait_until(lambda: len(often.stored()) >= 5, "five fences are stored")
    often.keeper.stop()
    assert often.stored() == list(range(1, len(often.marker.payloads) + 1))
    assert often.marker.asked[-1] == "close"
    seen = often.keeper.snapshot()
    assert (seen.waiting, seen.dropped, seen.unknown, seen.partitions) == (0, 0, None, 1)
    assert seen.stored_at is not None
    assert often.keeper.newest is not None
    assert often.keeper.newest.count == len(often.marker.payloads)


def test_regions_that_are_away_hold_no_fence_up_and_get_all_of_them_later(often: World) -> None:
    often.faulty.go_down()
    often.keeper.start()
    wait_until(lambda: len(often.marker.payloads) >= 5, "five fences are taken")
    wait_until(lambda: often.keeper.snapshot().store_error is not None, "the failure is told")
    often.faulty.heal()
    wait_until(lambda: len(often.stored()) >= 5, "they are stored")
    numbers = often.stored()
    assert numbers == list(range(1, len(numbers) + 1))
    wait_until(lambda: often.keeper.snapshot().store_error is None, "it is told that it is over")
    assert often.logged.count("warning: fences cannot be put, and are tried again") == 1


def test_kafka_away_is_told_once_and_marked_each_time(often: World) -> None:
    often.cluster.fails["ends"] = BrokerUnavailable("no answer")
    often.keeper.start()
    wait_until(lambda: often.counted.count("fence-unknown") >= 3, "marks are made")
    seen = often.keeper.snapshot()
    assert (seen.unknown, seen.trouble) == ("no answer", None)
    often.cluster.fails.clear()
    wait_until(lambda: "fence" in often.counted, "Kafka is known again")
    assert often.logged.count("warning: Kafka's offsets are not known") == 1


def test_postgresql_away_is_trouble_until_it_is_back(often: World) -> None:
    often.marker.fails = ServerUnavailable("away", detail="no route")
    often.keeper.start()
    wait_until(lambda: often.keeper.snapshot().trouble == "away; no route", "it is told")
    often.marker.fails = None
    wait_until(lambda: often.keeper.snapshot().trouble is None, "it is over")
    assert often.keeper.snapshot().number is not None


def test_what_nobody_foresaw_is_told_and_ends_no_thread(often: World) -> None:
    def fail() -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    often.marker.during = fail
    often.keeper.start()
    wait_until(lambda: "UnicodeDecodeError" in str(often.keeper.snapshot().trouble), "it is told")
    often.marker.during = lambda: None
    wait_until(lambda: often.keeper.snapshot().number is not None, "fences are taken again")
    assert often.keeper.snapshot().trouble is None


def test_one_that_is_asked_for_is_stored_soon(rarely: World) -> None:
    rarely.keeper.start()
    wait_until(lambda: rarely.keeper.snapshot().number == 1, "the first one")
    told = fence_now(rarely.keeper)
    assert told["number"] == 2
    assert told["topics"][0]["partitions"] == [{"partition": 0, "low": 0, "before": 10, "after": 10}]
    wait_until(lambda: rarely.stored() == [1, 2], "it is stored long before its time")
    with pytest.raises(NotInitialised, match=r"no \[events\]"):
        fence_now(None)


def test_a_backup_has_a_fence_before_it_and_none_fails_it(rarely: World, tmp_path: Path) -> None:
    order = rarely.cluster.asked

    def take(*_: object) -> BackupManifest:
        order.append("backup")
        raise BackupFailed("as it were")

    def nothing(*_: object) -> None: ...

    taking = with_fence(take, rarely.keeper)  # type: ignore[arg-type]
    with pytest.raises(BackupFailed):
        taking("label", "auto", threading.Event(), nothing, nothing)
    assert order[-3:] == ["mark", "ends", "backup"]
    rarely.marker.fails = ServerUnavailable("away")
    with pytest.raises(BackupFailed):
        taking("label", "auto", threading.Event(), nothing, nothing)
    assert "warning: no fence before the backup" in rarely.logged
    assert with_fence(take, None) is take  # type: ignore[arg-type]


def test_what_nobody_foresaw_is_told_and_the_next_fences_are_taken_and_stored(often: World) -> None:
    often.cluster.fails["ends"] = ZeroDivisionError("of a library")  # type: ignore[assignment]
    often.keeper.start()
    wait_until(lambda: often.keeper.snapshot().trouble == "ZeroDivisionError: of a library", "it is told")
    often.cluster.fails.clear()
    wait_until(lambda: len(often.stored()) >= 2, "fences are taken again")
    often.faulty.fail(ZeroDivisionError("of a library"))  # type: ignore[arg-type]
    wait_until(lambda: "ZeroDivisionError" in str(often.keeper.snapshot().store_error), "told, too")
    often.faulty.heal()
    count = len(often.stored())
    wait_until(lambda: len(often.stored()) > count, "and stored again")


def test_the_largest_fence_that_there_may_be_fits_into_the_daemons_answer() -> None:
    each = tuple(PartitionFence(number, OFFSET_MAX, OFFSET_MAX, OFFSET_MAX) for number in range(1000))
    topics = tuple(
        TopicFence("t" * 240 + f"{number:04}", "b9qrx1LcTYKzTVmCgKwMiQ", each)
        for number in range(PARTITIONS_MAX // 1000)
    )
    fields = fence_fields(TakenFence(replace(fence_of(7), topics=topics), (), None))
    assert len(encode_line({"result": fields})) < REPLY_BYTES_MAX
