"""A failover that lost archived WAL, on real servers: the archive goes on, and the orphaned end stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, RunningPostgres, majors
from fix_standby import make_standby
from fix_wal_archive import (
    SLOT,
    Load,
    Told,
    WalHouse,
    archiving,
    flush_lsn,
    quick_settings,
    system_identifier,
    wait_until,
)

from pitr.archive_resume import archived_end
from pitr.archive_values import ArchiveEventKind
from pitr.errors import ArchiveDiverged, WalMissing
from pitr.wal.follow import ArchiveFork
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from verifiers.base import Severity
from verifiers.chain import check_chain

KEEP_WAL = {"wal_keep_size": "1GB"}
ONE, TWO = TimelineId(1), TimelineId(2)
EACH_MAJOR = pytest.mark.parametrize("major", majors(slow=[18]), ids=lambda major: f"pg{major}")


@dataclass
class SaysFailover:
    """A judge that was told the truth, and remembers what it was asked."""

    asked: list[ArchiveFork] = field(default_factory=list)

    def why_failover(self, fork: ArchiveFork) -> str:
        self.asked.append(fork)
        return "the test says so"


def commit(server: RunningPostgres) -> None:
    server.execute("SELECT pg_logical_emit_message(true, 'x', repeat('a', 300000))")


def promote(standby: RunningPostgres, settings: dict[str, str] = KEEP_WAL) -> None:
    standby.start(settings)
    standby.instance.promote()
    wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "the promotion")


def forked_at(server: RunningPostgres, name: str = "00000002.history") -> LSN:
    text = (server.data_dir / "pg_wal" / name).read_text()
    return LSN.parse(text.splitlines()[-1].split()[1])


def orphans(told: Told) -> list[ArchiveFork]:
    return [event.fork for event in told.events if event.kind is ArchiveEventKind.ORPHANED and event.fork]


@pytest.mark.parametrize("lost_mib", [1, 40])
@EACH_MAJOR
def test_the_archive_goes_on_with_the_new_timeline_and_keeps_the_orphaned_end(
    postgres_factory: PostgresFactory, tmp_path: Path, major: int, lost_mib: int
) -> None:
    server = postgres_factory(major, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    standby = make_standby(postgres_factory, server, KEEP_WAL)
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        commit(server)
        standby.stop()
        for _ in range(3 * lost_mib):
            commit(server)
        running.wait_durable(flush_lsn(server))
    before = house.wal(1)
    server.kill()
    promote(standby)
    fork_lsn = forked_at(standby)
    judge = SaysFailover()
    with archiving(house, standby.dsn, tmp_path / "spool", judge=judge) as running:
        running.wait_streaming()
        with Load(standby) as load:
            load.wait_commits(50)
        # Far from the old end still: what was acknowledged must be of the new timeline.
        acknowledged = standby.value("SELECT flush_lsn FROM pg_stat_replication")
        assert acknowledged is None or LSN.parse(str(acknowledged)) <= flush_lsn(standby)
        running.wait_durable(flush_lsn(standby))
    assert orphans(running.told) == [ArchiveFork(ONE, fork_lsn, ONE, before.end, TWO, fork_lsn)]
    assert not running.told.has(ArchiveEventKind.SLOT_AHEAD)
    assert not running.told.backups_wanted
    # Nothing that was stored has moved or changed, and the old timeline still reaches its own end.
    assert house.wal(1).content() == before.content()
    after = house.wal(2)
    assert after.start.offset == fork_lsn.offset // (16 << 20) * (16 << 20)
    assert after.assert_equals_server(standby.data_dir) > 0
    assert after.pieces[0][0].sequence == before.pieces[-1][0].sequence + 1
    assert not [one for one in check_chain(house.repository, house.archive) if one.severity is Severity.FAIL]
    head = house.repository.latest_head(house.archive)
    assert head is not None
    assert (head.timeline, head.wal_end, head.wal_start) == (TWO, after.end, before.start)

    # A daemon that starts again finds the end on the new timeline, and asks nobody.
    asked = len(judge.asked)
    end = archived_end(house.repository, house.archive)
    assert end is not None
    assert (end.timeline, end.end, end.start) == (TWO, after.end, before.start)
    with archiving(house, standby.dsn, tmp_path / "spool2", judge=judge) as running:
        running.wait_streaming()
        commit(standby)
        running.wait_durable(flush_lsn(standby))
    assert len(judge.asked) == asked
    assert house.wal(2).assert_equals_server(standby.data_dir) > 0


@pytest.mark.parametrize("is_kept", [True, False])
@EACH_MAJOR
def test_a_slot_that_begins_too_late_is_told_and_only_wal_that_is_gone_is_lost(
    postgres_factory: PostgresFactory, tmp_path: Path, major: int, is_kept: bool
) -> None:
    """A new leader whose slot was made after the failover: nothing kept the WAL that we lack."""
    server = postgres_factory(major, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    standby = make_standby(postgres_factory, server, KEEP_WAL)
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        commit(server)
        running.wait_durable(flush_lsn(server))
    settings = KEEP_WAL if is_kept else {"min_wal_size": "32MB", "max_wal_size": "32MB"}
    end = flush_lsn(server)
    wait_until(lambda: LSN.parse(str(standby.value("SELECT pg_last_wal_replay_lsn()"))) >= end, "replay")
    standby.stop()
    server.kill()
    promote(standby, settings)
    for _ in range(4):
        commit(standby)
        standby.switch_wal()
        standby.checkpoint()
    standby.execute("SELECT pg_create_physical_replication_slot(%s, true)", SLOT)
    with archiving(house, standby.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        commit(standby)
        running.wait_durable(flush_lsn(standby))
    assert running.told.has(ArchiveEventKind.SLOT_AHEAD)
    assert running.told.has(ArchiveEventKind.WAL_LOST) is not is_kept
    assert bool(running.told.backups_wanted) is not is_kept
    if is_kept:
        assert house.wal(2).assert_equals_server(standby.data_dir) > 0
    head = house.repository.latest_head(house.archive)
    assert head is not None
    assert head.wal_start is not None
    # What is said to be without a hole begins after it.
    assert (head.wal_start > end) is not is_kept


@EACH_MAJOR
def test_a_crash_between_the_decision_and_the_first_piece_changes_nothing(
    postgres_factory: PostgresFactory, tmp_path: Path, major: int
) -> None:
    server = postgres_factory(major, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    standby = make_standby(postgres_factory, server, KEEP_WAL)
    # Heads are far apart: the pieces alone must lead the next daemon over the fork.
    settings = quick_settings(head_interval_s=600.0)
    with archiving(house, server.dsn, tmp_path / "spool", settings=settings) as running:
        running.wait_streaming()
        commit(server)
        standby.stop()
        for _ in range(5):
            commit(server)
        running.wait_durable(flush_lsn(server))
    server.kill()
    promote(standby)
    judge = SaysFailover()
    for _ in range(2):
        with archiving(house, standby.dsn, tmp_path / "spool", judge=judge, settings=settings) as running:
            wait_until(lambda: judge.asked, "the question")
            running.archiver.stop(0.0)
            running.thread.join(30)
    with archiving(house, standby.dsn, tmp_path / "spool", judge=judge, settings=settings) as running:
        running.wait_streaming()
        commit(standby)
        running.wait_durable(flush_lsn(standby))
    assert house.wal(2).assert_equals_server(standby.data_dir) > 0
    assert len({str(fork) for fork in judge.asked}) == 1
    assert not [one for one in check_chain(house.repository, house.archive) if one.severity is Severity.FAIL]


@EACH_MAJOR
def test_wal_that_only_the_old_primary_had_never_counts_as_durable(
    postgres_factory: PostgresFactory, tmp_path: Path, major: int
) -> None:
    """The end of a backup that the archive did not receive: the new timeline soon has higher LSNs."""
    server = postgres_factory(major, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    standby = make_standby(postgres_factory, server, KEEP_WAL)
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        commit(server)
        standby.stop()
        for _ in range(5):
            commit(server)
        running.wait_durable(flush_lsn(server))
    end = house.wal(1).end
    server.kill()
    promote(standby)
    with archiving(house, standby.dsn, tmp_path / "spool", judge=SaysFailover()) as running:
        running.wait_streaming()
        while flush_lsn(standby) < end + (1 << 20):
            commit(standby)
        running.wait_durable(end + (1 << 20))
        with pytest.raises(WalMissing, match="will never be complete"):
            running.archiver.wait_durable(ONE, LSN(end.offset - 8192), end + 8192, 1.0)
        assert running.archiver.wait_durable(ONE, LSN(end.offset - 8192), end, 1.0)


@EACH_MAJOR
def test_the_old_primary_that_comes_back_is_refused_whoever_says_failover(
    postgres_factory: PostgresFactory, tmp_path: Path, major: int
) -> None:
    server = postgres_factory(major, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    standby = make_standby(postgres_factory, server, KEEP_WAL)
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        commit(server)
        running.wait_durable(flush_lsn(server))
        standby.stop()
    server.kill()
    promote(standby)
    judge = SaysFailover()
    with archiving(house, standby.dsn, tmp_path / "spool", judge=judge) as running:
        running.wait_streaming()
        commit(standby)
        running.wait_durable(flush_lsn(standby))
    before = house.wal(2)
    server.start(KEEP_WAL)
    for _ in range(5):
        commit(server)
    asked = len(judge.asked)
    with (
        pytest.raises(ArchiveDiverged, match="which the archive has left"),
        archiving(house, server.dsn, tmp_path / "spool", judge=judge) as running,
    ):
        running.join()
    assert len(judge.asked) == asked
    assert house.wal(2).content() == before.content()
