"""What a restored server says of its past.

Ask while recovery is paused at its target, or soon after the promotion: the first transaction id that is not
in the database is known until somebody takes it, and then from the WAL since the fork, as long as the server
has that.  Changes no data; every statement has a deadline.

Timelines come over the replication protocol: the control file has that of the last checkpoint, which can be
an old one.  Reference: PostgreSQL manual, "Transaction ID and Snapshot Information Functions", "Recovery
Control Functions", "Streaming Replication Protocol"; 15 to 18.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar

import psycopg

from pitr.errors import MalformedValue, ServerRefused, ServerUnavailable
from pitr.postgres.fence_mark import PREFIX
from pitr.postgres.replication import ReplicationConnection
from pitr.postgres.replication_errors import WalRemoved
from pitr.postgres.sql_errors import mapped_errors
from pitr.wal.changes import RelationFile
from pitr.wal.clients import OwnMarks, client_xids
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId
from pitr.wal.xids import RunningIds, first_xid_since, nearest_xid, page_start, written_end

_T = TypeVar("_T")
_CONNECT_TIMEOUT_S: Final = 10
_STATEMENT_TIMEOUT_MS: Final = 60_000
# WAL since the fork that is read: a second's work.  A server's own housekeeping stays far below it.
WRITTEN_BYTES_MAX: Final = 64 << 20
# Pages of hints wait for the snapshot that the background writer logs every 15 s, 25 s at worst, unless it
# can be asked for.
_FLUSH_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.2
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
# Ids of prepared transactions have 32 bits.
_IDS: Final = """
    SELECT pg_snapshot_xmax(seen)::text::bigint,
           ARRAY(SELECT xid::text::bigint FROM pg_snapshot_xip(seen) AS xid),
           ARRAY(SELECT transaction::text::bigint FROM pg_prepared_xacts)
    FROM (SELECT pg_current_snapshot() AS seen) AS snapshot"""
_INSERTED: Final = "SELECT pg_current_wal_insert_lsn()::text"
_FLUSHED: Final = "SELECT pg_current_wal_flush_lsn()::text"
_STATUSES: Final = """
    SELECT xid, pg_xact_status(xid::text::xid8) FROM unnest(%s::bigint[]) AS asked(xid)"""
# Since 16; owners and whom they allow.
_MAY_HASTEN: Final = """
    SELECT has_function_privilege(to_regprocedure('pg_log_standby_snapshot()')::oid, 'EXECUTE')"""
_HASTEN: Final = "SELECT pg_log_standby_snapshot()::text"
_AGAIN: Final = "restore again, and ask while recovery is paused at its target"
# In WAL a relation's tablespace is never 0, the database's default.
_OWN_RELATIONS: Final = """
    WITH own AS (SELECT c.oid, c.reltoastrelid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = 'pitr' AND c.relkind IN ('r', 'S'))
    SELECT CASE c.reltablespace WHEN 0 THEN d.dattablespace ELSE c.reltablespace END::bigint,
           d.oid::bigint, pg_relation_filenode(c.oid)::bigint
    FROM pg_class c, pg_database d
    WHERE d.datname = current_database() AND pg_relation_filenode(c.oid) IS NOT NULL
      AND (c.oid IN (SELECT oid FROM own) OR c.oid IN (SELECT reltoastrelid FROM own))"""
# A plain table of these two types runs nobody's code when it is read; a view in its place would, as whoever
# asks, and that is the superuser of a cluster that was restored.  No relation: no row.
_FENCE_TABLE: Final = """
    SELECT c.relkind = 'r' AND 2 = (
        SELECT count(*) FROM pg_attribute AS a WHERE a.attrelid = c.oid AND NOT a.attisdropped
        AND (a.attname, a.atttypid) IN (('id', 'int8'::regtype), ('payload', 'text'::regtype)))
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'pitr' AND c.relname = 'fence'"""
_FENCES: Final = """
    SELECT id, CASE WHEN octet_length(payload) <= %s THEN payload END
    FROM ONLY pitr.fence WHERE id < %s ORDER BY id DESC LIMIT %s"""
# Where names are looked for is the database's own setting, and its owner's word: ours are PostgreSQL's alone.
_OWN_PATH: Final = """
    SELECT pg_catalog.current_setting('search_path'),
           pg_catalog.set_config('search_path', 'pg_catalog', false)"""
_PATH: Final = "SELECT pg_catalog.set_config('search_path', %s, true)"


def left_at(dsn: str, timeline: TimelineId) -> LSN | None:
    """Return where a server, which was promoted since, left a timeline; None if it is on it, or never was.

    Raises ServerUnavailable, ServerRefused, MalformedValue.
    """
    with closing(ReplicationConnection.connect(dsn)) as connection:
        current = connection.identify().timeline
        content = connection.timeline_history(current) if current.number > 1 else b""
    switches = TimelineHistory.parse(current, content).switches
    return next((one.lsn for one in switches if one.timeline == timeline), None)


@dataclass(frozen=True, slots=True)
class RestoredFacts:
    """Where recovery stopped: at ``end`` of ``timeline``, whose ancestors ``history`` names.

    ``fork_xid`` is the first 64-bit transaction id that was not in the database then.  ``is_promoted``: it
    went on from there, and others may have taken ids since.
    """

    system_identifier: int
    timeline: TimelineId
    end: LSN
    fork_xid: int
    history: TimelineHistory
    is_promoted: bool


@dataclass(frozen=True, slots=True)
class SincePromotion:
    """What clients committed on ``timeline``, which the server itself has begun, up to ``until``."""

    timeline: TimelineId
    until: LSN
    xids: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Since:
    """A promoted server's own WAL, from ``begin`` to ``end``."""

    connection: ReplicationConnection
    timeline: TimelineId
    begin: LSN
    end: LSN
    ids: RunningIds
    segment_bytes: int

    def read(self, look: Callable[[Iterator[tuple[LSN, bytes]]], _T]) -> _T:
        """Return what ``look`` makes of it.  Raises ServerRefused if the server no longer has it."""
        try:
            return look(self.connection.iter_wal(page_start(self.begin), self.end, self.timeline))
        except WalRemoved as cause:
            raise ServerRefused(
                "the restored server no longer has the WAL since its promotion",
                detail=f"without it nobody can tell what is new in it: {cause}",
                hint=_AGAIN,
            ) from cause


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
        self._search_path: Final = str(self._rows(_OWN_PATH)[0][0])
        self.has_strange_fences = False
        """Whether what is called ``pitr.fence`` was found to be something else, and was not read."""

    def __enter__(self) -> RestoredServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def facts(self) -> RestoredFacts:
        """Return where recovery stopped.

        Raises ServerRefused for a server that was not restored, is still in recovery, or has written more
        since than is read, or than it still has; ServerUnavailable; MalformedValue for damaged WAL.
        """
        is_in_recovery, pause, position, xmax = self._rows(_LOOK)[0]
        with closing(ReplicationConnection.connect(self._dsn)) as connection:
            identity = connection.identify()
            current = identity.timeline
            content = connection.timeline_history(current) if current.number > 1 else b""
            history = TimelineHistory.parse(current, content)
            if not is_in_recovery:
                return self._promoted(connection, identity.system_identifier, history)
        if pause != "paused":
            raise ServerRefused(
                "the restored server is still in recovery",
                detail=f"it is {pause}: where it will stop is not known yet",
                hint="wait until recovery is paused at its target, or has ended",
            )
        return RestoredFacts(
            identity.system_identifier, current, LSN.parse(position), int(xmax), history, is_promoted=False
        )

    def since_promotion(self) -> SincePromotion | None:
        """Return what clients have committed since the promotion; None while recovery is paused.

        Raises as ``facts``.
        """
        if self._rows(_LOOK)[0][0]:
            return None
        with closing(ReplicationConnection.connect(self._dsn)) as connection:
            current = connection.identify().timeline
            history = TimelineHistory.parse(current, connection.timeline_history(current))
            since = self._since(connection, history)
            relations = frozenset(RelationFile(*row) for row in self._rows(_OWN_RELATIONS))
            xids = since.read(
                lambda wal: client_xids(
                    wal,
                    since.begin,
                    since.ids.xmax,
                    OwnMarks(relations, PREFIX),
                    segment_bytes=since.segment_bytes,
                )
            )
        return SincePromotion(current, since.end, xids)

    def _promoted(
        self, connection: ReplicationConnection, system: int, history: TimelineHistory
    ) -> RestoredFacts:
        if not history.switches:
            raise ServerRefused(
                "the server was not restored: it is on its first timeline",
                hint="name the restored server, not the one that was lost",
            )
        last = history.switches[-1]
        since = self._since(connection, history)
        fork_xid = since.read(
            lambda wal: first_xid_since(
                wal, since.begin, since.end, since.ids, segment_bytes=since.segment_bytes
            )
        )
        return RestoredFacts(
            system, last.timeline, last.lsn, fork_xid, history.up_to(last.timeline), is_promoted=True
        )

    def _since(self, connection: ReplicationConnection, history: TimelineHistory) -> _Since:
        """Return the WAL since the promotion, once it can be read, and who had ended before its end."""
        last = history.switches[-1]
        # The snapshot first: what it calls ended is in the WAL before the end that is asked then.
        xmax, running, prepared = self._rows(_IDS)[0]
        ids = RunningIds(
            int(xmax), frozenset(running), frozenset(nearest_xid(one, int(xmax)) for one in prepared)
        )
        segment_bytes = connection.segment_bytes()
        end = written_end(LSN.parse(self._rows(_INSERTED)[0][0]), segment_bytes)
        written = end - last.lsn
        if written > WRITTEN_BYTES_MAX:
            raise ServerRefused(
                "too much was written to the restored server to tell what is new in it",
                detail=f"{written} bytes of WAL since it left timeline {last.timeline} at {last.lsn}, and at"
                f" most {WRITTEN_BYTES_MAX} are read",
                hint=_AGAIN,
            )
        self._wait_flushed(end)
        return _Since(connection, history.timeline, last.lsn, end, ids, segment_bytes)

    def _wait_flushed(self, end: LSN) -> None:
        """Wait until WAL can be read up to ``end``: a transaction that wrote nothing does not wait itself."""
        if self._flushed() < end and self._rows(_MAY_HASTEN)[0][0]:
            # What the server would do by itself a little later; it flushes all before.
            self._rows(_HASTEN)
        deadline = time.monotonic() + _FLUSH_TIMEOUT_S
        while (flushed := self._flushed()) < end:
            if time.monotonic() >= deadline:
                raise ServerUnavailable(
                    f"the restored server did not flush its WAL within {_FLUSH_TIMEOUT_S:g} s",
                    detail=f"up to {flushed}, and {end} is needed to tell what is new in it",
                    hint="end its clients' open transactions, and ask again",
                )
            time.sleep(_POLL_S)

    def _flushed(self) -> LSN:
        return LSN.parse(self._rows(_FLUSHED)[0][0])

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
        with mapped_errors(), self._session.transaction():
            self._rows(_PATH, [self._search_path])
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

        None if what has that name is no table of fences.  Raises ServerUnavailable, ServerRefused.
        """
        found = self._rows(_FENCE_TABLE)
        self.has_strange_fences = any(not is_plain for (is_plain,) in found)
        if not found or self.has_strange_fences:
            return []
        return [
            (int(number), text) for number, text in self._rows(_FENCES, [PAYLOAD_BYTES_MAX, before, limit])
        ]

    def _rows(self, statement: str, params: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
        with mapped_errors():
            return self._session.execute(statement.encode(), params).fetchall()
