"""Settings that suited the primary, of its server, a role or a database: recovery is not led by them."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from fix_backup import BackupHouse
from fix_postgres import PostgresFactory, PostgresHouse
from fix_restore import (
    HISTORY_SETTINGS,
    HandArchiver,
    Judge,
    RestoreHouse,
    archive_of,
    commit_row,
    take_test_backup,
)

from pitr.errors import RecoveryFailed
from pitr.postgres.installation import Installation
from pitr.postgres.replay import ReplayMonitor
from pitr.recovery import RecoveryTarget
from storage.memory import MemoryStore

# Written by ALTER SYSTEM and not read by the primary any more: each alone ends a server, or nobody gets in.
SYSTEM = {
    "unix_socket_group": "no_such_group",
    "unix_socket_permissions": "0000",
    "local_preload_libraries": "no_such_library",
    "session_preload_libraries": "no_such_library",
    "wal_level": "minimal",
    "superuser_reserved_connections": "100",
    "min_dynamic_shared_memory": "1000GB",
}
SYSTEM_SINCE = {16: {"reserved_connections": "100"}, 17: {"sync_replication_slots": "on"}}
# Of the database that recovery asks first.
DATABASE = {
    "DateStyle": "SQL, DMY",
    "default_transaction_isolation": "serializable",
    "session_preload_libraries": "no_such_library",
    "idle_session_timeout": "1ms",
    "search_path": "led_astray, pg_catalog",
}
DATABASE_SINCE = {17: {"transaction_timeout": "1ms"}}


def test_a_restore_is_not_led_by_the_primarys_settings(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
) -> None:
    server = postgres_factory(installation=pg_installation, settings=HISTORY_SETTINGS, name="hostile")
    major = pg_installation.major
    server.execute("CREATE TABLE ledger (n int PRIMARY KEY, filler text)")
    server.execute("CREATE SCHEMA led_astray", dbname="template1")
    server.execute(
        "CREATE FUNCTION led_astray.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT 1/0 = 1'",
        dbname="template1",
    )
    named = [SYSTEM, *(more for since, more in SYSTEM_SINCE.items() if since <= major)]
    for name, value in [pair for each in named for pair in each.items()]:
        server.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    own = [DATABASE, *(more for since, more in DATABASE_SINCE.items() if since <= major)]
    for name, value in [pair for each in own for pair in each.items()]:
        quoted = value if name in ("DateStyle", "search_path") else f"'{value}'"
        server.execute(f"ALTER DATABASE template1 SET {name} = {quoted}")
    house = BackupHouse(MemoryStore(), archive_of(server))
    archiver = HandArchiver(house, server)
    archiver.begin()
    take_test_backup(archiver)
    # The server tells the time of the last transaction before the record that it stops at.
    commit_row(server, 1)
    commit_row(server, 2)
    archiver.ship()
    restores = RestoreHouse(house, postgres_house.user)
    request = restores.request(
        restores.plan(RecoveryTarget("latest")), server_tmp_path / "data", server, keep_running=True
    )
    result = restores.restore(request)
    judge.adopt(result)
    assert result.has_paused
    assert result.dsn is not None
    with psycopg.connect(result.dsn) as session:
        row = session.execute("SELECT max(n), current_setting('lc_messages') FROM ledger").fetchone()
    assert row == (2, "C")


def test_who_is_not_let_in_is_told_at_once_and_another_database_will_do(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory()
    server.execute("CREATE ROLE closed SUPERUSER NOLOGIN")
    server.execute("CREATE DATABASE other")
    server.execute("ALTER DATABASE template1 ALLOW_CONNECTIONS false")
    with ReplayMonitor(server.dsn, major=17) as monitor:
        state = monitor.look()
        assert state is not None
        assert not state.is_in_recovery
        assert monitor.checkpoint().number == 1
    for role, words in [("closed", "not permitted to log in"), ("nobody_here", "does not exist")]:
        with ReplayMonitor(server.instance.dsn_as(role), major=17) as monitor:
            with pytest.raises(RecoveryFailed, match=f"does not let {role} in") as failure:
                monitor.look()
            assert words in str(failure.value.detail)
            assert "--superuser NAME" in str(failure.value.hint)
    server.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false", dbname="other")
    with ReplayMonitor(server.dsn, major=17) as monitor:
        with pytest.raises(RecoveryFailed) as failure:
            monitor.look()
        assert "not currently accepting connections" in str(failure.value.detail)
    # A server that has no socket yet will have one.
    with ReplayMonitor(f"host='{tmp_path}' user=postgres", major=17) as monitor:
        assert monitor.look() is None
