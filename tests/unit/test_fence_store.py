"""Signed fences: put once in their order, found by halving, and believed before a row of the database."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from fix_fences import FENCE_AT, fence_of
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore
from hypothesis import given
from hypothesis import strategies as st

from pitr.datakeys import DataKeys, HostKeys
from pitr.errors import NameTaken, NotAuthentic
from pitr.events.fence import Fence
from pitr.events.fence_choice import RowState, Span, judge_row, last_in, missing_rows, spans_of
from pitr.events.fence_code import encode_row
from pitr.events.fence_store import FenceReader, FenceWriter, WrittenFence, broken_chain
from pitr.events.history import Branch
from pitr.events.partition import TopicPartition
from pitr.layout import fences_key, fences_sequence
from pitr.repository import Repository
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from storage.store import ObjectConflict, StoreUnavailable


class Place:
    """A store that can be taken away, its writer and its readers."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.faulty = FaultyStore(self.store)
        self.house = RepositoryHouse(self.store)
        self.archive = self.house.archive
        self.keys = DataKeys(self.house.repository, self.house.identity)
        self.reader = FenceReader(self.house.repository)

    def writer(self) -> FenceWriter:
        house = self.house
        repository = Repository(self.faulty, house.repository.repository_id, house.root.public)
        host_keys = HostKeys(
            repository, house.archive, house.host, [house.identity.recipient()], random=house.random
        )
        return FenceWriter(repository, house.archive, house.host, host_keys.wal_key)

    def put(self, writer: FenceWriter, *fences: Fence) -> None:
        left = [WrittenFence.of(fence) for fence in fences]
        while left:
            left = left[writer.put(left, FENCE_AT) :]

    def read(self, sequence: int) -> list[int]:
        return [one.mark.number for one in self.reader.read(self.archive, sequence, self.keys)]


def test_fences_are_put_in_a_chain_that_a_new_run_goes_on_with() -> None:
    place = Place()
    place.put(place.writer(), fence_of(1), fence_of(2))
    place.put(place.writer(), fence_of(3))
    assert place.reader.sequences(place.archive) == [2, 1]
    assert (place.read(1), place.read(2)) == ([1, 2], [3])
    assert place.reader.read(place.archive, 2, place.keys) == (fence_of(3),)
    older, newer = (place.reader.header(place.archive, number) for number in (1, 2))
    assert broken_chain(newer, older) is None
    assert older.header.count == 2
    place.put(place.writer(), fence_of(4))
    newest = place.reader.header(place.archive, 3)
    assert broken_chain(newest, older) == "fences 2 to 2 are missing"
    assert "do not go on" in str(broken_chain(newest, replace(newer, payload_sha256=bytes(32))))
    assert fences_sequence(fences_key(place.archive, 7)) == 7


def test_what_was_sealed_is_sent_again_and_not_sealed_twice() -> None:
    place = Place()
    writer = place.writer()
    place.put(writer, fence_of(1))
    waiting = [WrittenFence.of(fence_of(2))]
    place.faulty.fail(StoreUnavailable("away"), "put")
    with pytest.raises(StoreUnavailable):
        writer.put(waiting, FENCE_AT)
    place.faulty.heal()
    waiting.append(WrittenFence.of(fence_of(3)))
    assert writer.put(waiting, FENCE_AT + timedelta(minutes=1)) == 1, "only what was sealed then"
    assert place.read(2) == [2]


def test_a_name_that_is_taken_is_not_overwritten() -> None:
    place = Place()
    first, second = place.writer(), place.writer()
    place.put(first, fence_of(1))
    place.put(second, fence_of(2))
    with pytest.raises(ObjectConflict):
        first.put([WrittenFence.of(fence_of(3))], FENCE_AT)
    place.put(first, fence_of(3))
    assert [place.read(number) for number in (1, 2, 3)] == [[1], [2], [3]]


def test_what_no_writer_put_under_the_next_name_is_no_second_writers() -> None:
    place = Place()
    writer = place.writer()
    place.put(writer, fence_of(1))
    name = fences_key(place.archive, 2)
    # Its own first object, renamed: genuine, and not of this name.
    place.store.put(name, place.store.get(fences_key(place.archive, 1)))
    with pytest.raises(NameTaken):
        writer.put([WrittenFence.of(fence_of(2))], FENCE_AT)
    place.store.delete(name)
    place.put(writer, fence_of(2))
    assert place.read(2) == [2]


def test_an_object_under_another_name_or_of_another_host_is_refused() -> None:
    place = Place()
    place.put(place.writer(), fence_of(1))
    body = place.store.get(fences_key(place.archive, 1))
    place.store.put(fences_key(place.archive, 5), body)
    with pytest.raises(NotAuthentic):
        place.reader.header(place.archive, 5)
    assert place.reader.newest(place.archive) == place.reader.header(place.archive, 1)
    stranger = RepositoryHouse(MemoryStore(), seed=99)
    writer = FenceWriter(
        place.house.repository, place.archive, stranger.host, lambda _now: place.house.keys.wal_key(FENCE_AT)
    )
    place.put(writer, fence_of(9))
    with pytest.raises(NotAuthentic):
        place.read(2)


def history(*branches: tuple[int, int], end: int) -> tuple[Span, ...]:
    return spans_of([Branch(TimelineId(t), LSN(fork), None) for t, fork in branches], LSN(end))


def test_commits_beyond_a_fork_are_of_no_later_history() -> None:
    # Timeline 2 left 1 at 2500: fence 3 was committed after that, and is lost.
    lost, later = fence_of(3), fence_of(3, timeline=2, lsn=2600)
    spans = history((1, 1), (2, 2500), end=9000)
    assert last_in([fence_of(1), fence_of(2), lost], spans) == fence_of(2)
    assert last_in([fence_of(1), fence_of(2), lost, later], spans) == later
    # One whose commit may be after the end is not surely in it.
    assert last_in([fence_of(2)], history((1, 1), end=2100)) is None
    assert last_in([fence_of(2)], history((1, 1), end=2200)) == fence_of(2)


@given(st.data())
def test_the_last_fence_of_a_history_is_found_by_halving(data: st.DataObject) -> None:
    place = Place()
    writer = place.writer()
    fences: list[Fence] = []
    number, timeline, position = 0, 1, 1000
    forks = [(1, 1)]
    for _ in range(data.draw(st.integers(0, 5))):
        if data.draw(st.booleans()) and fences:
            timeline += 1
            position = data.draw(st.integers(forks[-1][1] + 1, position))
            forks.append((timeline, position))
        batch = []
        for _ in range(data.draw(st.integers(1, 4))):
            number += 1
            position += data.draw(st.integers(1, 500))
            taken_by = position + data.draw(st.integers(0, 300))
            batch.append(fence_of(number, timeline=timeline, lsn=position, committed_by=taken_by))
            position = taken_by
        place.put(writer, *batch)
        fences += batch
    end = data.draw(st.integers(forks[-1][1], position + 100))
    spans = history(*forks, end=end)
    found, faults = place.reader.last_before(place.archive, spans, place.keys)
    assert found == last_in(fences, spans)
    assert faults == ()


@given(st.data())
def test_the_fences_around_an_offset_are_found_by_halving(data: st.DataObject) -> None:
    place = Place()
    writer = place.writer()
    fences: list[Fence] = []
    end = 3
    for _ in range(data.draw(st.integers(1, 5))):
        batch = []
        for _ in range(data.draw(st.integers(1, 3))):
            end += data.draw(st.integers(0, 4))
            unknown = "away" if data.draw(st.integers(0, 3)) == 0 else None
            batch.append(fence_of(len(fences) + len(batch) + 1, before=end, unknown=unknown))
        place.put(writer, *batch)
        fences += batch
    offset = data.draw(st.integers(0, end + 2))
    known = [one for one in fences if one.unknown is None]
    below = [one for one in known if one.topics[0].partitions[0].before <= offset]
    above = [one for one in known if one.topics[0].partitions[0].before > offset]
    at = TopicPartition("orders", 0)
    found = place.reader.around_offset(place.archive, at, offset, place.keys)
    assert found == (below[-1] if below else None, above[0] if above else None)
    assert place.reader.around_offset(place.archive, TopicPartition("other", 0), 1, place.keys) == (
        None,
        None,
    )


def test_fences_of_a_topic_before_it_was_recreated_say_nothing_of_its_offsets() -> None:
    place = Place()
    old, new = fence_of(1, before=90), fence_of(2, before=5)
    new = replace(new, topics=(replace(new.topics[0], topic_id="another"),))
    place.put(place.writer(), old)
    place.put(place.writer(), new)
    at = TopicPartition("orders", 0)
    assert place.reader.around_offset(place.archive, at, 3, place.keys) == (None, new)
    assert place.reader.around_offset(place.archive, at, 50, place.keys) == (new, None)


def test_a_damaged_object_is_told_and_an_earlier_fence_is_taken() -> None:
    place = Place()
    writer = place.writer()
    for number in range(1, 6):
        place.put(writer, fence_of(number))
    key = fences_key(place.archive, 4)
    body = bytearray(place.store.get(key))
    body[-1] ^= 1
    place.store.delete(key)
    place.store.put(key, bytes(body))
    spans = history((1, 1), end=4300)
    found, faults = place.reader.last_before(place.archive, spans, place.keys)
    assert found == fence_of(3)
    assert len(faults) == 1
    assert "fences 4 cannot be used" in faults[0]


def test_the_signed_copy_counts_where_a_row_was_edited() -> None:
    signed = {number: fence_of(number) for number in (1, 2)}
    row = encode_row(fence_of(1))
    assert judge_row(1, row, signed).state is RowState.SIGNED
    edited = judge_row(1, row.replace("[0,0,100,", "[0,0,90,"), signed)
    assert (edited.state, edited.fence) == (RowState.TAMPERED, fence_of(1))
    assert "topic orders" in str(edited.detail)
    swapped = judge_row(2, row, signed)
    assert (swapped.state, swapped.fence) == (RowState.TAMPERED, fence_of(2))
    invented = judge_row(9, encode_row(fence_of(9)), signed)
    assert invented.state is RowState.UNSIGNED
    assert judge_row(1, "no fence", signed).fence == fence_of(1)
    assert judge_row(9, None, signed).state is RowState.UNREADABLE
    spans = history((1, 1), end=9000)
    assert missing_rows([1], signed.values(), spans) == (2,)
    assert missing_rows([1], signed.values(), history((1, 1), end=1500)) == ()
    assert missing_rows([], signed.values(), spans) == (1, 2)
