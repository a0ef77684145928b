"""The archiver on bad days: server, regions, spool and slot fail, and the archive has no gap and no lie."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, RunningPostgres
from fix_standby import make_standby
from fix_stores import FaultyStore
from fix_wal_archive import (
    SLOT,
    Load,
    WalHouse,
    archiving,
    flush_lsn,
    now,
    quick_settings,
    system_identifier,
    wait_until,
)

from pitr.archive_values import ArchiveEventKind
from pitr.catalogue.sqlite import Catalogue
from pitr.catalogue_rebuild import rebuild
from pitr.datakeys import DataKeys
from pitr.errors import ArchiveDiverged, PitrError
from pitr.foreign_wal import foreign_wal
from pitr.layout import history_key, timeline_prefix
from pitr.postgres.server_user import hand_over
from pitr.spool import DirectorySpool, SpoolFailed, SpoolFull
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from verifiers.chain import check_chain

KEEP_WAL = {"wal_keep_size": "1GB"}


def acknowledged(server: RunningPostgres) -> LSN | None:
    """What the server was told is durable."""
    rows = server.execute("SELECT flush_lsn FROM pg_stat_replication WHERE application_name = 'pitr'")
    return LSN.parse(str(rows[0][0])) if rows and rows[0][0] is not None else None


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_a_restart_of_the_server_leaves_no_gap(
    postgres_factory: PostgresFactory, tmp_path: Path, how: str
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        with Load(server) as load:
            for _ in range(2):
                load.wait_commits(100)
                if how == "kill":
                    server.kill()
                    server.start(KEEP_WAL)
                else:
                    server.restart(how)
                load.wait_commits(50)
        running.wait_durable(flush_lsn(server))
    assert house.wal(1).assert_equals_server(server.data_dir) > 0
    assert not running.told.backups_wanted


def test_a_promotion_is_followed_to_the_new_timeline(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(18, KEEP_WAL)
    store = FaultyStore(MemoryStore())
    house = WalHouse(store, system_identifier(server))
    standby = make_standby(postgres_factory, server, KEEP_WAL)
    with archiving(house, standby.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        with Load(server) as load:
            load.wait_commits(200)
        server.stop()
        standby.instance.promote()
        wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "the promotion")
        with Load(standby) as load:
            load.wait_commits(100)
        end = flush_lsn(standby)
        wait_until(
            lambda: running.failure or any(head.timeline == TimelineId(2) for head in running.told.heads),
            f"a head of timeline 2: {running.told.events}",
        )
        running.wait_durable(end)
        assert running.told.has(ArchiveEventKind.TIMELINE_SWITCHED)
    put = [key for call, key in store.calls if call == "put"]
    # History first: WAL of a timeline that nobody can place is of no use.
    switched = next(
        at for at, key in enumerate(put) if key.startswith(timeline_prefix(house.archive, TimelineId(2)))
    )
    assert history_key(house.archive, TimelineId(2)) in put[:switched]
    first, second = house.wal(1), house.wal(2)
    (history,) = house.repository.histories(house.archive)
    assert first.end == history.end_of(TimelineId(1))
    assert second.start <= first.end < second.end
    assert second.assert_equals_server(standby.data_dir) > 0
    assert [one.timeline for one in running.told.histories] == [TimelineId(2)]
    head = house.repository.latest_head(house.archive)
    assert head is not None
    # The whole past is one stretch: nothing lies between the two timelines.
    assert (head.wal_start, head.wal_end) == (first.start, second.end)


def test_without_regions_nothing_is_acknowledged_and_the_catch_up_has_no_gap(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    store = FaultyStore(MemoryStore())
    house = WalHouse(store, system_identifier(server))
    settings = quick_settings(piece_bytes=1 << 20, backlog_bytes_max=4 << 20)
    with archiving(house, server.dsn, tmp_path / "spool", settings=settings) as running:
        running.wait_streaming()
        running.wait_durable(flush_lsn(server))
        store.go_down()
        # What was on its way before the regions went away may still count.
        wait_until(lambda: running.told.has(ArchiveEventKind.STORE_FAILED) or _commit(server), "a failed put")
        durable = running.archiver.status().durable
        with Load(server, row_bytes=20_000) as load:
            load.wait_commits(1500)
            # More than the backlog holds: what is not read stays with the slot.
            wait_until(
                lambda: running.archiver.status().backlog_bytes >= 4 << 20 or load.commits > 100_000,
                "a full backlog",
            )
            load.wait_commits(100)
        status = running.archiver.status()
        assert status.durable == durable
        assert acknowledged(server) == durable
        assert status.backlog_bytes < 8 << 20
        store.heal()
        running.wait_durable(flush_lsn(server))
        assert running.told.has(ArchiveEventKind.STORE_RECOVERED)
        wait_until(lambda: (acknowledged(server) or LSN(1)) >= flush_lsn(server), "the acknowledgement")
    assert house.wal(1).assert_equals_server(server.data_dir) > 0


def _commit(server: RunningPostgres) -> bool:
    server.execute("CREATE TABLE IF NOT EXISTS t (i int)")
    server.execute("INSERT INTO t VALUES (1)")
    return False


class SmallSpool(DirectorySpool):
    """A spool on a disk that is full, or broken, until it is told otherwise."""

    trouble: PitrError | None = None

    def add(self, key: str, body: bytes, sha256: bytes) -> None:
        if self.trouble is not None:
            raise self.trouble
        super().add(key, body, sha256)


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(SpoolFull("the disk is full"), id="full"),
        # As fsync(2) says it: nobody knows what of it is on disk.
        pytest.param(SpoolFailed("the spool cannot be used: Input/output error"), id="broken"),
    ],
)
def test_a_spool_without_room_or_that_fails_holds_everything_back_and_says_so(
    postgres_factory: PostgresFactory, tmp_path: Path, trouble: PitrError
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    spool = SmallSpool(tmp_path / "spool", bytes_max=1 << 30)
    with archiving(house, server.dsn, tmp_path / "spool", spool=spool) as running:
        running.wait_streaming()
        running.wait_durable(flush_lsn(server))
        spool.trouble = trouble
        wait_until(lambda: running.told.has(ArchiveEventKind.SPOOL_FULL) or _commit(server), "a full spool")
        durable = running.archiver.status().durable
        for _ in range(20):
            _commit(server)
        end = flush_lsn(server)
        assert running.archiver.status().durable == durable
        assert acknowledged(server) == durable
        assert (running.archiver.status().last_error or "").endswith(trouble.message)
        spool.trouble = None
        running.wait_durable(end)
    assert house.wal(1).assert_equals_server(server.data_dir) > 0


def test_a_clock_that_jumps_a_day_either_way_holds_nothing_up(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    shift = [timedelta(0)]
    with archiving(house, server.dsn, tmp_path / "spool", clock=lambda: now() + shift[0]) as running:
        running.wait_streaming()
        for days in (0, -1, 1, 0):
            shift[0] = timedelta(days=days)
            _commit(server)
            end, heads = flush_lsn(server), len(running.told.heads)
            running.wait_durable(end)
            wait_until(lambda: len(running.told.heads) > heads + 1, "heads go on")  # noqa: B023
    assert house.wal(1).assert_equals_server(server.data_dir) > 0
    head = house.repository.latest_head(house.archive)
    assert head is not None
    assert head.wal_end is not None
    # The newest by its number, whatever its clock said.
    assert head.wal_end >= LSN.parse(str(end))


def test_a_stop_without_regions_says_what_is_not_durable(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    store = FaultyStore(MemoryStore())
    house = WalHouse(store, system_identifier(server))
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        running.wait_durable(flush_lsn(server))
        store.go_down()
        wait_until(lambda: running.told.has(ArchiveEventKind.STORE_FAILED) or _commit(server), "a failed put")
        drained = running.stop(1.0)
    assert not drained.is_complete
    assert "received up to" in str(drained)
    store.heal()
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_durable(flush_lsn(server))
    assert house.wal(1).assert_equals_server(server.data_dir) > 0


def test_a_restart_in_mid_segment_goes_on_the_chain_and_still_makes_whole_segments(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    for _ in range(3):
        with archiving(house, server.dsn, tmp_path / "spool") as running:
            running.wait_streaming()
            for _ in range(5):
                _commit(server)
            running.wait_durable(flush_lsn(server))
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        server.switch_wal()
        _commit(server)
        wait_until(lambda: running.told.segments, "a whole segment")
    wal = house.wal(1)
    assert len(wal.segments) == 1
    assert wal.assert_equals_server(server.data_dir) > 0
    _, header = running.told.segments[0]
    assert (header.start, header.first_piece) == (wal.start, 1)
    assert header.transactions is not None


def test_wal_that_the_server_no_longer_has_is_a_hole_that_is_told(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    # The summarizer keeps what it has not read yet, and may be slower than this test.
    settings = {"max_wal_size": "32MB", "min_wal_size": "32MB", "summarize_wal": "off"}
    server = postgres_factory(17, settings)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        _commit(server)
        running.wait_durable(flush_lsn(server))
    before = house.wal(1).end
    server.execute(f"SELECT pg_drop_replication_slot('{SLOT}')")
    for _ in range(4):
        _commit(server)
        server.switch_wal()
        server.checkpoint()
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        wait_until(lambda: running.told.backups_wanted, f"the hole to be told: {running.told.events}")
        _commit(server)
        running.wait_durable(flush_lsn(server))
    assert running.told.has(ArchiveEventKind.SLOT_CREATED)
    assert running.told.has(ArchiveEventKind.WAL_LOST)
    head = house.repository.latest_head(house.archive)
    assert head is not None
    assert head.wal_start is not None
    assert head.wal_start > before
    pieces = house.wal(1).pieces
    assert [header.sequence for header, _ in pieces] == list(range(1, len(pieces) + 1))


def test_a_lost_slot_whose_wal_is_still_there_is_no_hole(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        _commit(server)
        running.wait_durable(flush_lsn(server))
    server.execute(f"SELECT pg_drop_replication_slot('{SLOT}')")
    server.switch_wal()
    server.checkpoint()
    _commit(server)
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        running.wait_durable(flush_lsn(server))
        assert running.told.has(ArchiveEventKind.SLOT_CREATED)
        assert not running.told.has(ArchiveEventKind.WAL_LOST)
    assert house.wal(1).assert_equals_server(server.data_dir) > 0


def test_a_slot_that_was_idle_too_long_is_made_anew_and_costs_no_wal(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    settings = {**KEEP_WAL, "idle_replication_slot_timeout": "1s"}
    server = postgres_factory(18, settings)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        _commit(server)
        running.wait_durable(flush_lsn(server))
    _commit(server)

    def invalidated() -> bool:
        server.checkpoint()
        return server.value("SELECT invalidation_reason FROM pg_replication_slots") == "idle_timeout"

    wait_until(invalidated, "the slot to be invalidated")
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        _commit(server)
        running.wait_durable(flush_lsn(server))
        assert running.told.has(ArchiveEventKind.SLOT_CREATED)
        assert not running.told.has(ArchiveEventKind.WAL_LOST)
    assert house.wal(1).assert_equals_server(server.data_dir) > 0


def test_another_cluster_is_refused(postgres_factory: PostgresFactory, tmp_path: Path) -> None:
    server, other = postgres_factory(17), postgres_factory(17, name="other")
    house = WalHouse(MemoryStore(), system_identifier(server))
    with (
        pytest.raises(ArchiveDiverged, match="another cluster"),
        archiving(house, other.dsn, tmp_path / "spool") as running,
    ):
        running.join()
    assert not list(house.repository.wal.timelines(house.archive))


def test_two_daemons_of_one_epoch_stop_each_other(postgres_factory: PostgresFactory, tmp_path: Path) -> None:
    server = postgres_factory(17, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with archiving(house, server.dsn, tmp_path / "one") as one:
        one.wait_streaming()
        one.wait_durable(flush_lsn(server))
        settings = quick_settings(slot="another")
        with archiving(house, server.dsn, tmp_path / "two", settings=settings) as two:
            while one.thread.is_alive() and two.thread.is_alive():
                _commit(server)
            stopped = one if not one.thread.is_alive() else two
            with pytest.raises(ArchiveDiverged, match="another writer"):
                stopped.join()


def _copy(postgres_factory: PostgresFactory, server: RunningPostgres, name: str) -> RunningPostgres:
    """A second server on a copy of a stopped one's data directory: as a snapshot that was rolled back."""
    copy = postgres_factory(server.instance.installation.major, name=name)
    copy.stop()
    shutil.rmtree(copy.data_dir)
    shutil.copytree(server.data_dir, copy.data_dir, ignore=shutil.ignore_patterns("postmaster.*"))
    hand_over(copy.data_dir, server.instance.user)
    return copy


def test_a_server_that_was_set_back_is_not_archived(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    _commit(server)
    server.stop()
    copy = _copy(postgres_factory, server, "copy")
    server.start(KEEP_WAL)
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        for _ in range(20):
            _commit(server)
        running.wait_durable(flush_lsn(server))
    before = house.wal(1)
    head = house.repository.latest_head(house.archive)
    assert head is not None
    copy.start(KEEP_WAL)
    with (
        pytest.raises(ArchiveDiverged, match="ends before the archive's"),
        archiving(house, copy.dsn, tmp_path / "spool") as running,
    ):
        running.join()
    while flush_lsn(copy) <= before.end:
        _commit(copy)
    with (
        pytest.raises(ArchiveDiverged, match="differs from the archive's"),
        archiving(house, copy.dsn, tmp_path / "spool") as running,
    ):
        running.join()
    after = house.wal(1)
    assert after.content() == before.content()
    # It signed nothing either: a head of its own would have stopped the right writer.
    assert house.repository.latest_head(house.archive) == head
    # The refused one was told nothing: its slot stands where it was made.
    assert acknowledged(copy) is None


def test_what_the_loser_of_a_split_brain_wrote_is_used_by_nobody(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    """A host that was cloned with its key: two servers go on from one moment on one timeline."""
    server = postgres_factory(17, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with archiving(house, server.dsn, tmp_path / "one") as running:
        running.wait_streaming()
        _commit(server)
        running.wait_durable(flush_lsn(server))
    server.stop()
    copy = _copy(postgres_factory, server, "copy")
    server.start(KEEP_WAL)
    copy.start(KEEP_WAL)
    # Heads far apart, so that both write for a while before one of them finds the other's.
    settings = quick_settings(head_interval_s=3.0)
    with archiving(house, server.dsn, tmp_path / "one", settings=settings) as one:
        one.wait_streaming()
        wait_until(lambda: one.told.heads, "the first head")
        with archiving(house, copy.dsn, tmp_path / "two", settings=settings) as two:
            two.wait_streaming()
            wait_until(lambda: two.told.heads, "the second head")
            words = "SELECT pg_logical_emit_message(true, %s, repeat('a', 90000))"
            while one.thread.is_alive() and two.thread.is_alive():
                for each in (server, copy):
                    each.execute(words, str(each.port))
            running, other, right = (one, two, copy) if not one.thread.is_alive() else (two, one, server)
            with pytest.raises(ArchiveDiverged, match="another writer") as told:
                running.join()
            assert "pitr adopt" in str(told.value.hint)
            for _ in range(3):
                _commit(right)
            other.wait_durable(flush_lsn(right))
    keys = list(house.repository.wal_objects(house.archive, TimelineId(1)))
    foreign = foreign_wal(house.repository, house.archive, keys)
    assert foreign
    assert any(one.id == "chain.fork" for one in check_chain(house.repository, house.archive))
    # As a reader sees it there is one history, which is the right server's, byte for byte.
    catalogue = Catalogue(":memory:")
    found = rebuild(house.repository, catalogue)
    assert {refused.key for refused in found.refused} == {str(key) for key in foreign}
    units = catalogue.wal_units(house.archive)
    assert not {str(unit.key) for unit in units} & {str(key) for key in foreign}
    (interval,) = catalogue.coverage(house.archive)
    assert interval.end >= flush_lsn(right)
    data_keys = DataKeys(house.repository, house.identity)
    for unit in units:
        content = house.repository.read_wal(unit.key, data_keys)
        name = str(unit.key.segment)
        with (right.data_dir / "pg_wal" / name).open("rb") as file:
            file.seek(unit.start.offset % (16 << 20))
            assert file.read(len(content)) == content, f"{unit.key} is not the right server's"


def test_a_failover_that_lost_archived_wal_is_left_to_a_person(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    standby = make_standby(postgres_factory, server, KEEP_WAL)
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        _commit(server)
        standby.stop()
        for _ in range(5):
            _commit(server)
        running.wait_durable(flush_lsn(server))
    server.kill()
    standby.start(KEEP_WAL)
    standby.instance.promote()
    wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "the promotion")
    with (
        pytest.raises(ArchiveDiverged, match="left the archive's below its end"),
        archiving(house, standby.dsn, tmp_path / "spool") as running,
    ):
        running.join()
    assert list(house.repository.wal.timelines(house.archive)) == [TimelineId(1)]
    assert not house.repository.histories(house.archive)
