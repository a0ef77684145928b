"""Tablespaces that are newer than the backup: replay makes them where they were made, or nothing is replayed.

On the source's own host the place is the live cluster's, and recovery would write over its files.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fix_backup import BackupHouse
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres, table_digests
from fix_restore import HISTORY_SETTINGS, HandArchiver, Judge, RestoreHouse, archive_of, take_test_backup

from cli.errors import ExitCode, rule_for
from pitr.postgres.server_user import hand_over
from pitr.recovery import RecoveryTarget
from pitr.restore_request import RestoreRequest
from pitr.space_guard import SpaceRefused
from pitr.wal.lsn import LSN
from storage.local import DirectoryStore
from verifiers.verify_values import failed_check

CHILD = Path(__file__).parents[1] / "restore_child.py"
LATEST = RecoveryTarget("latest")


@dataclass
class Later:
    """A running server whose tablespace is newer than its backup."""

    server: RunningPostgres
    restores: RestoreHouse
    region: Path
    space: Path
    oid: int
    before: LSN
    old: LSN
    tables_before: dict[str, str]
    tables_old: dict[str, str]
    tables: dict[str, str]

    def request(self, target: Path, aim: RecoveryTarget, **options: object) -> RestoreRequest:
        house = self.restores
        return house.request(house.plan(aim), target, self.server, keep_running=True, **options)

    def digest(self) -> str:
        """All that lies in the live tablespace, as the server has written it."""
        self.server.execute("CHECKPOINT")
        files = [path for path in sorted(self.space.rglob("*")) if path.is_file()]
        assert files
        found = [(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
        return hashlib.sha256(repr(found).encode()).hexdigest()

    @contextmanager
    def other_host(self) -> Iterator[None]:
        """Be on a host where the place is not there: the source stops, and its directory is elsewhere."""
        self.server.stop()
        aside = self.space.with_name("aside")
        self.space.rename(aside)
        try:
            yield
        finally:
            if self.space.exists():
                shutil.rmtree(self.space)
            aside.rename(self.space)
            self.server.start()

    def make_empty(self) -> None:
        self.space.mkdir(mode=0o700)
        hand_over(self.space, self.restores.user)


def flushed(server: RunningPostgres) -> LSN:
    return LSN.parse(str(server.value("SELECT pg_current_wal_flush_lsn()")))


@pytest.fixture(scope="module")
def later(
    module_postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    tmp_path_factory: pytest.TempPathFactory,
) -> Later:
    settings = {**HISTORY_SETTINGS, "autovacuum": "off"}
    server = module_postgres_factory(17, settings=settings, name="later-space")
    region = tmp_path_factory.mktemp("region") / "store"
    server.execute("CREATE TABLE ledger (n int PRIMARY KEY, filler text)")
    house = BackupHouse(DirectoryStore.create(region), archive_of(server))
    archiver = HandArchiver(house, server)
    archiver.begin()
    take_test_backup(archiver)
    server.execute("INSERT INTO ledger VALUES (1, 'before')")
    before, tables_before = flushed(server), table_digests(server.dsn)
    space = server.data_dir.parent / "later place"
    space.mkdir(mode=0o700)
    hand_over(space, postgres_house.user)
    server.execute(f"CREATE TABLESPACE later LOCATION '{space}'")
    server.execute("CREATE TABLE precious (id int PRIMARY KEY, v text) TABLESPACE later")
    server.execute("INSERT INTO precious SELECT g, 'old' FROM generate_series(1, 1000) g")
    old, tables_old = flushed(server), table_digests(server.dsn)
    server.execute("UPDATE precious SET v = 'changed'")
    server.execute("INSERT INTO precious SELECT g, 'new' FROM generate_series(1001, 20000) g")
    archiver.ship()
    oid = int(str(server.value("SELECT oid FROM pg_tablespace WHERE spcname = 'later'")))
    restores = RestoreHouse(house, postgres_house.user)
    tables = table_digests(server.dsn)
    # So that nothing which only reads changes a page any more.
    server.execute("VACUUM (FREEZE) precious")
    return Later(server, restores, region, space, oid, before, old, tables_before, tables_old, tables)


def aim_at(lsn: LSN) -> RecoveryTarget:
    return RecoveryTarget("lsn", lsn=lsn)


def test_a_restore_on_the_sources_host_does_not_touch_the_live_tablespace(
    later: Later, server_tmp_path: Path
) -> None:
    live, target = later.digest(), server_tmp_path / "data"
    request = later.request(target, aim_at(later.old))
    for _ in range(2):
        with pytest.raises(SpaceRefused) as caught:
            later.restores.restore(request)
        refused = caught.value
        assert f"makes tablespace {later.oid} in {later.space}, which is not empty on this host" in str(
            refused
        )
        assert "live cluster's" in (refused.detail or "")
        assert "restore on another host" in (refused.hint or "")
        assert f"before {str(refused).split()[1]}" in (refused.hint or "")
        assert rule_for(refused).exit_code is ExitCode.NOT_VERIFIED
    assert not (target / "pg_tblspc" / str(later.oid)).exists()
    assert (target / "recovery.signal").exists(), "it was not promoted"
    assert not target.with_name("data.recovery.json").exists()
    assert later.digest() == live
    assert table_digests(later.server.dsn) == later.tables


def test_a_moment_before_the_tablespace_was_made_is_restored_though_its_segment_has_it(
    later: Later, server_tmp_path: Path, judge: Judge
) -> None:
    live = later.digest()
    result = later.restores.restore(later.request(server_tmp_path / "data", aim_at(later.before)))
    assert judge.tables(result) == later.tables_before
    assert later.digest() == live


def test_a_host_without_the_directory_says_so_and_the_same_restore_goes_on_once_it_is_made(
    later: Later, server_tmp_path: Path, judge: Judge
) -> None:
    request = later.request(server_tmp_path / "data", aim_at(later.old))
    with later.other_host():
        with pytest.raises(SpaceRefused, match="does not exist on this host"):
            later.restores.restore(request)
        later.make_empty()
        result = later.restores.restore(request)
        try:
            assert judge.tables(result) == later.tables_old
        finally:
            judge.adopt(result).stop()
        assert (server_tmp_path / "data" / "pg_tblspc" / str(later.oid)).readlink() == later.space


def test_a_restore_that_was_killed_after_it_made_the_tablespace_knows_it_for_its_own(
    later: Later, server_tmp_path: Path, judge: Judge
) -> None:
    target = server_tmp_path / "data"
    installation = later.server.instance.installation
    words = [str(later.region), later.restores.identity.text(), str(target)]
    words += [str(installation.major), str(installation.bin_dir), "arrived:1"]
    with later.other_host():
        later.make_empty()
        done = subprocess.run([sys.executable, str(CHILD), *words], check=False, timeout=240)
        assert done.returncode == -9, "it was not killed"
        assert any(later.space.rglob("PG_17_*/*/*")), "the tablespace is in use"
        result = later.restores.restore(later.request(target, LATEST))
        try:
            assert judge.tables(result) == later.tables
        finally:
            judge.adopt(result).stop()


def test_a_run_in_a_scratch_folder_does_not_take_even_an_empty_directory(
    later: Later, server_tmp_path: Path
) -> None:
    request = later.request(server_tmp_path / "data", aim_at(later.old), takes_spaces=False)
    with later.other_host():
        later.make_empty()
        with pytest.raises(SpaceRefused, match="outside of the folder of this run") as caught:
            later.restores.restore(request)
        assert failed_check(caught.value) == "C09", "no hole in the WAL, which is C05"
        assert not list(later.space.iterdir())
