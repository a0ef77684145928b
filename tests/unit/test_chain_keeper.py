"""What the daemon builds on, when somebody else makes a full backup of its chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import fix_archive as fix
import pytest
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore

from cli.chain_keeper import ChainKeeper
from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.sqlite import Catalogue
from pitr.wal.lsn import LSN
from storage.memory import MemoryStore
from storage.store import StoreUnavailable


@dataclass
class Host:
    """A host whose chain is a full backup and two incremental ones."""

    store: FaultyStore = field(default_factory=lambda: FaultyStore(MemoryStore()))

    def __post_init__(self) -> None:
        self.house = RepositoryHouse(self.store)
        self.catalogue = Catalogue(":memory:")
        self.keeper = ChainKeeper(self.house.repository, self.house.archive, self.record)
        self.taken = [self.backup(1), self.backup(2, 1), self.backup(3, 2)]
        self.keeper.remember(self.taken[:1])
        for manifest in self.taken[1:]:
            self.keeper.follow(manifest)

    def record(self, record: Callable[[Catalogue], None]) -> None:
        record(self.catalogue)

    def backup(self, number: int, parent: int | None = None) -> BackupManifest:
        at = fix.at_second(number)
        made = fix.backup_of(LSN(number * 1000), LSN(number * 1000 + 9), stopped_at=at, number=number)
        made = replace(made, started_at=at)
        if parent is not None:
            made = replace(made, type="incr", parent=fix.backup_id(parent))
        return self.house.backup(made).manifest

    def consolidate(self) -> BackupManifest:
        newest = self.taken[-1]
        made = replace(newest, backup=fix.backup_id(77), type="full", parent=None, stands_for=newest.backup)
        self.house.repository.put_manifest(made, self.house.root)
        return made

    def length(self) -> int:
        assert self.keeper.newest is not None
        return self.keeper.newest.length


def test_a_chain_is_as_long_as_what_comes_after_the_full_backup_that_was_made_of_it() -> None:
    host = Host()
    assert host.length() == 2
    host.keeper.look_for_others()
    assert host.length() == 2
    made = host.consolidate()
    host.keeper.look_for_others()
    chain = host.keeper.newest
    assert chain is not None
    # Built on as before: the host's note is of this one.
    assert chain.newest == host.taken[-1]
    assert (chain.length, chain.full_started_at) == (0, made.started_at)
    assert [one.manifest for one in host.catalogue.backups(host.house.archive)] == [made]
    host.keeper.follow(host.backup(4, 3))
    assert host.length() == 1


def test_what_a_store_that_is_down_did_not_tell_is_learned_the_next_time() -> None:
    host = Host()
    made = host.consolidate()
    for operation in ("list", "get"):
        host.store.fail(StoreUnavailable("region is down"), operation)
        with pytest.raises(StoreUnavailable):
            host.keeper.look_for_others()
        host.store.heal()
    host.keeper.look_for_others()
    assert host.length() == 0
    assert [one.manifest for one in host.catalogue.backups(host.house.archive)] == [made]


def test_what_anybody_put_there_changes_nothing() -> None:
    host = Host()
    prefix = f"manifests/{host.house.archive}/"
    host.store.put(f"{prefix}{fix.backup_id(9)}", b"no manifest")
    host.store.put(f"{prefix}no-backup", b"no manifest")
    host.keeper.look_for_others()
    assert host.length() == 2
    host.consolidate()
    host.keeper.look_for_others()
    assert host.length() == 0
