"""Incremental backups as people take and restore them: the daemon, the command, a lost note."""

from __future__ import annotations

import shutil

from fix_cli import MakeSite, end_servers
from fix_postgres import table_digests


def test_a_chain_is_taken_by_the_daemon_and_restored_from_its_regions(make_site: MakeSite) -> None:
    site = make_site(settings={"summarize_wal": "on"})
    server = site.server
    server.execute(
        "CREATE TABLE wide AS"
        " SELECT g AS id, repeat(md5(g::text), 10) AS text FROM generate_series(1, 30000) g"
    )
    site.start_daemon()
    full = site("backup", "--type", "full", "--json").data["backup"]
    assert (full["type"], full["parent"]) == ("full", None)
    parent = full
    for number in range(3):
        server.execute("UPDATE wide SET text = 'round ' || %s WHERE mod(id, 500) = %s", number, number)
        taken = site("backup", "--label", f"round {number}", "--json").data["backup"]
        assert (taken["type"], taken["parent"]) == ("incr", parent["backup"])
        assert taken["stored_bytes"] < full["stored_bytes"] / 2
        parent = taken
    server.execute("INSERT INTO wide VALUES (0, 'after the last backup')")
    site.wait_durable()
    expected = table_digests(server.dsn)

    listed = site("backups", "list", "--json").data["backups"]
    assert [one["type"] for one in listed][-4:] == ["full", "incr", "incr", "incr"]
    into = site.folder / "restored"
    done = site.restore("latest", into, "--start", regions=site.regions)
    assert done.data["plan"]["backup"] == parent["backup"]
    assert len(done.data["plan"]["parents"]) == 3
    assert table_digests(done.data["dsn"]) == expected
    end_servers([into])

    # Without its note the host cannot build on its last backup, and says so.
    shutil.rmtree(site.state_dir / "backups")
    again = site("backup", "--json")
    assert again.data["backup"]["type"] == "full"
    assert "no note of what backup" in again.data["notes"][0]
    assert site("backup", "--type", "incr", "--json").data["backup"]["type"] == "incr"
    assert site("backup", "--type", "full", "--json").data["backup"]["type"] == "full"
    assert site.daemon.stop() == 0, site.daemon.tail()
