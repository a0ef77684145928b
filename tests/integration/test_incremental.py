"""Incremental backups on real servers: every shape that a cluster's files can take between two of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fix_increment import SUMMARIES, Chain
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres, table_digests
from fix_restore import Judge

from pitr.postgres.installation import Installation
from storage.local import DirectoryStore

_ROWS = 60_000
_UNLOGGED = "postgres.public.scratch"
# What happens before each backup; each line is a transaction of its own.
SHAPES = {
    # The first look at new rows marks them, and with checksums that is logged as whole pages.
    "hint bits": [],
    "nothing": [],
    "updates": [
        "UPDATE wide SET text = md5(text) WHERE id % 997 = 0",
        "INSERT INTO wide SELECT g, md5(g::text), repeat('n', 300) FROM generate_series(60001, 61000) g",
    ],
    "truncation": ["TRUNCATE small", "INSERT INTO small VALUES (1, 'after')"],
    "partial truncation": ["DELETE FROM wide WHERE id > 40000", "VACUUM (TRUNCATE true) wide"],
    "growth after truncation": [
        "INSERT INTO wide SELECT g, md5(g::text), repeat('m', 300) FROM generate_series(70000, 90000) g"
    ],
    "new files": ["VACUUM FULL wide", "CREATE INDEX wide_text ON wide (text)", "REINDEX TABLE small"],
    "drop and create": ["DROP TABLE small", "CREATE TABLE small AS SELECT 7 AS id, 'again'::text AS text"],
    "unlogged": ["CREATE UNLOGGED TABLE scratch AS SELECT generate_series(1, 20000) AS n", "CHECKPOINT"],
    "a database by copying files": ["CREATE DATABASE twin TEMPLATE template1 STRATEGY FILE_COPY"],
    "a dropped database": ["DROP DATABASE twin"],
}


def prepare(server: RunningPostgres) -> None:
    server.execute("CREATE TABLE wide (id int PRIMARY KEY, text text, filler text)")
    server.execute(
        "INSERT INTO wide SELECT g, md5(g::text), repeat('x', 300) FROM generate_series(1, %s) g", _ROWS
    )
    server.execute("CREATE TABLE small (id int, text text)")
    server.execute("INSERT INTO small SELECT g, 'before' FROM generate_series(1, 5000) g")
    server.execute("CHECKPOINT")


@pytest.mark.mostly_17
@pytest.mark.parametrize("compare_pages", [False, True], ids=["summaries", "pages"])
def test_a_chain_restores_every_shape_exactly(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
    compare_pages: bool,
) -> None:
    server = postgres_factory(pg_installation.major, settings=SUMMARIES, name="shapes")
    store = DirectoryStore.create(server_tmp_path / "store")
    chain = Chain(server, store, postgres_house.user, server_tmp_path / "notes", compare_pages)
    prepare(server)
    assert chain.back_up().type == "full"
    for shape, statements in SHAPES.items():
        for statement in statements:
            server.execute(statement)
        manifest = chain.back_up()
        assert manifest.type == "incr", (shape, chain.house.progress[-1].notes)
    full, nothing = chain.moments[0].backup, chain.moments[2].backup
    assert chain.stored_bytes(nothing) < chain.stored_bytes(full) / 10
    # What the seventh holds of the earlier shapes the last one has no more.
    for number in (6, len(chain.moments) - 1):
        moment = chain.moments[number]
        plan = chain.restores.plan(chain.target(moment), backup=moment.backup.backup)
        assert len(plan.parents) == number
        target = server_tmp_path / f"restored-{number}"
        chain.restores.restore(chain.restores.request(plan, target, server, verify_files=True))
        if number == 6:
            restored = table_digests(judge.start(server, target).dsn)
        else:
            restored = judge.examine(server, target)
        expected = dict(moment.tables)
        if _UNLOGGED in expected:
            # A base backup has no unlogged rows, and neither has the server after a crash.
            expected[_UNLOGGED] = "0:0"
        assert restored == expected, list(SHAPES)[number - 1]
