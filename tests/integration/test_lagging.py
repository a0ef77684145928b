"""Which regions still lack what was put."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_cli import wait_until
from fix_stores import FaultyStore

from cli.lagging import lagging_regions
from cli.regions import open_writing
from storage.memory import MemoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore

# Longer than any machine needs; who waits so long has not seen what it waits for.
LONG_S = 60.0


@pytest.fixture
def third() -> FaultyStore:
    return FaultyStore(MemoryStore())


@pytest.fixture
def store(tmp_path: Path, third: FaultyStore) -> Iterator[ReplicatedStore]:
    queue = RepairQueue(tmp_path / "repair.sqlite")
    regions = [Region("eu", MemoryStore()), Region("us", MemoryStore()), Region("ap", third)]
    store = open_writing(regions, 2, queue)
    yield store
    third.heal()
    store.close()
    queue.close()


def test_a_region_that_is_a_moment_behind_is_waited_for(store: ReplicatedStore, third: FaultyStore) -> None:
    gate = third.hold("put")
    store.put("k", b"body")
    assert lagging_regions(store, wait_s=0) == ["ap"]
    gate.release()
    assert lagging_regions(store, wait_s=LONG_S) == []
    assert third.inner.get("k") == b"body"


def test_a_region_that_fails_is_not_waited_for_unless_it_is_asked(
    store: ReplicatedStore, third: FaultyStore
) -> None:
    third.go_down()
    store.put("k", b"body")
    wait_until(lambda: not store.status()[2].is_healthy, "the region is seen to fail")
    begun = time.monotonic()
    assert lagging_regions(store, wait_s=LONG_S) == ["ap"]
    assert time.monotonic() - begun < LONG_S / 2
    third.heal()
    assert lagging_regions(store, failing_wait_s=LONG_S) == []
