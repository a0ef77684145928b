"""The heartbeat: a commit on an idle database, where recovery to a time can stop."""

from __future__ import annotations

import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fix_cli import MakeSite, wait_until
from fix_postgres import PostgresFactory
from fix_standby import make_standby

from pitr.errors import ServerUnavailable
from pitr.postgres.heartbeat import Heartbeat
from pitr.postgres.installation import Installation
from pitr.postgres.replay import ReplayMonitor
from pitr.postgres.server_user import hand_over


def test_it_beats_only_where_nobody_else_has_begun_a_transaction(
    postgres_factory: PostgresFactory, pg_installation: Installation
) -> None:
    server = postgres_factory(pg_installation.major, settings={"synchronous_standby_names": "nobody"})
    with Heartbeat(server.dsn) as heart:
        assert not heart.beat(), "it does not know yet what others do"
        assert [heart.beat() for _ in range(3)] == [True, True, True]
        server.execute("SET synchronous_commit = local; CREATE TABLE t ()")
        assert not heart.beat()
        assert heart.beat()
        server.restart("immediate")
        with pytest.raises(ServerUnavailable):
            heart.beat()


def test_a_standby_has_none(postgres_factory: PostgresFactory) -> None:
    primary = postgres_factory(17)
    standby = make_standby(postgres_factory, primary, {})
    with Heartbeat(standby.dsn) as heart:
        assert [heart.beat() for _ in range(3)] == [False] * 3


def test_postgresql_itself_stops_at_a_beat_when_it_recovers_to_a_time(
    postgres_factory: PostgresFactory, pg_installation: Installation, server_tmp_path: Path
) -> None:
    archive = server_tmp_path / "archive"
    archive.mkdir()
    server = postgres_factory(
        pg_installation.major,
        settings={"archive_mode": "on", "archive_command": f"cp %p {archive}/%f", "max_wal_senders": "4"},
    )
    hand_over(archive, server.instance.user)
    copy = postgres_factory(pg_installation.major, name="copy")
    copy.stop()
    shutil.rmtree(copy.data_dir)
    tool = pg_installation.tool("pg_basebackup")
    subprocess.run([tool, "-d", server.dsn, "-D", copy.data_dir, "-X", "none", "-c", "fast"], check=True)
    server.execute("CREATE TABLE t AS SELECT 1 AS n")
    with Heartbeat(server.dsn) as heart:
        heart.beat()
        beats: list[datetime] = []
        for _ in range(3):
            assert heart.beat()
            at = server.value("SELECT clock_timestamp()")
            assert isinstance(at, datetime)
            beats.append(at)
            time.sleep(0.2)
    server.execute("INSERT INTO t VALUES (2)")
    server.switch_wal()
    wait_until(lambda: server.value("SELECT failed_count + archived_count FROM pg_stat_archiver") != 0, "cp")
    server.stop()
    (copy.data_dir / "recovery.signal").touch()
    hand_over(copy.data_dir, server.instance.user)
    # Between the second beat and the third: the third is the first commit that is later.
    target = beats[1] + timedelta(milliseconds=50)
    copy.start(
        {
            "restore_command": f"cp {archive}/%f %p",
            "recovery_target_time": target.isoformat(),
            "recovery_target_action": "pause",
            "archive_mode": "off",
        }
    )
    with ReplayMonitor(copy.dsn, major=pg_installation.major) as monitor:

        def is_paused() -> bool:
            state = monitor.look()
            return state is not None and state.is_paused

        wait_until(is_paused, "replay pauses")
        state = monitor.look()
    assert state is not None
    assert state.last_xact_at is not None
    assert beats[0] < state.last_xact_at <= beats[1]
    assert copy.execute("SELECT n FROM t") == [(1,)]


def test_a_moment_of_an_idle_day_is_restored_to_the_second(make_site: MakeSite) -> None:
    site = make_site()
    site.set_option('heartbeat = "off"', 'heartbeat = "500ms"')
    site.start_daemon()
    server = site.server
    server.execute("CREATE TABLE t AS SELECT 1 AS n")
    time.sleep(4)
    target = datetime.now(UTC)
    time.sleep(2)
    server.execute("INSERT INTO t VALUES (2)")
    site.wait_durable()
    assert int(site("status", "--json").data["events"]["heartbeat"]) >= 4
    into = site.folder / "restored"
    restored = site.restore(target.isoformat(), into)
    stopped_at = datetime.fromisoformat(restored.data["last_transaction_at"])
    assert timedelta(0) <= target - stopped_at < timedelta(seconds=2)
    assert restored.data["plan"]["is_past_end"] is False
    assert site.daemon.stop() == 0, site.daemon.tail()


def test_the_daemon_goes_on_without_a_heart_and_finds_it_again(make_site: MakeSite) -> None:
    site = make_site()
    site.set_option('heartbeat = "off"', 'heartbeat = "500ms"')
    site.start_daemon()
    site.server.stop("immediate")
    wait_until(lambda: "no heartbeat" in site.daemon.tail(), "it says so")
    site.start_server()
    wait_until(lambda: "the heartbeat goes on" in site.daemon.tail(), "it beats again")
    assert site.daemon.tail().count("no heartbeat") == 1
    assert site.daemon.stop() == 0, site.daemon.tail()
