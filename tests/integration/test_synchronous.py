"""Commits that wait for us: durable when they return, held or let go by policy, and all of it signed."""

from __future__ import annotations

import threading
import time

import psycopg
import pytest
from fix_cli import MakeSite, Site, wait_until
from fix_postgres import majors

from pitr.protection import Level
from pitr.wal.lsn import LSN

PATIENCE_S = 90.0


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    site = make_site()
    site.server.execute("CREATE TABLE t (i int)")
    return site


def make_synchronous(site: Site, names: str = "pitr") -> None:
    site.server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    site.server.execute("SELECT pg_reload_conf()")
    wait_until(
        lambda: site("status", "--json").data["protection"]["is_synchronous"],
        "the daemon sees that commits wait for it",
    )


def level(site: Site) -> Level | None:
    """The level that is in force; None while no daemon answers, or it has only begun."""
    done = site("status", "--json", exit_code=None)
    is_running = done.exit_code == 0 and done.data["state"] == "running"
    return Level(done.data["protection"]["level"]) if is_running else None


def events(site: Site) -> list[str]:
    found = site("log", "--json").data["events"]
    return [one["event"] for one in reversed(found)]


class Commit:
    """One commit in a thread of its own: whether it has returned."""

    def __init__(self, site: Site) -> None:
        self.is_done = False
        self._dsn = site.server.dsn
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute("INSERT INTO t VALUES (1)")
        self.is_done = True

    def returns(self) -> None:
        wait_until(lambda: self.is_done, "the commit returns", timeout_s=PATIENCE_S)
        self._thread.join(10)


@pytest.mark.parametrize("major", majors(slow=[18]), ids=lambda major: f"pg{major}")
def test_a_commit_returns_when_its_wal_is_in_the_quorum_and_at_once(make_site: MakeSite, major: int) -> None:
    site = make_site(major)
    site.server.execute("CREATE TABLE t (i int)")
    # So old a piece would be sent only after a minute: commits must not wait for it.
    site.set_option("piece_age_s = 1.0", "piece_age_s = 60.0")
    site.start_daemon()
    make_synchronous(site)
    began = time.monotonic()
    with psycopg.connect(site.server.dsn, autocommit=True) as connection:
        for number in range(20):
            with connection.transaction():
                connection.execute("INSERT INTO t VALUES (%s)", (number,))
                row = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
                assert row is not None
            # In the transaction: its commit record, which has returned, lies beyond.
            end = LSN.parse(str(row[0]))
    assert time.monotonic() - began < 30
    seen = site("status", "--json").data
    assert LSN.parse(seen["durable_lsn"]) > end
    assert seen["protection"]["level"] == 0
    assert "in the quorum of regions" in site("status").stdout
    site.daemon.kill()
    into = site.folder / "restored"
    site("restore", "--identity", site.identity, "--to", "latest", "--into", into, "--yes")


def test_data_first_commits_wait_for_the_quorum_however_long(site: Site) -> None:
    site.set_option('lower_after = "30s"', 'lower_after = "1s"')
    site.start_daemon()
    make_synchronous(site)
    for region in site.regions[:2]:
        region.take_away()
    commit = Commit(site)
    time.sleep(6)
    assert not commit.is_done
    assert level(site) is Level.QUORUM
    for region in site.regions[:2]:
        region.give_back()
    commit.returns()
    assert events(site) == []


def test_primary_first_commits_go_on_with_one_region_and_the_promise_comes_back(site: Site) -> None:
    site.set_option('protect = "data"', 'protect = "primary"')
    # Longer than a put to the region that is left takes on a busy machine: else its level is lowered too.
    site.set_option('lower_after = "30s"', 'lower_after = "10s"')
    site.start_daemon()
    make_synchronous(site)
    for region in site.regions[:2]:
        region.take_away()
    Commit(site).returns()
    assert level(site) is Level.FEWER_REGIONS
    assert "protection is lowered" in site("status").stderr
    # A daemon that starts again knows what the regions may lack.
    site.daemon.kill()
    for region in site.regions[:2]:
        region.give_back()
    site.daemon.start()
    wait_until(lambda: level(site) is Level.QUORUM, "the promise is whole again", timeout_s=PATIENCE_S)
    wait_until(lambda: events(site) == ["protection-lowered", "protection-restored"], "both are signed")
    Commit(site).returns()
    lsn = site.wait_durable()
    assert lsn
    for region in site.regions[2:]:
        region.destroy()
    into = site.folder / "restored"
    words = ["restore", "--from", site.regions[0].url, "--from", site.regions[1].url]
    words += ["--identity", site.identity, "--to", "latest", "--into", into, "--yes"]
    done = site.program(*words, exit_code=None)
    assert done.exit_code == 0, done.stderr


def test_with_no_region_at_all_the_disk_counts_and_then_the_server_lets_go(site: Site) -> None:
    site.set_option('protect = "data"', 'protect = "primary"')
    site.set_option('lower_after = "30s"', 'lower_after = "1s"')
    site.start_daemon()
    make_synchronous(site)
    for region in site.regions:
        region.take_away()
    before = site.insert_lsn()
    Commit(site).returns()
    assert level(site) is Level.SPOOLED
    # The spool's disk alone has it; a kill does not take it away.
    site.daemon.kill()
    for region in site.regions:
        region.give_back()
    site.daemon.start()
    wait_until(lambda: level(site) is Level.QUORUM, "the promise is whole again", timeout_s=PATIENCE_S)
    seen = site("status", "--json").data
    assert LSN.parse(seen["durable_lsn"]) > before
    assert site.server.value("SHOW synchronous_standby_names") == "pitr"
