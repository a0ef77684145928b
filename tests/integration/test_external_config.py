"""Configuration outside of the data directory, as on Debian: restored below it, and never elsewhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_backup import BackupHouse
from fix_increment import Chain
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres
from fix_restore import HISTORY_SETTINGS, History, Judge, make_history, restore_to, take_test_backup
from fix_standby import caught_up, make_standby

from pitr.backup_remote import RemoteRequest, take_remote_backup
from pitr.backup_request import BackupWriter
from pitr.catalogue.backup_record import BackupManifest
from pitr.postgres.server_user import hand_over
from pitr.recovery import RecoveryTarget
from storage.memory import MemoryStore

LATEST = RecoveryTarget("latest")
FILES = {
    "postgresql.conf": "work_mem = '5MB'\ninclude_dir 'conf.d'\ninclude 'large.conf'\n",
    "conf.d/10-memory.conf": "maintenance_work_mem = '77MB'\n",
    "conf.d/.hidden.conf": "work_mem = '1MB'\n",
    "large.conf": "# nothing but a remark\n" * 20_000,
    "pg_hba.conf": "local all @admins trust\nlocal replication all trust\ninclude more_hba.conf\n",
    "more_hba.conf": "host all all 127.0.0.1/32 trust\n",
    "admins": "postgres\n",
    "pg_ident.conf": "people me postgres\n",
    "environment": "NOT_OURS=1\n",
}
# As it lay, so it lies below the restored directory.
BACKED_UP = sorted(FILES.keys() - {"conf.d/.hidden.conf", "large.conf", "environment"})


@dataclass
class Debian:
    """A history whose server has its configuration elsewhere."""

    history: History
    etc: Path

    def stored(self, data_dir: Path) -> Path:
        return data_dir / "pitr-config" / str(self.etc).lstrip("/")


def start_settings(etc: Path) -> dict[str, str]:
    names = {"config_file": "postgresql.conf", "hba_file": "pg_hba.conf", "ident_file": "pg_ident.conf"}
    return {name: str(etc / file) for name, file in names.items()}


@pytest.fixture(scope="module")
def debian(module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse) -> Iterator[Debian]:
    etc = Path(tempfile.mkdtemp(prefix="pitr-etc-")) / "main"
    for name, text in FILES.items():
        (etc / name).parent.mkdir(parents=True, exist_ok=True)
        (etc / name).write_text(text)
    hand_over(etc.parent, postgres_house.user)
    server = module_postgres_factory(17, settings={**HISTORY_SETTINGS, **start_settings(etc)}, name="debian")
    for name in start_settings(etc).values():
        (server.data_dir / Path(name).name).unlink()
    yield Debian(make_history(server, postgres_house.user, MemoryStore()), etc)
    shutil.rmtree(etc.parent)


def notes_of(house: BackupHouse) -> tuple[str, ...]:
    return house.progress[-1].notes


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_it_is_restored_below_the_data_directory_and_starts_the_server(
    debian: Debian, server_tmp_path: Path, judge: Judge
) -> None:
    assert any("large.conf" in note for note in notes_of(debian.history.restores.backups))
    before = files_below(debian.etc)
    # pg_verifybackup runs: the copies are files of the backup like any other.
    result = restore_to(debian.history, LATEST, server_tmp_path)
    stored = debian.stored(result.target)
    assert files_below(stored) == BACKED_UP
    assert all((stored / name).read_text() == FILES[name] for name in BACKED_UP)
    assert files_below(debian.etc) == before
    step = result.next_steps[0]
    for name, path in start_settings(stored).items():
        assert f"--{name}={path}" in step
    assert str(debian.etc / "pg_hba.conf") in step
    (stored / "large.conf").touch()
    hand_over(stored / "large.conf", debian.history.restores.user)
    instance = judge.start(debian.history, result.target, **start_settings(stored))
    server = RunningPostgres(instance)
    assert [server.value(f"SHOW {name}") for name in ("work_mem", "maintenance_work_mem")] == ["5MB", "77MB"]
    # Now it lies inside, and is a part of the data directory.
    house = BackupHouse(MemoryStore(), debian.history.restores.backups.archive)
    manifest = house.back_up(server.dsn)
    paths = [line.path for line in house.all_lines(manifest) if hasattr(line, "size_bytes")]
    assert len(paths) == len(set(paths)) == manifest.files
    names = {path.decode() for path in paths}
    assert {f"{stored.relative_to(result.target)}/{name}" for name in BACKED_UP} <= names
    assert sum(name.startswith("pitr-config/") for name in names) == len(BACKED_UP) + 1


def test_what_is_used_is_backed_up_and_not_what_an_earlier_restore_left(
    debian: Debian, server_tmp_path: Path
) -> None:
    history = debian.history
    stale = debian.stored(history.server.data_dir)
    (stale / "conf.d").mkdir(parents=True)
    (stale / "conf.d" / "10-memory.conf").write_text("stale")
    (stale / "notes of an admin").write_text("kept")
    hand_over(history.server.data_dir / "pitr-config", history.restores.user)
    manifest = take_test_backup(history.archiver)
    history.archiver.ship()
    house = history.restores
    plan = house.plan(LATEST, backup=manifest.backup)
    house.restore(
        house.request(plan, server_tmp_path / "data", history.server, action="none", verify_files=True)
    )
    stored = debian.stored(server_tmp_path / "data")
    assert (stored / "conf.d/10-memory.conf").read_text() == FILES["conf.d/10-memory.conf"]
    assert (stored / "notes of an admin").read_text() == "kept"
    # The server is everybody's.
    shutil.rmtree(history.server.data_dir / "pitr-config")


def test_configuration_in_the_data_directory_is_no_matter_of_ours(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    server = postgres_factory(17, settings=HISTORY_SETTINGS, name="inside")
    history = make_history(server, postgres_house.user, MemoryStore())
    result = restore_to(history, LATEST, server_tmp_path, action="none", verify_files=False)
    assert not (result.target / "pitr-config").exists()
    assert not any("configuration" in step for step in result.next_steps)


def config_paths(house: BackupHouse, manifest: BackupManifest) -> set[str]:
    paths = [line.path.decode() for line in house.all_lines(manifest) if hasattr(line, "size_bytes")]
    return {path for path in paths if path.startswith("pitr-config/")}


def test_each_backup_of_a_chain_from_a_standby_has_it(
    debian: Debian, postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    primary = debian.history.server
    own = server_tmp_path / "etc"
    shutil.copytree(debian.etc, own)
    standby = make_standby(postgres_factory, primary, {**HISTORY_SETTINGS, **start_settings(own)})
    notes = server_tmp_path / "notes"
    chain = Chain(primary, MemoryStore(), postgres_house.user, notes, compare_pages=True, source=standby)
    for kind in ("full", "incr"):
        caught_up(primary, standby)
        manifest = chain.back_up()
        assert manifest.type == kind
        assert {
            path.removeprefix(f"pitr-config{own}/") for path in config_paths(chain.house, manifest)
        } == set(BACKED_UP)


def test_a_backup_over_the_protocol_has_none_and_the_restore_says_so(
    debian: Debian, server_tmp_path: Path
) -> None:
    history = debian.history
    backups = history.restores.backups
    manifest = take_remote_backup(
        RemoteRequest(
            dsn=history.server.dsn,
            archive=backups.archive,
            label="from afar",
            notes_dir=server_tmp_path / "notes",
        ),
        BackupWriter(backups.repository, backups.signer, [backups.identity.recipient()]),
        history.archiver.gate,
        clock=lambda: datetime.now(UTC),
        random=os.urandom,
    )
    assert not config_paths(backups, manifest)
    house = history.restores
    plan = house.plan(RecoveryTarget("immediate"), backup=manifest.backup)
    result = house.restore(house.request(plan, server_tmp_path / "data", history.server, action="none"))
    step = result.next_steps[0]
    assert "has no copy of the configuration" in step
    assert str(debian.etc / "pg_hba.conf") in step
