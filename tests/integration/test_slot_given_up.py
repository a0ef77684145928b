"""The archiver gives its slot up when it is told to: what is lost then, and what is not."""

from __future__ import annotations

from pathlib import Path

from fix_postgres import PostgresFactory, RunningPostgres
from fix_stores import FaultyStore
from fix_wal_archive import SLOT, WalHouse, archiving, flush_lsn, system_identifier, wait_until

from pitr.archive_values import ArchiveEventKind
from pitr.wal.lsn import LSN
from storage.memory import MemoryStore

QUIET = {"checkpoint_timeout": "1h", "max_wal_size": "4GB", "summarize_wal": "off"}


def slots(server: RunningPostgres) -> object:
    return server.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", SLOT)


def test_a_slot_of_which_the_server_needs_the_wal_itself_is_no_gap(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, QUIET)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        server.execute("CREATE TABLE t (i int)")
        running.wait_durable(flush_lsn(server))
        running.archiver.give_up_slot("for a test")
        wait_until(lambda: running.told.has(ArchiveEventKind.SLOT_DROPPED), "the slot to go")
        server.execute("INSERT INTO t VALUES (1)")
        running.wait_durable(flush_lsn(server))
        assert not running.told.has(ArchiveEventKind.WAL_LOST)
        assert not running.told.backups_wanted
    assert house.wal(1).assert_equals_server(server.data_dir) > 0


def test_what_is_lost_with_a_slot_is_told_to_the_byte(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, QUIET)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        server.execute("CREATE TABLE t (i int)")
        running.wait_durable(flush_lsn(server))
        server.stop()
        wait_until(lambda: not running.archiver.status().is_streaming, "the end of the stream")
        received = running.archiver.status().received
        running.archiver.give_up_slot("for a test")
        # While nobody streams, WAL goes by; a checkpoint lies after it.
        server.start({**QUIET, "max_wal_senders": "0", "wal_level": "replica"})
        for _ in range(3):
            server.execute("INSERT INTO t VALUES (1)")
            server.switch_wal()
        server.checkpoint()
        server.stop()
        server.start(QUIET)
        wait_until(lambda: running.told.backups_wanted, f"the gap to be told: {running.told.events}")
        server.execute("INSERT INTO t VALUES (2)")
        running.wait_durable(flush_lsn(server))
        facts = {event.kind: dict(event.facts) for event in running.told.events if event.facts}
    lost, dropped = facts[ArchiveEventKind.WAL_LOST], facts[ArchiveEventKind.SLOT_DROPPED]
    assert dropped == {"lost_from": str(received), "reason": "for a test", "slot": SLOT}
    assert lost["start"] == str(received)
    assert lost["timeline"] == "00000001"
    head = house.repository.latest_head(house.archive)
    assert head is not None
    assert head.wal_start == LSN.parse(lost["end"])


def test_before_the_regions_answer_the_slot_goes_at_once_and_streaming_makes_a_new_one(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, QUIET)
    store = FaultyStore(MemoryStore())
    house = WalHouse(store, system_identifier(server))
    server.execute("SELECT pg_create_physical_replication_slot(%s, true)", SLOT)
    store.go_down()
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        wait_until(lambda: running.told.has(ArchiveEventKind.STORE_FAILED), "a store that is away")
        running.archiver.give_up_slot("for a test")
        assert slots(server) == 0
        assert running.told.has(ArchiveEventKind.SLOT_DROPPED)
        store.heal()
        running.wait_streaming()
        assert slots(server) == 1
        running.wait_durable(flush_lsn(server))
