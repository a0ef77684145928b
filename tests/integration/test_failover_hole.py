"""A failover that leaves a hole: the new primary's slot was made when the WAL that we lack was gone."""

from __future__ import annotations

import re
import time
import urllib.request
from datetime import UTC, datetime

import psycopg
import pytest
from fix_cli import MakeSite, Site, wait_until
from fix_postgres import PostgresFactory, RunningPostgres
from fix_standby import caught_up, make_standby

from pitr.wal.lsn import LSN

# Nothing but a slot keeps WAL here beyond a checkpoint or two.
SETTINGS = {
    "wal_keep_size": "0",
    "min_wal_size": "32MB",
    "max_wal_size": "32MB",
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
}


def insert(server: RunningPostgres, text: str) -> LSN:
    server.execute("INSERT INTO a VALUES (%s)", text)
    return LSN.parse(str(server.value("SELECT pg_current_wal_flush_lsn()")))


def rows(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        return [str(row[0]) for row in connection.execute("SELECT v FROM a ORDER BY 1").fetchall()]


def server_now(server: RunningPostgres) -> str:
    """A moment with nothing else within a second."""
    time.sleep(1.2)
    at = server.value("SELECT clock_timestamp()")
    time.sleep(1.2)
    assert isinstance(at, datetime)
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


def fail_over(site: Site, standby: RunningPostgres) -> None:
    """Kill primary and daemon; the standby is promoted, and has a slot when it has recycled WAL only."""
    site.daemon.kill()
    site.server.kill()
    standby.instance.promote()
    wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "the promotion")
    site.set_option(f'dsn = "{site.server.dsn}"', f'dsn = "{standby.dsn}"')


@pytest.mark.timeout(600)
def test_a_hole_that_a_failover_leaves_is_signed_backed_up_beyond_and_offered_to_nobody(
    make_site: MakeSite, postgres_factory: PostgresFactory
) -> None:
    site = make_site(settings=SETTINGS)
    primary = site.server
    site.set_option('metrics_listen = "off"', 'metrics_listen = "127.0.0.1:0"')
    primary.execute("CREATE TABLE a (v text)")
    site.start_daemon()
    standby = make_standby(postgres_factory, primary, SETTINGS)
    before = insert(primary, "1 before")
    caught_up(primary, standby)
    site.wait_durable()
    fail_over(site, standby)
    moments = [server_now(standby)]
    inside = insert(standby, "2 in the hole")
    moments.append(server_now(standby))
    for _ in range(4):
        insert(standby, "3 in the hole")
        standby.switch_wal()
        standby.checkpoint()
    standby.execute("SELECT pg_create_physical_replication_slot('pitr', true)")
    site.daemon.start()
    wait_until(lambda: len(site.backups()) >= 2, f"a new backup\n{site.daemon.tail()}", timeout_s=120)
    after = insert(standby, "4 after")
    archived = "SELECT flush_lsn >= %s::pg_lsn FROM pg_stat_replication WHERE application_name = 'pitr'"
    wait_until(lambda: (True,) in standby.execute(archived, str(after)), f"{after}\n{site.daemon.tail()}")

    seen = site("status", "--json").data
    assert seen["events"]["wal-lost"] in (1, 2)
    # The new backup is there: a warning it is no more, and it is not forgotten either.
    wait_until(lambda: "WAL was lost" in site("status").stdout, "the loss is told")
    address = re.findall(r"address=(http\S+)", site.daemon.tail())[-1]
    with urllib.request.urlopen(address, timeout=20) as answer:
        assert b'pitr_events_total{kind="wal-lost"} ' in answer.read()
    events = [one for one in site("log", "--json").data["events"] if one["event"] == "wal-lost"]
    lost_on = {one["facts"]["timeline"]: one["facts"] for one in events}
    assert len(lost_on) == len(events)
    # The standby had all that is archived, and a little more of the old timeline perhaps.
    assert "00000002" in lost_on
    start = min(LSN.parse(one["start"]) for one in lost_on.values())
    end = LSN.parse(lost_on["00000002"]["end"])
    assert before <= start <= inside < end <= after
    # A daemon that is started again neither loses nor signs it a second time.
    assert site.daemon.stop() == 0
    site.daemon.start()
    wait_until(lambda: (True,) in standby.execute(archived, str(after)), "it streams again")
    assert [one for one in site("log", "--json").data["events"] if one["event"] == "wal-lost"] == events
    again = site("status", "--json").data
    assert again["events"]["wal-lost"] == seen["events"]["wal-lost"] == len(events)
    assert again["wal_lost_at"] == seen["wal_lost_at"] is not None
    assert site.daemon.stop() == 0

    told = site("timeline", "--json", exit_code=4).data
    assert {gap["cause"] for gap in told["gaps"]} == {"wal-lost", "no-backup"}
    lost = [gap for gap in told["gaps"] if gap["cause"] == "wal-lost"]
    assert LSN.parse(lost[0]["start"]) == start
    assert LSN.parse(lost[-1]["end"]) == end
    for target in (f"lsn:{inside}", *moments):
        refused = site("plan", target, "--json", exit_code=None)
        assert refused.exit_code != 0, target
    newest = site("plan", "latest", "--json").data["plan"]
    assert newest["backup"] == seen["backup"]["last_backup"]
    done = site.restore("latest", site.folder / "new", "--start")
    assert rows(done.data["dsn"]) == ["1 before", "2 in the hole", *["3 in the hole"] * 4, "4 after"]
    done = site.restore(f"lsn:{before}", site.folder / "old", "--start")
    assert rows(done.data["dsn"]) == ["1 before"]
