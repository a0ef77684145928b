"""Replay as SQL shows it: how far recovery of a private instance is, whether it pauses, and where it ended.

Reference: PostgreSQL manual, "Recovery Information Functions" and "Recovery Control Functions"; 15 to 18.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

import psycopg

from pitr.errors import RecoveryFailed, ServerUnavailable
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

_CONNECT_TIMEOUT_S = 5
_STATEMENT_TIMEOUT_MS = 60_000
# At the end of recovery a checkpoint writes all that replay left in memory.
_CHECKPOINT_TIMEOUT_MS = 6 * 3600 * 1000
_HINT_ROLE = "repeat with --superuser NAME; for verifications it is verify.superuser of the configuration"
_LOOK = """
    SELECT pg_is_in_recovery(),
           CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() = 'paused' ELSE false END,
           pg_last_wal_replay_lsn()::text, pg_last_xact_replay_timestamp()"""


@dataclass(frozen=True, slots=True)
class ReplayState:
    """What the server says of its replay; ``last_xact_at`` is the time of the last transaction that ended."""

    is_in_recovery: bool
    is_paused: bool
    replay_lsn: LSN | None
    last_xact_at: datetime | None


class ReplayMonitor:
    """One session with a server in recovery, opened when the server lets it in.  A context manager."""

    def __init__(self, dsn: str, *, superuser: str) -> None:
        self._dsn = dsn
        self._superuser = superuser
        self._session: psycopg.Connection[tuple[object, ...]] | None = None

    def __enter__(self) -> ReplayMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def look(self) -> ReplayState | None:
        """Return the state; None while the server lets nobody in, as before consistency.

        Raises RecoveryFailed if it will never let us in.
        """
        try:
            row = self._execute(_LOOK)
        except psycopg.OperationalError as cause:
            self._close()
            if "does not exist" in str(cause) and "role" in str(cause):
                raise RecoveryFailed(
                    f"the restored cluster has no role {self._superuser}",
                    detail=str(cause).strip(),
                    hint=_HINT_ROLE,
                ) from cause
            return None
        in_recovery, paused, lsn, last_xact_at = row
        return ReplayState(
            bool(in_recovery),
            bool(paused),
            LSN.parse(lsn) if isinstance(lsn, str) and lsn != "0/0" else None,
            last_xact_at if isinstance(last_xact_at, datetime) else None,
        )

    def checkpoint(self) -> TimelineId:
        """Make what was replayed durable; return the timeline that the cluster is on.

        Raises ServerUnavailable.
        """
        try:
            self._execute(f"SET statement_timeout = {_CHECKPOINT_TIMEOUT_MS}", returns=False)
            self._execute("CHECKPOINT", returns=False)
            (timeline,) = self._execute("SELECT timeline_id FROM pg_control_checkpoint()")
        except psycopg.Error as cause:
            raise ServerUnavailable(
                "the promoted server did not complete its checkpoint", detail=str(cause).strip()
            ) from cause
        return TimelineId(int(str(timeline)))

    def _execute(self, statement: str, *, returns: bool = True) -> tuple[object, ...]:
        if self._session is None:
            self._session = psycopg.connect(
                self._dsn,
                user=self._superuser,
                # "postgres" may have been dropped; this one cannot be by accident.
                dbname="template1",
                autocommit=True,
                connect_timeout=_CONNECT_TIMEOUT_S,
                application_name="pitr restore",
                options=f"-c statement_timeout={_STATEMENT_TIMEOUT_MS}",
            )
        cursor = self._session.execute(statement.encode())
        return (cursor.fetchone() or ()) if returns else ()

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
