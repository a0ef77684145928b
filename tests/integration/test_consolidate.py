"""A chain becomes a full backup from the store alone, and what is built on it goes on."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_increment import SUMMARIES, Chain
from fix_postgres import PostgresFactory, PostgresHouse
from fix_restore import Judge

from pitr.catalogue.backup_record import BackupManifest
from pitr.consolidate import ConsolidateRequest, consolidate
from pitr.datakeys import DataKeys
from pitr.errors import NotAuthentic
from pitr.postgres.installation import Installation
from storage.local import DirectoryStore


def make_full(chain: Chain, scratch: Path, backup: str) -> BackupManifest:
    restores = chain.restores
    known = {one.backup: one for one in restores.survey().backups}
    newest = known[backup]
    line = [newest]
    while line[-1].parent is not None:
        line.append(known[line[-1].parent])
    scratch.mkdir()
    done = consolidate(
        ConsolidateRequest(line, scratch),
        restores.repository,
        DataKeys(restores.repository, restores.identity),
        restores.identity.root_signer(),
        [restores.identity.recipient()],
        clock=lambda: datetime.now(UTC),
        random=os.urandom,
    )
    return done.manifest


@pytest.mark.mostly_17
def test_a_consolidated_chain_restores_as_the_chain_does_and_is_built_on(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
) -> None:
    server = postgres_factory(pg_installation.major, settings=SUMMARIES, name="consolidated")
    store = DirectoryStore.create(server_tmp_path / "store")
    chain = Chain(server, store, postgres_house.user, server_tmp_path / "notes")
    server.execute(
        "CREATE TABLE wide AS SELECT g AS id, repeat(md5(g::text), 10) AS t FROM generate_series(1, 20000) g"
    )
    chain.back_up()
    for number in range(3):
        server.execute(f"UPDATE wide SET t = 'round {number}' WHERE id % 400 = {number}")
        chain.back_up()
    middle = chain.moments[2]
    full = make_full(chain, server_tmp_path / "scratch", middle.backup.backup)
    assert (full.type, full.parent, full.stands_for) == ("full", None, middle.backup.backup)
    server.execute("UPDATE wide SET t = 'the last' WHERE id % 500 = 7")
    assert chain.back_up().type == "incr"

    restores = chain.restores
    plan = restores.plan(chain.target(middle), backup=full.backup)
    assert plan.parents == ()
    restores.restore(restores.request(plan, server_tmp_path / "middle", server, verify_files=True))
    assert judge.examine(server, server_tmp_path / "middle") == middle.tables

    # The newest needs nothing from before the full backup now, though it names what that stands for.
    last = chain.moments[-1]
    for number in (0, 1, 2):
        _forget(store, chain.moments[number].backup)
    plan = restores.plan(chain.target(last), backup=last.backup.backup)
    assert [one.backup for one in plan.parents] == [chain.moments[3].backup.backup, full.backup]
    restores.restore(restores.request(plan, server_tmp_path / "last", server, verify_files=True))
    assert judge.examine(server, server_tmp_path / "last") == last.tables


def test_a_damaged_chain_is_not_consolidated(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    server = postgres_factory(17, settings=SUMMARIES, name="damaged")
    store = DirectoryStore.create(server_tmp_path / "store")
    chain = Chain(server, store, postgres_house.user, server_tmp_path / "notes")
    server.execute(
        "CREATE TABLE wide AS SELECT g AS id, repeat('x', 500) AS t FROM generate_series(1, 20000) g"
    )
    full = chain.back_up()
    server.execute("UPDATE wide SET t = 'y' WHERE id % 100 = 0")
    incr = chain.back_up()
    key = max(full.packs, key=lambda pack: pack.size_bytes).key
    body = bytearray(store.get(key))
    body[len(body) // 2] ^= 1
    store.delete(key)
    store.put(key, bytes(body))
    before = {one.backup for one in chain.restores.survey().backups}
    with pytest.raises(NotAuthentic):
        make_full(chain, server_tmp_path / "scratch", incr.backup)
    assert {one.backup for one in chain.restores.survey().backups} == before


def _forget(store: DirectoryStore, manifest: BackupManifest) -> None:
    """Delete a backup as its expiry does."""
    for key in [
        f"manifests/{manifest.archive}/{manifest.backup}",
        *(o.key for o in (*manifest.packs, *manifest.indexes)),
    ]:
        store.delete(key)
