"""The puts of a base backup: a failed one ends the backup, by its own name."""

from __future__ import annotations

import threading

import pytest
from fix_stores import FaultyStore

from pitr.backup_puts import PutPool
from pitr.errors import BackupFailed
from pitr.pipeline.part_objects import SealedPart
from storage.digest import BodyDigest
from storage.memory import MemoryStore


def part(number: int) -> SealedPart:
    body = b"sealed %d" % number
    return SealedPart("pack", 0, number, body, BodyDigest.of(body), 1)


def pool_on(store: FaultyStore, stop: threading.Event) -> PutPool:
    return PutPool(
        store,
        lambda kind, part, number: f"backups/{kind}-{part}-{number}",
        stop,
        in_flight_max=1,
        jitter=lambda: 0.0,
        on_stored=lambda _size: None,
    )


def test_the_next_put_names_the_failure_of_the_first() -> None:
    """The failure stops everything else, so 'the backup is being stopped' would be said in its place."""
    store = FaultyStore(MemoryStore())
    store.refuse()
    stop = threading.Event()
    pool = pool_on(store, stop)
    pool.put(part(0))
    pool.finish()
    assert stop.is_set()
    with pytest.raises(BackupFailed, match="access denied") as raised:
        pool.put(part(1))
    assert raised.value.hint is not None
    assert "pitr status" in raised.value.hint


def test_what_was_stopped_from_outside_says_so() -> None:
    stop = threading.Event()
    pool = pool_on(FaultyStore(MemoryStore()), stop)
    stop.set()
    with pytest.raises(BackupFailed, match="is being stopped"):
        pool.put(part(0))
    pool.finish()
    assert pool.stored("pack") == ()


def test_what_the_store_acknowledged_is_listed_by_key() -> None:
    inner = MemoryStore()
    pool = pool_on(FaultyStore(inner), threading.Event())
    for number in (1, 0):
        pool.put(part(number))
    pool.finish()
    assert [one.key for one in pool.stored("pack")] == ["backups/pack-0-0", "backups/pack-0-1"]
    assert inner.get("backups/pack-0-1") == b"sealed 1"
