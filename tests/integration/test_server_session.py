"""The SQL session: what it learns of real servers, and how their refusals come out."""

from __future__ import annotations

import threading

import pytest
from fix_postgres import PostgresFactory

from pitr.errors import MalformedValue, ServerRefused, ServerUnavailable
from pitr.postgres.basebackup import parse_backup_label
from pitr.postgres.installation import Installation
from pitr.postgres.server import Server


def test_a_server_says_what_it_is(pg_installation: Installation, postgres_factory: PostgresFactory) -> None:
    source = postgres_factory(installation=pg_installation)
    with Server.connect(source.dsn) as server:
        facts = server.facts()
    assert facts.major == pg_installation.major
    assert facts.system_identifier == source.value("SELECT system_identifier FROM pg_control_system()")
    assert (facts.segment_bytes, facts.relation_segment_blocks) == (16 << 20, 131072)
    assert facts.data_directory == source.data_dir
    assert facts.has_checksums
    assert (facts.wal_level, facts.max_wal_senders, facts.is_in_recovery) == ("replica", 10, False)
    assert facts.timeline.number == 1
    assert facts.tablespaces == ()
    assert dict(facts.settings)["wal_segment_size"] == "16MB"


def test_a_backup_starts_and_stops_with_its_label(
    pg_installation: Installation, postgres_factory: PostgresFactory
) -> None:
    source = postgres_factory(installation=pg_installation)
    with Server.connect(source.dsn) as server:
        start = server.start_backup("label of 1", fast=True)
        point = server.create_restore_point("here")
        assert start < point <= server.insert_lsn()
        stopped = server.stop_backup()
    assert stopped.stop_lsn > point
    assert parse_backup_label(stopped.backup_label).start_lsn == start
    assert b"LABEL: label of 1\n" in stopped.backup_label
    assert stopped.tablespace_map == b""


@pytest.mark.parametrize("label", ["", "two\nlines", "x" * 201, "nul\0"])
def test_a_label_that_could_forge_a_line_is_refused(postgres_factory: PostgresFactory, label: str) -> None:
    source = postgres_factory()
    with Server.connect(source.dsn) as server, pytest.raises(MalformedValue):
        server.start_backup(label, fast=True)


def test_a_role_without_rights_is_told_which_it_lacks(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory()
    source.execute("CREATE ROLE plain LOGIN")
    dsn = f"{source.dsn} user=plain"
    with Server.connect(dsn) as server:
        with pytest.raises(ServerRefused, match="data directory") as failure:
            server.facts()
        assert "pg_read_all_settings" in str(failure.value.hint)
        with pytest.raises(ServerRefused, match="permission denied") as failure:
            server.start_backup("x", fast=True)
        assert "GRANT EXECUTE" in str(failure.value.hint)
    source.execute("GRANT pg_read_all_settings TO plain")
    source.execute("GRANT EXECUTE ON FUNCTION pg_backup_start, pg_backup_stop TO plain")
    with Server.connect(dsn) as server:
        assert server.facts().data_directory == source.data_dir
        server.start_backup("x", fast=True)
        server.stop_backup()


def test_no_server_an_unknown_database_and_a_lost_session_are_told_apart(
    postgres_factory: PostgresFactory,
) -> None:
    source = postgres_factory()
    with pytest.raises(ServerRefused, match="does not exist"):
        Server.connect(f"{source.dsn} dbname=none")
    with pytest.raises(ServerUnavailable):
        Server.connect("host=127.0.0.1 port=1 user=postgres")
    with pytest.raises(ServerRefused):
        Server.connect("not a dsn")
    with Server.connect(source.dsn) as server:
        source.stop("immediate")
        with pytest.raises(ServerUnavailable):
            server.insert_lsn()


def test_a_statement_ends_when_it_is_cancelled_or_its_time_is_up(postgres_factory: PostgresFactory) -> None:
    # Nothing ends this spread checkpoint for minutes: much to write, and a goal far away.
    source = postgres_factory(
        settings={"checkpoint_timeout": "1h", "checkpoint_completion_target": "0.9", "shared_buffers": "64MB"}
    )
    source.execute("CREATE TABLE much AS SELECT g, repeat('x', 400) FROM generate_series(1, 60000) g")
    cancel = threading.Event()
    with Server.connect(source.dsn) as server:
        timer = threading.Timer(0.5, cancel.set)
        timer.start()
        with server.interrupted_by(cancel), pytest.raises(ServerUnavailable, match="cancel"):
            server.start_backup("slow", fast=False)
        timer.join()
        with pytest.raises(ServerUnavailable, match="timeout"):
            server.start_backup("slow", fast=False, timeout_s=0.5)


def test_a_role_with_the_documented_rights_leaves_no_error_in_the_log(
    pg_installation: Installation, postgres_factory: PostgresFactory
) -> None:
    source = postgres_factory(installation=pg_installation)
    source.execute("CREATE ROLE backer LOGIN REPLICATION IN ROLE pg_read_all_settings")
    with Server.connect(source.instance.dsn_as("backer")) as server:
        assert server.facts().system_identifier
        assert all(server.setting_sources())
    assert "ERROR:" not in source.instance.log_path.read_text()
    # A superuser sees the file of a setting that the command line overrides.
    with Server.connect(source.dsn) as server:
        source.execute("ALTER SYSTEM SET port = 1")
        assert str(source.data_dir / "postgresql.auto.conf") in server.setting_sources()
