"""The visibility map of a restored chain never promises more than the heap holds.

Clearing a bit of the map is logged with the heap page and not with the map's (heapam.c,
XLH_*_ALL_VISIBLE_CLEARED), and without data checksums a heap page is marked all-visible without a new LSN
(visibilitymap.c).
"""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from fix_increment import SUMMARIES, Chain
from fix_postgres import SUMMARIES_SINCE, PostgresFactory, PostgresHouse
from fix_restore import Judge

from pitr.postgres.installation import Installation
from storage.local import DirectoryStore

# A bit that the map has and the page does not would never be cleared again.
_BROKEN_PROMISES = """
    SELECT count(*) FROM pg_visibility('held') WHERE all_visible AND NOT pd_all_visible
    UNION ALL SELECT count(*) FROM pg_visibility('fresh') WHERE all_visible AND NOT pd_all_visible
    UNION ALL SELECT count(*) FROM pg_check_visible('held')
    UNION ALL SELECT count(*) FROM pg_check_visible('fresh')"""


@pytest.mark.parametrize(
    ("how", "checksums"),
    [("summaries", True), ("pages", False), ("protocol", True)],
    ids=["summaries", "pages without checksums", "protocol"],
)
def test_a_restored_map_promises_no_more_than_the_heap_holds(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
    how: str,
    checksums: bool,
) -> None:
    major = pg_installation.major
    off = ["--no-data-checksums"] if major >= 18 else []
    server = postgres_factory(major, settings=SUMMARIES, initdb=["--data-checksums"] if checksums else off)
    store = DirectoryStore.create(server_tmp_path / "store")
    chain = Chain(server, store, postgres_house.user, server_tmp_path / "notes", how == "pages")
    back_up = chain.back_up_remote if how == "protocol" else chain.back_up
    for table in ("held", "fresh"):
        server.execute(
            f"CREATE TABLE {table} AS SELECT g AS id, repeat('x', 200) AS text"
            " FROM generate_series(1, 4000) g"
        )
        server.execute(f"CREATE INDEX ON {table} (id)")
    server.execute("VACUUM held")
    assert back_up().type == "full"
    server.execute("DELETE FROM held WHERE id % 100 = 0")
    server.execute("VACUUM fresh")
    # Before 17 the server sends no changes.
    kind = "full" if how == "protocol" and major < SUMMARIES_SINCE else "incr"
    assert back_up().type == kind, chain.house.progress[-1].notes
    moment = chain.moments[-1]
    plan = chain.restores.plan(chain.target(moment))
    target = server_tmp_path / "restored"
    chain.restores.restore(chain.restores.request(plan, target, server))
    instance = judge.start(server, target)
    with psycopg.connect(instance.dsn, autocommit=True) as connection:
        # The package of 16 has no extension, and shows only what is found by the index.
        if major != 16:
            connection.execute("CREATE EXTENSION pg_visibility")
            assert [count for (count,) in connection.execute(_BROKEN_PROMISES)] == [0, 0, 0, 0]
        connection.execute("DELETE FROM fresh WHERE id % 100 = 0")
        for table in ("held", "fresh"):
            connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
            (by_index,) = connection.execute(f"SELECT count(*) FROM {table} WHERE id > 0").fetchone() or (
                None,
            )
            connection.execute("RESET ALL; SET enable_indexscan = off; SET enable_indexonlyscan = off")
            (by_heap,) = connection.execute(f"SELECT count(*) FROM {table} WHERE id > 0").fetchone() or (
                None,
            )
            assert (by_index, by_heap) == (3960, 3960), table
