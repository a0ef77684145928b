"""The gate as people set it up: a daemon whose only source is archive_command, and a restore of it."""

from __future__ import annotations

import grp

import psycopg
import pytest
from fix_cli import MakeSite, Site, wait_until
from fix_postgres import PostgresHouse

from pitr.gate_script import archive_command


def gated_site(make_site: MakeSite, house: PostgresHouse, major: int) -> Site:
    """A site where nothing is streamed; the server's user reaches the gate through its group."""
    site = make_site(major, init=False)
    folder = site.folder.parent / "gate"
    settings = {
        "archive_mode": "on",
        "archive_command": archive_command(folder),
        "archive_timeout": "1s",
        "wal_keep_size": "1GB",
    }
    site.init()
    site.server.execute("SELECT pg_drop_replication_slot('pitr')")
    group = "" if house.user is None else f'\ngate_group = "{grp.getgrgid(house.user.gid).gr_name}"'
    site.set_option('source = "stream"', f'source = "archive"\ngate_dir = "{folder}"{group}')
    site.server.stop()
    site.settings = {**site.settings, **settings, "max_wal_senders": "0"}
    site.start_server()
    return site


@pytest.mark.parametrize("major", [17, 18])
def test_a_restore_from_what_came_by_archive_command_holds_all_of_it(
    make_site: MakeSite, postgres_house: PostgresHouse, major: int
) -> None:
    site = gated_site(make_site, postgres_house, major)
    told = site("wal", "gate", "--json").data
    assert told["archive_command"] == site.settings["archive_command"]
    site.daemon.start()
    wait_until(lambda: site.backups(), "a base backup", timeout_s=120)
    site.server.execute("CREATE TABLE kept AS SELECT generate_series(1, 5000) AS n")
    # Killed and started again in the midst of it.
    site.daemon.kill()
    site.server.execute("INSERT INTO kept SELECT generate_series(5001, 9000)")
    site.daemon.start()
    site.server.execute("INSERT INTO kept SELECT generate_series(9001, 10000)")
    sums = site.server.execute("SELECT count(*), sum(n) FROM kept")
    name = str(site.server.value("SELECT pg_walfile_name(pg_switch_wal())"))
    archived = "SELECT coalesce(last_archived_wal, '') >= %s FROM pg_stat_archiver"
    wait_until(lambda: site.server.value(archived, name), f"{name} is archived\n{site.daemon.tail()}")
    findings = {one["id"]: one["severity"] for one in site("doctor", "--json").data["findings"]}
    assert findings["server.archive.settings"] == "ok"
    assert findings["server.archive.failing"] == "ok"
    assert "server.slot" not in findings
    assert site("wal", "list", "--gaps-only").stdout.strip() == "there is no gap"
    assert site.daemon.stop() == 0
    into = site.folder / "restored"
    site.restore("latest", into, "--start")
    restored = (into / "postmaster.pid").read_text().splitlines()

    with psycopg.connect(
        f"host={restored[4]} port={restored[3]} user=postgres dbname=postgres"
    ) as connection:
        assert connection.execute("SELECT count(*), sum(n) FROM kept").fetchall() == sums


def test_doctor_says_what_is_wrong_with_the_archiver(
    make_site: MakeSite, postgres_house: PostgresHouse
) -> None:
    site = gated_site(make_site, postgres_house, 17)

    def severity(check: str) -> str:
        found = {
            one["id"]: one["severity"] for one in site("doctor", "--json", exit_code=None).data["findings"]
        }
        return str(found.get(check))

    site("wal", "gate")
    name = str(site.server.value("SELECT pg_walfile_name(pg_switch_wal())"))
    failed = "SELECT last_failed_wal IS NOT NULL FROM pg_stat_archiver"
    wait_until(lambda: site.server.value(failed), f"{name} to fail: no daemon is there", timeout_s=90)
    assert severity("server.archive.failing") == "fail"
    site.server.stop()
    site.settings = {**site.settings, "archive_command": "/bin/true", "max_wal_senders": "5"}
    site.start_server()
    assert severity("server.archive.settings") == "fail"
    site.server.execute("SELECT pg_create_physical_replication_slot('pitr')")
    assert severity("server.archive.slot") == "fail"
