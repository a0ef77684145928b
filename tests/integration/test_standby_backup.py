"""Base backups taken on a standby: full and incremental, and a promotion in the middle."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fix_increment import SUMMARIES, Chain
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres, table_digests
from fix_restore import Judge
from fix_standby import caught_up, make_standby

from pitr.backup_tally import BackupProgress
from pitr.errors import BackupFailed, ServerRefused
from pitr.postgres.installation import Installation
from pitr.wal.timeline import TimelineId
from storage.local import DirectoryStore

pytestmark = pytest.mark.mostly_17


@pytest.fixture
def pair(
    pg_installation: Installation, postgres_factory: PostgresFactory
) -> tuple[RunningPostgres, RunningPostgres]:
    primary = postgres_factory(pg_installation.major, settings=SUMMARIES, name="primary")
    primary.execute(
        "CREATE TABLE wide AS SELECT g AS id, repeat(md5(g::text), 20) AS t FROM generate_series(1, 20000) g"
    )
    return primary, make_standby(postgres_factory, primary, SUMMARIES)


def test_a_chain_taken_on_a_standby_restores_what_the_primary_has(
    pair: tuple[RunningPostgres, RunningPostgres],
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
) -> None:
    primary, standby = pair
    store = DirectoryStore.create(server_tmp_path / "store")
    # WAL comes from the primary, files from the standby.
    chain = Chain(primary, store, postgres_house.user, server_tmp_path / "notes", source=standby)
    caught_up(primary, standby)
    assert chain.back_up().type == "full"
    primary.execute("UPDATE wide SET t = 'changed' WHERE id % 300 = 5")
    caught_up(primary, standby)
    taken = chain.back_up()
    assert taken.type == "incr", chain.house.progress[-1].notes
    assert chain.stored_bytes(taken) < chain.stored_bytes(chain.moments[0].backup) / 2
    moment = chain.moments[-1]
    plan = chain.restores.plan(chain.target(moment), backup=taken.backup)
    target = server_tmp_path / "restored"
    chain.restores.restore(chain.restores.request(plan, target, primary, verify_files=True))
    assert judge.examine(primary, target) == moment.tables == table_digests(primary.dsn)


def test_files_of_another_server_of_the_same_cluster_are_refused(
    pair: tuple[RunningPostgres, RunningPostgres], postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    """A DSN of several hosts finds the primary, and the files that are read here are the standby's."""
    primary, standby = pair
    chain = Chain.below(server_tmp_path, primary, postgres_house.user)
    caught_up(primary, standby)
    for asked, read in ((primary, standby), (standby, primary)):
        chain.source = asked
        with pytest.raises(ServerRefused, match="not the server's own"):
            chain.back_up(data_dir=read.data_dir)
    assert chain.house.listed() == []


def test_a_promotion_in_the_middle_fails_the_backup_and_the_next_one_is_good(
    pair: tuple[RunningPostgres, RunningPostgres],
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
) -> None:
    primary, standby = pair
    store = DirectoryStore.create(server_tmp_path / "store")
    chain = Chain(primary, store, postgres_house.user, server_tmp_path / "notes", source=standby)
    caught_up(primary, standby)
    is_promoted = threading.Event()

    def promote(progress: BackupProgress) -> None:
        if progress.phase == "uploading" or is_promoted.is_set():
            return
        if progress.phase == "copying":
            standby.instance.promote()
            is_promoted.set()

    with pytest.raises(BackupFailed, match="promoted"):
        chain.back_up(on_progress=promote)
    assert is_promoted.is_set()
    assert chain.house.listed() == []

    chain.archiver.follow(TimelineId(2), standby)
    standby.execute("UPDATE wide SET t = 'after the promotion' WHERE id % 300 = 5")
    chain.server, chain.source = standby, None
    taken = chain.back_up()
    assert (taken.type, taken.timeline) == ("full", TimelineId(2))
    moment, target = chain.moments[-1], server_tmp_path / "restored"
    plan = chain.restores.plan(chain.target(moment), backup=taken.backup)
    chain.restores.restore(chain.restores.request(plan, target, standby, verify_files=True))
    assert judge.examine(standby, target) == moment.tables
