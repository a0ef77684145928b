"""ReplicatedStore against a model, under random faults of its regions.

At every moment: what put acknowledged is in a quorum of regions, and a region that
holds a head holds every object that was put (and acknowledged) before that head.
When all regions are well again, they become equal.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from fix_stores import FaultyStore
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from storage.memory import MemoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from storage.store import ObjectMissing, StoreError, StoreRefused, StoreUnavailable

IDLE_S = 30.0
regions = st.integers(min_value=0, max_value=2)


class Watched(MemoryStore):
    """A MemoryStore that remembers the order in which objects first arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.arrivals: list[str] = []

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        # Before it can be seen, so that the record is never behind what a reader sees.
        if key not in self.arrivals:
            self.arrivals.append(key)
        super().put(key, body, sha256=sha256, after_all=after_all)


class ReplicatedModel(RuleBasedStateMachine):
    """Puts, heads, reads, deletes, faults, restarts."""

    @initialize(quorum=st.integers(min_value=1, max_value=3))
    def begin(self, quorum: int) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="pitr-model-")
        self.quorum = quorum
        self.inner = [Watched() for _ in range(3)]
        self.faulty = [FaultyStore(store) for store in self.inner]
        self.acknowledged: dict[str, bytes] = {}
        self.put_so_far: list[str] = []
        # For each head: what was acknowledged before its put began.
        self.before_head: dict[str, frozenset[str]] = {}
        self.deleted: set[str] = set()
        self.number = 0
        self.open()

    def open(self) -> None:
        self.queue = RepairQueue(Path(self.directory.name) / "repair")
        self.store = ReplicatedStore(
            [Region(f"r{number}", store) for number, store in enumerate(self.faulty)],
            quorum=self.quorum,
            queue=self.queue,
            put_timeout_s=0.02,
            workers_per_region=2,
            after_all_prefixes=("heads/",),
            jitter=lambda: 0.0,
        )

    @rule(repeats=st.integers(min_value=1, max_value=3))
    def put(self, repeats: int) -> None:
        for _ in range(repeats):
            self.number += 1
            self.try_put(f"wal/{self.number:04}", f"body {self.number}".encode(), after_all=False)

    @rule()
    def put_head(self) -> None:
        self.number += 1
        key = f"heads/{9999 - self.number:04}"
        self.before_head[key] = frozenset(self.acknowledged)
        self.try_put(key, key.encode(), after_all=True)

    @rule(data=st.data())
    def put_again(self, data: st.DataObject) -> None:
        if self.put_so_far:
            key = data.draw(st.sampled_from(self.put_so_far))
            if key in self.acknowledged:
                body = self.acknowledged[key]
                self.try_put(key, body, after_all=key.startswith("heads/"))

    @rule(region=regions)
    def go_down(self, region: int) -> None:
        self.faulty[region].go_down()

    @rule(region=regions)
    def refuse(self, region: int) -> None:
        self.faulty[region].refuse()

    @rule(region=regions, times=st.integers(min_value=1, max_value=3))
    def fail_a_few_puts(self, region: int, times: int) -> None:
        self.faulty[region].fail(StoreUnavailable("now and then"), "put", times=times)

    @rule(region=regions)
    def hold_puts(self, region: int) -> None:
        self.faulty[region].hold("put")

    @rule(region=regions)
    def heal(self, region: int) -> None:
        self.faulty[region].heal()
        self.store.retry_now()

    @rule()
    def restart(self) -> None:
        for faulty in self.faulty:
            faulty.heal()
        self.close()
        self.open()

    @rule()
    def read_all(self) -> None:
        for key, body in self.acknowledged.items():
            try:
                assert self.store.get(key) == body
            except ObjectMissing as error:
                raise AssertionError(f"{key} was acknowledged and is said to be missing") from error
            except (StoreUnavailable, StoreRefused):
                continue

    @rule()
    def list_all(self) -> None:
        try:
            listed = {found.key for found in self.store.list_objects("")}
        except StoreError:
            return
        assert set(self.acknowledged) <= listed

    @rule()
    def all_become_equal(self) -> None:
        for faulty in self.faulty:
            faulty.heal()
        # What was put and not acknowledged may be in any region; reconciling spreads or drops nothing else.
        self.store.retry_now()
        assert self.store.wait_idle(IDLE_S), self.store.status()
        for key in self.acknowledged:
            assert [store.get(key) for store in self.inner] == [self.acknowledged[key]] * 3
        self.store.reconcile()
        assert self.store.wait_idle(IDLE_S), self.store.status()
        listings = [[found.key for found in store.list_objects("")] for store in self.inner]
        assert listings[0] == listings[1] == listings[2]

    @invariant()
    def acknowledged_is_at_quorum(self) -> None:
        for key in getattr(self, "acknowledged", {}):
            holders = sum(1 for store in self.inner if list(store.list_objects(key)))
            assert holders >= self.quorum, (key, holders)

    @invariant()
    def heads_come_after_all(self) -> None:
        for store in getattr(self, "inner", []):
            arrivals = list(store.arrivals)
            place = {key: number for number, key in enumerate(arrivals)}
            for head, before in self.before_head.items():
                if head in place:
                    late = [key for key in before if place.get(key, len(arrivals)) > place[head]]
                    assert not late, (head, late, arrivals)

    def try_put(self, key: str, body: bytes, *, after_all: bool) -> None:
        # Only new ones: whether one was acknowledged depends on the clock, and what is drawn must not.
        if key not in self.put_so_far:
            self.put_so_far.append(key)
        try:
            self.store.put(key, body, after_all=after_all)
        except (StoreUnavailable, StoreRefused):
            return
        self.acknowledged[key] = body

    def close(self) -> None:
        self.store.close(IDLE_S)
        self.queue.close()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            for faulty in self.faulty:
                faulty.heal()
            self.close()
            self.directory.cleanup()


# The number of examples is the profile's; see conftest.py.
ReplicatedModel.TestCase.settings = settings(stateful_step_count=25)
test_regions_keep_their_promises_under_random_faults = ReplicatedModel.TestCase
