"""A server's pg_wal read as files, beside what the server itself sends."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, RunningPostgres
from fix_standby import caught_up, make_standby
from fix_wal_archive import wait_until

from pitr.errors import ServerRefused
from pitr.postgres.replication import ReplicationConnection
from pitr.postgres.server import Server
from pitr.postgres.wal_folder import WalFolder
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineHistory, TimelineId

ONE, TWO, SIZE = TimelineId(1), TimelineId(2), 16 << 20
SETTINGS = {"wal_keep_size": "1GB", "autovacuum": "off"}


def sent(server: RunningPostgres, start: LSN, end: LSN, timeline: TimelineId) -> bytes:
    with closing(ReplicationConnection.connect(server.dsn)) as connection:
        return connection.read_wal(start, end, timeline)


def flushed(server: RunningPostgres) -> LSN:
    with Server.connect(server.dsn) as session:
        return session.wal_position()[1]


def test_files_hold_what_the_server_sends_also_of_a_timeline_that_was_left(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    primary = postgres_factory(17, SETTINGS)
    standby = make_standby(postgres_factory, primary, SETTINGS)
    with Server.connect(standby.dsn) as session:
        assert session.wal_position()[::2] == (ONE, True)
    primary.execute("CREATE TABLE t AS SELECT generate_series(1, 10000)")
    caught_up(primary, standby)
    primary.stop()
    standby.instance.promote()
    wait_until(lambda: not standby.value("SELECT pg_is_in_recovery()"), "the promotion")
    standby.execute("INSERT INTO t VALUES (0)")
    with Server.connect(standby.dsn) as session:
        timeline, end, is_standby = session.wal_position()
    assert (timeline, is_standby) == (TWO, False)
    folder = WalFolder(standby.data_dir / "pg_wal", SIZE)
    with closing(ReplicationConnection.connect(standby.dsn)) as connection:
        content = connection.timeline_history(TWO)
    assert folder.timeline_history(TWO) == content
    history = TimelineHistory.parse(TWO, content)
    left_at = history.end_of(ONE)
    assert left_at is not None
    begin = LSN(left_at.offset // SIZE * SIZE)
    # The end of timeline 1 lies in the first file of timeline 2, or in the .partial one.
    for start, stop, of in (
        (begin, left_at, ONE),
        (LSN(begin.offset + 777), LSN(left_at.offset - 333), ONE),
        (left_at, end, TWO),
    ):
        assert folder.read_wal(start, stop, history, of) == sent(standby, start, stop, of)
    # Nothing of timeline 1 is beyond the fork, and there is no file yet of what is to come.
    assert folder.read_wal(left_at, end, history, ONE) is None
    later = begin.offset + 100 * SIZE
    assert folder.read_wal(LSN(later), LSN(later + 8192), history, TWO) is None

    # A file that was renamed for WAL to come still holds other WAL.
    copy = tmp_path / "pg_wal"
    copy.mkdir()
    name, following = (SegmentName.of(TWO, begin.offset // SIZE + more, SIZE) for more in (0, 1))
    shutil.copy(standby.data_dir / "pg_wal" / str(name), copy / str(following))
    old = WalFolder(copy, SIZE)
    start = begin.offset + SIZE
    assert old.read_wal(LSN(start), LSN(start + 8192), history, TWO) is None
    assert old.read_wal(LSN(start + 100), LSN(start + 90000), history, TWO) is None
    with pytest.raises(ServerRefused, match="history"):
        old.timeline_history(TWO)
