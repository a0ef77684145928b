"""What commits wait for on a real server, and that they are released and held again."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest
from fix_postgres import PostgresFactory, RunningPostgres
from fix_sync import LIMIT_S, commit_that_waits, guard_dsn, receiver, set_names, until

from pitr.errors import ServerRefused
from pitr.postgres.installation import Installation
from pitr.postgres.sync_standby import GRANTS, SyncStandby, standby_name
from pitr.protection import Protect
from verifiers.base import Severity
from verifiers.sync_probes import duty_of, probe_synchronous


def guard(server: RunningPostgres) -> SyncStandby:
    return SyncStandby.connect(guard_dsn(server))


def test_commits_that_wait_are_seen_released_and_held_again(
    pg_installation: Installation, postgres_factory: PostgresFactory
) -> None:
    server = postgres_factory(installation=pg_installation)
    session = guard(server)
    assert session.setting().names == ""
    assert not session.setting().is_in_auto_conf
    set_names(server, "pitr")
    until(lambda: session.setting().names == "pitr")
    with commit_that_waits(server) as client:
        until(lambda: session.waiting().sessions == 1)
        view = session.look()
        assert view.setting.is_in_auto_conf
        assert view.setting.is_ours_to_change
        assert view.setting.commit == "on"
        assert not view.is_standby
        assert view.end is not None
        assert view.standbys == ()
        threading.Event().wait(1.1)
        assert 1 < session.waiting().oldest_s < LIMIT_S
        began = time.monotonic()
        session.release("")
        client.join(LIMIT_S)
        assert not client.is_alive()
        assert time.monotonic() - began < 5
    assert session.waiting().sessions == 0
    session.restore("pitr", was_in_auto_conf=True)
    assert server.value("SHOW synchronous_standby_names") == "pitr"
    with commit_that_waits(server):
        until(lambda: session.waiting().sessions == 1)
    session.close()


def test_what_stood_in_the_main_file_is_undone_by_reset(postgres_factory: PostgresFactory) -> None:
    server = postgres_factory()
    session = guard(server)
    with (server.data_dir / "postgresql.conf").open("a") as file:
        file.write("\nsynchronous_standby_names = 'ANY 1 (\"pitr\", its)'\n")
    server.execute("SELECT pg_reload_conf()")
    until(lambda: "pitr" in session.setting().names)
    assert not session.setting().is_in_auto_conf
    assert session.setting().is_ours_to_change
    session.release("")
    assert (session.setting().names, session.setting().is_in_auto_conf) == ("", True)
    session.restore(session.setting().names, was_in_auto_conf=False)
    assert not session.setting().is_in_auto_conf
    assert session.setting().names == 'ANY 1 ("pitr", its)'
    assert "synchronous_standby_names" not in (server.data_dir / "postgresql.auto.conf").read_text()
    session.close()


def test_the_command_line_is_not_ours_to_change(postgres_factory: PostgresFactory) -> None:
    server = postgres_factory(settings={"synchronous_standby_names": "pitr"})
    with psycopg.connect(server.dsn, autocommit=True) as client:
        client.execute("SET synchronous_commit = local")
        client.execute("CREATE ROLE guard LOGIN")
        client.execute("GRANT pg_monitor TO guard")
    session = SyncStandby.connect(server.dsn.replace("user=postgres", "user=guard"))
    setting = session.setting()
    assert (setting.names, setting.is_ours_to_change, setting.stands_in) == ("pitr", False, "command line")
    session.close()


def test_without_rights_nothing_is_changed_and_the_missing_one_is_named(
    postgres_factory: PostgresFactory,
) -> None:
    server = postgres_factory()
    set_names(server, "pitr, other")
    server_as = server.dsn.replace("user=postgres", "user=guard")
    with psycopg.connect(server.dsn, autocommit=True) as client:
        client.execute("SET synchronous_commit = local")
        client.execute("CREATE ROLE guard LOGIN")
        session = SyncStandby.connect(server_as)
        assert session.waiting().is_hidden
        assert not session.setting().is_ours_to_change
        for grant in GRANTS:
            with pytest.raises(ServerRefused) as refusal:
                session.release("")
            client.execute(grant.format(role="guard"))
            assert refusal.value.hint is not None
        assert "pg_reload_conf" in refusal.value.hint
    assert server.value("SHOW synchronous_standby_names") == "pitr, other"
    session.release("")
    assert not session.waiting().is_hidden
    session.close()


def test_a_receiver_is_seen_with_what_it_has_flushed(postgres_factory: PostgresFactory) -> None:
    server = postgres_factory()
    session = guard(server)
    name = standby_name("host=x application_name=keeper")
    assert (name, standby_name("host=x")) == ("keeper", "pitr")
    with receiver(server, name):
        set_names(server, name)
        until(lambda: session.standbys()[0].sync_state == "sync")
        (standby,) = session.standbys()
        assert (standby.application_name, standby.state) == ("keeper", "streaming")
        assert standby.flushed is not None
    session.close()


def test_one_watchdog_per_database_holds_the_lock(postgres_factory: PostgresFactory) -> None:
    server = postgres_factory()
    first, second = guard(server), SyncStandby.connect(server.dsn)
    assert first.is_alone()
    assert not second.is_alone()
    first.close()
    until(second.is_alone)
    second.close()


def test_the_grants_that_the_doctor_names_are_those_that_help(postgres_factory: PostgresFactory) -> None:
    server = postgres_factory()
    server.execute('CREATE ROLE "odd ""role" LOGIN')
    server.execute('GRANT pg_read_all_settings TO "odd ""role"')
    set_names(server, "pitr")
    dsn = server.dsn.replace("user=postgres", "user='odd \"role'")
    duty = duty_of(dsn, Protect.PRIMARY, is_co_located=True, is_watched=False)
    failed = [one for one in probe_synchronous(dsn, duty) if one.severity is Severity.FAIL]
    assert {one.id for one in failed} > {"server.grant.waits", "server.grant.release", "server.grant.reload"}
    with psycopg.connect(server.dsn, autocommit=True) as client:
        client.execute("SET synchronous_commit = local")
        for one in failed:
            if one.id.startswith("server.grant."):
                client.execute(str(one.hint).encode())
    failed = [one for one in probe_synchronous(dsn, duty) if one.severity is Severity.FAIL]
    assert [one.id for one in failed] == ["host.watchdog"]
