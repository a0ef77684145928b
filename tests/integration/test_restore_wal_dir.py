"""WAL in a place of its own (``initdb --waldir``): backed up as any other, restored with a link or not."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, PostgresHouse
from fix_restore import HISTORY_SETTINGS, History, Judge, make_history, restore_to

from pitr.errors import RestoreRefused
from pitr.postgres.server_user import hand_over
from pitr.recovery import RecoveryTarget
from storage.memory import MemoryStore

LATEST = RecoveryTarget("latest")


@pytest.fixture(scope="module")
def history(module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse) -> Iterator[History]:
    wal = Path(tempfile.mkdtemp(prefix="pitr-waldir-"))
    hand_over(wal, postgres_house.user)
    server = module_postgres_factory(17, settings=HISTORY_SETTINGS, name="waldir", initdb=["-X", str(wal)])
    assert (server.data_dir / "pg_wal").readlink() == wal
    history = make_history(server, postgres_house.user, MemoryStore())
    server.stop()
    yield history
    shutil.rmtree(wal)


def test_without_a_word_pg_wal_is_a_directory_again(
    history: History, server_tmp_path: Path, judge: Judge
) -> None:
    result = restore_to(history, LATEST, server_tmp_path)
    assert not (result.target / "pg_wal").is_symlink()
    assert judge.examine(history, result.target) == history.end


def test_pg_wal_is_a_link_to_an_empty_place_that_was_named(
    history: History, server_tmp_path: Path, judge: Judge
) -> None:
    wal = server_tmp_path / "wal"
    for number, make in enumerate((False, True)):
        if make:
            wal = server_tmp_path / "other wal"
            wal.mkdir()
        folder = server_tmp_path / str(number)
        folder.mkdir()
        folder.chmod(0o755)
        result = restore_to(history, LATEST, folder, wal_dir=wal)
        assert (result.target / "pg_wal").readlink() == wal
        assert judge.examine(history, result.target) == history.end
        assert list(wal.glob("0000000*"))
        assert not list(wal.glob(".pitr-*"))


def test_a_place_for_wal_that_holds_anything_is_refused(history: History, server_tmp_path: Path) -> None:
    wal = server_tmp_path / "wal"
    wal.mkdir()
    (wal / "000000010000000000000001").write_text("precious")
    for is_delta in (False, True):
        with pytest.raises(RestoreRefused, match="wal is not empty"):
            restore_to(history, LATEST, server_tmp_path, wal_dir=wal, is_delta=is_delta)
    for place, words in ((Path("wal"), "absolute"), (server_tmp_path / "data", "given twice")):
        with pytest.raises(RestoreRefused, match=words):
            restore_to(history, LATEST, server_tmp_path, wal_dir=place)
    assert sorted(path.name for path in server_tmp_path.rglob("*")) == ["000000010000000000000001", "wal"]


def test_delta_leaves_the_old_clusters_wal_where_it_is(
    history: History, server_tmp_path: Path, judge: Judge
) -> None:
    old, wal = server_tmp_path / "data", server_tmp_path / "old wal"
    subprocess.run(["cp", "-a", str(history.server.data_dir), str(old)], check=True)
    subprocess.run(["cp", "-a", str((old / "pg_wal").readlink()), str(wal)], check=True)
    (old / "pg_wal").unlink()
    (old / "pg_wal").symlink_to(wal)
    segments = sorted(path.name for path in wal.iterdir())
    with pytest.raises(RestoreRefused, match="old wal is not empty"):
        restore_to(history, LATEST, server_tmp_path, is_delta=True, wal_dir=wal)
    result = restore_to(history, LATEST, server_tmp_path, is_delta=True, wal_dir=server_tmp_path / "new wal")
    assert result.kept_bytes > 0
    assert judge.examine(history, old) == history.end
    assert sorted(path.name for path in wal.iterdir()) == segments
