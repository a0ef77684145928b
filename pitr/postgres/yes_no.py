"""A question with the answer yes or no, put to a scratch server, and which relations it looked at.

Read-only, with a time limit, in the extended protocol: one statement, which must be a query.
Reference: PostgreSQL manual, "DECLARE", "pg_locks", "PostgreSQL Error Codes".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from pitr.errors import PitrError
from pitr.wal.changes import RelationFile, Standing

RELATIONS_MAX: Final = 100_000
SQL_CHARS_MAX: Final = 100_000
_CONNECT_TIMEOUT_S: Final = 20
# A lock that a standby has replayed is held as long as replay stands still.
_LOCK_TIMEOUT_S: Final = 3.0
_BOOLEAN: Final = 16
_SYNTAX_ERROR: Final = "42601"
_DECLARE: Final = "DECLARE pitr_question NO SCROLL CURSOR FOR "
_STANDING: Final = """
SELECT oid::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint
FROM pg_database WHERE datname = current_database()"""
# What a query has read it holds a lock on until the transaction ends.  pg_statistic and
# pg_statistic_ext_data (2619, 3429) change with every ANALYZE, and no answer.
_RELATIONS: Final = """
SELECT CASE WHEN c.relisshared THEN 0 ELSE d.oid END::bigint,
       CASE WHEN c.reltablespace = 0 THEN d.dattablespace ELSE c.reltablespace END::bigint,
       pg_relation_filenode(c.oid)::bigint,
       coalesce(quote_ident(tn.nspname) || '.' || quote_ident(t.relname) || ' (TOAST)',
                quote_ident(n.nspname) || '.' || quote_ident(c.relname)),
       c.oid IN (SELECT relation FROM pg_locks WHERE locktype = 'relation' AND pid = pg_backend_pid())
           AND c.oid >= 16384,
       c.oid >= 16384 OR ARRAY[c.oid, coalesce(i.indrelid, 0), coalesce(t.oid, 0)]
                         && ARRAY[2619, 3429]::oid[]
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_database d ON d.datname = current_database()
LEFT JOIN pg_class t ON t.reltoastrelid = c.oid AND c.relkind = 't'
LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace
LEFT JOIN pg_index i ON i.indexrelid = c.oid
WHERE pg_relation_filenode(c.oid) IS NOT NULL
LIMIT %s"""


class QuestionRefused(PitrError):
    """The query cannot be a question: it is no query, or has not one boolean column."""


class QuestionTooSlow(PitrError):
    """The answer did not come in time, which is neither yes nor no."""


class QuestionBlocked(PitrError):
    """A transaction that has not ended at this moment has a table locked: nobody reads it in recovery."""


class AnswerKind(StrEnum):
    """How a question was answered."""

    YES = "true"
    NO = "false"
    NULL = "null"
    ERROR = "error"
    ROWS = "not one row"


@dataclass(frozen=True, slots=True)
class Question:
    """The query, and the database that it is put to."""

    sql: str
    database: str = "postgres"
    timeout_s: float = 300.0
    search_path: str = "public"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, in words where it is neither yes nor no; ``standing`` None where it could not be told."""

    kind: AnswerKind
    words: str
    standing: Standing | None = None


def ask(dsn: str, question: Question, *, superuser: str) -> Answer:
    """Put the question.

    Raises QuestionRefused, QuestionTooSlow, QuestionBlocked; PitrError where nobody answers.
    """
    try:
        session = _connect(dsn, question, superuser)
    except psycopg.Error as cause:
        text = str(cause).strip()
        if f'database "{question.database}" does not exist' in text:
            return Answer(AnswerKind.ERROR, f"there is no database {question.database}")
        raise PitrError(f"no session with database {question.database}", detail=text) from cause
    with session:
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            kind, words = _fetch(session, question)
        except psycopg.errors.LockNotAvailable as cause:
            raise QuestionBlocked(
                "the query waits for a lock", detail=str(cause).strip().splitlines()[0]
            ) from cause
        except psycopg.errors.QueryCanceled as cause:
            raise QuestionTooSlow(
                f"the query took longer than {question.timeout_s:g} s",
                hint="give it more time: --timeout DURATION",
            ) from cause
        except psycopg.Error as cause:
            if cause.sqlstate == _SYNTAX_ERROR:
                raise _refused(cause) from cause
            lines = str(cause).strip().splitlines()
            return Answer(AnswerKind.ERROR, lines[0] if lines else type(cause).__name__)
        try:
            standing = _look(session)
        except psycopg.Error:
            # Without it every transaction is a candidate, which is right, too.
            standing = None
        return Answer(kind, words, standing)


def check_syntax(dsn: str, question: Question, *, superuser: str) -> None:
    """Let an empty server parse the query: what it names need not exist there.  Raises QuestionRefused."""
    if "\0" in question.sql or len(question.sql) > SQL_CHARS_MAX:
        raise QuestionRefused(f"a query has no zero byte, and at most {SQL_CHARS_MAX} characters")
    session = _connect(dsn, Question(question.sql, "postgres", question.timeout_s), superuser)
    with session:
        session.execute("BEGIN READ ONLY")
        try:
            session.execute((_DECLARE + question.sql).encode(), binary=True)
        except psycopg.Error as cause:
            if cause.sqlstate == _SYNTAX_ERROR:
                raise _refused(cause) from cause


def _connect(dsn: str, question: Question, superuser: str) -> psycopg.Connection[Any]:
    options = {
        "statement_timeout": str(max(1, round(question.timeout_s * 1000))),
        "lock_timeout": str(max(1, round(min(_LOCK_TIMEOUT_S, question.timeout_s / 2) * 1000))),
        "default_transaction_read_only": "on",
        # An ALTER ROLE or ALTER DATABASE in the restored cluster must not decide what runs here.
        "session_preload_libraries": "",
        "search_path": question.search_path,
        "row_security": "off",
        "TimeZone": "UTC",
    }
    return psycopg.connect(
        make_conninfo(dsn, user=superuser),
        dbname=question.database,
        autocommit=True,
        connect_timeout=_CONNECT_TIMEOUT_S,
        application_name="pitr find",
        options=" ".join(f"-c {name}={value}" for name, value in options.items()),
    )


def _fetch(session: psycopg.Connection[Any], question: Question) -> tuple[AnswerKind, str]:
    # In the binary format psycopg takes the extended protocol, which knows one statement at a time.
    session.execute((_DECLARE + question.sql).encode(), binary=True)
    cursor = session.execute("FETCH 2 FROM pitr_question", binary=True)
    columns = cursor.description or []
    if len(columns) != 1 or columns[0].type_code != _BOOLEAN:
        raise QuestionRefused(
            "the query must have one column, of the type boolean",
            detail=f"it has {len(columns)}" + (f", the first {columns[0].name!r}" if columns else ""),
        )
    rows = cursor.fetchall()
    if len(rows) != 1:
        return AnswerKind.ROWS, "it returned no row" if not rows else "it returned several rows"
    value = rows[0][0]
    if value is None:
        return AnswerKind.NULL, "it returned NULL"
    return (AnswerKind.YES, "it returned true") if value else (AnswerKind.NO, "it returned false")


def _look(session: psycopg.Connection[Any]) -> Standing | None:
    database, next_xid = session.execute(_STANDING.encode()).fetchone() or (0, 0)
    rows = session.execute(_RELATIONS.encode(), [RELATIONS_MAX + 1]).fetchall()
    if len(rows) > RELATIONS_MAX:
        return None
    names, seen, unseen = {}, set(), set()
    for owner, tablespace, number, name, is_seen, is_known in rows:
        file = RelationFile(tablespace, owner, number)
        names[file] = name
        if is_seen:
            seen.add(file)
        elif is_known:
            unseen.add(file)
    return Standing(database, next_xid & 0xFFFF_FFFF, frozenset(seen), frozenset(unseen), names)


def _refused(cause: psycopg.Error) -> QuestionRefused:
    lines = str(cause).strip().splitlines() or ["syntax error"]
    return QuestionRefused(
        "this is not a query", detail="; ".join(line.strip() for line in lines if line.strip())
    )
