"""What somebody puts in the place of ``pitr.fence``: asked by a superuser, it must not become his."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fix_postgres import PostgresFactory, RunningPostgres

from pitr.postgres.fence_mark import FenceMarker
from pitr.postgres.restored_history import RestoredServer

NUMBER_MAX = (1 << 63) - 1
# It tells who ran it by an error: the session of a plan writes nothing.
TRAP = """
CREATE SCHEMA trap;
CREATE FUNCTION trap.spring() RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'run as %', current_user; END $$;
CREATE FUNCTION trap.octet_length(text) RETURNS integer LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'run as %', current_user; END $$;
"""


@pytest.fixture(scope="module")
def server(module_postgres_factory: PostgresFactory) -> RunningPostgres:
    found = module_postgres_factory(17)
    found.execute(TRAP)
    return found


@pytest.fixture
def fenced(server: RunningPostgres) -> Iterator[RunningPostgres]:
    server.execute("DROP SCHEMA IF EXISTS pitr CASCADE")
    with FenceMarker(lambda: server.dsn) as marker:
        marker.mark(lambda _facts: "first")
    yield server
    server.execute("ALTER DATABASE postgres RESET search_path")


def _rows(server: RunningPostgres) -> tuple[list[str | None], bool]:
    with RestoredServer(server.dsn) as session:
        rows = [text for _, text in session.fence_rows(NUMBER_MAX, 10)]
        return rows, session.has_strange_fences


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE pitr.fence; CREATE VIEW pitr.fence AS SELECT 1::bigint AS id, trap.spring() AS payload",
        "ALTER TABLE pitr.fence RENAME payload TO other",
        "ALTER TABLE pitr.fence ALTER payload TYPE bytea USING payload::bytea",
        "DROP TABLE pitr.fence; CREATE TABLE pitr.fence (id bigint, payload text) PARTITION BY LIST (id)",
    ],
    ids=["view", "renamed", "type", "partitioned"],
)
def test_what_is_not_the_table_of_fences_is_not_read(fenced: RunningPostgres, change: str) -> None:
    assert _rows(fenced) == (["first"], False)
    fenced.execute(change)
    assert _rows(fenced) == ([], True)
    fenced.execute("DROP SCHEMA pitr CASCADE")
    assert _rows(fenced) == ([], False)


def test_the_databases_own_search_path_counts_for_the_owners_query_alone(fenced: RunningPostgres) -> None:
    fenced.execute("ALTER DATABASE postgres SET search_path = trap, pg_catalog")
    fenced.execute("CREATE TABLE trap.stands (partition int, next_offset bigint)")
    fenced.execute("INSERT INTO trap.stands VALUES (3, 17)")
    assert _rows(fenced) == (["first"], False)
    with RestoredServer(fenced.dsn) as session:
        assert session.cursor("SELECT partition, next_offset FROM stands") == {3: 17}
        assert session.fence_rows(NUMBER_MAX, 10)[0][1] == "first"
