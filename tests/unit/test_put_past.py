"""Puts past a copy that is in the way in one region, and never past a second writer's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from fix_stores import FaultyStore

from storage.copy_faults import FaultKind
from storage.lanes import JUDGE_S
from storage.local import DirectoryStore
from storage.memory import MemoryStore
from storage.past import CopyJudge, PutsPast, put_past
from storage.regions import Region, StoreEvent, StoreEventKind
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from storage.store import (
    CopyInTheWay,
    ObjectConflict,
    ObjectStore,
    StoreRefused,
    StoreUnavailable,
)

IDLE_S = 30.0
KEY = "heads/1"
OURS, RIVALS, JUNK = b"signed by us: 1", b"signed by us: 2", b"whatever"
SIGNED = b"signed by us"
JUDGE = CopyJudge(len(SIGNED), lambda start: start == SIGNED)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class House:
    """Three regions, a quorum of two, over stores of which a test has the faults in hand."""

    def __init__(self, path: Path, *, quorum: int = 2, names: str = "abc") -> None:
        self.clock = Clock()
        self.faulty = {name: FaultyStore(MemoryStore()) for name in names}
        self.events: list[StoreEvent] = []
        self.queue = RepairQueue(path)
        self.store = ReplicatedStore(
            [Region(name, store) for name, store in self.faulty.items()],
            quorum=quorum,
            queue=self.queue,
            on_event=self.events.append,
            after_all_prefixes=("heads/",),
            clock=self.clock,
            jitter=lambda: 0.0,
        )

    def plant(self, body: bytes, *names: str, key: str = KEY) -> None:
        for name in names:
            self.faulty[name].inner.put(key, body)

    def put(self, key: str = KEY, *, after_all: bool = False) -> None:
        self.store.put_past(key, OURS, JUDGE, after_all=after_all)

    def held_by(self, key: str = KEY) -> str:
        return "".join(
            name
            for name, store in self.faulty.items()
            if any(info.key == key for info in store.inner.list_objects("")) and store.inner.get(key) == OURS
        )

    def told(self, kind: StoreEventKind) -> list[tuple[str, str | None]]:
        return [(event.region, event.key) for event in self.events if event.kind is kind]

    def stuck(self, name: str) -> int:
        return next(one for one in self.store.status() if one.name == name).stuck_repairs

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for other threads' work; the standing clock cannot measure this wait."""
        changed = self.store._lanes.changed  # type: ignore[union-attr]
        with changed:
            assert changed.wait_for(condition, IDLE_S)

    def stored(self, key: str) -> set[str]:
        """Return the regions that have stored an object whose put is still on its way."""
        lanes = self.store._lanes.lanes  # type: ignore[union-attr]
        puts = [put for lane in lanes for put in lane.undecided.values() if put.key == key]
        return {name for put in puts for name in put.stored}

    def close(self) -> None:
        for store in self.faulty.values():
            store.heal()
        self.store.close(IDLE_S)
        self.queue.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "repair")
    yield house
    house.close()


@pytest.mark.parametrize("junk", [JUNK, b"", OURS[:5], bytes(1 << 20), bytes([OURS[0] ^ 1]) + OURS[1:]])
def test_junk_in_one_region_is_passed_told_and_never_overwritten(house: House, junk: bytes) -> None:
    house.plant(junk, "a")
    house.put()
    house.wait(lambda: house.stuck("a") == 1)
    assert house.held_by() == "bc"
    assert house.faulty["a"].inner.get(KEY) == junk
    (a, b, c) = house.store.status()
    assert (a.is_healthy, b.is_healthy, c.is_healthy) == (False, True, True)
    assert a.last_error == f"object {KEY} holds bytes that no writer put there; puts go past it"
    assert (a.pending_repairs, b.pending_repairs, c.pending_repairs) == (1, 0, 0)
    assert [(copy.key, copy.kind, copy.detail) for copy in a.bad_copies_named] == [
        (KEY, FaultKind.DAMAGED, a.last_error)
    ]
    house.put()
    assert house.told(StoreEventKind.COPY_IN_THE_WAY) == [("a", KEY)]
    assert not house.told(StoreEventKind.COPY_CONFLICTS)


def test_the_region_gets_the_object_once_the_junk_was_removed(house: House) -> None:
    house.plant(JUNK, "a")
    house.put()
    house.wait(lambda: house.stuck("a") == 1)
    house.faulty["a"].inner.delete(KEY)
    house.store.retry_now()
    assert house.store.wait_idle(IDLE_S)
    assert house.held_by() == "abc"
    (a, *_) = house.store.status()
    assert (a.is_healthy, a.bad_copies, a.stuck_repairs) == (True, 0, 0)


def test_a_region_that_lacks_an_object_gets_no_head_and_the_others_do(house: House) -> None:
    house.plant(JUNK, "a", key="wal/1")
    house.put("wal/1")
    house.put("heads/2", after_all=True)
    house.wait(lambda: house.stuck("a") == 1)
    assert house.held_by("heads/2") == "bc"
    house.put("wal/3")
    house.wait(lambda: house.held_by("wal/3") == "abc")


@pytest.mark.parametrize("region", "abc")
def test_a_second_writers_object_is_a_conflict_wherever_it_lies(house: House, region: str) -> None:
    house.plant(RIVALS, region)
    # Else a quorum may be there before the region has answered at all, as with every put.
    gates = [house.faulty[name].hold("put", KEY) for name in set("abc") - {region}]
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(house.put)
        with pytest.raises(ObjectConflict, match=f"{region}: object {KEY} already holds other bytes"):
            put.result(IDLE_S)
        for gate in gates:
            gate.release()
    assert house.told(StoreEventKind.COPY_CONFLICTS) == [(region, KEY)]
    assert next(one for one in house.store.status() if one.name == region).is_healthy


def test_a_quorum_does_not_outrun_the_look_at_a_copy_that_differs(house: House) -> None:
    house.plant(RIVALS, "a")
    look = house.faulty["a"].hold("get", KEY)
    others = [house.faulty[name].hold("put", KEY) for name in "bc"]
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(house.put)
        assert look.entered.wait(IDLE_S)
        for gate in others:
            gate.release()
        house.wait(lambda: house.stored(KEY) == {"b", "c"})
        # Nothing tells that it does not return: so long it is given to do so.
        with pytest.raises(TimeoutError):
            put.result(0.5)
        look.release()
        with pytest.raises(ObjectConflict):
            put.result(IDLE_S)


def test_a_region_that_keeps_its_copy_to_itself_holds_a_put_up_for_a_few_seconds_only(house: House) -> None:
    house.plant(JUNK, "a")
    look = house.faulty["a"].hold("get", KEY)
    others = [house.faulty[name].hold("put", KEY) for name in "bc"]
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(house.put)
        assert look.entered.wait(IDLE_S)
        for gate in others:
            gate.release()
        house.wait(lambda: house.stored(KEY) == {"b", "c"})
        assert not put.done()
        house.clock.now_s += JUDGE_S
        house.store.retry_now()
        put.result(IDLE_S)
        look.release()
    house.wait(lambda: house.stuck("a") == 1)


def test_a_copy_that_cannot_be_read_leaves_its_region_out(house: House) -> None:
    house.plant(RIVALS, "a")
    house.faulty["a"].fail(StoreRefused("access denied"), "get")
    house.put()
    house.wait(lambda: not house.store.status()[0].is_healthy)
    assert house.held_by() == "bc"
    assert "which cannot be read: access denied" in (house.store.status()[0].last_error or "")


def test_of_a_huge_copy_only_the_start_is_read(house: House) -> None:
    seen: list[int] = []

    def look(start: bytes) -> bool:
        seen.append(len(start))
        return False

    house.plant(bytes(8 << 20), "a")
    house.store.put_past(KEY, OURS, CopyJudge(100, look))
    house.wait(lambda: house.stuck("a") == 1)
    assert seen == [100]


def test_junk_in_too_many_regions_is_told_with_their_names(house: House) -> None:
    house.plant(JUNK, "a", "c")
    with pytest.raises(CopyInTheWay, match=r"cannot reach 2 of 3 regions; a: object .*; c: object"):
        house.put()
    assert house.store.status()[0].pending_repairs == 0


def test_junk_in_one_region_and_an_outage_of_another_may_be_repeated(house: House) -> None:
    house.plant(JUNK, "a")
    house.faulty["b"].go_down()
    with pytest.raises(StoreUnavailable, match=r"a: object .* no writer put there"):
        house.put()
    house.faulty["b"].heal()
    house.put()
    assert house.held_by() == "bc"


def test_junk_in_one_region_and_a_refusal_of_another_are_a_refusal(house: House) -> None:
    house.plant(JUNK, "a")
    house.faulty["b"].refuse()
    with pytest.raises(StoreRefused):
        house.put()


def test_a_judge_that_fails_leaves_the_region_out_and_no_put_waiting(house: House) -> None:
    def fail(_start: bytes) -> bool:
        raise RuntimeError("a mistake of ours")

    house.plant(JUNK, "a")
    house.store.put_past(KEY, OURS, CopyJudge(100, fail))
    house.wait(lambda: not house.store.status()[0].is_healthy)
    assert house.held_by() == "bc"


def test_without_a_judge_any_other_bytes_are_a_conflict(house: House) -> None:
    house.plant(JUNK, "a", "b")
    with pytest.raises(ObjectConflict):
        house.store.put(KEY, OURS)


def test_of_two_writers_never_both_win(tmp_path: Path) -> None:
    """Two processes, each with its own queue, over the same regions, with junk under each name in one."""
    regions = [DirectoryStore.create(tmp_path / name) for name in "abc"]
    queues = [RepairQueue(tmp_path / f"repair-{number}") for number in range(2)]
    stores = [
        ReplicatedStore(
            [Region(name, region) for name, region in zip("abc", regions, strict=True)],
            quorum=2,
            queue=queue,
        )
        for queue in queues
    ]

    def put(writer: int, key: str) -> bool:
        try:
            stores[writer].put_past(key, b"%b: %d" % (SIGNED, writer), JUDGE)
        except (ObjectConflict, StoreUnavailable):
            return False
        return True

    won = []
    with ThreadPoolExecutor(2) as pool:
        for number in range(40):
            key = f"heads/{number}"
            regions[number % 3].put(key, JUNK)
            won.append(sum(pool.map(lambda writer, key=key: put(writer, key), range(2))))
    for store, queue in zip(stores, queues, strict=True):
        store.close(IDLE_S)
        queue.close()
    assert max(won) == 1, won


def _single(path: Path) -> dict[str, ObjectStore]:
    return {"memory": MemoryStore(), "directory": DirectoryStore.create(path / "one")}


@pytest.mark.parametrize("kind", ["memory", "directory"])
def test_a_store_of_one_copy_cannot_go_past_it_and_says_what_it_is(tmp_path: Path, kind: str) -> None:
    store = _single(tmp_path)[kind]
    assert not isinstance(store, PutsPast)
    put_past(store, "wal/new", OURS, JUDGE)
    put_past(store, "wal/new", OURS, JUDGE)
    store.put("wal/junk", JUNK)
    store.put("wal/rival", RIVALS)
    with pytest.raises(CopyInTheWay):
        put_past(store, "wal/junk", OURS, JUDGE)
    with pytest.raises(ObjectConflict):
        put_past(store, "wal/rival", OURS, JUDGE)


def test_in_a_directory_also_a_pipe_or_a_file_larger_than_any_object_is_only_in_the_way(
    tmp_path: Path,
) -> None:
    import os

    store = DirectoryStore.create(tmp_path / "one")
    store.put("wal/first", OURS)
    os.mkfifo(tmp_path / "one/objects/wal/pipe")
    with (tmp_path / "one/objects/wal/huge").open("wb") as file:
        file.truncate(1 << 40)
    started = time.monotonic()
    for key in ("wal/pipe", "wal/huge"):
        with pytest.raises(CopyInTheWay):
            put_past(store, key, OURS, JUDGE)
    assert time.monotonic() - started < IDLE_S


def test_a_flipped_bit_in_a_directory_is_passed(tmp_path: Path) -> None:
    regions = [Region(name, DirectoryStore.create(tmp_path / name)) for name in "abc"]
    with closing(RepairQueue(tmp_path / "repair")) as queue:
        store = ReplicatedStore(regions, quorum=2, queue=queue)
        store.put_past("wal/k", OURS, JUDGE)
        assert store.wait_idle(IDLE_S)
        path = tmp_path / "b/objects/wal/k"
        path.write_bytes(bytes([OURS[0] ^ 1]) + OURS[1:])
        store.put_past("wal/k", OURS, JUDGE)
        store.close(IDLE_S)
        assert [fault.region for fault in store.damaged()] == ["b"]
