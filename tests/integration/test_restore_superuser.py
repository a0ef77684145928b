"""Clusters whose superuser is not ``postgres``: the backup says who it is, a restore asks as that role."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from fix_backup import BackupHouse
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres
from fix_restore import KEEP_WAL, HandArchiver, Judge, RestoreHouse, archive_of, take_test_backup

from pitr.errors import RecoveryFailed
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan
from storage.memory import MemoryStore

OWNER = "o'neil \\ dba"


class OwnedPostgres(RunningPostgres):
    """A server that somebody else's user has initialised."""

    @property
    def dsn(self) -> str:
        return self.instance.dsn_as(OWNER)


@pytest.fixture(scope="module")
def owned(
    module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse
) -> tuple[RestoreHouse, OwnedPostgres]:
    server = OwnedPostgres(module_postgres_factory(settings=KEEP_WAL, name="owned").instance)
    # One who came later is not the one.
    RunningPostgres(server.instance).execute("CREATE ROLE aaron SUPERUSER LOGIN")
    with psycopg.connect(server.instance.dsn_as("aaron")) as session:
        quoted = OWNER.replace('"', '""')
        session.execute(f'ALTER ROLE postgres RENAME TO "{quoted}"'.encode())
    server.execute("CREATE TABLE ledger AS SELECT 1 AS n")
    house = BackupHouse(MemoryStore(), archive_of(server))
    archiver = HandArchiver(house, server)
    archiver.begin()
    take_test_backup(archiver)
    archiver.ship()
    return RestoreHouse(house, postgres_house.user), server


def unsaid(plan: RestorePlan) -> RestorePlan:
    """Return the plan as it is for a backup that was taken before backups said it."""
    settings = tuple(pair for pair in plan.backup.settings if pair[0] != "bootstrap_superuser")
    return replace(plan, backup=replace(plan.backup, settings=settings))


def test_a_cluster_of_another_superuser_is_restored_and_its_connection_is_told(
    owned: tuple[RestoreHouse, OwnedPostgres], server_tmp_path: Path, judge: Judge
) -> None:
    house, server = owned
    plan = house.plan(RecoveryTarget("latest"))
    assert plan.backup.superuser == OWNER
    result = house.restore(house.request(plan, server_tmp_path / "data", server, keep_running=True))
    judge.adopt(result)
    assert result.dsn is not None
    with psycopg.connect(result.dsn) as session:
        row = session.execute("SELECT current_user, n FROM ledger").fetchone()
    assert row == (OWNER, 1)


def test_an_older_backup_is_gone_on_with_once_its_superuser_is_named(
    owned: tuple[RestoreHouse, OwnedPostgres], server_tmp_path: Path, judge: Judge
) -> None:
    house, server = owned
    plan = unsaid(house.plan(RecoveryTarget("latest")))
    assert plan.backup.superuser == "postgres"
    request = house.request(plan, server_tmp_path / "data", server, keep_running=True)
    with pytest.raises(RecoveryFailed, match="does not let postgres in") as failure:
        house.restore(request)
    assert "repeat with --superuser NAME" in str(failure.value.hint)
    result = house.restore(replace(request, superuser="aaron"))
    judge.adopt(result)
    assert result.fetched_bytes == 0, "what was fetched is there"
    assert result.dsn is not None
    with psycopg.connect(result.dsn) as session:
        assert session.info.user == "aaron"
