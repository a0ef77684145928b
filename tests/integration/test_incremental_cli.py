"""Incremental backups as people take and restore them: the daemon, the command, a lost note."""

from __future__ import annotations

import shutil

import pytest
from fix_cli import MakeSite, wait_until
from fix_postgres import table_digests

from pitr.catalogue.sqlite import Catalogue
from pitr.layout import ArchiveId


def _is_read(key: str, backup: str) -> bool:
    """Tell whether it is the manifest, read to choose the chain, or a pack, where the files come from."""
    return key.endswith(f"/{backup}") or (backup in key and "/pack-" in key)


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
    site.examine(into)

    # A chain becomes a full backup on any host, and the next incremental one is still built on its newest.
    site("backups", "consolidate", "--scratch", site.folder / "scratch", exit_code=2)
    # Another region covers for a damaged copy; whoever is not told loses the others one by one.
    damaged = {key: path for key, path in site.regions[0].objects().items() if _is_read(key, full["backup"])}
    bodies = {path: path.read_bytes() for path in damaged.values()}
    for path, body in bodies.items():
        path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    done = site(
        "backups", "consolidate", "--scratch", site.folder / "scratch", "--identity", site.identity, "--json"
    )
    made = done.data
    named = {one["key"] for group in made["copy_faults"] for one in group["named"]}
    assert named <= set(damaged), str(done)
    assert {key.partition("/")[0] for key in named} == {"manifests", "backups"}, str(done)
    assert "had a damaged copy in region eu" in done.stderr
    for path, body in bodies.items():
        path.write_bytes(body)
    assert (made["backup"]["type"], made["backup"]["stands_for"]) == ("full", parent["backup"])
    assert len(made["chain"]) == 4
    assert not (site.folder / "scratch").exists()
    after = site("backup", "--json").data["backup"]
    assert (after["type"], after["parent"]) == ("incr", parent["backup"])
    # The daemon has learned of it: its catalogue has it without a rebuild.
    own = Catalogue(site.state_dir / "catalogue.sqlite", create=False)
    archive = ArchiveId.parse(site("status", "--json").data["archive"])
    known = [one.manifest.backup for one in own.backups(archive)]
    own.close()
    assert made["backup"]["backup"] in known
    plan = site("plan", "latest", "--json", "--identity", site.identity).data["plan"]
    assert plan["parents"] == [made["backup"]["backup"]]
    site("catalogue", "check")
    early = site("plan", f"lsn:{parent['stop_lsn']}", "--json", "--identity", site.identity).data["plan"]
    assert (early["backup"], early["parents"]) == (made["backup"]["backup"], [])

    # Damaged in every region, it is left out by its name, and the chain that it stands for is taken.
    for region in site.regions:
        for key, path in region.objects().items():
            if made["backup"]["backup"] in key and "/pack-" in key:
                path.write_bytes(b"damaged" + path.read_bytes()[7:])
    target, chosen = f"lsn:{parent['stop_lsn']}", ("--action", "none")
    refused = site.restore(target, site.folder / "early", *chosen, regions=site.regions, exit_code=8)
    without = ("--without", made["backup"]["backup"])
    assert refused.error["next"] == f"restore from other backups: {' '.join(without)}"
    done = site.restore(target, site.folder / "early", *chosen, *without, regions=site.regions)
    assert done.data["plan"]["backup"] == parent["backup"]
    assert len(done.data["plan"]["parents"]) == 3

    # Without its note the host cannot build on its last backup, and says so.
    shutil.rmtree(site.state_dir / "backups")
    again = site("backup", "--json")
    assert again.data["backup"]["type"] == "full"
    assert "no note of what backup" in again.data["notes"][0]
    assert "no note of what backup" in site("backups", "show", "latest").stdout
    assert f": {again.data['backup']['full_because']}" in again.data["notes"][0]
    assert site("backup", "--type", "incr", "--json").data["backup"]["type"] == "incr"
    assert site("backup", "--type", "full", "--json").data["backup"]["type"] == "full"
    assert site.daemon.stop() == 0, site.daemon.tail()


def test_a_daemon_that_cannot_read_the_files_backs_up_over_the_protocol(make_site: MakeSite) -> None:
    site = make_site(settings={"summarize_wal": "on"})
    site.set_option('source = "files"', 'source = "protocol"')
    server = site.server
    server.execute(
        "CREATE TABLE kept AS SELECT g AS id, md5(g::text) AS text FROM generate_series(1, 20000) g"
    )
    site.start_daemon()
    full = site("backup", "--type", "full", "--json").data["backup"]
    assert "over the protocol it is one" in site("backup", "limit", "--workers", "2", exit_code=1).stderr
    assert "no limit, by 1 thread at once" in site("backup", "limit").stdout
    server.execute("UPDATE kept SET text = 'changed' WHERE id = 7")
    taken = site("backup", "--json").data["backup"]
    assert (taken["type"], taken["parent"]) == ("incr", full["backup"])
    site.wait_durable()
    expected = table_digests(server.dsn)
    into = site.folder / "restored"
    done = site.restore("latest", into, "--start", regions=site.regions)
    assert table_digests(done.data["dsn"]) == expected
    site.examine(into)
    assert site.daemon.stop() == 0, site.daemon.tail()


# The shortest times that a configuration may have.
@pytest.mark.slow
def test_the_timetable_takes_incremental_backups_and_a_full_one_when_it_is_due(make_site: MakeSite) -> None:
    site = make_site(settings={"summarize_wal": "on"})
    site.set_option('full_every = "24h"', 'full_every = "90s"')
    site.set_option('incr_every = "1h"', 'incr_every = "60s"')
    site.start_daemon()

    def taken() -> list[tuple[str, str]]:
        listed = site("backups", "list", "--json").data["backups"]
        return [(one["type"], one["label"]) for one in listed]

    full, incr = ("full", "scheduled backup"), ("incr", "scheduled backup")
    wait_until(lambda: taken().count(full) > 1, "a second full one is taken", timeout_s=240, every_s=2)
    assert taken() == [full, incr, full]
    assert site.daemon.stop() == 0, site.daemon.tail()
