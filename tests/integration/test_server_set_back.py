"""A server that was put back to an old copy of its files, and has run past the archive's end since."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from fix_cli import MakeSite, wait_until
from fix_postgres import table_digests


@pytest.mark.slow
def test_no_incremental_backup_is_built_on_the_branch_that_was_left(make_site: MakeSite) -> None:
    settings = {"summarize_wal": "on", "autovacuum": "off", "max_wal_size": "32MB", "min_wal_size": "32MB"}
    site = make_site(settings=settings)
    server = site.server
    server.execute("CREATE TABLE kept AS SELECT g AS id, 'base'::text AS v FROM generate_series(1, 20000) g")
    server.execute("CREATE TABLE filler (t text)")
    site.start_daemon()
    site.wait_durable()
    assert site.daemon.stop() == 0, site.daemon.tail()
    server.stop()
    old = server.data_dir.with_name("old")
    subprocess.run(["cp", "-a", str(server.data_dir), str(old)], check=True)
    server.start(settings)
    site.start_daemon()
    server.execute("UPDATE kept SET v = 'on the branch that is left' WHERE id % 10 = 0")
    left = site("backup", "--type", "full", "--json").data["backup"]
    site.wait_durable()
    assert site.daemon.stop() == 0, site.daemon.tail()
    end = site.insert_lsn()

    # Somebody copies the files of yesterday back, and the slot with them is of no use.
    server.stop()
    shutil.rmtree(server.data_dir)
    old.rename(server.data_dir)
    server.start(settings)
    server.execute("SELECT pg_drop_replication_slot('pitr')")
    while site.insert_lsn().offset < end.offset + 5 * (16 << 20):
        server.execute("INSERT INTO filler SELECT repeat(md5(g::text), 50) FROM generate_series(1, 20000) g")
        server.execute("TRUNCATE filler")
        server.switch_wal()
        server.checkpoint()
    site.daemon.start()
    wait_until(lambda: "is lost" in site.daemon.tail(), "the daemon sees the hole")
    taken = site("backup", "--json", exit_code=None)
    while taken.exit_code != 0:
        taken = site("backup", "--json", exit_code=None)
    listed = site("backups", "list", "--json").data["backups"]
    after = [one for one in listed if one["backup"] > left["backup"]]
    assert after[0]["type"] == "full"
    assert left["backup"] not in [one["parent"] for one in listed]
    site.wait_durable()
    expected = table_digests(server.dsn)
    into = site.folder / "restored"
    done = site.restore("latest", into, "--start")
    assert table_digests(done.data["dsn"]) == expected
    site.examine(into)
    assert site.daemon.stop() == 0, site.daemon.tail()
