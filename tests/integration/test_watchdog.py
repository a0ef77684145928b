"""The watchdog beside a real server: what it releases, when it lets go, and what it finds after a kill."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from fix_cli import MakeSite, PitrProgram, wait_until
from fix_postgres import PostgresFactory, RunningPostgres
from fix_sync import (
    commit_that_waits,
    guard_dsn,
    receiver,
    set_names,
    sync_names,
    until,
)
from fix_watchdog import watching

from cli.config_template import NewConfig, NewRegion, render_config
from cli.lock import RunLock
from cli.settings import LOCK_NAME
from pitr.commit_release import ReleasePolicy
from pitr.pipeline.keys import Identity
from pitr.postgres.sync_standby import SyncStandby
from pitr.protection import Protect
from pitr.release_journal import Note, Release, ReleaseJournal, ReleaseStep

Step = ReleaseStep


@pytest.fixture
def server(postgres_factory: PostgresFactory) -> RunningPostgres:
    return postgres_factory()


def test_commits_of_a_dead_daemon_are_released_and_wait_again_when_it_is_back(
    server: RunningPostgres, tmp_path: Path
) -> None:
    dsn = guard_dsn(server)
    set_names(server, "pitr")
    with watching(dsn, tmp_path) as watched:
        with commit_that_waits(server) as client:
            client.join(20)
            assert not client.is_alive()
        until(lambda: watched.steps() == [Step.RELEASING, Step.RELEASED])
        assert sync_names(server) == ""
        assert watched.said("commits were released") == 1
        with receiver(server):
            until(lambda: sync_names(server) == "pitr")
            until(lambda: watched.steps()[2:] == [Step.HOLDING, Step.HELD])
            server.execute("CREATE TABLE t ()")


def test_commits_of_a_daemon_that_hangs_are_released(server: RunningPostgres, tmp_path: Path) -> None:
    dsn = guard_dsn(server)
    with receiver(server) as hanging, watching(dsn, tmp_path) as watched:
        set_names(server, "pitr")
        server.execute("CREATE TABLE t ()")
        hanging.send_signal(signal.SIGSTOP)
        with commit_that_waits(server) as client:
            client.join(20)
            assert not client.is_alive()
        assert sync_names(server) == ""
        hanging.send_signal(signal.SIGCONT)
        until(lambda: sync_names(server) == "pitr")
        until(lambda: watched.steps()[-1] is Step.HELD)


def test_under_data_commits_wait_and_it_is_said_once(server: RunningPostgres, tmp_path: Path) -> None:
    dsn = guard_dsn(server)
    set_names(server, "pitr")
    with (
        watching(dsn, tmp_path, ReleasePolicy(Protect.DATA, 1.0)) as watched,
        commit_that_waits(server) as it,
    ):
        until(lambda: watched.steps() == [Step.WARNED])
        it.join(3)
        assert it.is_alive()
        assert sync_names(server) == "pitr"
        assert watched.steps() == [Step.WARNED]


def test_what_others_are_asked_for_stays(server: RunningPostgres, tmp_path: Path) -> None:
    dsn = guard_dsn(server)
    with receiver(server, "replica1"), watching(dsn, tmp_path):
        set_names(server, "FIRST 2 (replica1, pitr)")
        with commit_that_waits(server) as client:
            client.join(20)
            assert not client.is_alive()
        assert sync_names(server) == 'FIRST 1 ("replica1")'


RELEASING, HOLDING = Step.RELEASING, Step.HOLDING


def _nothing(_: SyncStandby, __: RunningPostgres) -> None:
    """Killed before anything was done."""


def _released(session: SyncStandby, _: RunningPostgres) -> None:
    session.release("")


def _altered(_: SyncStandby, server: RunningPostgres) -> None:
    """Killed between ALTER SYSTEM and the reload."""
    server.execute("ALTER SYSTEM SET synchronous_standby_names = ''")


def _changed(_: SyncStandby, server: RunningPostgres) -> None:
    set_names(server, "somebody")


@pytest.mark.parametrize(
    ("noted", "done", "found", "names"),
    [
        (RELEASING, _nothing, Step.HELD, "pitr"),
        (RELEASING, _altered, Step.RELEASED, ""),
        (RELEASING, _released, Step.RELEASED, ""),
        (HOLDING, _released, Step.RELEASED, ""),
        (HOLDING, _nothing, Step.HELD, "pitr"),
        (RELEASING, _changed, Step.LEFT, "somebody"),
        (HOLDING, _changed, Step.LEFT, "somebody"),
    ],
)
def test_after_a_kill_it_looks_what_is_there(
    server: RunningPostgres,
    tmp_path: Path,
    noted: ReleaseStep,
    done: Callable[[SyncStandby, RunningPostgres], None],
    found: ReleaseStep,
    names: str,
) -> None:
    dsn = guard_dsn(server)
    set_names(server, "pitr")
    session = SyncStandby.connect(dsn)
    release = Release(session.look().server, "pitr", True, "")
    ReleaseJournal(tmp_path / "releases.jsonl").note(Note(datetime.now(UTC), noted, "test", release))
    done(session, server)
    session.close()
    with watching(dsn, tmp_path) as watched:
        until(lambda: watched.steps()[1:] == [found])
        assert sync_names(server) == names
        if names == "":
            with receiver(server):
                until(lambda: sync_names(server) == "pitr")


def test_what_was_released_on_another_server_is_said_and_left(
    server: RunningPostgres, tmp_path: Path
) -> None:
    dsn = guard_dsn(server)
    release = Release("10.9.9.9 5432 /elsewhere", "pitr", True, "")
    ReleaseJournal(tmp_path / "releases.jsonl").note(Note(datetime.now(UTC), Step.RELEASED, "test", release))
    with watching(dsn, tmp_path) as watched:
        until(lambda: watched.steps()[1:] == [Step.LEFT])
        assert watched.said("on another server") == 1


def test_a_change_by_somebody_else_is_left_alone(server: RunningPostgres, tmp_path: Path) -> None:
    dsn = guard_dsn(server)
    set_names(server, "pitr")
    with watching(dsn, tmp_path) as watched:
        with commit_that_waits(server) as client:
            client.join(20)
        until(lambda: watched.steps()[-1:] == [Step.RELEASED])
        server.execute("ALTER SYSTEM SET synchronous_standby_names = 'somebody'")
        server.execute("SELECT pg_reload_conf()")
        until(lambda: watched.steps()[-1] is Step.LEFT)
        with receiver(server):
            time.sleep(4)
            assert sync_names(server) == "somebody"


def test_lost_rights_are_said_once_and_when_they_are_back_it_acts(
    server: RunningPostgres, tmp_path: Path
) -> None:
    dsn = guard_dsn(server)
    server.execute("REVOKE EXECUTE ON FUNCTION pg_reload_conf() FROM guard")
    set_names(server, "pitr")
    with watching(dsn, tmp_path) as watched, commit_that_waits(server) as client:
        until(lambda: watched.said("may not be released") == 1)
        time.sleep(3)
        assert watched.said("may not be released") == 1
        assert watched.steps() == [Step.FAILED]
        assert sync_names(server) == "pitr"
        # The grant itself is a commit that waits.
        with psycopg.connect(server.dsn, autocommit=True) as administrator:
            administrator.execute("SET synchronous_commit = local")
            administrator.execute("GRANT EXECUTE ON FUNCTION pg_reload_conf() TO guard")
        client.join(20)
        assert not client.is_alive()


def test_a_server_that_restarts_is_watched_again(server: RunningPostgres, tmp_path: Path) -> None:
    dsn = guard_dsn(server)
    set_names(server, "pitr")
    with watching(dsn, tmp_path) as watched:
        with commit_that_waits(server) as client:
            client.join(20)
        until(lambda: watched.steps()[-1:] == [Step.RELEASED])
        server.stop("immediate")
        until(lambda: watched.said("cannot be looked at") == 1)
        server.start()
        until(lambda: watched.said("released before this start") == 1)
        with receiver(server):
            until(lambda: sync_names(server) == "pitr")


def test_a_second_watchdog_stands_by_until_the_first_is_gone(server: RunningPostgres, tmp_path: Path) -> None:
    dsn = guard_dsn(server)
    set_names(server, "pitr")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with watching(dsn, tmp_path / "b") as second:
        until(lambda: server.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 1)
        with watching(dsn, tmp_path / "a") as first, commit_that_waits(server) as client:
            until(lambda: first.said("stands by") == 1)
            client.join(20)
            assert first.steps() == []
        until(lambda: second.steps() == [Step.RELEASING, Step.RELEASED])


@pytest.mark.slow
def test_the_command_releases_is_killed_and_ends_what_it_began(make_site: MakeSite) -> None:
    site = make_site()
    site.set_option('protect = "data"', 'protect = "primary"')
    site.set_option('release_after = "120s"', 'release_after = "1s"')
    set_names(site.server, "pitr")
    log = site.folder / "watchdog.log"
    words = ("-c", site.config, "watchdog")
    process = site.program.begin(*words, log=log)
    try:
        with commit_that_waits(site.server) as client:
            client.join(30)
            assert not client.is_alive(), log.read_text()
        assert site("watchdog", exit_code=6)
        process.kill()
        process.wait(10)
        process = site.program.begin(*words, log=log)
        wait_until(lambda: "released before this start" in log.read_text(), "it finds what it did")
        site.start_daemon()
        wait_until(lambda: sync_names(site.server) == "pitr", log.read_text(), timeout_s=90)
        site.server.execute("CREATE TABLE t ()")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(10)
    assert site.daemon.stop() == 0
    # What it did while no daemon was there, the daemon has signed, and signs no second time.
    site.start_daemon()
    assert site.daemon.stop() == 0
    events = [one for one in site("log", "--json").data["events"] if one["facts"].get("by") == "watchdog"]
    assert [(one["event"], one["facts"]["step"]) for one in reversed(events)] == [
        ("commits-released", "released"),
        ("commits-released", "released"),
        ("commits-held-again", "held-again"),
    ]
    assert "found so at the start" in events[1]["message"]
    assert events[1]["facts"]["before"] == "pitr"
    assert "the watchdog released commits" in site("log").stdout


@pytest.mark.parametrize("is_the_daemons", [True, False])
def test_the_command_says_where_no_daemon_signs_what_it_does(
    server_tmp_path: Path, is_the_daemons: bool
) -> None:
    identity = Identity(bytes(range(32)))
    config = NewConfig(
        cluster="main",
        dsn="host=/nowhere",
        slot="pitr",
        repository="0" * 32,
        root=str(identity.root_signer().public),
        recipients=(str(identity.recipient()),),
        quorum=1,
        regions=(NewRegion("eu", "file:///nowhere"),),
        signing_key_file=server_tmp_path / "signing.key",
        state_dir=server_tmp_path / "state",
    )
    (server_tmp_path / "pitr.toml").write_text(render_config(config))
    if is_the_daemons:
        # As a daemon that was killed leaves it.
        (server_tmp_path / "state").mkdir()
        RunLock(server_tmp_path / "state" / LOCK_NAME).acquire()
    log = server_tmp_path / "watchdog.log"
    process = PitrProgram(server_tmp_path).begin("watchdog", log=log)
    try:
        wait_until(lambda: "the server cannot be looked at" in log.read_text(), "it watches")
        assert ("nobody signs what is released from here" in log.read_text()) is not is_the_daemons
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(10)
