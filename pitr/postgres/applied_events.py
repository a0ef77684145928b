"""The restored database while events are replayed into it: what was applied, how far, and what is held back.

All that one batch does is one transaction: effects, ids in ``pitr.applied``, rows of ``pitr.quarantine`` and
the cursor.  So after a crash either all of it is there or nothing, and a second run goes on from the cursor.
One session, with an advisory lock, so that two replays never run into one database.

Reference: docs/events.md, "Replay"; PostgreSQL manual, "COPY", "INSERT" (ON CONFLICT), "SAVEPOINT".
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final

import psycopg
from psycopg.pq import TransactionStatus

from pitr.errors import AlreadyRunning, PitrError, ServerRefused
from pitr.postgres.sql_errors import is_poison, mapped_errors

_CONNECT_TIMEOUT_S: Final = 20
STATEMENT_TIMEOUT_S: Final = 600.0
"""One batch of a handler; one that takes longer waits for somebody, or reads a whole table for each event."""
_LOCK_TIMEOUT_S: Final = 30.0
_LAST_ONE_ENDS_S: Final = 3.0
_ASK_AGAIN_S: Final = 0.05
# "pitr" and "ev" in ASCII: whoever looks at pg_locks may recognise it.
_LOCK: Final = (0x70697472, 0x6576)

_QUOTED: Final = re.compile(r'".*"', re.DOTALL)

_TABLES: Final = """
CREATE SCHEMA IF NOT EXISTS pitr;
CREATE TABLE IF NOT EXISTS pitr.applied (
    event_id text COLLATE "C" NOT NULL,
    topic text COLLATE "C" NOT NULL,
    replay_id text COLLATE "C" NOT NULL,
    PRIMARY KEY (event_id, topic)
);
CREATE TABLE IF NOT EXISTS pitr.replay (
    replay_id text COLLATE "C" PRIMARY KEY,
    plan_hash text NOT NULL,
    handlers_sha256 text NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
);
CREATE TABLE IF NOT EXISTS pitr.replay_cursor (
    replay_id text COLLATE "C" NOT NULL REFERENCES pitr.replay,
    topic text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL,
    counts jsonb NOT NULL,
    PRIMARY KEY (replay_id, topic, partition)
);
CREATE TABLE IF NOT EXISTS pitr.quarantine (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    replay_id text COLLATE "C" NOT NULL REFERENCES pitr.replay,
    topic text COLLATE "C" NOT NULL,
    partition integer NOT NULL,
    record_offset bigint NOT NULL,
    event_id text,
    event_type text,
    event_version integer NOT NULL,
    key bytea,
    value bytea,
    headers jsonb NOT NULL,
    timestamp_ms bigint NOT NULL,
    is_append_time boolean NOT NULL,
    reason text NOT NULL,
    detail text NOT NULL,
    stops_key boolean NOT NULL,
    held_at timestamptz NOT NULL DEFAULT now(),
    released_at timestamptz,
    UNIQUE (replay_id, topic, partition, record_offset)
);
CREATE INDEX IF NOT EXISTS quarantine_held ON pitr.quarantine (replay_id, id) WHERE released_at IS NULL;
"""
_STAGE: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS pitr_stage (
    step integer, seq integer, event_id text, event_type text, event_version integer,
    topic text, partition integer, record_offset bigint, timestamp_ms bigint,
    key text, key_bytes bytea, payload jsonb, headers jsonb
);
CREATE INDEX IF NOT EXISTS pitr_stage_step ON pitr_stage (step);
CREATE OR REPLACE TEMPORARY VIEW pitr_batch AS
    SELECT seq, event_id, event_type, event_version, topic, partition, record_offset,
           to_timestamp(timestamp_ms / 1000.0) AS happened_at, key, key_bytes, payload, headers
    FROM pitr_stage WHERE step = current_setting('pitr.step')::integer;
"""
_COPY: Final = (
    b"COPY pitr_stage (step, seq, event_id, event_type, event_version, topic, partition, record_offset,"
    b" timestamp_ms, key, key_bytes, payload, headers) FROM STDIN"
)
_CLAIM: Final = """
INSERT INTO pitr.applied (event_id, topic, replay_id)
SELECT event_id, %s, %s FROM unnest(%s::text[]) AS event_id
ON CONFLICT DO NOTHING RETURNING event_id
"""
_MOVE: Final = """
INSERT INTO pitr.replay_cursor (replay_id, topic, partition, next_offset, counts)
SELECT %s, one.* FROM unnest(%s::text[], %s::integer[], %s::bigint[], %s::jsonb[]) AS one
ON CONFLICT (replay_id, topic, partition)
DO UPDATE SET next_offset = excluded.next_offset, counts = excluded.counts
"""


def _fault(cause: psycopg.Error) -> str:
    """Say what a statement met, in one line.  Of data that cannot be read the server shows them in quotes."""
    text = cause.diag.message_primary or str(cause).strip() or type(cause).__name__
    if (cause.sqlstate or "").startswith("22"):
        text = _QUOTED.sub('"…"', text)
    return text.splitlines()[0][:500]


class EventsRefused(PitrError):
    """The server refuses what a handler does with some event of these, by its data: one of them is poison."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a partition is, and what was done with its records, by words."""

    topic: str
    partition: int
    next_offset: int
    counts: Mapping[str, int]


class ReplaySession:
    """One session with the restored database.  A context manager; not thread-safe.

    All methods raise ServerUnavailable and ServerRefused.
    """

    def __init__(self, dsn: str, *, statement_timeout_s: float = STATEMENT_TIMEOUT_S) -> None:
        options = {
            "statement_timeout": round(statement_timeout_s * 1000),
            "lock_timeout": round(_LOCK_TIMEOUT_S * 1000),
            "client_encoding": "UTF8",
        }
        with mapped_errors():
            self._session = psycopg.connect(
                dsn,
                autocommit=True,
                connect_timeout=_CONNECT_TIMEOUT_S,
                application_name="pitr events replay",
                options=" ".join(f"-c {name}={value}" for name, value in options.items()),
            )

    def __enter__(self) -> ReplaySession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session; what was not committed is undone.  May be repeated."""
        self._session.close()

    @property
    def connection(self) -> psycopg.Connection[tuple[object, ...]]:
        """What the owner's own function writes with, in the batch's transaction."""
        return self._session

    def system_identifier(self) -> int:
        """Return which cluster this is.  Raises ServerRefused for one that is still in recovery."""
        found = self._one("SELECT system_identifier, pg_is_in_recovery() FROM pg_control_system()")
        if found[1]:
            raise ServerRefused(
                "the restored server is still in recovery",
                detail="nothing can be written to it",
                hint="promote it, apart from its clients; then replay",
            )
        return int(str(found[0]))

    def lock(self) -> None:
        """Keep other replays out of this database until the session ends.  Raises AlreadyRunning.

        A server may learn a little late that a session is over: so the lock is asked for more than once.
        """
        deadline = time.monotonic() + _LAST_ONE_ENDS_S
        while not self._one("SELECT pg_try_advisory_lock(%s, %s)", _LOCK)[0]:
            if time.monotonic() >= deadline:
                raise AlreadyRunning(
                    "another replay runs into this database", hint="wait until it has ended, or end it"
                )
            time.sleep(_ASK_AGAIN_S)

    def is_prepared(self) -> bool:
        """Tell whether the tables are there, so that something was replayed once."""
        return self._one("SELECT to_regclass('pitr.quarantine') IS NOT NULL")[0] is True

    def prepare(self) -> None:
        """Make the tables where they are missing.  In a transaction it is undone with it."""
        with mapped_errors():
            self._session.execute("SET client_min_messages = warning")
            self._session.execute(_TABLES.encode())
            self._session.execute(_STAGE.encode())

    def knows(self, replay_id: str) -> bool:
        """Tell whether a replay of this name ever ran into this database."""
        return self.is_prepared() and bool(
            self._rows("SELECT 1 FROM pitr.replay WHERE replay_id = %s", (replay_id,))
        )

    def enter(self, replay_id: str, plan_hash: str, handlers_sha256: str) -> str:
        """Record a replay, or that it goes on; return the hash of the handlers file that it had last."""
        row = self._one(
            "INSERT INTO pitr.replay AS one (replay_id, plan_hash, handlers_sha256) VALUES (%s, %s, %s)"
            " ON CONFLICT (replay_id) DO UPDATE SET ended_at = NULL RETURNING handlers_sha256",
            (replay_id, plan_hash, handlers_sha256),
        )
        return str(row[0])

    def note_handlers(self, replay_id: str, handlers_sha256: str) -> None:
        """Record the handlers file that a replay goes on with."""
        self._run(
            "UPDATE pitr.replay SET handlers_sha256 = %s WHERE replay_id = %s", (handlers_sha256, replay_id)
        )

    def end(self, replay_id: str) -> None:
        """Record that a replay is done."""
        self._run("UPDATE pitr.replay SET ended_at = now() WHERE replay_id = %s", (replay_id,))

    def cursors(self, replay_id: str) -> list[Cursor]:
        """Return how far a replay is, in every partition that it began."""
        rows = self._rows(
            "SELECT topic, partition, next_offset, counts FROM pitr.replay_cursor WHERE replay_id = %s",
            (replay_id,),
        )
        return [
            Cursor(str(topic), int(str(partition)), int(str(offset)), dict(counts))
            for topic, partition, offset, counts in rows
            if isinstance(counts, Mapping)
        ]

    def xact_statuses(self, xids: Sequence[int]) -> dict[int, str | None]:
        """Return what ``pg_xact_status`` says of transactions, None where they are too old for it."""
        rows = self._rows(
            "SELECT xid::text::bigint, pg_xact_status(xid) FROM unnest(%s::text[]::xid8[]) AS xid",
            ([str(xid) for xid in xids],),
        )
        return {int(str(xid)): None if status is None else str(status) for xid, status in rows}

    # -- one batch

    @contextmanager
    def transaction(self, *, is_kept: bool = True) -> Iterator[None]:
        """Do all or nothing; nothing in any case unless ``is_kept``."""
        with mapped_errors():
            self._session.execute("BEGIN")
        try:
            yield
            with mapped_errors():
                if self._session.info.transaction_status is not TransactionStatus.INTRANS:
                    raise ServerRefused("a handler ended the transaction of its batch")
                self._session.execute("COMMIT" if is_kept else "ROLLBACK")
        except BaseException:
            self._undo()
            raise

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Undo what is done within if it fails.  Raises EventsRefused where an event's data are at fault.

        Constraints that wait for the end of the transaction are looked at here: there nobody could tell whose
        fault it was.
        """
        with mapped_errors():
            self._session.execute("SAVEPOINT pitr_attempt")
        try:
            yield
            self._session.execute("SET CONSTRAINTS ALL IMMEDIATE")
            self._session.execute("RELEASE SAVEPOINT pitr_attempt")
        except psycopg.Error as cause:
            if not is_poison(cause):
                with mapped_errors():
                    raise
            self.back_to_attempt()
            raise EventsRefused(_fault(cause), detail=cause.sqlstate) from cause
        except EventsRefused:
            self.back_to_attempt()
            raise

    @contextmanager
    def retraceable(self) -> Iterator[Callable[[], None]]:
        """Give a call that undoes what was done within, of an open transaction."""
        with mapped_errors():
            self._session.execute("SAVEPOINT pitr_retrace")

        def go_back() -> None:
            with mapped_errors():
                self._session.execute("ROLLBACK TO SAVEPOINT pitr_retrace")

        yield go_back
        with mapped_errors():
            self._session.execute("RELEASE SAVEPOINT pitr_retrace")

    def back_to_attempt(self) -> None:
        """Undo what was done since the attempt began."""
        with mapped_errors():
            self._session.execute("ROLLBACK TO SAVEPOINT pitr_attempt")
            self._session.execute("RELEASE SAVEPOINT pitr_attempt")

    def claim(self, replay_id: str, topic: str, ids: Sequence[str]) -> set[str]:
        """Record events of a topic as applied; return the ids of those that were not yet."""
        found = self._session.execute(_CLAIM, (topic, replay_id, list(ids))).fetchall()
        return {str(event_id) for (event_id,) in found}

    def stage(self, rows: Iterable[Sequence[object]]) -> None:
        """Fill the staged batch with rows, in the order of its columns, in place of those before."""
        cursor = self._session.cursor()
        cursor.execute("TRUNCATE pitr_stage")
        with cursor.copy(_COPY) as copy:
            for row in rows:
                copy.write_row(row)

    def run_handler(self, step: int, statements: Sequence[str]) -> None:
        """Run a handler's statements over the rows of one step."""
        self._session.execute("SELECT set_config('pitr.step', %s, true)", (str(step),))
        for statement in statements:
            # Prepared, and so by the protocol that takes one statement only.
            self._session.execute(statement.encode(), prepare=True)

    def move(self, replay_id: str, cursors: Sequence[Cursor]) -> None:
        """Record how far partitions are."""
        columns = (
            [one.topic for one in cursors],
            [one.partition for one in cursors],
            [one.next_offset for one in cursors],
            [json.dumps(dict(one.counts)) for one in cursors],
        )
        self._run(_MOVE, (replay_id, *columns))

    # -- helpers

    def _undo(self) -> None:
        if not self._session.closed and self._session.info.transaction_status is not TransactionStatus.IDLE:
            try:
                self._session.execute("ROLLBACK")
            except psycopg.Error:
                # The session is gone, and with it the transaction; what ended it is raised.
                self._session.close()

    def _one(self, statement: str, params: Sequence[object] = ()) -> tuple[object, ...]:
        rows = self._rows(statement, params)
        assert rows, "the statement gives a row"
        return rows[0]

    def _rows(self, statement: str, params: Sequence[object] = ()) -> list[tuple[object, ...]]:
        with mapped_errors():
            return self._session.execute(statement.encode(), params).fetchall()

    def _run(self, statement: str, params: Sequence[object] = ()) -> None:
        with mapped_errors():
            self._session.execute(statement.encode(), params)
