"""The judge of restored clusters, who must not be easy to please."""

from __future__ import annotations

import pytest
from fix_postgres import PostgresFactory
from fix_restore import examine_running


def test_the_judge_sees_an_index_that_lacks_a_row_in_any_database(postgres_factory: PostgresFactory) -> None:
    server = postgres_factory()
    server.execute("CREATE DATABASE other")
    double = "CREATE OR REPLACE FUNCTION f(n int) RETURNS int IMMUTABLE LANGUAGE sql RETURN n * {}"
    server.execute(double.format(2), dbname="other")
    server.execute("CREATE TABLE numbers AS SELECT generate_series(1, 100) AS n", dbname="other")
    server.execute("CREATE INDEX doubled ON numbers (f(n))", dbname="other")
    # What the index holds is not what it should hold any more.
    server.execute(double.format(3), dbname="other")
    with pytest.raises(AssertionError, match=r"other\.public\.doubled[\s\S]*lacks matching index tuple"):
        examine_running(server.instance)


def test_the_judge_sees_a_flipped_bit_in_a_page(postgres_factory: PostgresFactory) -> None:
    server = postgres_factory()
    server.execute("CREATE TABLE numbers AS SELECT generate_series(1, 100) AS n")
    server.checkpoint()
    path = server.data_dir / str(server.value("SELECT pg_relation_filepath('numbers')"))
    with path.open("r+b") as file:
        # The server has the good page in memory, and nothing to write; so only the file tells.
        file.seek(4096)
        byte = file.read(1)[0]
        file.seek(4096)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(AssertionError, match="checksum verification failed"):
        examine_running(server.instance)
