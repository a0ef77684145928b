"""The primary's disk before the archive: the slot is given up in time, and the gap is told for ever."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from fix_cli import MakeSite, Site, on_small_disk, wait_until
from fix_postgres import PostgresFactory

from pitr.postgres.server import Server
from pitr.postgres.slot_watch import wal_disk_space, watch_slot
from pitr.wal.lsn import LSN

MIB = 1 << 20


def test_a_slot_and_its_disk_are_seen(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory(17, settings={"max_slot_wal_keep_size": "1GB"})
    source.execute("CREATE ROLE plain LOGIN IN ROLE pg_read_all_settings")
    with Server.connect(source.dsn.replace("user=postgres", "user=plain")) as server:
        none = watch_slot(server, "pitr")
        assert (none.status, none.restart, none.kept_bytes, none.wal_directory_bytes) == (None, None, 0, None)
        source.execute("SELECT pg_create_physical_replication_slot('pitr', true)")
        source.execute("GRANT pg_monitor TO plain")
        source.execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))")
        source.checkpoint()
        seen = watch_slot(server, "pitr")
    assert seen.status == "reserved"
    assert seen.kept_bytes > 1_000_000
    assert seen.droppable_bytes > 1_000_000
    assert seen.redo <= seen.end
    assert seen.spare_bytes is not None
    assert 0 < seen.spare_bytes <= (1 << 30) + 32 * MIB
    assert seen.wal_directory_bytes is not None
    assert seen.wal_directory_bytes >= 16 * MIB
    assert seen.data_directory == source.data_dir
    space = wal_disk_space(source.data_dir)
    assert space is not None
    assert 0 < space.free_bytes <= space.total_bytes
    assert wal_disk_space(Path("/nonexistent")) is None


def rows(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as session:
        return [str(row[0]) for row in session.execute("SELECT n FROM t ORDER BY n").fetchall()]


def moment(site: Site, name: str) -> datetime:
    """Commit a row, and return a time after it and before anything else."""
    site.server.execute("INSERT INTO t VALUES (%s)", name)
    at = site.server.value("SELECT clock_timestamp()")
    site.server.execute("SELECT pg_sleep(0.2)")
    assert isinstance(at, datetime)
    return at.astimezone(UTC)


def write_wal(site: Site, size_bytes: int) -> None:
    for _ in range(size_bytes // (16 * MIB)):
        site.server.execute("SELECT pg_logical_emit_message(false, 'x', repeat('x', 16000000))")


# More than a daemon holds in memory and in its spool: what comes after is in the gap.
HELD_BYTES = 160 * MIB
QUIET = {"max_wal_size": "4GB", "checkpoint_timeout": "1h", "summarize_wal": "off"}


def site_that_drops(make_site: MakeSite, below: str, before: str = "30min") -> Site:
    site = make_site(settings=QUIET)
    site.set_option('when_disk_fills = "keep"', 'when_disk_fills = "drop"')
    site.set_option('drop_below = "1 GiB"', f'drop_below = "{below}"')
    site.set_option('drop_before = "30min"', f'drop_before = "{before}"')
    site.server.execute("CREATE TABLE t (n text)")
    return site


def is_dropped(site: Site) -> bool:
    return "slot-dropped" in site.daemon.tail()


def fill_at_once(site: Site) -> datetime:
    write_wal(site, HELD_BYTES)
    lost = moment(site, "2 lost")
    write_wal(site, 64 * MIB)
    # What a crash would need is no use to drop: before this nothing happens.
    assert not is_dropped(site)
    site.server.checkpoint()
    return lost


def fill_steadily(site: Site) -> datetime:
    """Write at one rate for minutes, until the slot goes."""
    write_wal(site, HELD_BYTES)
    lost = moment(site, "2 lost")
    for _ in range(120):
        if is_dropped(site):
            break
        write_wal(site, 16 * MIB)
        site.server.checkpoint()
        time.sleep(2)
    return lost


def check_the_gap(site: Site, fill: Callable[[Site], datetime], reason: str) -> None:
    """Lose the regions, fill the disk by ``fill``, and check what is told and offered after."""
    site.start_daemon()
    before = moment(site, "1 before")
    # That time is over only with a commit that is later.
    moment(site, "1 too")
    durable = site.wait_durable()
    for region in site.regions:
        region.take_away()
    lost = fill(site)
    wait_until(lambda: is_dropped(site), f"the slot goes; {site.daemon.tail()}")
    wait_until(lambda: "wal-lost" in site.daemon.tail(), "the gap is told")
    assert site.server.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'pitr'") == 1
    gap = re.search(r"WAL from (\S+) to (\S+) of timeline 00000001 is lost", site.daemon.tail())
    assert gap is not None, site.daemon.tail()
    start, end = LSN.parse(gap[1]), LSN.parse(gap[2])
    # What had arrived before is not lost; it begins with the segment that the new slot stands in.
    assert durable <= start < end <= site.restart_lsn()
    assert site.restart_lsn() - end < 16 * MIB
    # The server has its disk back.
    site.server.checkpoint()
    assert (
        site.server.value("SELECT count(*) FROM pg_ls_waldir() WHERE name = pg_walfile_name(%s)", str(start))
        == 0
    )
    for region in site.regions:
        region.give_back()
    wait_until(lambda: len(site.backups()) >= 2, f"a new backup; {site.daemon.tail()}", timeout_s=240)
    after = moment(site, "3 after")
    site.wait_durable()
    stretches = site("wal", "list", "--gaps-only", "--json").data["stretches"]
    assert [(one["start"], one["end"]) for one in stretches] == [(str(start), str(end))]
    refused = site("plan", lost.isoformat(), "--json", exit_code=4)
    nearest = re.findall(r"(?:before|after): (\S+)", refused.error["next"] or "")
    assert nearest, str(refused)
    check_timeline(site, lost, start, end)
    status = site("status", "--json").data
    assert status["wal_disk"]["when_disk_fills"] == "drop"
    assert 0 < status["wal_disk"]["free_bytes"] <= status["wal_disk"]["total_bytes"]
    assert status["wal_disk"]["wal_directory_bytes"] >= 16 * MIB
    events = status["events"]
    assert (events["slot-dropped"], events["wal-lost"]) == (1, 1)
    # Signed, and in the regions: whoever has only these is told.
    signed = {one["event"]: one["facts"] for one in site("log", "--json").data["events"]}
    assert (signed["wal-lost"]["start"], signed["wal-lost"]["end"]) == (str(start), str(end))
    assert re.search(reason, signed["slot-dropped"]["reason"]), signed
    for name, target, expected in (
        ("early", before, ["1 before"]),
        ("late", after, ["1 before", "1 too", "2 lost", "3 after"]),
    ):
        done = site.restore(target.isoformat(), site.folder / name, "--start")
        assert rows(done.data["dsn"]) == expected
    site.restore(lost.isoformat(), site.folder / "none", exit_code=4)
    site.restore(f"lsn:{LSN(start.offset + MIB)}", site.folder / "none", exit_code=4)
    assert site.daemon.stop() == 0, site.daemon.tail()


def check_timeline(site: Site, lost: datetime, start: LSN, end: LSN) -> None:
    """Check that no span, and no time, that is said to be restorable reaches into the gap."""
    shown = site("timeline", "--json", exit_code=4).data
    for one in shown["times"]:
        until = None if one["until"] is None else datetime.fromisoformat(one["until"])
        assert datetime.fromisoformat(one["since"]) > lost or (until is not None and until < lost), one
    spans = [span for branch in shown["branches"] for span in branch["spans"]]
    assert [span for span in spans if not span["is_restorable"]], spans
    for span in spans:
        if span["is_restorable"]:
            assert LSN.parse(span["end"]) <= start or LSN.parse(span["start"]) >= end, span


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_the_slot_is_dropped_and_no_target_in_the_gap_is_offered(make_site: MakeSite) -> None:
    # However much is free, it is too little.
    site = site_that_drops(make_site, "1000 TiB")
    check_the_gap(site, fill_at_once, r"^\d+ MiB free on the disk of pg_wal, \d+ MiB kept by the slot$")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_forecast_drops_the_slot_long_before_the_disk_is_full(make_site: MakeSite) -> None:
    # The disk of any machine that does not have tens of terabytes is full before, at that rate.
    site = site_that_drops(make_site, "64 MiB", before="30d")
    check_the_gap(site, fill_steadily, r"MiB kept by the slot, full in \d+ min$")


# Slow: it needs a user namespace, or a root that may mount.
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_disk_of_wal_is_never_full_and_the_server_goes_on(make_site: MakeSite) -> None:
    site = site_that_drops(make_site, "320 MiB")
    site.server.stop()
    with small_wal_disk(site, 640 * MIB) as disk:
        site.start_server()
        free = []

        def fill(site: Site) -> datetime:
            write_wal(site, HELD_BYTES)
            lost = moment(site, "2 lost")
            # More than there is room for, were nothing done.
            for _ in range(80):
                write_wal(site, 16 * MIB)
                site.server.checkpoint()
                free.append(free_bytes(disk))
                time.sleep(2 if free[-1] < 320 * MIB else 0.2)
                if is_dropped(site):
                    break
            return lost

        check_the_gap(site, fill, r"^\d+ MiB free on the disk of pg_wal, \d+ MiB kept by the slot$")
        print(f"least free: {min(free) >> 20} MiB")
        assert min(free) > 0
        assert "PANIC" not in site.server.instance.log_path.read_text()
        site.server.stop()


def free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


@contextmanager
def small_wal_disk(site: Site, size_bytes: int) -> Iterator[Path]:
    """Put the stopped server's ``pg_wal`` on a disk of its own; the data directory is of no use after."""
    place = site.folder / "wal-disk"
    place.mkdir()
    wal = site.server.data_dir / "pg_wal"
    owner = wal.stat()
    with _mounted(place, size_bytes) as disk:
        shutil.copytree(wal, disk / "pg_wal")
        for path in (disk / "pg_wal", *(disk / "pg_wal").rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        shutil.rmtree(wal)
        wal.symlink_to(disk / "pg_wal")
        try:
            yield disk
        finally:
            site.daemon.kill()
            site.server.kill()


@contextmanager
def _mounted(place: Path, size_bytes: int) -> Iterator[Path]:
    """Yield where a small disk is seen: mounted by root, else in a namespace that we can look into."""
    if os.geteuid() == 0:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=755", "none", place], check=True
        )
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)
        return
    words = [*on_small_disk(place, size_bytes), "sh", "-c", "echo mounted; exec sleep 3600"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"mounted\n", "no small disk can be had here"
            yield Path(f"/proc/{holder.pid}/root{place}")
        finally:
            holder.kill()
