"""Regions that fall away, lag or are destroyed, and a spool without room: no claim that is not so."""

from __future__ import annotations

import contextlib
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_cli import MakeSite, Region, Site, on_small_disk, wait_until
from fix_ledger import Ledger, judge_end, judge_quorum, read_rows
from fix_postgres import table_digests
from fix_s3 import S3Server

from pitr.catalogue.sqlite import Catalogue
from pitr.wal.lsn import LSN

MIB = 1 << 20
# What the archiver may hold before it stops reading the socket, twice while it is sealed and not yet stored
# whole, and the interpreter with its libraries: 290 MiB at the most, measured while it caught up.
MEMORY_BYTES_MAX = 330 * MIB
SETTLE_S = 1.5


def write_wal(site: Site, size_bytes: int) -> None:
    """Commit ``size_bytes`` of WAL that does not compress."""
    with psycopg.connect(site.server.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS bulk (id bigserial PRIMARY KEY, content bytea)")
        for _ in range(size_bytes // MIB):
            connection.execute("INSERT INTO bulk (content) VALUES (%b)", [os.urandom(MIB)])


def check_whole(site: Site, name: str) -> None:
    """Check that the archive has no gap, and that a restore of all of it equals the source."""
    gaps = site("wal", "list", "--gaps-only", "--json").data["stretches"]
    assert gaps == []
    site("catalogue", "check")
    into = site.folder / name
    done = site.restore("latest", into, "--start")
    assert table_digests(done.data["dsn"]) == table_digests(site.server.dsn)
    site.examine(into)


def check_holds(site: Site, held: LSN, *, for_s: float) -> None:
    """Check over a time that no acknowledgement moves and that the daemon stays."""
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        site.daemon.check_alive()
        assert site.flush_lsn() == held
        assert site.restart_lsn() <= held
        assert site.daemon.memory_bytes < MEMORY_BYTES_MAX
        time.sleep(0.1)


def settled(site: Site) -> LSN:
    """Return what is acknowledged once puts that were already under way have ended."""
    time.sleep(SETTLE_S)
    end = site.flush_lsn()
    assert end is not None
    return end


def test_nothing_is_acknowledged_while_all_regions_are_away(make_site: MakeSite) -> None:
    site = make_site()
    site.start_daemon()
    with Ledger(site.server.dsn, site.folder, seed=3) as ledger:
        ledger.wait_at_quorum(20)
        for region in site.regions:
            region.take_away()
        held = settled(site)
        # More than the backlog: the daemon must stop reading, and the slot keep the rest.
        write_wal(site, 192 * MIB)
        before = len(ledger.commits)
        check_holds(site, held, for_s=2.0)
        assert len(ledger.commits) > before, "the primary must not wait for us"
        assert site.insert_lsn() - site.restart_lsn() > 192 * MIB
        for region in site.regions:
            region.give_back()
        ledger.wait_at_quorum(20)
        ledger.stop()
        site.wait_durable()
        assert site.daemon.memory_bytes_most < MEMORY_BYTES_MAX
        assert site.daemon.stop() == 0, site.daemon.tail()
    check_whole(site, "caught-up")


# Long, and what breaks stops in other tests too.
@pytest.mark.slow
def test_a_stopped_s3_server_holds_acknowledgements_until_it_is_back(
    make_site: MakeSite, s3_server: S3Server
) -> None:
    site = make_site(s3=s3_server)
    site.start_daemon()
    with Ledger(site.server.dsn, site.folder, seed=4) as ledger:
        ledger.wait_at_quorum(20)
        s3_server.stop()
        try:
            held = settled(site)
            ledger.wait_commits(200)
            check_holds(site, held, for_s=2.0)
        finally:
            s3_server.start()
        ledger.wait_at_quorum(20)
        ledger.stop()
        site.wait_durable()
        assert site.daemon.stop() == 0, site.daemon.tail()
    check_whole(site, "caught-up")


@pytest.mark.slow
def test_a_kill_while_all_regions_are_away_leaves_no_gap(make_site: MakeSite) -> None:
    site = make_site()
    site.start_daemon()
    with Ledger(site.server.dsn, site.folder, seed=5) as ledger:
        ledger.wait_at_quorum(20)
        for region in site.regions:
            region.take_away()
        write_wal(site, 24 * MIB)
        site.daemon.kill()
        for region in site.regions:
            region.give_back()
        site.start_daemon()
        ledger.wait_at_quorum(20)
        ledger.stop()
        site.wait_durable()
        assert site.daemon.stop() == 0, site.daemon.tail()
    check_whole(site, "after-kill")


def signed_end(site: Site, region: Region) -> LSN:
    """Return the end of WAL in the last head that the region holds."""
    listed = site("wal", "list", "--region", region.name, "--json").data
    return LSN.parse(listed["head"]["wal_end"])


def catalogue_dump(path: Path) -> str:
    catalogue = Catalogue(path, create=False)
    try:
        return catalogue.dump()
    finally:
        catalogue.close()


def catalogue_ends(path: Path) -> list[LSN]:
    """Return where the stretches of WAL end that a catalogue knows."""
    catalogue = Catalogue(path, create=False)
    try:
        return [interval.end for archive in catalogue.archives() for interval in catalogue.coverage(archive)]
    finally:
        catalogue.close()


def test_one_region_alone_restores_to_its_last_signed_end(make_site: MakeSite) -> None:
    site = make_site()
    destroyed, lagging, good = site.regions
    site.start_daemon()
    with Ledger(site.server.dsn, site.folder, seed=6) as ledger:
        ledger.wait_at_quorum(50)
        # A backup ends with a signed head, so every region knows of the commits before it.
        site("backup")
        wait_until(
            lambda: all(
                len(region.objects("heads/")) == len(good.objects("heads/")) for region in site.regions
            ),
            "every region has the same heads",
        )
        away_at = time.monotonic()
        lagging.take_away()
        ledger.wait_at_quorum(50)

        def told_of(region: Region) -> dict[str, Any]:
            """Return what the daemon says of a region."""
            (found,) = [one for one in site("status", "--json").data["regions"] if one["name"] == region.name]
            return dict(found)

        # What it lacks gets older, and the others do without it.
        wait_until(lambda: told_of(lagging)["rpo_s"] >= 3, "the region that is away falls behind")
        told = told_of(lagging)
        # What was on its way when it went is a little older.
        assert told["rpo_s"] < time.monotonic() - away_at + 5
        assert told["pending_repairs"] > 0
        ledger.stop()
        site.wait_durable()
        assert told_of(good)["rpo_s"] < told_of(lagging)["rpo_s"]
        assert site("status", "--json").data["rpo_s"] < told["rpo_s"]
        assert site.daemon.stop() == 0, site.daemon.tail()
        commits, at_quorum = ledger.commits, ledger.commits_at_quorum
    lagging.give_back()

    own = catalogue_dump(site.state_dir / "catalogue.sqlite")
    check = site("catalogue", "check", "--json", exit_code=7)
    # The catalogue is right, and what the lagging region lacks is told.
    wrong = {one["id"] for one in check.data["findings"] if one["severity"] == "fail"}
    assert wrong == {"copies.region", "copies.missing"}
    verdicts = {one["region"]: one["verdict"] for one in check.data["regions"]}
    assert verdicts == {destroyed.name: "pass", lagging.name: "fail", good.name: "pass"}
    for name, words in {"all": [], good.name: ["--region", good.name]}.items():
        site("catalogue", "rebuild", "--out", site.folder / f"{name}.sqlite", *words)
        assert catalogue_dump(site.folder / f"{name}.sqlite") == own, name
    ends = {region.name: signed_end(site, region) for region in (lagging, good)}
    file = site.folder / f"{lagging.name}.sqlite"
    site("catalogue", "rebuild", "--out", file, "--region", lagging.name)
    for region in (lagging, good):
        assert catalogue_ends(site.folder / f"{region.name}.sqlite") == [ends[region.name]]

    destroyed.destroy()
    assert ends[lagging.name] < ends[good.name]
    for region in (lagging, good):
        into = site.folder / f"from-{region.name}"
        # One region of three cannot say that nothing came after its end: that is taken by its name.
        for target in ("latest", datetime.now(UTC).isoformat()):
            refused = site.restore(target, into, "--yes", regions=(region,), exit_code=4)
            assert refused.error["code"] == "PITR-4001"
            assert "1 of 3 regions answered, and it takes 2 to be sure" in refused.error["why"]
            assert refused.error["next"].endswith(f"--to lsn:{ends[region.name]}")
            assert not into.exists()
        done = site.restore(f"lsn:{ends[region.name]}", into, "--start", regions=(region,))
        rows = read_rows(done.data["dsn"])
        site.examine(into)
        judge_end(rows, commits, ends[region.name])
        if region is good:
            judge_quorum(rows, at_quorum)


def fill(path: Path) -> None:
    """Write a file until the disk has no room left, to the last block."""
    # A full disk shortens the last write, or refuses it.
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            continue
    disk = os.statvfs(path)
    assert disk.f_bavail * disk.f_frsize < 4096


# Slow: it needs user namespaces, which not every host gives to everybody.
@pytest.mark.slow
def test_a_full_disk_under_the_spool_holds_acknowledgements_until_there_is_room(make_site: MakeSite) -> None:
    site = make_site()
    spool = site.state_dir / "spool"
    spool.mkdir()
    site.daemon.prefix = on_small_disk(spool, 48 * MIB)
    site.start_daemon()
    # The disk is the daemon's alone; this is how others see it.
    seen = Path(f"/proc/{site.daemon.pid}/root{spool}")
    with Ledger(site.server.dsn, site.folder, seed=8) as ledger:
        ledger.wait_at_quorum(20)
        fill(seen / "filler")
        wait_until(lambda: "spool-full" in site.daemon.tail(), "the daemon says that its disk is full")
        held = settled(site)
        ledger.wait_commits(100)
        check_holds(site, held, for_s=2.0)
        (seen / "filler").unlink()
        ledger.wait_at_quorum(20)
        ledger.stop()
        site.wait_durable()
        assert site.daemon.stop() == 0, site.daemon.tail()
    check_whole(site, "after-full")


@pytest.mark.slow
def test_a_full_spool_holds_acknowledgements_until_there_is_room(make_site: MakeSite) -> None:
    site = make_site()
    # Room for two pieces, and never for a whole segment.
    site.set_option("spool_bytes_max = 1073741824", f"spool_bytes_max = {8 * MIB}")
    site.start_daemon()
    with Ledger(site.server.dsn, site.folder, seed=7) as ledger:
        ledger.wait_at_quorum(20)
        for region in site.regions:
            region.take_away()
        held = settled(site)
        write_wal(site, 32 * MIB)
        wait_until(lambda: "spool-full" in site.daemon.tail(), "the daemon says that its spool is full")
        check_holds(site, held, for_s=2.0)
        for region in site.regions:
            region.give_back()
        ledger.wait_at_quorum(20)
        ledger.stop()
        site.wait_durable()
        assert site.daemon.stop() == 0, site.daemon.tail()
    check_whole(site, "after-full")
