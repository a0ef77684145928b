"""Base backups that are killed on the way: the next one goes on with what is stored and still the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres
from fix_restore import Judge
from fix_resume import RESUME_SETTINGS, Interruptions, fill_tables

from pitr.catalogue.backup_record import BackupManifest
from pitr.consolidate import ConsolidateRequest, consolidate, read_back
from pitr.pipeline.packs import IndexFile, IndexFileMore
from pitr.postgres.installation import Installation
from pitr.postgres.server_user import as_user, hand_over
from pitr.repository import Repository
from pitr.restore_files import ChainLink
from pitr.wal.timeline import TimelineId
from storage.local import DirectoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore

TOOL_TIMEOUT_S = 120
IDLE_S = 30.0


@pytest.fixture(scope="module")
def server(module_postgres_factory: PostgresFactory) -> RunningPostgres:
    server = module_postgres_factory(17, settings=RESUME_SETTINGS, name="resumed")
    fill_tables(server)
    return server


@pytest.fixture
def interruptions(
    server: RunningPostgres, postgres_house: PostgresHouse, server_tmp_path: Path, judge: Judge
) -> Interruptions:
    return Interruptions(server, postgres_house, server_tmp_path, judge)


def resumed(manifest: BackupManifest) -> list[str]:
    return [pack.key for pack in manifest.packs if pack.key_id is not None]


def path_of(server: RunningPostgres, table: str) -> str:
    return str(server.value("SELECT pg_relation_filepath(%s)", table))


def test_a_killed_backup_is_gone_on_with(
    pg_installation: Installation,
    postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    server_tmp_path: Path,
    judge: Judge,
) -> None:
    server = postgres_factory(pg_installation.major, settings=RESUME_SETTINGS, name="killed")
    fill_tables(server)
    it = Interruptions(server, postgres_house, server_tmp_path, judge)
    it.interrupt(8)
    (journal,) = it.journals()
    assert it.chain.house.listed() == []
    manifest = it.back_up()
    assert journal.name.startswith(manifest.backup)
    assert f"resuming {manifest.backup}" in it.told()
    assert len(resumed(manifest)) == 8
    assert it.packs_put() == [pack.key for pack in manifest.packs if pack.key_id is None]
    assert sorted(path.suffix for path in it.notes.iterdir()) == [".files"]
    assert it.chain.house.listed() == [f"manifests/{manifest.archive}/{manifest.backup}"]
    it.check(it.chain.moments[-1])


def test_a_large_file_goes_on_where_it_was_left(interruptions: Interruptions) -> None:
    it = interruptions
    it.interrupt(3)
    manifest = it.back_up()
    assert len(resumed(manifest)) == 3
    link = ChainLink.open(manifest, it.chain.restores.data_keys)
    big = path_of(it.server, "big").encode()
    lines = [
        line
        for line in it.chain.house.all_lines(manifest)
        if isinstance(line, (IndexFile, IndexFileMore)) and line.path == big
    ]
    numbers = {extent.pack for line in lines for extent in line.extents}
    assert len(numbers) > 3
    keys = {pack.key.rpartition("/pack-")[2][:11]: pack.key_id for pack in manifest.packs}
    sealed_with = {keys[f"0001-{number:06d}"] for number in numbers}
    assert None in sealed_with
    assert len(sealed_with) == 2
    assert read_back(it.chain.house.repository, link).files == manifest.files


def test_a_page_that_changed_is_sent_again_though_size_and_time_are_as_they_were(
    interruptions: Interruptions,
) -> None:
    it = interruptions
    files = [it.server.data_dir / path_of(it.server, f"t{number}") for number in range(4)]
    it.interrupt(10_000)
    before = [path.stat() for path in files]
    it.server.execute("UPDATE t1 SET text = reverse(text) WHERE id % 50 = 1")
    it.server.execute("VACUUM (FREEZE) t1")
    it.server.execute("DELETE FROM t2 WHERE id = 7")
    it.server.execute("CHECKPOINT")
    for path, old in zip(files, before, strict=True):
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert files[2].stat().st_size == before[2].st_size
    manifest = it.back_up()
    assert len(resumed(manifest)) > 5
    it.check(it.chain.moments[-1])


def test_a_backup_that_is_killed_twice(interruptions: Interruptions) -> None:
    it = interruptions
    it.interrupt(3)
    it.interrupt(4)
    assert len(it.journals()) == 2
    it.server.execute("UPDATE t3 SET text = 'after the second'")
    manifest = it.back_up()
    assert len(manifest.key_ids) == 3
    assert len(resumed(manifest)) >= 5
    it.check(it.chain.moments[-1])


def test_an_incremental_backup_that_is_killed(interruptions: Interruptions) -> None:
    it = interruptions
    full = it.back_up()
    it.server.execute("UPDATE big SET text = reverse(text) WHERE id % 3 = 0")
    it.server.execute("CHECKPOINT")
    it.interrupt(4, parent=full.backup)
    it.server.execute("UPDATE t0 SET text = 'in between' WHERE id < 100")
    manifest = it.back_up()
    assert (manifest.type, manifest.parent) == ("incr", full.backup)
    assert len(resumed(manifest)) >= 3
    it.check(it.chain.moments[-1])
    # What is made of the chain is compared with it, and needs no key but its own.
    restores, scratch = it.chain.restores, it.folder / "scratch"
    scratch.mkdir()
    done = consolidate(
        ConsolidateRequest([manifest, full], scratch),
        restores.repository,
        restores.data_keys,
        restores.identity.root_signer(),
        [restores.identity.recipient()],
        clock=lambda: datetime.now(UTC),
        random=os.urandom,
    )
    assert len(done.manifest.key_ids) == 1


def test_packs_that_a_region_never_got_come_to_it_and_lost_ones_are_sent_again(
    interruptions: Interruptions,
) -> None:
    it = interruptions
    it.interrupt(8)
    for name in ("second", "third"):
        shutil.copytree(it.folder / "store", it.folder / name)
    packs = sorted((it.folder / "store" / "objects").rglob("pack-*"))

    def copy_in(name: str, pack: Path) -> Path:
        return it.folder / name / pack.relative_to(it.folder / "store")

    copy_in("third", packs[0]).unlink()
    for name in ("second", "third"):
        copy_in(name, packs[4]).unlink()
    stores = [DirectoryStore(it.folder / name) for name in ("store", "second", "third")]
    queue = RepairQueue(it.folder / "repairs.sqlite")
    store = ReplicatedStore(
        [Region(name, one) for name, one in zip("abc", stores, strict=True)], quorum=2, queue=queue
    )
    try:
        house = it.chain.house
        house.repository = Repository.open(store, house.identity.root_signer().public)
        manifest = it.back_up()
        assert store.wait_idle(IDLE_S)
    finally:
        store.close()
        queue.close()
    names = {key.rpartition("/")[2] for key in resumed(manifest)}
    assert packs[0].name in names
    assert packs[4].name not in names
    for one in stores:
        assert {pack.key for pack in manifest.packs} <= {info.key for info in one.list_objects("backups/")}
    it.chain.house.repository = Repository.open(stores[2], it.chain.house.identity.root_signer().public)
    it.check(it.chain.moments[-1])


def test_a_journal_that_is_garbage_costs_a_backup_from_the_beginning(interruptions: Interruptions) -> None:
    it = interruptions
    it.interrupt(5)
    (journal,) = it.journals()
    journal.write_bytes(os.urandom(100_000))
    manifest = it.back_up()
    assert resumed(manifest) == []
    assert f"not resuming {journal.name.partition('.')[0]}" in it.told()
    assert it.journals() == []


def test_notes_that_find_no_room_do_not_end_the_backup(interruptions: Interruptions) -> None:
    it = interruptions
    it.notes.write_bytes(b"no folder")
    manifest = it.back_up()
    assert resumed(manifest) == []
    assert "could not be resumed" in it.told()


def test_a_server_that_was_promoted_and_one_whose_checksums_were_switched(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path, judge: Judge
) -> None:
    server = postgres_factory(17, settings=RESUME_SETTINGS, name="switched")
    fill_tables(server)
    it = Interruptions(server, postgres_house, server_tmp_path, judge)
    it.interrupt(6)
    server.stop()
    (server.data_dir / "standby.signal").touch()
    hand_over(server.data_dir / "standby.signal", postgres_house.user)
    server.start(RESUME_SETTINGS)
    server.instance.promote()
    it.chain.archiver.follow(TimelineId(2))
    server.execute("UPDATE t0 SET text = 'after the promotion' WHERE id < 50")
    manifest = it.back_up()
    assert manifest.timeline == TimelineId(2)
    assert len(resumed(manifest)) == 6
    it.check(it.chain.moments[-1])

    it.chain.moments.clear()
    it.interrupt(6)
    server.stop()
    prefix, options = as_user(postgres_house.user)
    tool = str(server.instance.installation.tool("pg_checksums"))
    subprocess.run(
        [*prefix, tool, "--disable", "-D", str(server.data_dir)],
        check=True,
        capture_output=True,
        timeout=TOOL_TIMEOUT_S,
        cwd="/",
        **options,
    )
    server.start(RESUME_SETTINGS)
    manifest = it.back_up()
    assert not manifest.page_checksums
    assert len(resumed(manifest)) == 6
    link = ChainLink.open(manifest, it.chain.restores.data_keys)
    assert read_back(it.chain.house.repository, link).files == manifest.files
