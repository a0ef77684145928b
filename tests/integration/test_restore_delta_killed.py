"""A restore over an old cluster with a tablespace that is killed between any two renames, and repeated."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from fix_cli import on_small_disk
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

    def words(self, data: Path, fast: Path, point: str) -> list[str]:
        """Return the command that restores over the copy until it kills itself."""
        installation = self.history.server.instance.installation
        words = [sys.executable, str(CHILD), str(self.region), self.history.restores.identity.text()]
        words += [str(data), str(installation.major), str(installation.bin_dir), point]
        return [*words, "delta", "none", f"{self.oid}={fast}"]

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
    module_major: int,
    module_postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    tmp_path_factory: pytest.TempPathFactory,
) -> Old:
    server = module_postgres_factory(module_major, settings=HISTORY_SETTINGS, name="delta-killed")
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
    done = subprocess.run(old.words(data, fast, point), capture_output=True, check=False, timeout=300)
    assert done.returncode == -9, f"{point} was never reached: {done.stderr.decode()[-2000:]}"
    work = server_tmp_path / "data.pitr"
    # Once the new cluster is complete in its place the old one may go.
    if not (data / "recovery.signal").exists() or (work / "kept").exists():
        assert kept(data, work / "kept") == before[0]
        assert kept(fast, fast / ".pitr-kept", fast / ".pitr-keeping") == before[1]
    old.again(data, fast, "none")
    assert not left_over(server_tmp_path)
    assert (data / "recovery.signal").exists()


MOUNTED = """
    set -e
    cp -a "$1/." "$2/"
    chown --reference="$1" "$2"
    if $3; then exit 1; fi
    ls -A "$2"
    test -e "$2/.pitr-keeping" -o -e "$2/.pitr-kept"
    $4
    ls -A "$2" | grep pitr && exit 1
    "$5" -n -q "$2"
"""


def test_a_cluster_in_a_mount_point_is_replaced_there_and_the_restore_may_be_killed(
    old: Old, server_tmp_path: Path
) -> None:
    origin, fast = old.copy(server_tmp_path)
    mount = server_tmp_path / "mount"
    mount.mkdir()
    # What is moved one by one: killed in the middle of that.
    killed, again = (" ".join(old.words(mount, fast, point)) for point in ("rename:9", "rename:99999"))
    verify = str(old.history.server.instance.installation.tool("pg_verifybackup"))
    words = ["sh", "-c", MOUNTED, "sh", str(origin), str(mount), killed, again, verify]
    done = subprocess.run(
        [*on_small_disk(mount, 600 << 20), *words], capture_output=True, check=False, timeout=300
    )
    assert done.returncode == 0, (done.stdout.decode(), done.stderr.decode()[-2000:])
    assert left_over(server_tmp_path) == {"mount.pitr"}
