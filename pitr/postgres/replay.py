"""Replay as SQL shows it: how far recovery of a private instance is, whether it pauses, and where it ended.

Reference: PostgreSQL manual, "Recovery Information Functions" and "Recovery Control Functions"; 15 to 18.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pitr.errors import RecoveryFailed, ServerUnavailable
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

_CONNECT_TIMEOUT_S = 5
_STATEMENT_TIMEOUT_MS = 60_000
# At the end of recovery a checkpoint writes all that replay left in memory.
_CHECKPOINT_TIMEOUT_MS = 6 * 3600 * 1000
# The second may have been dropped; the first cannot be by accident, though it may be closed to all.
_DATABASES = ("template1", "postgres")
# An ALTER ROLE or ALTER DATABASE in the restored cluster must not decide what is asked and answered.
_OPTIONS = {
    "statement_timeout": str(_STATEMENT_TIMEOUT_MS),
    "idle_session_timeout": "0",
    "lock_timeout": "0",
    "search_path": "pg_catalog",
    "role": "none",
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    # Serializable, a standby refuses everything.
    "default_transaction_isolation": r"read\ committed",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
}
# Since 17: a transaction's own limit, and triggers on login.
_OPTIONS_17 = {"transaction_timeout": "0", "event_triggers": "off"}
# What a server says is in English: lc_messages is C (``pitr.recover``).  SQLSTATE 57P03, which libpq does not
# hand on for a connection that was not made.
_NOT_YET = "FATAL:  the database system is "
_NO_DATABASE = re.compile(r'FATAL: +(?:database|cannot connect to invalid database) "')
_NO_ROLE = re.compile(r'FATAL: +role "')
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

    def __init__(self, dsn: str, *, major: int) -> None:
        """Ask as the role that ``dsn`` names."""
        self._dsn = dsn
        self._options = _OPTIONS | (_OPTIONS_17 if major >= 17 else {})
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
        except psycopg.OperationalError:
            self._close()  # the session has ended, or was cancelled for replay to go on
            return None
        except psycopg.Error as cause:
            raise RecoveryFailed(
                "the restored cluster does not answer how far it is", detail=str(cause).strip()
            ) from cause
        if row is None:
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
            self._execute(f"SELECT set_config('statement_timeout', '{_CHECKPOINT_TIMEOUT_MS}', false)")
            self._execute("CHECKPOINT")
            answer = self._execute("SELECT timeline_id FROM pg_control_checkpoint()")
        except psycopg.Error as cause:
            raise ServerUnavailable(
                "the promoted server did not complete its checkpoint", detail=str(cause).strip()
            ) from cause
        if not answer:
            raise ServerUnavailable("the promoted server lets nobody in")
        return TimelineId(int(str(answer[0])))

    def _execute(self, statement: str) -> tuple[object, ...] | None:
        """Return the first row, () if there is none; None if the server lets nobody in yet."""
        if self._session is None:
            self._session = self._connect()
        if self._session is None:
            return None
        cursor = self._session.execute(statement.encode())
        return (cursor.fetchone() if cursor.description else None) or ()

    def _connect(self) -> psycopg.Connection[tuple[object, ...]] | None:
        """Open a session with any database; None if it is too early.  Raises RecoveryFailed."""
        refusal = ""
        for database in _DATABASES:
            try:
                return psycopg.connect(
                    self._dsn,
                    dbname=database,
                    autocommit=True,
                    connect_timeout=_CONNECT_TIMEOUT_S,
                    application_name="pitr restore",
                    options=" ".join(f"-c {name}={value}" for name, value in self._options.items()),
                )
            except psycopg.OperationalError as cause:
                refusal = str(cause).strip()
            if "FATAL:" not in refusal or _NOT_YET in refusal:
                return None  # no socket, no answer in time, or the server says that it is not ready
            if _NO_DATABASE.search(refusal) is None:
                break
        is_role = _NO_ROLE.search(refusal) is not None
        raise RecoveryFailed(
            f"the restored cluster does not let {conninfo_to_dict(self._dsn).get('user')} in",
            detail=refusal,
            hint=_HINT_ROLE if is_role else "mend that on the primary, and restore to a later moment",
        )

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
