"""ObservedStore: each call is told once, with its size, time and error."""

from __future__ import annotations

import pytest

from storage.locks import Locking, ObjectLock
from storage.memory import MemoryStore
from storage.observed import ObservedStore, RequestCount, observed_store
from storage.store import ObjectConflict, ObjectMissing, StoreError


class Observer:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int, float, str | None]] = []

    def observed(self, operation: str, size_bytes: int, elapsed_s: float, error: StoreError | None) -> None:
        self.calls.append((operation, size_bytes, elapsed_s, error and type(error).__name__))


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def test_every_call_is_told() -> None:
    observer = Observer()
    store = ObservedStore(MemoryStore(), observer, Clock())
    store.put("k", b"body")
    with pytest.raises(ObjectConflict):
        store.put("k", b"other")
    store.get("k")
    store.get_range("k", 1, 2)
    with pytest.raises(ObjectMissing):
        store.get("missing")
    store.delete("k")
    assert observer.calls == [
        ("put", 4, 1.0, None),
        ("put", 0, 1.0, "ObjectConflict"),
        ("get", 4, 1.0, None),
        ("get_range", 2, 1.0, None),
        ("get", 0, 1.0, "ObjectMissing"),
        ("delete", 0, 1.0, None),
    ]


def test_a_listing_is_told_when_it_ends_without_its_consumers_time() -> None:
    observer, clock = Observer(), Clock()
    store = ObservedStore(MemoryStore(), observer, clock)
    for name in "abc":
        store.put(name, b"x")
    observer.calls.clear()
    for _ in store.list_objects(""):
        clock.now_s += 1000.0
    assert observer.calls == [("list", 3, 4.0, None)]
    listing = store.list_objects("")
    next(listing)
    listing.close()  # type: ignore[attr-defined]
    assert observer.calls[1:] == [("list", 1, 1.0, None)]


class LockingStore(MemoryStore):
    """One that tells of a lock."""

    def lock_of(self, key: str) -> ObjectLock | None:
        self.get(key)
        return None


def test_a_count_counts_every_call_and_what_can_tell_of_locks_still_can() -> None:
    count = RequestCount()
    store = observed_store(LockingStore(), count)
    store.put("k", b"body")
    assert isinstance(store, Locking)
    assert store.lock_of("k") is None
    with pytest.raises(ObjectMissing):
        store.lock_of("missing")
    assert [one.key for one in store.list_objects("")] == ["k"]
    assert count.calls == 4
    assert not isinstance(observed_store(MemoryStore(), count), Locking)
