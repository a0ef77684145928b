"""A restore over an old cluster with a tablespace that is killed between any two renames, and repeated."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from fix_postgres import PostgresFactory, PostgresHouse
from fix_restore import HISTORY_SETTINGS, History, make_history

from pitr.recovery import RecoveryTarget
from storage.local import DirectoryStore

CHILD = Path(__file__).parents[1] / "restore_child.py"
LATEST = RecoveryTarget("latest")


@dataclass
class Old:
    """A stopped cluster with a tablespace, its archive, and copies of it."""

    history: History
    region: Path
    space: Path
    oid: str

    def copy(self, folder: Path) -> tuple[Path, Path]:
        data, fast = folder / "data", folder / "fast"
        for origin, to in ((self.history.server.data_dir, data), (self.space, fast)):
            subprocess.run(["cp", "-a", str(origin), str(to)], check=True)
        (data / "pg_tblspc" / self.oid).unlink()
        (data / "pg_tblspc" / self.oid).symlink_to(fast)
        return data, fast

    def run(self, data: Path, fast: Path, point: str, *words: str) -> int:
        """Restore over the copy in another process until it kills itself; return how it ended."""
        installation = self.history.server.instance.installation
        arguments = [str(self.region), self.history.restores.identity.text(), str(data)]
        arguments += [str(installation.major), str(installation.bin_dir), point, "delta"]
        arguments += [f"{self.oid}={fast}", *words]
        done = subprocess.run(
            [sys.executable, str(CHILD), *arguments], capture_output=True, check=False, timeout=300, text=True
        )
        assert done.returncode in (0, -9), done.stderr[-2000:]
        return done.returncode

    def again(self, data: Path, fast: Path, action: Literal["promote", "none"]) -> None:
        house = self.history.restores
        house.restore(
            house.request(
                house.plan(LATEST),
                data,
                self.history.server,
                action=action,
                is_delta=True,
                tablespace_mapping={self.oid: fast},
                verify_files=True,
            )
        )


@pytest.fixture(scope="module")
def old(
    module_postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    tmp_path_factory: pytest.TempPathFactory,
) -> Old:
    server = module_postgres_factory(17, settings=HISTORY_SETTINGS, name="delta-killed")
    space = server.data_dir.parent / "fast place"
    space.mkdir()
    space.chmod(0o777)
    server.execute(f"CREATE TABLESPACE fast LOCATION '{space}'")
    server.execute("CREATE TABLE spaced TABLESPACE fast AS SELECT g AS n FROM generate_series(1, 99999) g")
    oid = str(server.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'"))
    region = tmp_path_factory.mktemp("region") / "store"
    history = make_history(server, postgres_house.user, DirectoryStore.create(region))
    server.stop()
    return Old(history, region, space, oid)


def tree(root: Path) -> dict[str, str]:
    """Return what lies below a directory, without what a restore has there for a while."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file() and not name.startswith(".pitr-"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def kept(place: Path, *candidates: Path) -> dict[str, str]:
    """Return the tree of what was kept of ``place``, or else of what is there."""
    for candidate in candidates:
        if candidate.exists() and tree(candidate):
            return tree(candidate)
    return tree(place)


def left_over(folder: Path) -> set[str]:
    """Return what of a restore is still there but its journal."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if ".pitr" in path.name}
    return {name for name in names if name != "data.pitr"}


# The first journal; the old tablespace aside; the new one in its place; the old ones forgotten; in what goes.
POINTS = ["rename:1", "rename:5", "rename:7", "rename:10", "delete:400"]


@pytest.mark.parametrize("point", POINTS)
def test_killed_between_any_two_renames_one_cluster_is_whole_and_the_next_run_ends_right(
    old: Old, server_tmp_path: Path, point: str
) -> None:
    data, fast = old.copy(server_tmp_path)
    before = tree(data), tree(fast)
    assert old.run(data, fast, point, "none") == -9, f"{point} was never reached"
    work = server_tmp_path / "data.pitr"
    # Once the new cluster is complete in its place the old one may go.
    if not (data / "recovery.signal").exists() or (work / "kept").exists():
        assert kept(data, work / "kept") == before[0]
        assert kept(fast, fast / ".pitr-kept", fast / ".pitr-keeping") == before[1]
    old.again(data, fast, "none")
    assert not left_over(server_tmp_path)
    assert (data / "recovery.signal").exists()
