"""A heartbeat: a commit on a database that would have none, so that a time there is a place to stop.

PostgreSQL stops at a ``recovery_target_time`` only where a transaction ends.  On an idle database the last
one may be hours old, and how far the archive reaches is known only by heads.  A transactional logical message
is a commit without a table, without rights beyond CONNECT, and no row for anybody to find.

It costs a transaction id and about 200 bytes of WAL, and is left out while others commit.

Reference: PostgreSQL manual, "Replication Management Functions" (pg_logical_emit_message) and "Transaction ID
and Snapshot Information Functions"; 15 to 18.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final

import psycopg

from pitr.errors import ServerUnavailable

PREFIX: Final = "pitr.heartbeat"
_CONNECT_TIMEOUT_S: Final = 10
# Whoever waits longer than this for a commit without locks has lost its server.
_STATEMENT_TIMEOUT_MS: Final = 10_000
_LOOK: Final = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint, pg_is_in_recovery()"
# Synchronous replication must not hold it: it would wait for our own acknowledgement, while a region is away.
_LOCAL: Final = "SET LOCAL synchronous_commit = local"
_BEAT: Final = "SELECT pg_logical_emit_message(true, %s, ''), pg_current_xact_id()::text::bigint"


class Heartbeat:
    """One session that beats when asked.  A context manager; not thread-safe."""

    def __init__(self, dsn: str) -> None:
        """Connect.  Raises ServerUnavailable."""
        # What the next transaction id is if nobody else has taken one since the last look.
        self._next_xid: int | None = None
        try:
            self._session = psycopg.connect(
                dsn,
                autocommit=True,
                connect_timeout=_CONNECT_TIMEOUT_S,
                application_name="pitr heartbeat",
                options=f"-c statement_timeout={_STATEMENT_TIMEOUT_MS}",
            )
        except psycopg.Error as cause:
            raise _unavailable(cause) from cause

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def beat(self) -> bool:
        """Commit a message if nobody has begun a transaction since the last call; tell whether it was.

        On a standby nothing can be committed, and nothing is.  Raises ServerUnavailable; it may be repeated
        with a new session.
        """
        try:
            row = self._session.execute(_LOOK).fetchone()
            assert row is not None, "a SELECT without FROM gives a row"
            next_xid, is_in_recovery = row
            is_idle, self._next_xid = next_xid == self._next_xid, next_xid
            if is_in_recovery or not is_idle:
                return False
            with self._session.transaction():
                self._session.execute(_LOCAL)
                beat = self._session.execute(_BEAT, (PREFIX,)).fetchone()
            assert beat is not None, "a SELECT without FROM gives a row"
            self._next_xid = beat[1] + 1
        except psycopg.Error as cause:
            raise _unavailable(cause) from cause
        return True


def _unavailable(cause: psycopg.Error) -> ServerUnavailable:
    return ServerUnavailable("the heartbeat could not be committed", detail=str(cause).strip())
