"""A yes-or-no question to a real server: each way in which it can be answered, and what it looked at."""

from __future__ import annotations

import psycopg
import pytest
from fix_postgres import PostgresFactory, RunningPostgres

from pitr.postgres.yes_no import (
    Answer,
    AnswerKind,
    Question,
    QuestionBlocked,
    QuestionRefused,
    QuestionTooSlow,
    ask,
    check_syntax,
)
from pitr.wal.changes import RelationFile


@pytest.fixture(scope="module")
def server(module_postgres_factory: PostgresFactory) -> RunningPostgres:
    server = module_postgres_factory(17)
    server.execute("CREATE TABLE read (n int PRIMARY KEY)")
    server.execute("CREATE TABLE not_read (n int PRIMARY KEY, t text)")
    server.execute("CREATE VIEW through AS SELECT * FROM read")
    server.execute("INSERT INTO read VALUES (1), (2)")
    return server


def put(server: RunningPostgres, sql: str, *, timeout_s: float = 30.0, database: str = "postgres") -> Answer:
    return ask(server.dsn, Question(sql, database, timeout_s), superuser="postgres")


@pytest.mark.parametrize(
    ("sql", "kind", "words"),
    [
        ("SELECT count(*) = 2 FROM read", AnswerKind.YES, "it returned true"),
        ("SELECT count(*) = 3 FROM read -- two", AnswerKind.NO, "it returned false"),
        ("VALUES (NULL::boolean);", AnswerKind.NULL, "it returned NULL"),
        ("SELECT true FROM read WHERE n > 9", AnswerKind.ROWS, "it returned no row"),
        ("SELECT true FROM read, generate_series(1, 100000)", AnswerKind.ROWS, "it returned several rows"),
        ("SELECT true FROM gone", AnswerKind.ERROR, 'relation "gone" does not exist'),
        ("SELECT 1 / 0 = 1", AnswerKind.ERROR, "division by zero"),
        (
            "SELECT nextval('s') > 0 FROM (SELECT pg_advisory_xact_lock(1), lo_create(0)) x",
            AnswerKind.ERROR,
            'relation "s" does not exist',
        ),
        (
            "SELECT lo_create(0) > 0",
            AnswerKind.ERROR,
            "cannot execute lo_create() in a read-only transaction",
        ),
    ],
)
def test_each_answer_is_told_as_what_it_is(
    server: RunningPostgres, sql: str, kind: AnswerKind, words: str
) -> None:
    found = put(server, sql)
    assert (found.kind, found.words) == (kind, words)


def test_a_database_that_is_not_there_is_an_error_of_the_query(server: RunningPostgres) -> None:
    found = put(server, "SELECT true", database="gone")
    assert (found.kind, found.words) == (AnswerKind.ERROR, "there is no database gone")


def test_a_slow_answer_is_neither_yes_nor_no(server: RunningPostgres) -> None:
    with pytest.raises(QuestionTooSlow, match="longer than"):
        put(server, "SELECT pg_sleep(60) IS NULL", timeout_s=0.2)


def test_a_table_that_another_transaction_has_locked_is_told_as_that(server: RunningPostgres) -> None:
    with psycopg.connect(server.dsn) as session:
        session.execute("LOCK TABLE read")
        with pytest.raises(QuestionBlocked, match="waits for a lock"):
            put(server, "SELECT count(*) = 2 FROM read", timeout_s=1.0)


@pytest.mark.parametrize("sql", ["SELECT 1", "SELECT true, true", "SELECT 'true'"])
def test_another_form_than_one_boolean_column_is_refused(server: RunningPostgres, sql: str) -> None:
    with pytest.raises(QuestionRefused, match="one column, of the type boolean"):
        put(server, sql)


@pytest.mark.parametrize("sql", ["", "SELEC true", "SELECT true; SELECT true", "DROP TABLE read"])
def test_what_is_no_query_is_refused(server: RunningPostgres, sql: str) -> None:
    for judge in (ask, check_syntax):
        with pytest.raises(QuestionRefused, match="not a query"):
            judge(server.dsn, Question(sql, "postgres", 30.0), superuser="postgres")
    assert put(server, "SELECT count(*) = 2 FROM read").kind is AnswerKind.YES


def test_what_is_named_need_not_be_there_for_the_syntax(server: RunningPostgres) -> None:
    check_syntax(server.dsn, Question("SELECT f(x) FROM nobody.knows"), superuser="postgres")


def test_the_relations_that_were_looked_at_are_known_by_their_files(server: RunningPostgres) -> None:
    standing = put(server, "SELECT count(*) = 2 FROM through").standing
    assert standing is not None

    def file_of(name: str) -> RelationFile:
        row = server.value(f"SELECT pg_relation_filenode('{name}')::bigint")
        return RelationFile(1663, standing.database, int(str(row)))

    assert file_of("read") in standing.seen
    assert standing.names[file_of("read")] == "public.read"
    for name in ("not_read", "not_read_pkey", "pg_statistic"):
        assert file_of(name) in standing.unseen, name
    assert file_of("pg_class") not in standing.unseen | standing.seen
    toast = [name for name in standing.names.values() if name == "public.not_read (TOAST)"]
    assert len(toast) == 1
