"""The daemon's thread for a mirror, and the view of one that a plan is made over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from fix_cli import wait_until
from fix_fences import fence_of
from fix_played_mirror import PlayedTarget
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore

from cli.mirror_keeper import FenceAfter, MirrorKeeper, MirrorTools, NewestFence
from pitr.datakeys import DataKeys, HostKeys
from pitr.errors import MalformedValue
from pitr.events.broker import BrokerUnavailable, EventRecord
from pitr.events.heartbeats import Heartbeat, decode_heartbeat
from pitr.events.identity import identity_of
from pitr.events.last_records import LastRecords
from pitr.events.mirror_age import mirrored_until
from pitr.events.mirror_names import MirrorNames
from pitr.events.partition import TopicPartition
from pitr.events.sync_book import SyncBook
from pitr.events.sync_keeper import SyncKeeper
from pitr.events.sync_store import SyncReader, SyncWriter
from pitr.repository import Repository
from storage.memory import MemoryStore

ORDERS = TopicPartition("orders", 0)
NAMES = MirrorNames("eu")
REMOTE = NAMES.remote_partition(ORDERS)
HEARTBEATS = TopicPartition(NAMES.heartbeats, 0)
# As a real MirrorMaker writes them.
BEAT_KEY = b"\x00\x02us\x00\x02eu"
BEAT_VALUE = b"\x00\x00" + (1_795_435_200_000).to_bytes(8, "big")


class Daemon:
    """A mirror's target, a store and the thread between them."""

    def __init__(self, folder: Path) -> None:
        self.target = PlayedTarget()
        self.target.make(NAMES.syncs)
        self.target.make(REMOTE.topic)
        self.store = MemoryStore()
        self.faulty = FaultyStore(self.store)
        self.house = RepositoryHouse(self.store)
        self.path = folder / "pairs.sqlite"
        self.fence: NewestFence | None = None
        self.is_away = True
        self.fails: Exception | None = None
        self.opened = 0
        house = self.house
        repository = Repository(self.faulty, house.repository.repository_id, house.root.public)
        keys = HostKeys(
            repository, house.archive, house.host, [house.identity.recipient()], random=house.random
        )

        def open_tools() -> MirrorTools:
            self.opened += 1
            if self.fails is not None:
                raise self.fails
            if self.is_away:
                raise BrokerUnavailable("no answer from the mirror")
            book = SyncBook(self.path)
            return MirrorTools(book, SyncKeeper(self.target, NAMES, book))

        self.keeper = MirrorKeeper(
            open_tools,
            SyncWriter(repository, house.archive, house.host, keys.wal_key, "eu"),
            lambda: self.fence,
            0.0,
            structlog.get_logger(),
            poll_every_s=0.02,
        )


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    found = Daemon(tmp_path)
    yield found
    found.keeper.stop()


def test_pairs_are_kept_and_shipped_once_the_mirror_answers(daemon: Daemon) -> None:
    daemon.keeper.start()
    wait_until(lambda: daemon.keeper.snapshot().trouble, "trouble")
    daemon.target.sync(NAMES.syncs, ORDERS, 0, daemon.target.add(REMOTE, "a"))
    daemon.is_away = False
    wait_until(lambda: daemon.keeper.snapshot().stored, "pairs in the store")
    seen = daemon.keeper.snapshot()
    assert (seen.pairs, seen.behind, seen.trouble, seen.store_error) == (1, 0, None, None)
    assert seen.written_at is not None
    assert seen.age_s is not None
    daemon.keeper.stop()
    keys = DataKeys(daemon.house.repository, daemon.house.identity)
    stored = SyncReader(daemon.house.repository, daemon.house.archive).read("eu", keys)
    assert stored.known(ORDERS) == SyncBook(daemon.path, is_read_only=True).known(ORDERS)


def test_a_fence_that_was_begun_before_the_last_poll_returned_settles_nothing() -> None:
    newest: list[NewestFence | None] = [None]
    fences = FenceAfter(lambda: newest[-1])
    assert fences.take() is None
    newest.append(NewestFence(4, fence_of(4)))
    assert fences.take() is None  # no poll was before it
    fences.poll_returned()
    # Its offsets may have been read before, whatever its number: a failover leaves many out.
    newest.append(NewestFence(5, fence_of(37)))
    assert fences.take() is None
    newest.append(NewestFence(6, fence_of(38)))
    assert fences.take() == fence_of(38)
    newest.append(NewestFence(7, fence_of(39, unknown="away")))
    assert fences.take() is None


def test_a_heartbeat_says_how_old_the_mirror_is() -> None:
    assert decode_heartbeat(BEAT_KEY, BEAT_VALUE) == Heartbeat("us", "eu", 1_795_435_200_000)
    target = PlayedTarget()
    assert mirrored_until(target, NAMES) is None
    target.make(HEARTBEATS.topic)
    assert mirrored_until(target, NAMES) is None
    target.add_record(EventRecord(HEARTBEATS, 0, 0, False, BEAT_KEY, BEAT_VALUE))
    target.add_record(EventRecord(HEARTBEATS, 0, 0, False, b"other", b"record"))
    target.mark(HEARTBEATS)
    until = mirrored_until(target, NAMES)
    assert until is not None
    assert until.isoformat() == "2026-11-23T12:00:00+00:00"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, BEAT_VALUE),
        (BEAT_KEY, None),
        (BEAT_KEY[:-1], BEAT_VALUE),
        (BEAT_KEY + b"x", BEAT_VALUE),
        (BEAT_KEY, BEAT_VALUE + b"x"),
        (BEAT_KEY, b"\x00\x01" + BEAT_VALUE[2:]),
        (BEAT_KEY, b"\x00\x00" + b"\xff" * 8),
        (b"\xff\xff", BEAT_VALUE),
        (b"\x00\x00\x00\x00", BEAT_VALUE),
    ],
)
def test_other_bytes_are_no_heartbeat(key: bytes | None, value: bytes | None) -> None:
    with pytest.raises(MalformedValue):
        decode_heartbeat(key, value)


class Source:
    """Answers for last records, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[dict[TopicPartition, int]] = []
        self.is_away = False

    def last_records(
        self, ends: dict[TopicPartition, int], budget_s: float
    ) -> dict[TopicPartition, EventRecord]:
        self.asked.append(dict(ends))
        if self.is_away:
            raise BrokerUnavailable("away")
        return {at: self.record(at, end) for at, end in ends.items() if end > 0}

    def record(self, at: TopicPartition, end: int) -> EventRecord:
        return EventRecord(at, end - 1, end, False, None, b"v")


def test_only_partitions_that_moved_are_looked_at_again() -> None:
    source = Source()
    last = LastRecords(source)  # type: ignore[arg-type]
    one, two = TopicPartition("a", 0), TopicPartition("a", 1)
    first = last.identify({one: 5, two: 0})
    assert first == {one: (4, identity_of(source.record(one, 5)))}
    assert last.identify({one: 5, two: 3})[two][0] == 2
    assert source.asked == [{one: 5, two: 0}, {two: 0 + 3}]
    source.is_away = True
    assert set(last.identify({one: 5, two: 4})) == {one}
    assert last.identify({two: 4}) == {}


def test_what_nobody_foresaw_ends_a_poll_and_not_the_thread(daemon: Daemon) -> None:
    daemon.fails = ZeroDivisionError("of a library")
    daemon.keeper.start()
    wait_until(lambda: daemon.opened >= 3, "it is tried again")
    daemon.fails = None
    daemon.target.sync(NAMES.syncs, ORDERS, 0, daemon.target.add(REMOTE, "a"))
    daemon.is_away = False
    daemon.faulty.fail(ZeroDivisionError("of a library"), "put", times=3)  # type: ignore[arg-type]
    wait_until(lambda: daemon.keeper.snapshot().stored, "pairs in the store")
