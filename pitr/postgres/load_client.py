"""A client of a restored server, as an application is one: it reads, writes durably, and connects again.

A write leaves nothing behind in any table: it is a transactional logical message, which takes a transaction
id, writes WAL and is flushed at commit as every commit is.  Reference: PostgreSQL manual, "Replication
Management Functions", pg_logical_emit_message.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import psycopg

_CONNECT_TIMEOUT_S = 2
_ROWS_MAX = 1000
_WRITE = "SELECT pg_catalog.pg_logical_emit_message(true, 'pitr drill', '')"


class LoadClient:
    """One client with one connection, which it makes again after an error.  Not thread-safe."""

    def __init__(self, *, database: str, query: str, timeout_s: float) -> None:
        self._database = database
        self._query = query.encode()
        self._timeout_s = timeout_s
        self._session: psycopg.Connection | None = None

    def request(self, dsn: str) -> str | None:
        """Read, then write; return None, "read-only" in recovery, or the class of the error."""
        try:
            session = self._session or self._connect(dsn)
            cursor = session.execute("SELECT pg_catalog.pg_is_in_recovery()")
            in_recovery = bool(cursor.fetchall()[0][0])
            cursor = session.execute(self._query)
            if cursor.description:
                cursor.fetchmany(_ROWS_MAX)
            if in_recovery:
                return "read-only"
            session.execute(_WRITE)
        except psycopg.Error as cause:
            self.close()
            return _class_of(cause)
        return None

    def close(self) -> None:
        """End the connection.  May be repeated."""
        if self._session is not None:
            with suppress(psycopg.Error):
                self._session.close()
            self._session = None

    def _connect(self, dsn: str) -> psycopg.Connection:
        options = {
            "statement_timeout": str(round(self._timeout_s * 1000)),
            "synchronous_commit": "on",
            "default_transaction_read_only": "off",
            "session_preload_libraries": "",
        }
        self._session = psycopg.connect(
            dsn,
            dbname=self._database,
            autocommit=True,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name="pitr drill",
            options=" ".join(f"-c {name}={value}" for name, value in options.items()),
        )
        return self._session


def probe_latencies_us(
    dsn: str, *, count: int, pause_s: float, sleep: Callable[[float], object]
) -> list[int]:
    """Return how long ``SELECT 1`` took on a server, each time, in a read-only session; [] if it cannot."""
    found: list[int] = []
    try:
        with psycopg.connect(
            dsn,
            autocommit=True,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name="pitr drill",
            options="-c default_transaction_read_only=on -c statement_timeout=2000",
        ) as session:
            for _ in range(count):
                begun = time.monotonic()
                session.execute("SELECT 1").fetchall()
                found.append(round((time.monotonic() - begun) * 1_000_000))
                sleep(pause_s)
    except psycopg.Error:
        return []
    return found


def _class_of(cause: psycopg.Error) -> str:
    """Return a short name of an error that holds nothing of the cluster's."""
    if cause.sqlstate is not None:
        return f"SQLSTATE {cause.sqlstate}"
    return "no connection" if isinstance(cause, psycopg.OperationalError) else type(cause).__name__
