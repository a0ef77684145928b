"""The book of a mirror's pairs: read once, kept over any kill, bounded, and voided where it must be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fix_fences import fence_of
from fix_played_mirror import PlayedTarget

from pitr.errors import NotInitialised
from pitr.events.broker import BrokerRefused, EventRecord
from pitr.events.mirror_names import MirrorNames
from pitr.events.partition import TopicPartition
from pitr.events.sync_book import PAIRS_MAX, Position, SyncBook
from pitr.events.sync_keeper import SyncKeeper
from pitr.events.sync_pairs import Sync, SyncPair

ORDERS = TopicPartition("orders", 0)
NAMES = MirrorNames("eu")
REMOTE = NAMES.remote_partition(ORDERS)


class Mirror:
    """A target with a mirrored topic, a book, and whoever keeps it."""

    def __init__(self, folder: Path) -> None:
        self.target = PlayedTarget()
        self.target.make(NAMES.syncs)
        self.target.make(REMOTE.topic, partitions=2)
        self.book = SyncBook(folder / "pairs.sqlite")
        self.keeper = SyncKeeper(self.target, NAMES, self.book)

    def copies(self, begin: int, end: int) -> None:
        """Mirror source's records, each with its pair."""
        for upstream in range(begin, end):
            at = self.target.add(REMOTE, f"event {upstream}")
            self.target.sync(NAMES.syncs, ORDERS, upstream, at)

    def pairs(self) -> list[tuple[int, int]]:
        known = self.book.known(ORDERS)
        return [] if known is None else [(one.upstream, one.downstream) for one in known.pairs]

    def settled(self) -> int:
        known = self.book.known(ORDERS)
        assert known is not None
        return known.settled


@pytest.fixture
def mirror(tmp_path: Path) -> Mirror:
    return Mirror(tmp_path)


def test_all_pairs_are_kept_though_the_topic_forgets_them(mirror: Mirror) -> None:
    mirror.copies(0, 3)
    assert mirror.keeper.poll().pairs == 3
    log = mirror.target.logs[TopicPartition(NAMES.syncs, 0)]
    for offset in range(2):
        del log.records[offset]  # compacted
    mirror.copies(3, 5)
    polled = mirror.keeper.poll()
    assert (polled.pairs, polled.behind, polled.has_missed) == (2, 0, False)
    assert mirror.keeper.poll().pairs == 0
    assert mirror.pairs() == [(n, n) for n in range(5)]


def test_a_record_that_is_no_pair_is_counted_and_passed_over(mirror: Mirror) -> None:
    mirror.target.add_record(EventRecord(TopicPartition(NAMES.syncs, 0), 0, 0, False, b"x", b"y"))
    mirror.copies(0, 1)
    polled = mirror.keeper.poll()
    assert (polled.pairs, polled.unreadable) == (1, 1)
    assert mirror.book.position().unreadable == 1


def test_a_target_without_offset_syncs_is_refused_with_the_setting_that_makes_them(tmp_path: Path) -> None:
    with SyncBookAt(tmp_path) as book, pytest.raises(BrokerRefused) as refused:
        SyncKeeper(PlayedTarget(), NAMES, book).poll()
    assert "offset-syncs.topic.location = target" in str(refused.value.hint)


def test_pairs_of_a_target_that_was_made_anew_are_void(mirror: Mirror) -> None:
    mirror.copies(0, 4)
    mirror.keeper.poll()
    mirror.target.make(REMOTE.topic, partitions=2)
    mirror.copies(4, 6)
    mirror.keeper.poll()
    assert mirror.pairs() == []  # these may be of before, as far as anybody can tell
    mirror.copies(6, 8)
    mirror.keeper.poll()
    assert mirror.pairs() == [(6, 2), (7, 3)]


def test_pairs_of_a_target_that_lost_its_end_are_void(mirror: Mirror) -> None:
    mirror.copies(0, 4)
    mirror.keeper.poll()
    mirror.keeper.poll()
    log = mirror.target.logs[REMOTE]
    log.end = 2
    mirror.keeper.poll()
    assert mirror.pairs() == []


def test_a_syncs_topic_that_was_made_anew_is_read_from_its_beginning(mirror: Mirror) -> None:
    mirror.copies(0, 3)
    mirror.keeper.poll()
    mirror.target.make(NAMES.syncs)
    mirror.copies(3, 4)
    mirror.keeper.poll()
    assert mirror.pairs() == [(n, n) for n in range(4)]


def test_a_pair_is_settled_once_the_mirror_was_seen_past_the_source_end_of_that_time(mirror: Mirror) -> None:
    mirror.copies(0, 10)
    mirror.keeper.poll(fence_of(1, before=12))
    assert mirror.settled() == -1  # that fence came before the pairs
    mirror.keeper.poll(fence_of(2, before=12))
    mirror.copies(10, 11)
    mirror.keeper.poll()
    assert mirror.settled() == -1
    mirror.copies(11, 12)
    mirror.keeper.poll()
    assert mirror.settled() == 9
    mirror.keeper.poll(fence_of(3, before=12))
    assert mirror.settled() == 11  # the source has no more


def test_a_mirror_that_went_back_settles_nothing_until_it_has_caught_up(mirror: Mirror) -> None:
    mirror.copies(0, 10)
    mirror.keeper.poll()
    mirror.keeper.poll(fence_of(1, before=10))
    assert mirror.settled() == 9
    mirror.copies(2, 5)
    mirror.keeper.poll()
    mirror.keeper.poll(fence_of(2, before=10))
    mirror.copies(5, 9)
    mirror.keeper.poll()
    assert mirror.settled() == 9
    mirror.copies(9, 10)
    mirror.keeper.poll()
    assert mirror.settled() == 12  # the pair of 4, the last that was known by then


def test_a_source_that_was_made_anew_does_not_keep_pairs_from_being_settled(mirror: Mirror) -> None:
    mirror.copies(0, 10)
    mirror.keeper.poll()
    mirror.keeper.poll(fence_of(1, before=500))
    mirror.copies(0, 3)
    mirror.keeper.poll()
    mirror.keeper.poll(fence_of(2, before=4))
    mirror.copies(3, 4)
    mirror.keeper.poll()
    assert mirror.settled() == 12


def test_pairs_below_the_log_of_the_target_are_forgotten(mirror: Mirror) -> None:
    mirror.copies(0, 10)
    mirror.keeper.poll()
    mirror.target.logs[REMOTE].begin = 6
    mirror.keeper.poll()
    assert mirror.pairs() == [(n, n) for n in range(6, 10)]


def test_the_book_of_a_partition_is_bounded(tmp_path: Path) -> None:
    with SyncBookAt(tmp_path) as book:
        for begin in range(0, 6 * PAIRS_MAX, PAIRS_MAX):
            pairs = (SyncPair(n * 600, n * 600) for n in range(begin, begin + PAIRS_MAX))
            book.add((Sync(ORDERS, one) for one in pairs), {"orders": "t"}, Position("s", 1))
        known = book.known(ORDERS)
        assert known is not None
        assert len(known.pairs) < 3 * PAIRS_MAX
        newest = [one.upstream // 600 for one in known.pairs[-PAIRS_MAX // 2 :]]
        assert newest == list(range(6 * PAIRS_MAX - PAIRS_MAX // 2, 6 * PAIRS_MAX))


def test_a_journal_that_grew_too_long_is_dropped_for_the_whole_book(tmp_path: Path) -> None:
    with SyncBookAt(tmp_path, journal_max=10) as book:
        book.shipped(0, is_whole=True)
        for n in range(12):
            book.add([Sync(ORDERS, SyncPair(n, n))], {"orders": "t"}, Position("s", n))
        assert book.is_whole_due
        assert len(book.journal(100)) <= 10
        assert len(book.whole()[1][ORDERS].pairs) == 12


def test_a_reader_finds_what_another_process_keeps_and_makes_nothing(tmp_path: Path, mirror: Mirror) -> None:
    mirror.copies(0, 2)
    mirror.keeper.poll()
    reader = SyncBook(tmp_path / "pairs.sqlite", is_read_only=True)
    assert reader.partitions() == (ORDERS,)
    assert reader.known(TopicPartition("orders", 1)) is None
    reader.close()
    with pytest.raises(NotInitialised):
        SyncBook(tmp_path / "other.sqlite", is_read_only=True)


CHILD = """
import itertools, sys
from pathlib import Path
from pitr.events.partition import TopicPartition
from pitr.events.sync_book import Position, SyncBook
from pitr.events.sync_pairs import Sync, SyncPair
book = SyncBook(Path(sys.argv[1]))
for n in itertools.count(book.position().next_offset):
    book.add([Sync(TopicPartition("orders", 0), SyncPair(n, n))], {"orders": "t"}, Position("s", n + 1))
    print(n, flush=True)
"""


def test_a_kill_at_any_moment_loses_no_pair_and_takes_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "pairs.sqlite"
    said = 0
    for lines in (7, 3, 11):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert child.stdout is not None
        for _ in range(lines):
            said = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with SyncBookAt(tmp_path) as book:
            known = book.known(ORDERS)
            assert known is not None
            count = book.position().next_offset
            assert count > said
            assert [one.upstream for one in known.pairs] == list(range(count))
            assert [one.pair for one in book.journal(1_000_000)] == list(known.pairs)


class SyncBookAt:
    """A book that is closed in the end."""

    def __init__(self, folder: Path, *, journal_max: int = 1_000) -> None:
        self.book = SyncBook(folder / "pairs.sqlite", journal_max=journal_max)

    def __enter__(self) -> SyncBook:
        return self.book

    def __exit__(self, *_: object) -> None:
        self.book.close()
