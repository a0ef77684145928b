"""Searches through the names of several regions, of which one lists junk, or what it does not give."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_stores import FaultyStore

from storage.memory import MemoryStore
from storage.regions import Region
from storage.replicated import ReplicatedStore
from storage.search import AllBad, search
from storage.store import CopyDamaged, ObjectInfo, ObjectStore, StoreError, StoreUnavailable

BAD_MAX = 4
GOOD = "heads/500"


class Endless(MemoryStore):
    """A region that lists newer and newer heads, before what it has; counts the lines that were asked."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = 0

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        number = 0
        while True:
            self.lines += 1
            yield ObjectInfo(f"heads/0{number:09}", 3)
            number += 1


class Walls(FaultyStore):
    """A region that lists what it then refuses to give."""

    def get(self, key: str, *, check: object = None) -> bytes:
        if key == GOOD:
            return super().get(key)
        raise StoreUnavailable("slow down")


def check(body: bytes) -> None:
    if body != b"good":
        raise CopyDamaged("not ours")


def read_only(regions: dict[str, ObjectStore], quorum: int, *, part: int | None = None) -> ReplicatedStore:
    named = [Region(name, store) for name, store in regions.items()]
    return ReplicatedStore(named, quorum=quorum, read_only_regions_minimum=part)


def first_good(store: ObjectStore, *, is_lenient: bool = False) -> tuple[str | None, int, tuple[str, ...]]:
    """Return the first key whose object holds, how many did not before it, and who was left out."""
    found, bad = search(store, "heads/", bad_max=BAD_MAX, is_lenient=is_lenient), 0
    for info in found:
        try:
            store.get(info.key, check=check)
        except StoreError as error:
            bad += 1
            found.refuse(error)
        else:
            return info.key, bad, found.left_out
    return None, bad, found.left_out


def house(**others: ObjectStore) -> dict[str, ObjectStore]:
    regions: dict[str, ObjectStore] = {name: MemoryStore() for name in "abc"} | others
    for store in regions.values():
        store.put(GOOD, b"good")
    return regions


def junk(store: ObjectStore, count: int) -> None:
    for number in range(count):
        store.put(f"heads/1{number:02}", b"junk")


@pytest.mark.parametrize("liar", "abc")
def test_a_region_with_an_endless_listing_is_left_out_after_so_many_bad_ones(liar: str) -> None:
    endless = Endless()
    store = read_only(house(**{liar: endless}), quorum=2)
    assert first_good(store) == (GOOD, BAD_MAX, (liar,))
    # One more was asked ahead: the listings are merged.
    assert endless.lines <= BAD_MAX + 1


def test_junk_below_the_bound_leaves_nobody_out() -> None:
    regions = house()
    junk(regions["b"], BAD_MAX - 1)
    assert first_good(read_only(regions, quorum=2)) == (GOOD, BAD_MAX - 1, ())


def test_two_regions_with_junk_of_three_end_the_search() -> None:
    regions = house()
    junk(regions["a"], BAD_MAX)
    junk(regions["b"], BAD_MAX)
    # Either could be the one that alone tells the truth.
    with pytest.raises(AllBad):
        first_good(read_only(regions, quorum=2))


def test_with_a_quorum_of_all_one_honest_region_is_enough() -> None:
    regions = house()
    junk(regions["a"], BAD_MAX)
    regions["b"].put("heads/199", b"junk")
    junk(regions["b"], BAD_MAX)
    assert first_good(read_only(regions, quorum=3))[0] == GOOD


def test_with_a_quorum_of_one_no_region_may_be_left_out() -> None:
    regions = house()
    junk(regions["a"], BAD_MAX)
    with pytest.raises(AllBad):
        first_good(read_only(regions, quorum=1))


def test_in_a_part_of_the_regions_none_may_be_left_out() -> None:
    regions = house()
    junk(regions["a"], BAD_MAX)
    with pytest.raises(AllBad):
        first_good(read_only(regions, quorum=2, part=1))


def test_a_single_store_ends_after_so_many_bad_ones() -> None:
    store = MemoryStore()
    store.put(GOOD, b"good")
    junk(store, BAD_MAX - 1)
    assert first_good(store)[0] == GOOD
    junk(store, BAD_MAX)
    with pytest.raises(AllBad):
        first_good(store)
    assert first_good(store, is_lenient=True) == (GOOD, BAD_MAX, ())


def test_a_region_that_lists_what_it_does_not_give_is_left_out_at_once() -> None:
    walls = Walls(MemoryStore())
    regions = house(b=walls)
    junk(walls, 2)
    # Whoever reads next would wait for it again.
    assert first_good(read_only(regions, quorum=2)) == (GOOD, 1, ())
    with pytest.raises(StoreUnavailable):
        first_good(read_only(regions, quorum=2, part=1))


def test_names_that_lead_to_nothing_count_as_bad_ones() -> None:
    hollow = FaultyStore(MemoryStore())
    regions = house(c=hollow)
    junk(hollow, BAD_MAX + 3)
    for number in range(BAD_MAX + 3):
        hollow.lose(f"heads/1{number:02}")
    assert first_good(read_only(regions, quorum=2)) == (GOOD, BAD_MAX, ("c",))


def test_what_a_quorum_has_is_never_skipped_for_the_junk_beside_it() -> None:
    regions = house()
    junk(regions["a"], BAD_MAX)
    newer = "heads/200"
    for name in "ab":
        regions[name].put(newer, b"good")
    assert first_good(read_only(regions, quorum=2))[0] == newer


def test_a_region_that_is_down_and_junk_in_another_is_for_later_not_the_end() -> None:
    down = FaultyStore(MemoryStore())
    regions = house(c=down)
    junk(regions["a"], BAD_MAX)
    down.go_down()
    # Whether the missing one has a good copy nobody can say: that may be asked again.
    with pytest.raises(StoreUnavailable):
        first_good(read_only(regions, quorum=2))
    down.heal()
    assert first_good(read_only(regions, quorum=2))[0] == GOOD
