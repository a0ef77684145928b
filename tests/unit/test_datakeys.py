"""The host's data keys: one for each hour of WAL, and none without its envelope at quorum."""

from __future__ import annotations

from datetime import datetime, timedelta

import fix_archive as fix
import pytest
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore

from pitr.datakeys import DataKeys
from pitr.layout import envelope_key
from pitr.pipeline.keys import DataKey
from storage.memory import MemoryStore
from storage.store import StoreUnavailable

NOON = datetime(2026, 11, 25, 12, tzinfo=fix.BEGIN.tzinfo)


def opened(house: RepositoryHouse, key: DataKey) -> DataKey:
    """Return what a reader gets of the envelope that is in the store."""
    return DataKeys(house.repository, house.identity).get(house.archive, key.key_id)


def test_wal_has_a_new_key_each_hour() -> None:
    house = RepositoryHouse(MemoryStore())
    first = house.keys.wal_key(NOON)
    assert house.keys.wal_key(NOON + timedelta(minutes=59, seconds=59)) == first
    second = house.keys.wal_key(NOON + timedelta(minutes=60))
    assert second.key_id != first.key_id
    assert second != first
    # An hour from then, not from the first.
    assert house.keys.wal_key(NOON + timedelta(minutes=119)) == second
    assert house.keys.wal_key(NOON + timedelta(minutes=120)) not in (first, second)
    assert [opened(house, key) for key in (first, second)] == [first, second]


def test_a_clock_that_goes_back_does_not_stretch_the_life_of_a_key() -> None:
    house = RepositoryHouse(MemoryStore())
    first = house.keys.wal_key(NOON)
    back = house.keys.wal_key(NOON - timedelta(seconds=1))
    assert back != first
    assert house.keys.wal_key(NOON + timedelta(minutes=59)) == back
    assert house.keys.wal_key(NOON + timedelta(minutes=60)) != back


def test_each_backup_has_a_key_of_its_own_and_wal_goes_on_with_the_hours() -> None:
    house = RepositoryHouse(MemoryStore())
    wal = house.keys.wal_key(NOON)
    assert len({key.key_id for key in (wal, house.keys.backup_key(NOON), house.keys.backup_key(NOON))}) == 3
    assert house.keys.wal_key(NOON) == wal
    house.keys.forget()
    assert house.keys.wal_key(NOON) != wal


def test_no_key_is_given_out_before_its_envelope_is_in_the_store() -> None:
    store = FaultyStore(MemoryStore())
    house = RepositoryHouse(store)
    first = house.keys.wal_key(NOON)
    store.fail(StoreUnavailable("away"), "put")
    later = NOON + timedelta(hours=1)
    for make in (house.keys.wal_key, house.keys.backup_key):
        with pytest.raises(StoreUnavailable):
            make(later)
    # The old one is not used for longer because there is no new one.
    with pytest.raises(StoreUnavailable):
        house.keys.wal_key(later)
    store.heal()
    second = house.keys.wal_key(later)
    assert second != first
    key = envelope_key(house.archive, second.key_id)
    assert ("put", key) in store.calls
    assert opened(house, second) == second
