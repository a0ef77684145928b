"""The archive_command gate on real servers: beside the stream, and as the only source of WAL."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, RunningPostgres
from fix_standby import make_standby
from fix_stores import FaultyStore
from fix_wal_archive import (
    Load,
    RunningArchiver,
    Told,
    WalHouse,
    flush_lsn,
    quick_settings,
    system_identifier,
    wait_until,
)

from pitr.archive import WalArchiver
from pitr.archive_gate import Gate
from pitr.archive_values import ArchiveEventKind, ForkJudge, NoJudge
from pitr.gate_folder import GateFolder
from pitr.gate_script import archive_command
from pitr.postgres.address import ConfiguredAddress
from pitr.postgres.installation import Installation
from pitr.postgres.server_user import ServerUser
from pitr.spool import DirectorySpool
from pitr.wal.follow import ArchiveFork
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore

SEGMENT_BYTES = 1 << 20
INITDB = ["--wal-segsize=1"]
KEEP = {"wal_keep_size": "1GB"}


@pytest.fixture
def folder(server_user_or_none: ServerUser | None, server_tmp_path: Path) -> GateFolder:
    """A gate that the server's user can use, which is another one than ours when we are root."""
    group = None if server_user_or_none is None else server_user_or_none.gid
    gate = GateFolder(server_tmp_path / "a gate", group_id=group)
    gate.make()
    return gate


def archiving_settings(folder: GateFolder, mode: str = "on") -> dict[str, str]:
    return {**KEEP, "archive_mode": mode, "archive_command": archive_command(folder.root)}


@contextmanager
def gated(
    house: WalHouse,
    dsn: str,
    spool_dir: Path,
    folder: GateFolder,
    *,
    is_source: bool,
    gap_wait_s: float = 60.0,
    judge: ForkJudge = NoJudge(),  # noqa: B008 - it has no state
) -> Iterator[RunningArchiver]:
    """An archiver with the gate; stopped in order at the end, unless the test failed."""
    spool, told = DirectorySpool(spool_dir, bytes_max=1 << 30), Told()
    plain = house.archiver(dsn, spool, told, settings=quick_settings())
    archiver = WalArchiver(
        address=ConfiguredAddress(dsn),
        archive=house.archive,
        repository=house.repository,
        signer=house.signer,
        keys=plain._keys,
        spool=spool,
        events=told,
        settings=quick_settings(),
        judge=judge,
        gate=Gate(folder, is_source=is_source, gap_wait_s=gap_wait_s),
        clock=plain._clock,
        random=os.urandom,
    )
    running = RunningArchiver(archiver, told).start()
    try:
        running.wait_streaming()
        yield running
        if running.thread.is_alive():
            running.stop()
    finally:
        archiver.stop(0.0)
        running.thread.join(60)
        spool.close()


def archived(server: RunningPostgres) -> str:
    return str(server.value("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver"))


def switch(server: RunningPostgres) -> str:
    """Write something and end the segment; return its name."""
    server.execute("SELECT pg_logical_emit_message(true, 'pitr-test', repeat('x', 1000))")
    return str(server.value("SELECT pg_walfile_name(pg_switch_wal())"))


def wait_archived(server: RunningPostgres, name: str) -> None:
    wait_until(lambda: archived(server) >= name, f"{name} to be archived")


def test_beside_the_stream_the_archiver_hears_what_is_at_quorum(
    postgres_factory: PostgresFactory,
    pg_installation: Installation,
    folder: GateFolder,
    tmp_path: Path,
) -> None:
    server = postgres_factory(
        settings=archiving_settings(folder), initdb=INITDB, installation=pg_installation
    )
    store = FaultyStore(MemoryStore())
    house = WalHouse(store, system_identifier(server))
    with gated(house, server.dsn, tmp_path / "spool", folder, is_source=False) as running:
        wait_archived(server, switch(server))
        with Load(server, row_bytes=2000) as load:
            load.wait_commits(300)
        wait_archived(server, switch(server))
        store.hold("put")
        held = switch(server)
        threading.Event().wait(1.5)
        assert archived(server) < held
        store.heal()
        wait_archived(server, held)
        running.wait_durable(flush_lsn(server))
        assert not running.told.has(ArchiveEventKind.HANDED_DIFFERS)
        assert not running.told.has(ArchiveEventKind.GATE_FAILED)
    assert house.wal(1).assert_equals_server(server.data_dir, SEGMENT_BYTES) > 0


def test_without_a_stream_all_wal_comes_through_the_gate(
    postgres_factory: PostgresFactory,
    pg_installation: Installation,
    folder: GateFolder,
    tmp_path: Path,
) -> None:
    server = postgres_factory(
        settings={**archiving_settings(folder), "max_wal_senders": "0"},
        initdb=INITDB,
        installation=pg_installation,
    )
    house = WalHouse(MemoryStore(), system_identifier(server))
    for turn in range(3):
        with gated(house, server.dsn, tmp_path / "spool", folder, is_source=True) as running:
            with Load(server, row_bytes=4000) as load:
                load.wait_commits(400)
            last = switch(server)
            wait_archived(server, last)
            assert not running.told.has(ArchiveEventKind.WAL_LOST), turn
    wal = house.wal(1)
    assert wal.assert_equals_server(server.data_dir, SEGMENT_BYTES) >= 3 * SEGMENT_BYTES
    assert len(wal.segments) * SEGMENT_BYTES == len(wal.content())
    assert not list((folder.root / "todo").iterdir())
    assert server.value("SELECT count(*) FROM pg_replication_slots") == 0


def test_what_is_handed_over_again_is_acknowledged_again(
    postgres_factory: PostgresFactory, folder: GateFolder, tmp_path: Path
) -> None:
    server = postgres_factory(settings=archiving_settings(folder), initdb=INITDB)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with gated(house, server.dsn, tmp_path / "spool", folder, is_source=True):
        names = [switch(server) for _ in range(4)]
        wait_archived(server, names[-1])
        pieces = len(house.wal(1).pieces)
    status = server.data_dir / "pg_wal" / "archive_status"
    for name in names:
        (status / f"{name}.done").rename(status / f"{name}.ready")
    for is_source in (True, False):
        with gated(house, server.dsn, tmp_path / f"spool-{is_source}", folder, is_source=is_source):
            server.execute("SELECT pg_stat_reset_shared('archiver')")
            last = switch(server)
            wait_archived(server, last)
            assert not list(status.glob("*.ready"))
    assert pieces < len(house.wal(1).pieces)
    assert house.wal(1).assert_equals_server(server.data_dir, SEGMENT_BYTES) > 0


@pytest.mark.parametrize("is_source", [True, False], ids=["source", "beside"])
def test_other_bytes_under_an_archived_name_are_kept_aside_and_never_acknowledged(
    postgres_factory: PostgresFactory, folder: GateFolder, tmp_path: Path, is_source: bool
) -> None:
    server = postgres_factory(settings=archiving_settings(folder), initdb=INITDB)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with gated(house, server.dsn, tmp_path / "spool", folder, is_source=is_source) as running:
        names = [switch(server) for _ in range(3)]
        wait_archived(server, names[-1])
        other = tmp_path / names[1]
        content = bytearray((server.data_dir / "pg_wal" / names[1]).read_bytes())
        content[5000] ^= 1
        # Later than the acknowledgement, which holds for what was written before only.
        threading.Event().wait(1.5)
        other.write_bytes(content)
        gate = folder.root / "gate"
        done = subprocess.run(
            [gate, names[1], other], capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 1
        assert "other bytes are archived under this name" in done.stderr
        assert running.told.has(ArchiveEventKind.HANDED_DIFFERS)
        [kept] = (folder.root / "aside").iterdir()
        assert kept.read_bytes() == bytes(content)
        wait_archived(server, switch(server))
    assert house.wal(1).assert_equals_server(server.data_dir, SEGMENT_BYTES) > 0


def test_a_segment_after_a_hole_waits_and_then_the_loss_is_told(
    postgres_factory: PostgresFactory, folder: GateFolder, tmp_path: Path
) -> None:
    server = postgres_factory(settings=archiving_settings(folder), initdb=INITDB)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with gated(house, server.dsn, tmp_path / "spool", folder, is_source=True, gap_wait_s=1.0) as running:
        wait_archived(server, switch(server))
        # Somebody turns the gate off for a while.
        (folder.root / "gate").write_text("#!/bin/sh\nexit 0\n")
        lost = switch(server)
        wait_archived(server, lost)
        folder.make()
        after = switch(server)
        threading.Event().wait(0.5)
        assert archived(server) < after or running.told.has(ArchiveEventKind.WAL_LOST)
        wait_archived(server, after)
        assert running.told.has(ArchiveEventKind.WAL_LOST)
        [reason] = running.told.backups_wanted
        assert "is lost" in reason
        # The lost segment comes after all: it cannot be put in any more, and is said to be outside.
        status = server.data_dir / "pg_wal" / "archive_status"
        (status / f"{lost}.done").rename(status / f"{lost}.ready")
        wait_archived(server, switch(server))
        wait_until(lambda: running.told.has(ArchiveEventKind.HANDED_OUTSIDE), "the event")
    head = house.repository.latest_head(house.archive)
    assert head is not None
    assert head.wal_start is not None
    assert lost < after


@pytest.mark.parametrize("is_source", [True, False], ids=["source", "beside"])
def test_a_promotion_hands_over_history_partial_segment_and_the_new_timeline(
    postgres_factory: PostgresFactory, folder: GateFolder, tmp_path: Path, is_source: bool
) -> None:
    primary = postgres_factory(17, archiving_settings(folder), initdb=INITDB)
    house = WalHouse(MemoryStore(), system_identifier(primary))
    standby = make_standby(postgres_factory, primary, archiving_settings(folder))
    with gated(house, primary.dsn, tmp_path / "spool", folder, is_source=is_source) as running:
        wait_archived(primary, switch(primary))
        primary.execute("CREATE TABLE before_promotion AS SELECT generate_series(1, 1000) AS n")
        end = flush_lsn(primary)
        running.wait_durable(end) if not is_source else None
        wait_until(
            lambda: LSN.parse(str(standby.value("SELECT pg_last_wal_replay_lsn()"))) >= end, "the standby"
        )
        primary.kill()
    standby.execute("SELECT pg_promote()")
    with gated(house, standby.dsn, tmp_path / "spool2", folder, is_source=is_source) as running:
        wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "the promotion")
        standby.execute("CREATE TABLE after_promotion AS SELECT generate_series(1, 1000) AS n")
        last = switch(standby)
        assert last.startswith("00000002")
        wait_archived(standby, last)
        status = standby.data_dir / "pg_wal" / "archive_status"
        wait_until(lambda: not list(status.glob("*.ready")), "all to be archived")
        assert list(status.glob("*.partial.done"))
        assert (status / "00000002.history.done").exists()
        assert not running.told.has(ArchiveEventKind.WAL_LOST)
        assert not running.told.has(ArchiveEventKind.HANDED_REFUSED)
    old, new = house.wal(1), house.wal(2)
    [history] = house.repository.histories(house.archive)
    assert history.switches[-1].lsn == old.end
    assert old.content()
    assert new.assert_equals_server(standby.data_dir, SEGMENT_BYTES) > 0


class Person:
    """Whoever said that it was a failover."""

    def why_failover(self, fork: ArchiveFork) -> str | None:
        return f"a person decided of timeline {fork.following}"


def test_an_archive_ahead_of_the_new_primary_follows_it_once_somebody_decides(
    postgres_factory: PostgresFactory, folder: GateFolder, tmp_path: Path
) -> None:
    primary = postgres_factory(17, archiving_settings(folder), initdb=INITDB)
    house = WalHouse(MemoryStore(), system_identifier(primary))
    standby = make_standby(postgres_factory, primary, archiving_settings(folder))
    with gated(house, primary.dsn, tmp_path / "spool", folder, is_source=True):
        wait_archived(primary, switch(primary))
        primary.execute("CREATE TABLE both_have AS SELECT generate_series(1, 1000) AS n")
        end = flush_lsn(primary)
        wait_until(
            lambda: LSN.parse(str(standby.value("SELECT pg_last_wal_replay_lsn()"))) >= end, "the standby"
        )
        standby.stop()
        # In the segment of the fork, and in one after it.
        wait_archived(primary, switch(primary))
        wait_archived(primary, switch(primary))
        primary.kill()
    ahead = house.wal(1).end
    standby.start(archiving_settings(folder))
    standby.execute("SELECT pg_promote()")
    wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "the promotion")
    standby.execute("CREATE TABLE after_promotion AS SELECT generate_series(1, 1000) AS n")
    status = standby.data_dir / "pg_wal" / "archive_status"
    with gated(house, standby.dsn, tmp_path / "spool2", folder, is_source=True) as running:
        wait_until(lambda: running.told.has(ArchiveEventKind.HANDED_REFUSED), "the history to be refused")
        assert not running.told.has(ArchiveEventKind.ORPHANED)
        assert not house.repository.histories(house.archive)
    with gated(house, standby.dsn, tmp_path / "spool3", folder, is_source=True, judge=Person()) as running:
        last = switch(standby)
        # PostgreSQL asks for what was refused thrice only a minute later.
        wait_archived(standby, last)
        [orphaned] = [one for one in running.told.events if one.kind is ArchiveEventKind.ORPHANED]
        assert orphaned.fork is not None
        assert orphaned.fork.end == ahead
        assert not running.told.has(ArchiveEventKind.WAL_LOST)
        assert not running.told.has(ArchiveEventKind.HANDED_REFUSED)
    with gated(house, standby.dsn, tmp_path / "spool4", folder, is_source=True) as running:
        # Decided once: the archive goes on from there, whoever is asked.
        wait_archived(standby, switch(standby))
        wait_until(lambda: not list(status.glob("*.ready")), "all to be archived")
        assert not running.told.has(ArchiveEventKind.HANDED_REFUSED)
    assert list(status.glob("*.partial.done"))
    old, new = house.wal(1), house.wal(2)
    [history] = house.repository.histories(house.archive)
    assert history.switches[-1].lsn == orphaned.fork.left_at < old.end == ahead
    assert new.assert_equals_server(standby.data_dir, SEGMENT_BYTES) > 0
    head = house.repository.latest_head(house.archive)
    assert head is not None
    assert (head.timeline, head.wal_end) == (TimelineId(2), new.end)


def test_a_standby_that_always_archives_hands_over_equal_bytes(
    postgres_factory: PostgresFactory, folder: GateFolder, tmp_path: Path
) -> None:
    primary = postgres_factory(17, archiving_settings(folder), initdb=INITDB)
    house = WalHouse(MemoryStore(), system_identifier(primary))
    standby = make_standby(postgres_factory, primary, archiving_settings(folder, "always"))
    with gated(house, primary.dsn, tmp_path / "spool", folder, is_source=True) as running:
        for _ in range(5):
            name = switch(primary)
        wait_archived(primary, name)
        wait_archived(standby, name)
        assert not running.told.has(ArchiveEventKind.HANDED_DIFFERS)
        assert not running.told.has(ArchiveEventKind.HANDED_REFUSED)
    assert house.wal(1).assert_equals_server(primary.data_dir, SEGMENT_BYTES) > 0


def test_kills_of_gate_daemon_and_server_leave_no_hole_and_nothing_false(
    postgres_factory: PostgresFactory, folder: GateFolder, tmp_path: Path
) -> None:
    settings = archiving_settings(folder)
    server = postgres_factory(17, settings, initdb=INITDB)
    house = WalHouse(MemoryStore(), system_identifier(server))
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    killed = 0
    for turn in range(5):
        with gated(house, server.dsn, tmp_path / f"spool-{turn}", folder, is_source=True) as running:
            with Load(server, row_bytes=8000) as load:
                load.wait_commits(100)
                threading.Event().wait(chance.random() * 0.3)
                killed += _kill_gates(folder)
                load.wait_commits(50)
                if turn % 2:
                    server.kill()
                    server.start(settings)
                load.wait_commits(50)
            assert running.failure is None
            # The spool is lost as well: the daemon ends here and now.
            running.archiver.stop(0.0)
            with suppress(Exception):
                running.join()
            shutil.rmtree(tmp_path / f"spool-{turn}")
    with gated(house, server.dsn, tmp_path / "spool", folder, is_source=True) as running:
        wait_archived(server, switch(server))
        assert not running.told.has(ArchiveEventKind.WAL_LOST)
        assert not running.told.has(ArchiveEventKind.HANDED_DIFFERS)
    assert house.wal(1).assert_equals_server(server.data_dir, SEGMENT_BYTES) > 0


def _kill_gates(folder: GateFolder) -> int:
    """Kill each gate that runs now, found by the folder in its command line."""
    killed = 0
    for place in Path("/proc").iterdir():
        with suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0") if place.name.isdigit() else []
            if str(folder.root / "gate").encode() in words:
                os.kill(int(place.name), signal.SIGKILL)
                killed += 1
    return killed
