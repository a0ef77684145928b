"""The archiver on real servers: what it holds at quorum is byte for byte what the server wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from fix_postgres import PostgresFactory
from fix_wal_archive import Load, WalHouse, archiving, flush_lsn, system_identifier

from storage.memory import MemoryStore


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
