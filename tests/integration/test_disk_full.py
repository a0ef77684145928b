"""The primary's disk before the archive: the slot is given up in time, and the gap is told for ever."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from fix_cli import MakeSite, Site, wait_until
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


@pytest.mark.timeout(400)
def test_the_slot_is_dropped_and_no_target_in_the_gap_is_offered(make_site: MakeSite) -> None:
    site = make_site(settings={"max_wal_size": "4GB", "checkpoint_timeout": "1h", "summarize_wal": "off"})
    site.set_option('when_disk_fills = "keep"', 'when_disk_fills = "drop"')
    # However much is free, it is too little.
    site.set_option('drop_below = "1 GiB"', 'drop_below = "1000 TiB"')
    site.server.execute("CREATE TABLE t (n text)")
    site.start_daemon()
    before = moment(site, "1 before")
    # That time is over only with a commit that is later.
    moment(site, "1 too")
    durable = site.wait_durable()
    for region in site.regions:
        region.take_away()
    write_wal(site, 160 * MIB)
    lost = moment(site, "2 lost")
    write_wal(site, 64 * MIB)
    # What a crash would need is no use to drop: before this nothing happens.
    assert "slot-dropped" not in site.daemon.tail()
    site.server.checkpoint()
    wait_until(lambda: "slot-dropped" in site.daemon.tail(), f"the slot goes; {site.daemon.tail()}")
    wait_until(lambda: "wal-lost" in site.daemon.tail(), "the gap is told")
    assert site.server.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'pitr'") == 1
    gap = re.search(r"WAL from (\S+) to (\S+) is lost", site.daemon.tail())
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
    wait_until(lambda: len(site.backups()) >= 2, f"a new backup; {site.daemon.tail()}", timeout_s=120)
    after = moment(site, "3 after")
    site.wait_durable()
    stretches = site("wal", "list", "--gaps-only", "--json").data["stretches"]
    assert [(one["start"], one["end"]) for one in stretches] == [(str(start), str(end))]
    refused = site("plan", lost.isoformat(), "--json", exit_code=4)
    nearest = re.findall(r"(?:before|after): (\S+)", refused.error["next"] or "")
    assert nearest, str(refused)
    status = site("status", "--json").data
    assert status["wal_disk"]["when_disk_fills"] == "drop"
    assert 0 < status["wal_disk"]["free_bytes"] <= status["wal_disk"]["total_bytes"]
    assert status["wal_disk"]["wal_directory_bytes"] >= 16 * MIB
    events = status["events"]
    assert (events["slot-dropped"], events["wal-lost"]) == (1, 1)
    for name, target, expected in (
        ("early", before, ["1 before"]),
        ("late", after, ["1 before", "1 too", "2 lost", "3 after"]),
    ):
        done = site.restore(target.isoformat(), site.folder / name, "--start")
        assert rows(done.data["dsn"]) == expected
    site.restore(lost.isoformat(), site.folder / "none", exit_code=4)
    assert site.daemon.stop() == 0, site.daemon.tail()
