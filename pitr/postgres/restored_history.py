"""What a restored server says of its past, before anybody writes to it.

Ask while recovery is paused at its target, or at once after the promotion: the first transaction id that is
not in the database is known only until somebody takes it.  Read-only; every statement has a deadline.

Timelines come over the replication protocol: the control file has that of the last checkpoint, which can be
an old one.  Reference: PostgreSQL manual, "Transaction ID and Snapshot Information Functions", "Recovery
Control Functions", "Streaming Replication Protocol"; 15 to 18.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import psycopg

from pitr.errors import MalformedValue, ServerRefused
from pitr.postgres.replication import ReplicationConnection
from pitr.postgres.sql_errors import mapped_errors
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId

_CONNECT_TIMEOUT_S: Final = 10
_STATEMENT_TIMEOUT_MS: Final = 60_000
# What a server writes by itself in its first minute; a write of somebody's is more, or follows soon.
WRITTEN_BYTES_MAX: Final = 1 << 20
CURSOR_ROWS_MAX: Final = 100_000
PAYLOAD_BYTES_MAX: Final = 8 << 20
_OPTIONS: Final = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "statement_timeout": str(_STATEMENT_TIMEOUT_MS),
        "lock_timeout": str(_STATEMENT_TIMEOUT_MS),
        "default_transaction_read_only": "on",
        "session_preload_libraries": "",
        "row_security": "off",
    }.items()
)
_LOOK: Final = """
    SELECT pg_is_in_recovery(),
           CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() END,
           (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                 ELSE pg_current_wal_insert_lsn() END)::text,
           pg_snapshot_xmax(pg_current_snapshot())::text::bigint"""
_STATUSES: Final = """
    SELECT xid, pg_xact_status(xid::text::xid8) FROM unnest(%s::bigint[]) AS asked(xid)"""
_HAS_FENCES: Final = "SELECT to_regclass('pitr.fence') IS NOT NULL"
_FENCES: Final = """
    SELECT id, CASE WHEN octet_length(payload) <= %s THEN payload END
    FROM pitr.fence WHERE id < %s ORDER BY id DESC LIMIT %s"""


@dataclass(frozen=True, slots=True)
class RestoredFacts:
    """Where recovery stopped: at ``end`` of ``timeline``, whose ancestors ``history`` names.

    ``fork_xid`` is the first 64-bit transaction id that is not in the database.  ``is_promoted``: it is so
    only if nobody has committed anything since.
    """

    system_identifier: int
    timeline: TimelineId
    end: LSN
    fork_xid: int
    history: TimelineHistory
    is_promoted: bool


class RestoredServer:
    """One session with a restored server.  A context manager; not thread-safe."""

    def __init__(self, dsn: str) -> None:
        """Connect.  Raises ServerUnavailable, ServerRefused."""
        self._dsn: Final = dsn
        with mapped_errors():
            self._session = psycopg.connect(
                dsn,
                autocommit=True,
                connect_timeout=_CONNECT_TIMEOUT_S,
                application_name="pitr events",
                options=_OPTIONS,
            )

    def __enter__(self) -> RestoredServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def facts(self) -> RestoredFacts:
        """Return where recovery stopped.

        Raises ServerRefused for a server that was not restored, is still in recovery, or was written to.
        """
        is_in_recovery, pause, position, xmax = self._rows(_LOOK)[0]
        connection = ReplicationConnection.connect(self._dsn)
        try:
            identity = connection.identify()
            current = identity.timeline
            content = connection.timeline_history(current) if current.number > 1 else b""
        finally:
            connection.close()
        history = TimelineHistory.parse(current, content)
        if not is_in_recovery:
            return self._promoted(identity.system_identifier, history, LSN.parse(position), int(xmax))
        if pause != "paused":
            raise ServerRefused(
                "the restored server is still in recovery",
                detail=f"it is {pause}: where it will stop is not known yet",
                hint="wait until recovery is paused at its target, or has ended",
            )
        return RestoredFacts(
            identity.system_identifier, current, LSN.parse(position), int(xmax), history, is_promoted=False
        )

    def _promoted(self, system: int, history: TimelineHistory, position: LSN, xmax: int) -> RestoredFacts:
        if not history.switches:
            raise ServerRefused(
                "the server was not restored: it is on its first timeline",
                hint="name the restored server, not the one that was lost",
            )
        last = history.switches[-1]
        written = position - last.lsn
        if written > WRITTEN_BYTES_MAX:
            raise ServerRefused(
                "somebody has written to the restored server",
                detail=f"{written} bytes of WAL since it left timeline {last.timeline} at {last.lsn}: which"
                " transaction ids were not in it then is no longer known",
                hint="restore again, and ask while recovery is paused at its target",
            )
        return RestoredFacts(
            system, last.timeline, last.lsn, xmax, history.up_to(last.timeline), is_promoted=True
        )

    def statuses(self, xids: Sequence[int]) -> dict[int, str | None]:
        """Return ``pg_xact_status`` of each, None where the server no longer knows; all below ``fork_xid``.

        Raises ServerUnavailable, ServerRefused.
        """
        return {int(xid): status for xid, status in self._rows(_STATUSES, [list(xids)])}

    def cursor(self, statement: str) -> dict[int, int]:
        """Return a sink's next offsets by partition, by the owner's own query.

        Raises ServerRefused, and MalformedValue if the rows are none of (partition, next offset).
        """
        found: dict[int, int] = {}
        with mapped_errors():
            cursor = self._session.execute(statement.encode())
            rows = cursor.fetchmany(CURSOR_ROWS_MAX + 1) if cursor.description else []
        if len(rows) > CURSOR_ROWS_MAX:
            raise MalformedValue(f"cursor_sql gives more than {CURSOR_ROWS_MAX} rows")
        for row in rows:
            good = len(row) == 2 and all(type(one) is int and 0 <= one < 1 << 63 for one in row)
            if not good or row[0] in found:
                raise MalformedValue("cursor_sql must give rows of (partition, next offset), none twice")
            found[row[0]] = row[1]
        return found

    def fence_rows(self, before: int, limit: int) -> list[tuple[int, str | None]]:
        """Return rows of ``pitr.fence`` below a number, the newest first; a text is None if too large.

        Raises ServerUnavailable, ServerRefused.
        """
        if not self._rows(_HAS_FENCES)[0][0]:
            return []
        return [
            (int(number), text) for number, text in self._rows(_FENCES, [PAYLOAD_BYTES_MAX, before, limit])
        ]

    def _rows(self, statement: str, params: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        with mapped_errors():
            return self._session.execute(statement.encode(), params).fetchall()
