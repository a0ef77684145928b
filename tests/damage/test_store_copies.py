"""Damage done to the copies of regions, file by file: what is acknowledged is still read, or refused."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.copy_faults import FaultKind
from storage.local import DirectoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from storage.store import CopyCheck, CopyDamaged, ObjectConflict, StoreError

NAMES = "abc"
KEY, OTHER = "wal/1/k", "wal/1/other"
BODY = bytes(range(256)) * 40
OTHER_BODY = BODY[::-1]
IDLE_S = 30.0


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def swap(path: Path) -> None:
    shutil.copy(path.with_name("other"), path)


def to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(BODY[:-1]),
    "extended": lambda path: path.write_bytes(BODY + b"\0"),
    "flipped": flip,
    "swapped": swap,
    "made a directory": to_directory,
    "region destroyed": lambda path: shutil.rmtree(path.parents[3]),
}


class House:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.queue = RepairQueue(path / "repair")
        self.store = ReplicatedStore(
            [Region(name, DirectoryStore.create(path / name)) for name in NAMES], quorum=2, queue=self.queue
        )
        self.store.put(KEY, BODY)
        self.store.put(OTHER, OTHER_BODY)
        assert self.store.wait_idle(IDLE_S)

    def file(self, region: str) -> Path:
        return self.path / region / "objects" / KEY


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.store.close()
    house.queue.close()


def is_exactly(body: bytes) -> CopyCheck:
    digest = hashlib.sha256(body).digest()

    def check(found: bytes) -> None:
        if hashlib.sha256(found).digest() != digest:
            raise CopyDamaged("its digest is not the one that was signed")

    return check


@pytest.mark.parametrize("regions", ["a", "b", "c", "ab", "ac", "bc"])
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_one_good_copy_is_enough(house: House, damage: str, regions: str) -> None:
    for region in regions:
        DAMAGES[damage](house.file(region))
    assert house.store.get(KEY, check=is_exactly(BODY)) == BODY
    part = BODY[5000:6000]
    assert house.store.get_range(KEY, 5000, 1000, check=is_exactly(part)) == part


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_without_a_good_copy_nothing_is_returned(house: House, damage: str) -> None:
    for region in NAMES:
        DAMAGES[damage](house.file(region))
    with pytest.raises(StoreError):
        house.store.get(KEY, check=is_exactly(BODY))


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(["flipped", "deleted", "cut"], 2)))
def test_a_lost_copy_is_made_again_from_a_good_one_only(house: House, first: str, second: str) -> None:
    DAMAGES[first](house.file("a"))
    DAMAGES[second](house.file("b"))
    assert house.store.get(KEY, check=is_exactly(BODY)) == BODY
    assert house.store.wait_idle(IDLE_S)
    for region, damage in {"a": first, "b": second}.items():
        if damage == "deleted":
            assert house.file(region).read_bytes() == BODY
        else:
            # Write-once: a person must take the bad copy away; until then it is named.
            assert (region, KEY) in [(copy.region, copy.key) for copy in house.store.damaged()]


@pytest.mark.parametrize("damage", ["emptied", "cut", "extended", "flipped", "swapped"])
def test_a_damaged_copy_is_never_overwritten_by_a_put(house: House, damage: str) -> None:
    # Two of three, so that no quorum can be reached before a damaged copy is met.
    for region in "bc":
        DAMAGES[damage](house.file(region))
    before = house.file("b").read_bytes()
    with pytest.raises(ObjectConflict, match=r"[bc]: object"):
        house.store.put(KEY, BODY)
    assert house.file("b").read_bytes() == before


@pytest.mark.parametrize("damage", ["emptied", "cut", "extended"])
def test_a_listing_shows_that_sizes_differ(house: House, damage: str) -> None:
    DAMAGES[damage](house.file("b"))
    assert [found.key for found in house.store.list_objects("")] == [KEY, OTHER]
    assert [copy.key for copy in house.store.damaged()] == [KEY]


def test_a_region_that_was_emptied_is_filled_again_by_reconciling(house: House) -> None:
    shutil.rmtree(house.path / "c")
    DirectoryStore.create(house.path / "c")
    assert house.store.reconcile().missing_copies == 2
    assert house.store.wait_idle(IDLE_S)
    assert house.file("c").read_bytes() == BODY


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_read_that_fell_back_names_region_object_and_reason_once(house: House, damage: str) -> None:
    DAMAGES[damage](house.file("a"))
    regions = [Region(name, DirectoryStore(house.path / name)) for name in NAMES]
    store = ReplicatedStore(regions, quorum=2)
    for _ in range(3):
        assert store.get(KEY, check=is_exactly(BODY)) == BODY
    kinds = {
        "deleted": FaultKind.MISSING,
        "made a directory": FaultKind.MISSING,
        "region destroyed": FaultKind.UNREACHABLE,
    }
    kind = kinds.get(damage, FaultKind.DAMAGED)
    (fault,) = store.faults().faults
    assert (fault.region, fault.key, fault.kind, fault.read_from) == ("a", KEY, kind, "b")
    assert store.faults().counts == {("a", kind): 1}


def test_a_missing_copy_is_known_until_the_repair_has_made_it_anew(house: House) -> None:
    house.file("a").unlink()
    assert house.store.get(KEY) == BODY
    assert house.store.wait_idle(IDLE_S)
    assert house.store.faults().faults == ()


def test_the_odd_one_of_three_sizes_is_the_one_that_is_named(house: House) -> None:
    DAMAGES["cut"](house.file("b"))
    list(house.store.list_objects(""))
    assert [(copy.region, copy.kind) for copy in house.store.damaged()] == [("b", FaultKind.DIFFERS)]


def test_a_bad_copy_is_known_until_it_was_removed_and_made_anew(house: House) -> None:
    flip(house.file("a"))
    house.store.get(KEY, check=is_exactly(BODY))
    status = {region.name: region for region in house.store.status()}
    assert (status["a"].bad_copies, status["b"].bad_copies) == (1, 0)
    assert [copy.key for copy in status["a"].bad_copies_named] == [KEY]
    house.file("a").unlink()
    assert house.store.reconcile().missing_copies == 1
    assert house.store.wait_idle(IDLE_S)
    assert house.file("a").read_bytes() == BODY
    assert house.store.status()[0].bad_copies == 0


def test_a_put_that_meets_other_bytes_makes_the_copy_known(house: House) -> None:
    flip(house.file("b"))
    for _ in range(2):
        with pytest.raises(ObjectConflict):
            house.store.put(KEY, OTHER_BODY)
    assert {copy.kind for copy in house.store.damaged()} == {FaultKind.CONFLICTS}
