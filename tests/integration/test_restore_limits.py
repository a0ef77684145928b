"""Restores across changes of the primary's limits, and of a backup that a delayed standby has brought."""

from __future__ import annotations

from pathlib import Path

import psycopg
from fix_backup import BackupHouse
from fix_postgres import PostgresFactory, PostgresHouse, table_digests
from fix_restore import KEEP_WAL, HandArchiver, Judge, RestoreHouse, archive_of, take_test_backup

from pitr.recovery import RecoveryTarget
from storage.memory import MemoryStore

# Beyond PostgreSQL's defaults, which a restore has anyway.
FIRST = {**KEEP_WAL, "max_connections": "110"}
RAISES = [
    {"max_connections": "150"},
    {"max_connections": "150", "max_worker_processes": "12", "max_wal_senders": "14"},
    {"max_connections": "170", "max_prepared_transactions": "4", "max_locks_per_transaction": "80"},
]


def test_limits_that_were_raised_after_the_backup_are_taken_on_at_each_raise(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path, judge: Judge
) -> None:
    server = postgres_factory(17, settings=FIRST, name="raised")
    server.execute("CREATE TABLE t (i int)")
    archiver = HandArchiver(BackupHouse(MemoryStore(), archive_of(server)), server)
    archiver.begin()
    take_test_backup(archiver)
    for number, raised in enumerate(RAISES):
        server.execute("INSERT INTO t VALUES (%s)", number)
        server.stop()
        server.start({**FIRST, **raised})
    server.execute("INSERT INTO t VALUES (9)")
    archiver.ship()
    house = RestoreHouse(archiver.house, postgres_house.user)
    plan = house.plan(RecoveryTarget("latest"))
    result = house.restore(house.request(plan, server_tmp_path / "data", server, keep_running=True))
    assert plan.stop is not None
    assert result.replay_end == plan.stop.replay_end
    assert judge.tables(result) == table_digests(server.dsn)
    log = result.instance.log_path.read_text() if result.instance is not None else ""
    assert log.count("insufficient parameter settings") >= len(RAISES)


def test_the_delay_of_a_delayed_standby_does_not_hold_a_restore_up(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path, judge: Judge
) -> None:
    server = postgres_factory(17, settings={**KEEP_WAL, "track_commit_timestamp": "on"}, name="delayed")
    server.execute("CREATE TABLE t (i int)")
    server.execute("ALTER SYSTEM SET recovery_min_apply_delay = '4h'")
    archiver = HandArchiver(BackupHouse(MemoryStore(), archive_of(server)), server)
    archiver.begin()
    take_test_backup(archiver)
    server.execute("INSERT INTO t VALUES (1)")
    archiver.ship()
    house = RestoreHouse(archiver.house, postgres_house.user)
    plan = house.plan(RecoveryTarget("latest"))
    request = house.request(plan, server_tmp_path / "data", server, keep_running=True, stall_timeout_s=20.0)
    result = house.restore(request)
    # The times of commits are kept through the promotion.
    asked = "SELECT pg_xact_commit_timestamp(xmin) FROM t"
    with psycopg.connect(judge.adopt(result).dsn) as connection:
        assert connection.execute(asked).fetchone() == (server.value(asked),)
    assert judge.tables(result) == table_digests(server.dsn)
