"""A server that lacks its ancestors' history files, as a cloned standby or a restored server does."""

from __future__ import annotations

from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, RunningPostgres
from fix_wal_archive import WalHouse, archiving, flush_lsn, system_identifier

from pitr.archive_values import ArchiveEventKind
from pitr.postgres.replication import ReplicationConnection
from pitr.postgres.replication_errors import HistoryMissing
from pitr.postgres.server_user import hand_over
from pitr.wal.timeline import TimelineHistory, TimelineId
from storage.memory import MemoryStore

KEEP_WAL = {"wal_keep_size": "1GB"}
TWO, THREE = TimelineId(2), TimelineId(3)


def promote_again(server: RunningPostgres) -> None:
    """Let the server take the next timeline."""
    server.stop()
    signal = server.data_dir / "standby.signal"
    signal.touch()
    hand_over(signal, server.instance.user)
    server.start(KEEP_WAL)
    server.instance.promote()


def test_an_ancestors_history_that_the_server_lacks_costs_no_wal(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory(17, KEEP_WAL)
    house = WalHouse(MemoryStore(), system_identifier(server))
    for _ in range(2):
        promote_again(server)
    ancestor = server.data_dir / "pg_wal" / f"{TWO}.history"
    content = ancestor.read_bytes()
    ancestor.unlink()
    with archiving(house, server.dsn, tmp_path / "spool") as running:
        running.wait_streaming()
        server.execute("CREATE TABLE t (i int)")
        running.wait_durable(flush_lsn(server))
        # It comes back, and the daemon connects again: nothing is made anew, and nothing is said to be lost.
        ancestor.write_bytes(content)
        hand_over(ancestor, server.instance.user)
        server.restart("fast")
        server.execute("INSERT INTO t VALUES (1)")
        running.wait_durable(flush_lsn(server))
        assert [one.kind for one in running.told.events].count(ArchiveEventKind.SLOT_CREATED) == 1
        assert not running.told.has(ArchiveEventKind.WAL_LOST)
    assert house.wal(3).assert_equals_server(server.data_dir) > 0
    archived = {one.timeline: one for one in house.repository.histories(house.archive)}
    assert archived[THREE].up_to(TWO) == archived[TWO] == TimelineHistory.parse(TWO, content)


def test_a_history_that_is_not_there_is_no_lost_wal(postgres_factory: PostgresFactory) -> None:
    connection = ReplicationConnection.connect(postgres_factory(17).dsn)
    try:
        with pytest.raises(HistoryMissing):
            connection.timeline_history(TWO)
        assert connection.identify().timeline == TimelineId(1)
    finally:
        connection.close()
