"""ReplicatedStore over MemoryStores that fail as told.  No sleeps: what must wait is held by an event."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from fix_stores import FaultyStore

from storage.digest import BodyDigest
from storage.memory import MemoryStore
from storage.regions import Region, StoreEvent, StoreEventKind
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from storage.store import (
    CopyDamaged,
    ObjectConflict,
    ObjectMissing,
    StoreRefused,
    StoreUnavailable,
)

IDLE_S = 30.0


class Clock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class House:
    """Three regions, a quorum of two, and what a test needs to hold in hand."""

    def __init__(self, path: Path, *, quorum: int = 2, names: str = "abc") -> None:
        self.path = path
        self.quorum = quorum
        self.clock = Clock()
        self.faulty = {name: FaultyStore(MemoryStore()) for name in names}
        self.events: list[StoreEvent] = []
        self.open()

    def open(self, **options: object) -> None:
        self.queue = RepairQueue(self.path)
        self.store = ReplicatedStore(
            [Region(name, store) for name, store in self.faulty.items()],
            quorum=self.quorum,
            queue=self.queue,
            on_event=self.events.append,
            after_all_prefixes=("heads/",),
            clock=self.clock,
            jitter=lambda: 0.0,
            **options,  # type: ignore[arg-type]
        )

    def close(self) -> None:
        for store in self.faulty.values():
            store.heal()
        self.clock.now_s = 0.0
        self.store.close(IDLE_S)
        self.queue.close()

    def holds(self, name: str) -> list[str]:
        return [found.key for found in self.faulty[name].inner.list_objects("")]

    def pending(self, name: str) -> list[str]:
        return [repair.key for repair in self.queue.first(name, 100)]

    def become_idle(self) -> None:
        for store in self.faulty.values():
            store.heal()
        self.store.retry_now()
        self.wait(lambda: all(not s.pending_repairs for s in self.store.status()))

    def answered(self, key: str) -> set[str]:
        """Return the regions that have stored an object whose put is still on its way."""
        lanes = self.store._lanes.lanes  # type: ignore[union-attr]
        puts = [put for lane in lanes for put in lane.undecided.values() if put.key == key]
        return {name for put in puts for name in put.stored}

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for other threads' work; the standing clock cannot measure this wait."""
        changed = self.store._lanes.changed  # type: ignore[union-attr]
        with changed:
            assert changed.wait_for(condition, IDLE_S)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "repair")
    yield house
    house.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


class Forgetful(MemoryStore):
    """Takes objects and keeps nothing of them, so that whoever still holds a body is not the store."""

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        """Take it."""


def test_no_thread_holds_a_body_that_was_put_until_its_next_one(house: House) -> None:
    for store in house.faulty.values():
        store.inner = Forgetful()
    body = bytes(1 << 20)
    before = sys.getrefcount(body)
    house.store.put("k", body)
    assert house.store.wait_idle(IDLE_S)
    # Idle is what the lanes say under their lock; the threads let go right after.
    deadline = time.monotonic() + IDLE_S
    while sys.getrefcount(body) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sys.getrefcount(body) == before


def test_a_put_reaches_all_regions(house: House) -> None:
    house.store.put("k", b"body")
    house.become_idle()
    assert all(store.inner.get("k") == b"body" for store in house.faulty.values())


class WantsProof(MemoryStore):
    """Notes whether each put came with a digest that proves itself."""

    def __init__(self) -> None:
        super().__init__()
        self.proofs: list[bool] = []

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        self.proofs.append(isinstance(sha256, BodyDigest) and sha256.is_proof_for(body))
        super().put(key, body, sha256=sha256, after_all=after_all)


def test_a_body_is_hashed_once_for_all_regions(tmp_path: Path) -> None:
    regions = [WantsProof() for _ in range(3)]
    queue = RepairQueue(tmp_path / "repair")
    named = [Region(f"region-{number}", region) for number, region in enumerate(regions)]
    store = ReplicatedStore(named, quorum=2, queue=queue)
    try:
        store.put("proved", b"body", sha256=BodyDigest.of(b"body"))
        store.put("plain", b"body", sha256=hashlib.sha256(b"body").digest())
        store.put("none", b"body")
        assert store.wait_idle(IDLE_S)
    finally:
        store.close()
        queue.close()
    assert [region.proofs for region in regions] == [[True] * 3] * 3


def test_a_put_returns_at_the_quorum_and_the_lack_is_on_record(house: House) -> None:
    gate = house.faulty["c"].hold("put")
    house.store.put("k", b"body")
    assert house.holds("a") == house.holds("b") == ["k"]
    assert house.holds("c") == []
    assert house.pending("c") == ["k"]
    gate.release()
    house.wait(lambda: house.holds("c") == ["k"])
    house.wait(lambda: house.queue.oldest_sequence("c") is None)


def test_a_put_does_not_return_before_the_quorum(house: House, pool: ThreadPoolExecutor) -> None:
    gates = [house.faulty[name].hold("put") for name in "bc"]
    put = pool.submit(house.store.put, "k", b"body")
    assert gates[0].entered.wait(IDLE_S)
    assert gates[1].entered.wait(IDLE_S)
    house.wait(lambda: house.holds("a") == ["k"])
    assert not put.done()
    gates[0].release()
    put.result(IDLE_S)
    assert house.holds("b") == ["k"]


def test_a_put_fails_when_too_few_regions_are_up_and_may_be_repeated(house: House) -> None:
    house.faulty["b"].go_down()
    house.faulty["c"].go_down()
    with pytest.raises(StoreUnavailable, match=r"2 of 3 regions; b: region is down; c: region is down"):
        house.store.put("k", b"body")
    assert house.queue.regions() == []
    house.faulty["b"].heal()
    house.store.put("k", b"body")
    assert house.holds("b") == ["k"]


def test_a_put_gives_up_at_its_deadline(house: House, pool: ThreadPoolExecutor) -> None:
    gates = [house.faulty[name].hold("put") for name in "bc"]
    put = pool.submit(house.store.put, "k", b"body")
    assert gates[0].entered.wait(IDLE_S)
    house.wait(lambda: house.answered("k") == {"a"})
    house.clock.now_s += 31.0
    house.store.retry_now()
    with pytest.raises(StoreUnavailable, match="1 of the 2 regions it needs after 30 s"):
        put.result(IDLE_S)


def test_other_bytes_are_a_conflict_even_if_a_quorum_would_take_them(house: House) -> None:
    house.faulty["a"].inner.put("k", b"other")
    gates = [house.faulty[name].hold("put") for name in "bc"]
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(house.store.put, "k", b"body")
        with pytest.raises(ObjectConflict, match="a: object k already holds other bytes"):
            put.result(IDLE_S)
        for gate in gates:
            gate.release()


def test_too_many_refusals_are_a_refusal(house: House) -> None:
    house.faulty["a"].refuse()
    house.faulty["b"].refuse()
    with pytest.raises(StoreRefused, match="access denied"):
        house.store.put("k", b"body")


def test_one_refusal_and_one_outage_may_be_repeated(house: House) -> None:
    house.faulty["a"].refuse()
    house.faulty["b"].go_down()
    with pytest.raises(StoreUnavailable):
        house.store.put("k", b"body")


def test_a_wrong_digest_harms_no_regions_health(house: House) -> None:
    with pytest.raises(StoreRefused, match="SHA-256"):
        house.store.put("k", b"body", sha256=bytes(32))
    assert all(status.is_healthy for status in house.store.status())
    assert all(house.holds(name) == [] for name in "abc")


def test_a_region_that_returns_gets_what_it_missed_in_order(house: House) -> None:
    house.faulty["c"].go_down()
    for number in range(20):
        house.store.put(f"k{number:02}", b"body")
    assert len(house.pending("c")) == 20
    house.faulty["c"].calls.clear()
    house.become_idle()
    sent = [key for operation, key in house.faulty["c"].calls if operation == "put"]
    assert [key for number, key in enumerate(sent) if key not in sent[:number]] == sorted(sent)[-20:]
    assert house.holds("c") == house.holds("a")
    kinds = {event.kind for event in house.events if event.region == "c"}
    assert {
        StoreEventKind.REGION_FAILED,
        StoreEventKind.REGION_RECOVERED,
        StoreEventKind.COPY_REPAIRED,
    } <= kinds


def test_a_region_that_just_failed_is_spared_while_others_suffice(house: House) -> None:
    house.faulty["c"].go_down()
    house.store.put("k1", b"body")
    house.wait(lambda: house.store.status()[2].last_error is not None)
    house.faulty["c"].calls.clear()
    house.store.put("k2", b"body")
    assert ("put", "k2") not in house.faulty["c"].calls
    house.faulty["b"].go_down()
    house.faulty["c"].heal()
    house.store.put("k3", b"body")
    assert "k3" in house.holds("c")


def test_repairs_go_on_after_a_restart(house: House) -> None:
    house.faulty["c"].go_down()
    house.store.put("k", b"body")
    house.store.close(IDLE_S)
    house.queue.close()
    house.faulty["c"].heal()
    house.open()
    house.become_idle()
    assert house.holds("c") == ["k"]


def test_what_a_region_lacks_is_repaired_beside_a_put_that_it_holds(house: House) -> None:
    gate = house.faulty["c"].hold("put", "held")
    house.store.put("held", b"body")
    assert gate.entered.wait(IDLE_S)
    house.faulty["c"].fail(StoreUnavailable("a moment"), "put", times=1)
    house.store.put("lacking", b"body")
    house.clock.now_s += 3600.0
    house.wait(lambda: house.holds("c") == ["lacking"])
    assert house.pending("c") == ["held"]
    gate.release()
    house.become_idle()
    assert (house.holds("c"), house.queue.pending("c")) == (["held", "lacking"], 0)


def test_a_repair_never_sends_a_damaged_copy(house: House) -> None:
    house.faulty["c"].go_down()
    house.store.put("k", b"body")
    house.faulty["a"].damage("k")
    house.faulty["c"].heal()
    house.store.retry_now()
    house.wait(lambda: house.holds("c") == ["k"])
    assert house.faulty["c"].inner.get("k") == b"body"
    assert [(copy.region, copy.key) for copy in house.store.damaged()] == [("a", "k")]


def test_a_repair_whose_sources_are_all_damaged_is_stuck_and_shown(house: House) -> None:
    house.faulty["c"].go_down()
    house.store.put("k", b"body")
    house.faulty["a"].damage("k")
    house.faulty["b"].damage("k")
    house.faulty["c"].heal()
    house.store.retry_now()
    house.wait(lambda: house.store.status()[2].stuck_repairs == 1)
    assert house.holds("c") == []


def test_a_repair_of_a_deleted_object_is_dropped(house: House) -> None:
    house.faulty["c"].go_down()
    house.store.put("k", b"body")
    for name in "ab":
        house.faulty[name].inner.delete("k")
    house.become_idle()
    assert house.holds("c") == []
    assert StoreEventKind.REPAIR_DROPPED in {event.kind for event in house.events}


def test_a_head_waits_for_what_the_region_lacks(house: House) -> None:
    house.faulty["c"].go_down()
    house.store.put("wal/1", b"piece")
    house.store.put("heads/1", b"head", after_all=True)
    assert house.pending("c") == ["wal/1", "heads/1"]
    house.become_idle()
    puts = [key for operation, key in house.faulty["c"].calls if operation == "put"]
    assert puts.index("wal/1") < puts.index("heads/1")
    assert house.holds("c") == ["heads/1", "wal/1"]


def test_what_is_put_after_a_head_need_not_wait_for_it(house: House) -> None:
    house.faulty["c"].go_down()
    house.store.put("wal/1", b"piece")
    house.store.put("heads/1", b"head", after_all=True)
    # Nothing to repair from, so the head must stay away from c, which is up again.
    for name in "ab":
        house.faulty[name].fail(StoreUnavailable("no source"), "get")
    house.faulty["c"].heal()
    house.store.retry_now()
    house.store.put("wal/2", b"piece")
    house.wait(lambda: "wal/2" in house.holds("c"))
    assert house.holds("c") == ["wal/2"]


def test_a_head_is_not_in_a_region_before_a_put_that_is_still_on_its_way(
    house: House, pool: ThreadPoolExecutor
) -> None:
    gate = house.faulty["c"].hold("put")
    house.store.put("wal/1", b"piece")
    assert gate.entered.wait(IDLE_S)
    house.store.put("heads/1", b"head", after_all=True)
    assert ("put", "heads/1") not in house.faulty["c"].calls
    gate.release()
    house.become_idle()
    puts = [key for operation, key in house.faulty["c"].calls if operation == "put"]
    # A repair may send the same bytes once more; what counts is what came first.
    assert list(dict.fromkeys(puts)) == ["wal/1", "heads/1"]


def test_a_head_waits_for_a_put_that_began_earlier_and_has_no_quorum_yet(
    house: House, pool: ThreadPoolExecutor
) -> None:
    gates = [house.faulty[name].hold("put", "wal/1") for name in "bc"]
    piece = pool.submit(house.store.put, "wal/1", b"piece")
    assert all(gate.entered.wait(IDLE_S) for gate in gates)
    head = pool.submit(house.store.put, "heads/1", b"head", after_all=True)
    house.wait(lambda: "heads/1" in house.holds("a"))
    house.clock.now_s += 31.0
    house.store.retry_now()
    with pytest.raises(StoreUnavailable, match="it waits for earlier objects in b, c"):
        head.result(IDLE_S)
    with pytest.raises(StoreUnavailable, match="1 of the 2 regions"):
        piece.result(IDLE_S)
    assert house.holds("b") == house.holds("c") == []


def test_a_head_counts_only_where_it_is_stored(house: House, pool: ThreadPoolExecutor) -> None:
    for name in "bc":
        house.faulty[name].hold("put")
    first = pool.submit(house.store.put, "wal/1", b"piece")
    house.wait(lambda: house.holds("a") == ["wal/1"])
    head = pool.submit(house.store.put, "heads/1", b"head", after_all=True)
    house.wait(lambda: house.holds("a") == ["heads/1", "wal/1"])
    assert not head.done()
    house.become_idle()
    first.result(IDLE_S)
    head.result(IDLE_S)


def test_a_head_waits_for_reconciliation_after_the_queue_was_lost(tmp_path: Path) -> None:
    house = House(tmp_path / "repair")
    house.faulty["c"].go_down()
    house.store.put("wal/1", b"piece")
    house.store.close(IDLE_S)
    house.queue.close()
    RepairQueue.replace_damaged(tmp_path / "repair").close()
    house.faulty["c"].heal()
    house.open()
    with ThreadPoolExecutor(1) as pool:
        head = pool.submit(house.store.put, "heads/1", b"head", after_all=True)
        house.wait(lambda: any(lane.undecided for lane in house.store._lanes.lanes))  # type: ignore[union-attr]
        assert not any("heads/1" in house.holds(name) for name in "abc")
        found = house.store.reconcile()
        assert (found.missing_copies, found.unreached) == (1, ())
        head.result(IDLE_S)
    house.become_idle()
    puts = [key for operation, key in house.faulty["c"].calls if operation == "put" and key != "k"]
    assert puts.index("wal/1") < puts.index("heads/1")
    house.close()


def test_reconciling_sends_heads_last_and_the_newest_of_them_at_the_end(house: House) -> None:
    for name in "ab":
        for key in ("heads/1", "heads/2", "wal/1", "zzz"):
            house.faulty[name].inner.put(key, key.encode())
    house.store.reconcile()
    house.wait(lambda: len(house.holds("c")) == 4)
    puts = [key for operation, key in house.faulty["c"].calls if operation == "put"]
    assert puts == ["wal/1", "zzz", "heads/2", "heads/1"]


def test_reconciling_brings_nothing_back_that_is_gone(house: House) -> None:
    for key in ("backups/kept", "backups/gone"):
        house.faulty["a"].inner.put(key, key.encode())
    found = house.store.reconcile(is_gone=lambda key: key.endswith("gone"))
    assert (found.objects, found.missing_copies) == (2, 2)
    house.wait(lambda: len(house.holds("b")) == len(house.holds("c")) == 1)
    assert house.holds("b") == house.holds("c") == ["backups/kept"]


def test_reconciling_says_which_region_it_could_not_reach(house: House) -> None:
    house.faulty["a"].inner.put("k", b"body")
    house.faulty["b"].go_down()
    found = house.store.reconcile()
    assert found.unreached == ("b",)
    assert house.pending("c") == ["k"]
    assert house.queue.oldest_sequence("b") is None


def test_reconciling_does_not_choose_between_copies_that_differ(house: House) -> None:
    house.faulty["a"].inner.put("k", b"body")
    house.faulty["b"].inner.put("k", b"bodY")
    house.store.reconcile()
    house.wait(lambda: house.store.status()[2].stuck_repairs == 1)
    assert house.holds("c") == []


def test_a_read_falls_back_and_tells_what_was_wrong(house: House) -> None:
    body = b"body"
    digest = hashlib.sha256(body).digest()

    def check(found: bytes) -> None:
        if hashlib.sha256(found).digest() != digest:
            raise CopyDamaged("wrong digest")

    house.store.put("k", body)
    house.become_idle()
    house.faulty["a"].damage("k")
    house.faulty["b"].go_down()
    assert house.store.get("k", check=check) == body
    assert [(copy.region, copy.key) for copy in house.store.damaged()] == [("a", "k")]
    assert {(event.kind, event.region) for event in house.events} >= {
        (StoreEventKind.COPY_DAMAGED, "a"),
        (StoreEventKind.REGION_FAILED, "b"),
    }

    def check_part(found: bytes) -> None:
        if found != b"od":
            raise CopyDamaged("wrong part")

    assert house.store.get_range("k", 1, 2, check=check_part) == b"od"


def test_a_region_that_failed_is_asked_last_until_it_has_cooled_down(house: House) -> None:
    house.store.put("k", b"body")
    house.become_idle()
    house.faulty["a"].fail(StoreUnavailable("once"), "get", times=1)
    assert house.store.get("k") == b"body"
    house.faulty["a"].calls.clear()
    assert house.store.get("k") == b"body"
    assert house.faulty["a"].calls == []
    house.clock.now_s += 16.0
    assert house.store.get("k") == b"body"
    assert house.faulty["a"].calls == [("get", "k")]


def test_a_copy_that_a_read_found_missing_is_repaired(house: House) -> None:
    house.store.put("k", b"body")
    house.become_idle()
    house.faulty["a"].inner.delete("k")
    assert house.store.get("k") == b"body"
    house.wait(lambda: house.holds("a") == ["k"])


def test_a_head_that_a_read_found_missing_is_not_repaired_out_of_order(house: House) -> None:
    house.store.put("heads/1", b"head", after_all=True)
    house.become_idle()
    house.faulty["a"].inner.delete("heads/1")
    assert house.store.get("heads/1") == b"head"
    assert house.queue.regions() == []


def test_missing_is_said_only_when_every_region_says_so(house: House) -> None:
    with pytest.raises(ObjectMissing):
        house.store.get("k")
    house.faulty["c"].go_down()
    with pytest.raises(StoreUnavailable, match="c: region is down"):
        house.store.get("k")
    house.faulty["c"].heal()
    house.faulty["c"].refuse()
    with pytest.raises(StoreRefused):
        house.store.get_range("k", 0, 1)


def test_only_damaged_copies_are_damage_not_absence(house: House) -> None:
    house.store.put("k", b"body")
    house.become_idle()

    def check(_: bytes) -> None:
        raise CopyDamaged("wrong")

    with pytest.raises(CopyDamaged, match="a: wrong; b: wrong; c: wrong"):
        house.store.get("k", check=check)
    house.faulty["b"].go_down()
    with pytest.raises(StoreUnavailable):
        house.store.get("k", check=check)


def test_a_listing_is_the_union_of_the_regions(house: House) -> None:
    for name, keys in {"a": "135", "b": "25", "c": "45"}.items():
        for key in keys:
            house.faulty[name].inner.put(f"k/{key}", b"x")
    assert [found.key for found in house.store.list_objects("k/")] == [f"k/{n}" for n in "12345"]
    assert [found.key for found in house.store.list_objects("k/", start_after="k/3")] == ["k/4", "k/5"]


def test_a_listing_needs_enough_regions_to_miss_nothing(house: House) -> None:
    house.store.put("k", b"x")
    house.become_idle()
    house.faulty["a"].go_down()
    assert [found.key for found in house.store.list_objects("")] == ["k"]
    house.faulty["b"].go_down()
    with pytest.raises(StoreUnavailable, match="fewer than 2 regions can list"):
        list(house.store.list_objects(""))


def test_a_listing_that_breaks_off_is_not_taken_for_its_end(house: House) -> None:
    for name in "abc":
        for number in range(5):
            house.faulty[name].inner.put(f"k{number}", b"x")
    house.faulty["b"].fail(StoreUnavailable("cut"), "list-next")
    assert len(list(house.store.list_objects(""))) == 5
    house.store.retry_now()
    house.faulty["a"].fail(StoreUnavailable("cut"), "list-next")
    with pytest.raises(StoreUnavailable, match="cut"):
        list(house.store.list_objects(""))


def test_a_read_only_store_lists_with_what_is_left_and_refuses_to_write(tmp_path: Path) -> None:
    stores = {name: FaultyStore(MemoryStore()) for name in "abc"}
    stores["c"].inner.put("k", b"x")
    stores["a"].go_down()
    stores["b"].go_down()
    regions = [Region(name, store) for name, store in stores.items()]
    store = ReplicatedStore(regions, quorum=2, read_only_regions_minimum=1)
    before = threading.active_count()
    assert [found.key for found in store.list_objects("")] == ["k"]
    assert store.get("k") == b"x"
    with pytest.raises(StoreRefused, match="reading only"):
        store.put("k", b"x")
    with pytest.raises(StoreRefused, match="reading only"):
        store.delete("k")
    assert threading.active_count() == before
    store.close()


def test_copies_of_unequal_size_are_reported(house: House) -> None:
    house.faulty["a"].inner.put("k", b"x")
    house.faulty["b"].inner.put("k", b"xyz")
    assert [found.key for found in house.store.list_objects("")] == ["k"]
    # Two copies and two sizes: nobody can say which is the wrong one.
    assert [(event.kind, event.region) for event in house.events] == [
        (StoreEventKind.COPY_DIFFERS, "a"),
        (StoreEventKind.COPY_DIFFERS, "b"),
    ]


def test_deleting_removes_all_copies_and_pending_repairs(house: House) -> None:
    house.faulty["c"].go_down()
    house.store.put("k", b"x")
    with pytest.raises(StoreUnavailable, match="c: region is down"):
        house.store.delete("k")
    assert house.pending("c") == []
    house.become_idle()
    house.store.delete("k")
    assert all(house.holds(name) == [] for name in "abc")


def test_status_tells_what_a_region_waits_for(house: House) -> None:
    house.faulty["c"].go_down()
    house.store.put("k", b"x")
    house.wait(lambda: house.store.status()[2].last_error == "region is down")
    status = house.store.status()
    assert [s.name for s in status] == ["a", "b", "c"]
    assert [s.pending_repairs for s in status] == [0, 0, 1]
    assert not status[2].is_healthy
    assert status[2].oldest_pending_at is not None
    assert status[0].put_latency_s is not None


def test_a_slow_region_holds_a_bounded_number_of_bodies(house: House) -> None:
    gate = house.faulty["c"].hold("put")
    body = bytes(16 * 1024 * 1024)
    for number in range(8):
        house.store.put(f"k{number}", body)
    lane = house.store._lanes.lanes[2]  # type: ignore[union-attr]
    with house.store._lanes.changed:  # type: ignore[union-attr]
        assert lane.in_flight_bytes <= 64 * 1024 * 1024
    assert len(house.pending("c")) == 8
    gate.release()
    house.become_idle()
    assert len(house.holds("c")) == 8


def test_a_region_that_fails_lets_go_of_the_bodies_that_wait_for_it(house: House) -> None:
    gate = house.faulty["c"].hold("put")
    for number in range(20):
        house.store.put(f"k{number:02}", b"body")
    house.faulty["c"].go_down()
    gate.release()
    lane = house.store._lanes.lanes[2]  # type: ignore[union-attr]
    house.wait(lambda: not lane.in_flight)
    # Four workers had one each; the others were left to the repair queue.
    direct = [key for operation, key in house.faulty["c"].calls if operation == "put"]
    assert len(direct) <= 4 + 1
    assert len(house.pending("c")) == 20


def test_a_closed_store_takes_no_more(house: House) -> None:
    house.store.close(IDLE_S)
    with pytest.raises(StoreUnavailable, match="closed"):
        house.store.put("k", b"x")


def test_closing_ends_a_put_that_waits(house: House, pool: ThreadPoolExecutor) -> None:
    gates = [house.faulty[name].hold("put") for name in "bc"]
    put: Future[None] = pool.submit(house.store.put, "k", b"x")
    assert gates[0].entered.wait(IDLE_S)
    closing = pool.submit(house.store.close, IDLE_S)
    with pytest.raises(StoreUnavailable, match="closed"):
        put.result(IDLE_S)
    for gate in gates:
        gate.release()
    closing.result(IDLE_S)


@pytest.mark.parametrize(("quorum", "names"), [(0, "abc"), (4, "abc"), (1, "")])
def test_an_impossible_quorum_is_refused(tmp_path: Path, quorum: int, names: str) -> None:
    regions = [Region(name, MemoryStore()) for name in names]
    with pytest.raises(ValueError, match="impossible"):
        ReplicatedStore(regions, quorum=quorum)


def held(house: House) -> list[str]:
    return [info.key for info in house.store.list_held("packs/")]


def test_what_a_quorum_has_is_held_and_what_others_lack_is_queued(house: House) -> None:
    for name, keys in {"a": "1235", "b": "125", "c": "1"}.items():
        for key in keys:
            house.faulty[name].inner.put(f"packs/{key}", key.encode())
    house.faulty["c"].inner.put("packs/5", b"other size")
    assert held(house) == ["packs/1", "packs/2"]
    assert house.store.wait_idle(IDLE_S)
    assert house.faulty["c"].inner.get("packs/2") == b"2"
    # Nothing was put at quorum there, so nothing has to be brought to it.
    with pytest.raises(ObjectMissing):
        house.faulty["b"].inner.get("packs/3")


def test_a_region_that_cannot_be_listed_gets_what_a_quorum_has_later(house: House) -> None:
    for name in "ab":
        house.faulty[name].inner.put("packs/1", b"1")
    house.faulty["c"].go_down()
    assert held(house) == ["packs/1"]
    assert house.queue.pending("c") == 1
    house.faulty["c"].heal()
    house.store.retry_now()
    assert house.store.wait_idle(IDLE_S)
    assert house.faulty["c"].inner.get("packs/1") == b"1"


def test_without_a_quorum_nobody_says_what_is_held(house: House) -> None:
    house.faulty["a"].inner.put("packs/1", b"1")
    for name in "bc":
        house.faulty[name].go_down()
    with pytest.raises(StoreUnavailable):
        held(house)
