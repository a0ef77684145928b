"""The archiver on real servers: what it holds at quorum is byte for byte what the server wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from fix_postgres import PostgresFactory
from fix_stores import FaultyStore
from fix_wal_archive import (
    Load,
    WalHouse,
    archiving,
    flush_lsn,
    quick_settings,
    system_identifier,
    wait_until,
)

from storage.memory import MemoryStore

IN_FLIGHT = 3


@pytest.mark.parametrize(("major", "segment_mib"), [(17, 16), (18, 16), (18, 1)])
def test_streamed_wal_is_byte_for_byte_the_servers(
    postgres_factory: PostgresFactory, tmp_path: Path, major: int, segment_mib: int
) -> None:
    initdb = [f"--wal-segsize={segment_mib}"]
    server = postgres_factory(major, {"wal_keep_size": "1GB"}, initdb=initdb)
    house = WalHouse(MemoryStore(), system_identifier(server))
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        with Load(server) as load:
            load.wait_commits(200)
            server.switch_wal()
            load.wait_commits(200)
        end = flush_lsn(server)
        running.wait_durable(end)
        drained = running.stop()
    assert drained.is_complete
    assert drained.durable is not None
    assert drained.durable >= end
    wal = house.wal(1)
    assert wal.assert_equals_server(server.data_dir, segment_mib << 20) > 0
    assert wal.segments
    head = house.repository.latest_head(house.archive)
    assert head is not None
    assert head.wal_end == wal.end == drained.durable
    assert head.wal_start == wal.start


def test_some_puts_are_under_way_at_once_and_received_is_not_durable(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17)
    store = FaultyStore(MemoryStore())
    house = WalHouse(store, system_identifier(server))
    settings = quick_settings(piece_bytes=64 << 10, puts_in_flight=IN_FLIGHT)
    with archiving(house, server.dsn, tmp_path / "spool", settings=settings) as running:
        running.wait_streaming()
        running.wait_durable(flush_lsn(server))
        store.hold("put")
        begun = len(store.calls)

        def under_way() -> list[str]:
            return [key for call, key in store.calls[begun:] if call == "put" and key.startswith("wal/")]

        with Load(server, row_bytes=4000) as load:
            wait_until(lambda: len(under_way()) >= IN_FLIGHT, "puts")
            load.wait_commits(200)
        end = flush_lsn(server)

        def told() -> tuple[object, ...]:
            return server.execute(
                "SELECT write_lsn >= %s::pg_lsn, flush_lsn < write_lsn, coalesce(replay_lsn, '0/0') = '0/0'"
                " FROM pg_stat_replication",
                str(end),
            )[0]

        wait_until(lambda: told()[0], "the server to be told what was received")
        assert told() == (True, True, True)
        assert len(under_way()) == IN_FLIGHT
        store.heal()
        running.wait_durable(end)
    assert house.wal(1).assert_equals_server(server.data_dir) > 0


def test_what_waits_for_the_store_goes_in_larger_pieces(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17)
    store = FaultyStore(MemoryStore())
    house = WalHouse(store, system_identifier(server))
    settings = quick_settings(piece_bytes=64 << 10, piece_bytes_max=512 << 10, puts_in_flight=1)
    with archiving(house, server.dsn, tmp_path / "spool", settings=settings) as running:
        running.wait_streaming()
        running.wait_durable(flush_lsn(server))
        store.hold("put")
        with Load(server, row_bytes=8000) as load:
            load.wait_commits(400)
        end = flush_lsn(server)
        store.heal()
        running.wait_durable(end)
    wal = house.wal(1)
    assert max(header.end - header.start for header, _ in wal.pieces) == 512 << 10
    assert wal.assert_equals_server(server.data_dir) > 0
