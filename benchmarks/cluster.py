"""A throw-away PostgreSQL to measure on: pgbench's tables beside text and JSON that look real.

pgbench's filler compresses 40-fold, which flatters everybody; so four fifths of the bytes are ``notes``,
and each figure is given with its compression ratio.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from benchmarks.notes import COPY, TABLE, note_rows
from pitr.errors import ServerRefused
from pitr.postgres.installation import Installation, find_pg
from pitr.postgres.instance import Instance
from pitr.postgres.server_user import ServerUser, hand_over, readable_installation, server_user

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "shared_buffers": "256MB",
    "fsync": "on",
    # It would run in the midst of somebody's turn.
    "autovacuum": "off",
}

_ROWS_PER_GIB = 880_000


class BenchCluster:
    """A running server with its data; made by ``bench_cluster``."""

    def __init__(self, instance: Instance, installation: Installation, user: ServerUser | None) -> None:
        self.instance = instance
        self.installation = installation
        self.user = user

    @property
    def dsn(self) -> str:
        return f"host=127.0.0.1 port={self.instance.port} user=postgres dbname=postgres"

    @property
    def postmaster_pid(self) -> int:
        pid = self.instance.pid
        assert pid is not None, "the server has ended"
        return pid

    def execute(self, sql: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return list(cursor.fetchall()) if cursor.description else []

    def wal_position(self) -> int:
        """Return where the flushed WAL ends, as an offset."""
        return int(str(self.execute("SELECT pg_current_wal_flush_lsn() - '0/0'")[0][0]))

    def pgbench(self, *options: str) -> subprocess.Popen[bytes]:
        """Start pgbench over TCP; the caller waits for it or ends it."""
        return subprocess.Popen(
            [
                str(self.installation.tool("pgbench")),
                "-h", "127.0.0.1", "-p", str(self.instance.port), "-U", "postgres", *options, "postgres",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def fill(self, size_bytes: int) -> None:
        """Write about ``size_bytes`` of tables and indexes: a fifth of pgbench's, the rest notes."""
        scale = max(1, size_bytes // 5 // (15 * 1024 * 1024))
        if self.pgbench("-i", "-q", "-s", str(scale)).wait(timeout=900) != 0:
            raise RuntimeError("pgbench -i failed")
        self.write_notes("notes", size_bytes * 4 // 5)
        # All hint bits are set: no tool's run pays for the first look at new rows.
        self.execute("VACUUM (FREEZE, ANALYZE)")
        self.execute("CHECKPOINT")

    def write_notes(self, table: str, size_bytes: int) -> None:
        """Make a table of about ``size_bytes``, its index included; as much WAL goes with it."""
        rows = size_bytes * _ROWS_PER_GIB // (1 << 30)
        with psycopg.connect(self.dsn) as connection:
            connection.execute(TABLE.format(table=table).encode())
            with connection.cursor().copy(COPY.format(table=table).encode()) as copy:
                for block in note_rows(rows, table):
                    copy.write(block)
            connection.execute(f"CREATE INDEX ON {table} (written_at)".encode())


def missing_major(major: int) -> str | None:
    """Return what to do to have PostgreSQL ``major``, or None if it is there."""
    preferred = os.environ.get("PITR_PG_BIN")
    try:
        find_pg(major, preferred=Path(preferred) if preferred else None)
    except ServerRefused:
        return f"PostgreSQL {major} not installed: apt-get install postgresql-{major}"
    return None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def bench_cluster(
    work: Path, *, major: int = 17, settings: dict[str, str] | None = None
) -> Iterator[BenchCluster]:
    """Start an empty cluster below ``work`` and stop it at the end."""
    preferred = os.environ.get("PITR_PG_BIN")
    user = server_user()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pitr"
    found = find_pg(major, preferred=Path(preferred) if preferred else None)
    installation = readable_installation(found, user, lambda: cache)
    with tempfile.TemporaryDirectory(prefix="pb-") as sockets:
        hand_over(Path(sockets), user)
        log_path = work / "server.log"
        log_path.touch()
        hand_over(log_path, user)
        instance = Instance(
            installation,
            work / "data",
            user=user,
            socket_dir=Path(sockets),
            port=free_port(),
            log_path=log_path,
        )
        instance.init()
        instance.start({**_SETTINGS, **(settings or {})})
        try:
            yield BenchCluster(instance, installation, user)
        finally:
            if instance.is_running:
                instance.stop("immediate")
