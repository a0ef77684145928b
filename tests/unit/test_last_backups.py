"""The timetable begins once the last backup is known, whatever the regions answered before."""

from __future__ import annotations

import threading

import fix_archive as fix
import pytest
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore

from cli.last_backups import wait_for_backups
from pitr.layout import expiry_key
from pitr.verified import BAD_MAX
from pitr.wal.lsn import LSN
from storage.memory import MemoryStore
from storage.store import StoreError, StoreRefused, StoreUnavailable


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreRefused("access denied")])
def test_a_region_that_refuses_is_asked_again_and_said_once(error: StoreError) -> None:
    store = FaultyStore(MemoryStore())
    house = RepositoryHouse(store)
    house.backup(
        fix.backup_of(LSN(fix.SEGMENT_BYTES), LSN(fix.SEGMENT_BYTES + 8), stopped_at=fix.at_second(5))
    )
    store.fail(error, "list", times=3)
    told: list[str] = []
    listing = wait_for_backups(
        lambda: house.repository.manifests(house.archive), threading.Event(), told.append, pause_s=0.0
    )
    assert listing is not None
    assert len(listing.backups) == 1
    assert told == [str(error)]


def test_records_that_are_not_authentic_are_asked_again_until_the_daemon_ends() -> None:
    store = MemoryStore()
    house = RepositoryHouse(store)
    for number in range(BAD_MAX):
        store.put(expiry_key(house.archive, number + 1), b"no record")
    stopping = threading.Event()
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        stopping.set()

    listing = wait_for_backups(lambda: house.repository.manifests(house.archive), stopping, tell, pause_s=0.0)
    assert listing is None
    assert len(told) == 1
