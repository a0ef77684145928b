"""A mirror's pairs in the store: each once, in a chain, and never more believed than what is whole."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from fix_fences import FENCE_AT
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore
from hypothesis import given
from hypothesis import strategies as st

from pitr.datakeys import DataKeys, HostKeys
from pitr.errors import MalformedValue, NameTaken
from pitr.events.partition import TopicPartition
from pitr.events.sync_book import Position, SyncBook
from pitr.events.sync_pairs import KnownPairs, Sync, SyncPair
from pitr.events.sync_record import (
    WHOLE_EVERY,
    WHOLE_LIFE,
    SyncsLine,
    decode_lines,
    encode_lines,
    fold,
    journal_lines,
    whole_lines,
)
from pitr.events.sync_store import StoredPairs, SyncReader, SyncWriter
from pitr.layout import syncs_key, syncs_sequence
from pitr.repository import Repository
from storage.memory import MemoryStore
from storage.store import StoreUnavailable

ORDERS = TopicPartition("orders", 0)


class Place:
    """A store that can be taken away, a book, its writer and its reader."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryStore()
        self.faulty = FaultyStore(self.store)
        self.house = RepositoryHouse(self.store)
        self.archive = self.house.archive
        self.folder = folder
        self.book = SyncBook(folder / "pairs.sqlite")
        self.sent = 0

    def writer(self) -> SyncWriter:
        house = self.house
        repository = Repository(self.faulty, house.repository.repository_id, house.root.public)
        keys = HostKeys(
            repository, house.archive, house.host, [house.identity.recipient()], random=house.random
        )
        return SyncWriter(repository, house.archive, house.host, keys.wal_key, "eu")

    def add(self, *pairs: tuple[int, int], topic_id: str = "t") -> None:
        syncs = [Sync(ORDERS, SyncPair(*one)) for one in pairs]
        self.book.add(syncs, {"orders": topic_id}, Position("s", 1))

    def read(self, alias: str = "eu") -> StoredPairs:
        keys = DataKeys(self.house.repository, self.house.identity)
        return SyncReader(self.house.repository, self.archive).read(alias, keys)

    def is_alike(self) -> bool:
        stored = self.read()
        return stored.faults == () and stored.known(ORDERS) == self.book.known(ORDERS)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_is_read_from_the_store_is_what_the_book_has(place: Place) -> None:
    writer = place.writer()
    place.add((0, 0), (10, 9))
    place.book.source_stood_at({ORDERS: 11})
    assert writer.ship(place.book, FENCE_AT) == 1
    assert place.is_alike()
    assert writer.ship(place.book, FENCE_AT) == 0  # nothing is new
    place.add((20, 18), (5, 30))
    assert writer.ship(place.book, FENCE_AT) == 2
    assert place.is_alike()
    place.add((21, 31), (22, 3))  # the target was cut
    assert place.writer().ship(place.book, FENCE_AT) == 3
    assert place.is_alike()
    place.add((23, 4), topic_id="t2")  # it was made anew
    place.add((24, 0), topic_id="t2")
    assert place.writer().ship(place.book, FENCE_AT) == 4
    assert place.is_alike()
    assert place.read().partitions() == (ORDERS,)


def test_what_no_writer_put_under_the_next_name_is_no_second_writers(place: Place) -> None:
    writer = place.writer()
    place.add((0, 0))
    writer.ship(place.book, FENCE_AT)
    name = syncs_key(place.archive, 2)
    place.store.put(name, b"junk")
    place.add((1, 1))
    with pytest.raises(NameTaken):
        writer.ship(place.book, FENCE_AT)
    place.store.delete(name)
    assert writer.ship(place.book, FENCE_AT) == 2
    assert place.is_alike()


def test_pairs_wait_while_the_store_is_away_and_are_put_once(place: Place) -> None:
    writer = place.writer()
    place.add((0, 0))
    writer.ship(place.book, FENCE_AT)
    place.add((1, 1))
    place.faulty.fail(StoreUnavailable("away"), "put")
    with pytest.raises(StoreUnavailable):
        writer.ship(place.book, FENCE_AT)
    place.add((2, 2))
    place.faulty.heal()
    assert writer.ship(place.book, FENCE_AT) == 2
    assert writer.ship(place.book, FENCE_AT) == 3
    assert place.is_alike()


def test_a_kill_between_the_put_and_its_note_puts_nothing_twice(place: Place) -> None:
    place.add((0, 0), (1, 1))
    writer = place.writer()
    writer.ship(place.book, FENCE_AT)
    place.add((2, 2))
    before = (place.folder / "pairs.sqlite").read_bytes(), (place.folder / "pairs.sqlite-wal").read_bytes()
    writer.ship(place.book, FENCE_AT)
    place.book.close()
    for suffix, content in zip(("", "-wal"), before, strict=True):
        (place.folder / f"pairs.sqlite{suffix}").write_bytes(content)
    (place.folder / "pairs.sqlite-shm").unlink(missing_ok=True)
    place.book = SyncBook(place.folder / "pairs.sqlite")
    assert len(place.book.journal(9)) == 1
    assert place.writer().ship(place.book, FENCE_AT) == 0
    place.add((3, 3))
    assert place.writer().ship(place.book, FENCE_AT) == 3
    assert place.is_alike()


def test_a_book_that_was_lost_begins_the_chain_with_a_whole_one(place: Place, tmp_path: Path) -> None:
    place.add((0, 0), (1, 1))
    place.writer().ship(place.book, FENCE_AT)
    (tmp_path / "new").mkdir()
    place.book = SyncBook(tmp_path / "new" / "pairs.sqlite")
    place.add((7, 7))
    assert place.writer().ship(place.book, FENCE_AT) == 2
    assert place.is_alike()


def test_a_reader_reads_a_bounded_number_of_objects(place: Place) -> None:
    writer = place.writer()
    for n in range(WHOLE_EVERY + 3):
        place.add((n, n))
        writer.ship(place.book, FENCE_AT)
    newest = SyncReader(place.house.repository, place.archive).newest()
    assert newest is not None
    assert (newest.header.sequence, newest.header.whole) == (WHOLE_EVERY + 3, WHOLE_EVERY + 2)
    assert place.is_alike()


def test_a_whole_book_is_put_again_before_the_key_of_the_last_one_ends(place: Place) -> None:
    writer = place.writer()
    place.add((0, 0))
    writer.ship(place.book, FENCE_AT)
    assert writer.ship(place.book, FENCE_AT + WHOLE_LIFE - timedelta(seconds=1)) == 0
    assert place.writer().ship(place.book, FENCE_AT + WHOLE_LIFE) == 2
    newest = SyncReader(place.house.repository, place.archive).newest()
    assert newest is not None
    assert newest.header.is_whole
    assert place.is_alike()


@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_an_object_that_is_damaged_voids_what_came_before_it(place: Place, damage: str) -> None:
    writer = place.writer()
    for n in range(4):
        place.add((n, n))
        writer.ship(place.book, FENCE_AT)
    key = syncs_key(place.archive, 3)
    body = place.store.get(key)
    place.store.delete(key)
    if damage == "flip":
        place.store.put(key, body[:-1] + bytes([body[-1] ^ 1]))
    stored = place.read()
    known = stored.known(ORDERS)
    assert known is not None
    assert [one.upstream for one in known.pairs] == [3]
    assert stored.faults[0].startswith("pairs 3 cannot be used")


def test_pairs_of_another_mirror_are_not_taken(place: Place) -> None:
    place.add((0, 0))
    place.writer().ship(place.book, FENCE_AT)
    stored = place.read("us")
    assert stored.partitions() == ()
    assert "another mirror" in stored.faults[0]


def test_a_key_says_its_sequence() -> None:
    archive = RepositoryHouse(MemoryStore()).archive
    assert syncs_sequence(syncs_key(archive, 12)) == 12
    with pytest.raises(MalformedValue):
        syncs_sequence(syncs_key(archive, 12) + "0")


_pairs = st.lists(st.tuples(st.integers(0, 99), st.integers(1, 9)), max_size=6).map(
    lambda found: tuple(
        SyncPair(up, sum(step for _, step in found[: n + 1])) for n, (up, _) in enumerate(found)
    )
)
_known = st.dictionaries(
    st.builds(TopicPartition, st.sampled_from(["a", "b.c"]), st.integers(0, 3)),
    st.builds(KnownPairs, st.sampled_from(["t1", "t2"]), _pairs, st.integers(-1, 50)),
)


@given(_known)
def test_a_book_comes_back_from_its_text(known: dict[TopicPartition, KnownPairs]) -> None:
    lines = decode_lines(encode_lines("eu", whole_lines(known)), "eu")
    found: dict[TopicPartition, KnownPairs] = {ORDERS: KnownPairs("x", ())}
    fold(found, lines)
    assert {at: one for at, one in found.items() if at != ORDERS} == known


@given(st.binary(max_size=80))
def test_other_bytes_are_refused(content: bytes) -> None:
    first = encode_lines("eu", ())
    with pytest.raises(MalformedValue):
        decode_lines(first + b"\n" + content, "eu")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"pairs":[1,1]', b'"pairs":[1]'),
        (b'"pairs":[1,1]', b'"pairs":[1,true]'),
        (b'"pairs":[1,1]', b'"pairs":[1,1,1,-1]'),
        (b'"pairs":[1,1]', b'"pairs":[1,-1]'),
        (b'"settled":3', b'"settled":-2'),
        (b'"settled":3', b'"settled": 3'),
        (b'"partition":0', b'"partition":2147483648'),
        (b'"topic":"orders"', b'"topic":"or/ders"'),
        (b'"is_reset":true', b'"is_reset":1'),
    ],
)
def test_a_line_has_one_form(old: bytes, new: bytes) -> None:
    text = encode_lines("eu", [SyncsLine(ORDERS, "t", True, 3, (SyncPair(1, 1),))])
    assert decode_lines(text, "eu")
    assert text.count(old) == 1
    with pytest.raises(MalformedValue):
        decode_lines(text.replace(old, new), "eu")


def test_a_journal_is_one_line_for_each_partition(place: Place) -> None:
    place.add((0, 5), (1, 6), (2, 6), (3, 7))
    (line,) = journal_lines(place.book.journal(9))
    assert line == SyncsLine(ORDERS, "t", True, -1, (SyncPair(2, 6), SyncPair(3, 7)))
