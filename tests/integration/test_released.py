"""The last step of the ladder on a real server: commits are released, and wait again exactly as before."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from fix_cli import MakeSite, Site, wait_until
from fix_postgres import PostgresFactory, RunningPostgres
from fix_sync import guard_dsn, receiver, set_names, sync_names
from fix_watchdog import watching

from cli.protection_keeper import Undone
from cli.sync_server import ReleaseNote, SyncServerSession
from pitr.commit_release import ReleasePolicy
from pitr.errors import ServerRefused
from pitr.protection import Level, Protect
from pitr.release_journal import Release, ReleaseStep

MIB = 1 << 20
PATIENCE_S = 120.0


class Settings:
    """What ``synchronous_standby_names`` has been, looked at again and again; each value once in a row."""

    def __init__(self, server: RunningPostgres) -> None:
        self._server = server
        self.seen: list[str] = [sync_names(server)]
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Settings:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(10)

    def _look(self) -> None:
        with psycopg.connect(self._server.dsn, autocommit=True) as session:
            while not self._ending.wait(0.05):
                row = session.execute("SHOW synchronous_standby_names").fetchone()
                assert row is not None
                if row[0] != self.seen[-1]:
                    self.seen.append(row[0])


def auto_conf(server: RunningPostgres) -> str | None:
    """What ALTER SYSTEM has set; None if nothing."""
    text = (server.data_dir / "postgresql.auto.conf").read_text()
    found = re.search(r"^synchronous_standby_names = '(.*)'$", text, re.MULTILINE)
    return None if found is None else found[1]


def configure(server: RunningPostgres, names: str) -> None:
    """Let commits wait for ``names`` as the file of the owner says, not ALTER SYSTEM."""
    with (server.data_dir / "postgresql.conf").open("a") as file:
        file.write(f"synchronous_standby_names = '{names}'\n")
    server.execute("SELECT pg_reload_conf()")
    wait_until(lambda: sync_names(server) == names, "the server reads its file")


# -- what a session does to a server


@pytest.fixture
def server(postgres_factory: PostgresFactory) -> RunningPostgres:
    return postgres_factory()


@contextmanager
def releasing(server: RunningPostgres, folder: Path) -> Iterator[SyncServerSession]:
    session = SyncServerSession(lambda: server.dsn, ReleaseNote(folder / "released.json"))
    try:
        yield session
    finally:
        session.close()


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize(
    ("names", "left"),
    [("pitr", ""), ("FIRST 2 (replica1, pitr)", 'FIRST 1 ("replica1")'), ("ANY 1 (pitr, replica1)", "")],
)
def test_a_release_asks_the_others_still_and_is_undone_where_it_stood(
    server: RunningPostgres, tmp_path: Path, names: str, left: str, in_file: bool
) -> None:
    (configure if in_file else set_names)(server, names)
    before = auto_conf(server)
    with releasing(server, tmp_path) as session:
        assert session.release() is Undone.NOTHING
        assert session.has_released
        assert sync_names(server) == left
    # As another daemon, later.
    with releasing(server, tmp_path) as session:
        assert session.hold_again() is Undone.HELD
        assert not session.has_released
        assert (sync_names(server), auto_conf(server)) == (names, before)
        assert session.hold_again() is Undone.NOTHING


def test_what_somebody_else_has_set_meanwhile_is_theirs(server: RunningPostgres, tmp_path: Path) -> None:
    set_names(server, "pitr")
    with releasing(server, tmp_path) as session:
        session.release()
        set_names(server, "somebody")
        assert session.hold_again() is Undone.CHANGED
        assert sync_names(server) == "somebody"
        # And where nobody waits for us, there is nothing to release, nor to undo.
        session.release()
        assert not session.has_released
        assert sync_names(server) == "somebody"


def test_a_release_that_the_server_has_not_read_is_undone(server: RunningPostgres, tmp_path: Path) -> None:
    """Killed between ALTER SYSTEM and the reload: any later reload would release commits for good."""
    set_names(server, "pitr")
    with releasing(server, tmp_path) as session:
        session.release()
        set_names(server, "pitr")
        server.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
        assert session.hold_again() is Undone.HELD
    assert auto_conf(server) == "pitr"
    assert sync_names(server) == "pitr"


def test_after_a_failover_the_new_server_is_released_and_the_old_one_told(
    server: RunningPostgres, tmp_path: Path
) -> None:
    set_names(server, "pitr")
    note = ReleaseNote(tmp_path / "released.json")
    note.write(Release("10.9.9.9 5432 /elsewhere", "other", was_in_auto_conf=True, released=""))
    with releasing(server, tmp_path) as session:
        assert session.release() is Undone.ELSEWHERE
        assert sync_names(server) == ""
        assert session.hold_again() is Undone.HELD
        assert sync_names(server) == "pitr"
        note.write(Release("10.9.9.9 5432 /elsewhere", "other", was_in_auto_conf=True, released=""))
        assert session.hold_again() is Undone.ELSEWHERE
        assert sync_names(server) == "pitr"
        (tmp_path / "released.json").write_text("{")
        with pytest.raises(ServerRefused, match="does not say"):
            session.hold_again()


# -- the whole daemon


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A site whose daemon steps down soon, and whose spool is soon full."""
    site = make_site()
    site.server.execute("CREATE TABLE t (i int)")
    site.set_option('protect = "data"', 'protect = "primary"')
    site.set_option('lower_after = "30s"', 'lower_after = "2s"')
    site.set_option("spool_bytes_max = 1073741824", f"spool_bytes_max = {8 * MIB}")
    site.set_option('metrics_listen = "off"', 'metrics_listen = "127.0.0.1:0"')
    return site


def protection(site: Site) -> dict[str, object]:
    """What is in force; empty while no daemon answers, or it has only begun."""
    done = site("status", "--json", exit_code=None)
    is_running = done.exit_code == 0 and done.data["state"] == "running"
    return dict(done.data["protection"]) if is_running else {}


def level(site: Site) -> object:
    return protection(site).get("level")


def events(site: Site) -> list[str]:
    return [one["event"] for one in reversed(site("log", "--json").data["events"])]


def metric_level(site: Site) -> float | None:
    address = re.findall(r"address=(http\S+)", site.daemon.log.read_text())[-1]
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(r"^pitr_protection_level\S* (\S+)$", text, re.MULTILINE)
    return None if found is None else float(found[1])


def overflow(server: RunningPostgres) -> None:
    """Write more than the spool can take, without waiting for anybody; it does not compress."""
    with psycopg.connect(server.dsn, autocommit=True) as session:
        session.execute("SET synchronous_commit = local")
        for _ in range(24):
            session.execute("SELECT pg_logical_emit_message(false, 'x', %s::bytea)", [os.urandom(MIB)])


def commit(server: RunningPostgres) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as session:
        session.execute("INSERT INTO t VALUES (1)")


def in_time(work: Callable[[], None]) -> None:
    """Run something that must end by itself."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "a commit hangs"


def lose_quorum_and_spool(site: Site) -> None:
    for region in site.regions:
        region.take_away()
    overflow(site.server)


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    "in_file", [pytest.param(True, marks=pytest.mark.slow), False], ids=["file", "altered"]
)
def test_with_no_region_and_no_room_commits_are_released_until_the_quorum_is_back(
    site: Site, in_file: bool
) -> None:
    server = site.server
    site.start_daemon()
    (configure if in_file else set_names)(server, "pitr")
    wait_until(lambda: protection(site).get("is_synchronous"), "commits wait for the daemon")
    before = auto_conf(server)
    with Settings(server) as settings:
        lose_quorum_and_spool(site)
        in_time(lambda: commit(server))
        wait_until(lambda: level(site) == Level.ASYNCHRONOUS, site.daemon.tail(), timeout_s=PATIENCE_S)
        assert sync_names(server) == ""
        told = site("status")
        assert "protection is lowered" in told.stderr
        assert "not waited for: the server has released commits" in told.stdout + told.stderr
        assert metric_level(site) == Level.ASYNCHRONOUS
        for _ in range(5):
            in_time(lambda: commit(server))
        if not in_file:
            # Killed while they are released: the next one knows what it has to undo.
            site.daemon.kill()
        for region in site.regions:
            region.give_back()
        if not in_file:
            site.daemon.start()
        wait_until(lambda: level(site) == Level.QUORUM, "the promise is whole again", timeout_s=PATIENCE_S)
        wait_until(lambda: metric_level(site) == Level.QUORUM, "the metric follows")
        in_time(lambda: commit(server))
        time.sleep(3)
    assert settings.seen == ["pitr", "", "pitr"]
    assert (sync_names(server), auto_conf(server)) == ("pitr", before)
    found = events(site)
    assert found[-2:] == ["commits-held-again", "protection-restored"], found
    assert found.count("commits-released") == 1
    end = site.insert_lsn()
    site.wait_durable(end)
    done = site.restore("latest", site.folder / "restored", "--start")
    with psycopg.connect(done.data["dsn"]) as session:
        assert session.execute("SELECT count(*) FROM t").fetchone() == (7,)


OWNERS = "FIRST 2 (replica1, pitr)"


@pytest.mark.timeout(500)
@pytest.mark.slow
@pytest.mark.parametrize("first", ["daemon", "both", "watchdog"])
def test_daemon_and_watchdog_together_release_once_and_put_back_what_stood(site: Site, first: str) -> None:
    server = site.server
    if first == "watchdog":
        site.set_option('lower_after = "2s"', 'lower_after = "60s"')
    if first == "both":
        site.set_option('lower_after = "2s"', 'lower_after = "1s"')
    site.start_daemon()
    # Alone it must not take a slow put for a daemon that hangs.
    after_s = {"daemon": 30.0, "both": 2.0, "watchdog": 8.0}[first]
    policy = ReleasePolicy(Protect.PRIMARY, after_s, hold_s=3.0)
    with receiver(server, "replica1"), watching(guard_dsn(server), site.folder, policy) as watched:
        set_names(server, OWNERS)
        wait_until(lambda: protection(site).get("is_synchronous"), "commits wait for the daemon")
        with Settings(server) as settings:
            if first == "watchdog":
                # The daemon hangs, and goes on when commits have been released.
                os.kill(site.daemon.pid, signal.SIGSTOP)
            lose_quorum_and_spool(site)
            in_time(lambda: commit(server))
            assert sync_names(server) == 'FIRST 1 ("replica1")'
            if first == "watchdog":
                os.kill(site.daemon.pid, signal.SIGCONT)
            time.sleep(12)
            assert sync_names(server) == 'FIRST 1 ("replica1")'
            for region in site.regions:
                region.give_back()
            wait_until(lambda: sync_names(server) == OWNERS, site.daemon.tail(), timeout_s=PATIENCE_S)
            wait_until(lambda: level(site) == Level.QUORUM, "the promise is whole", timeout_s=PATIENCE_S)
            in_time(lambda: commit(server))
            time.sleep(8)
        assert settings.seen == [OWNERS, 'FIRST 1 ("replica1")', OWNERS], watched.steps()
        assert auto_conf(server) == OWNERS
        by_watchdog = watched.steps().count(ReleaseStep.RELEASED)
        by_daemon = events(site).count("commits-released")
        print(f"{by_watchdog} by the watchdog, {by_daemon} by the daemon, at the end {watched.steps()[-1:]}")
        assert by_watchdog <= 1
        assert by_daemon <= 1
        if first == "daemon":
            assert (by_watchdog, by_daemon) == (0, 1)
        if first == "watchdog":
            assert (by_watchdog, by_daemon) == (1, 0)
        # Nobody holds a release open, to be undone at another time.
        assert not (site.state_dir / "released.json").exists()
        assert watched.steps()[-1:] in ([], [ReleaseStep.HELD], [ReleaseStep.LEFT])
