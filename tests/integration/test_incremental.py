"""Incremental backups on real servers: every shape that a cluster's files can take between two of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_increment import SUMMARIES, Chain
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres, table_digests
from fix_restore import Judge

from pitr.catalogue.backup_record import BackupManifest
from pitr.postgres.installation import Installation
from storage.local import DirectoryStore

_ROWS = 60_000
_UNLOGGED = "postgres.public.scratch"
COPIED = "a database by copying files"
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
    COPIED: ["CREATE DATABASE twin TEMPLATE model STRATEGY FILE_COPY"],
    "a dropped database": ["DROP DATABASE twin"],
}


def prepare(server: RunningPostgres) -> None:
    server.execute("CREATE TABLE wide (id int PRIMARY KEY, text text, filler text)")
    server.execute(
        "INSERT INTO wide SELECT g, md5(g::text), repeat('x', 300) FROM generate_series(1, %s) g", _ROWS
    )
    server.execute("CREATE TABLE small (id int, text text)")
    server.execute("INSERT INTO small SELECT g, 'before' FROM generate_series(1, 5000) g")
    server.execute("CREATE DATABASE model")
    server.execute(
        "CREATE TABLE rows AS SELECT g AS id, md5(g::text) AS text FROM generate_series(1, 5000) g",
        dbname="model",
    )
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
    back_up_and_restore_every_shape(chain, chain.back_up, server_tmp_path, judge)


@pytest.mark.slow
@pytest.mark.parametrize("major", [17, 18])
def test_a_chain_over_the_protocol_restores_every_shape_exactly(
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
    major: int,
) -> None:
    server = postgres_factory(major, settings=SUMMARIES, name="shapes")
    chain = Chain.below(server_tmp_path, server, postgres_house.user)
    back_up_and_restore_every_shape(chain, chain.back_up_remote, server_tmp_path, judge)


def back_up_and_restore_every_shape(
    chain: Chain, take: Callable[[], BackupManifest], folder: Path, judge: Judge
) -> None:
    server = chain.server
    prepare(server)
    model = table_digests(server.dsn, ["model"])
    assert take().type == "full"
    for shape, statements in SHAPES.items():
        for statement in statements:
            server.execute(statement)
        manifest = take()
        assert manifest.type == "incr", (shape, chain.house.progress[-1].notes)
    full, hint_bits, nothing = (moment.backup for moment in chain.moments[:3])
    assert chain.stored_bytes(nothing) < chain.stored_bytes(full) / 10
    # Or nobody has set any, and the first shape is the second.
    assert chain.stored_bytes(hint_bits) > chain.stored_bytes(nothing) * 10
    # What these hold of the earlier shapes the last one has no more.
    for shape in ("growth after truncation", COPIED, list(SHAPES)[-1]):
        number = 1 + list(SHAPES).index(shape)
        moment = chain.moments[number]
        plan = chain.restores.plan(chain.target(moment), backup=moment.backup.backup)
        assert len(plan.parents) == number
        target = folder / f"restored-{number}"
        chain.restores.restore(chain.restores.request(plan, target, server, verify_files=True))
        expected = {**moment.tables, **model}
        databases = ["postgres", "model"]
        if shape == COPIED:
            databases.append("twin")
            expected |= {name.replace("model.", "twin.", 1): rows for name, rows in model.items()}
        if _UNLOGGED in expected:
            # A base backup has no unlogged rows, and neither has the server after a crash.
            expected[_UNLOGGED] = "0:0"
        assert judge.examine(server, target, databases) == expected, shape
        shutil.rmtree(target)
