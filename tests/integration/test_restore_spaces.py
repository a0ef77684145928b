"""Tablespaces of restored clusters: they go where they are told to, and never over anything."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, PostgresHouse
from fix_restore import HISTORY_SETTINGS, History, Judge, make_history

from pitr.errors import RestoreRefused
from pitr.recover import ArrivedElsewhere
from pitr.recovery import RecoveryTarget
from pitr.restore_request import RestoreRequest
from storage.memory import MemoryStore

LATEST = RecoveryTarget("latest")
ROWS = "INSERT INTO {} SELECT g, sha512(g::text::bytea) FROM generate_series(1, 20000) g"


@dataclass
class Spaces:
    """A history whose server has two tablespaces, and is stopped."""

    history: History
    fast: Path
    slow: Path
    fast_oid: int

    def request(self, target: Path, mapping: Mapping[str, Path], **options: object) -> RestoreRequest:
        house, options = self.history.restores, {"verify_files": True, **options}
        plan = house.plan(LATEST)
        return house.request(plan, target, self.history.server, tablespace_mapping=dict(mapping), **options)

    def copy(self, folder: Path) -> tuple[Path, Path, Path]:
        """Return a copy of the stopped cluster: data directory and both tablespaces, its links led there."""
        copies = folder / "data", folder / "fast", folder / "slow"
        origins = self.history.server.data_dir, self.fast, self.slow
        for origin, to in zip(origins, copies, strict=True):
            subprocess.run(["cp", "-a", str(origin), str(to)], check=True)
        for link in (copies[0] / "pg_tblspc").iterdir():
            to = copies[1] if int(link.name) == self.fast_oid else copies[2]
            link.unlink()
            link.symlink_to(to)
        return copies


@pytest.fixture(scope="module")
def spaces(
    module_postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    tmp_path_factory: pytest.TempPathFactory,
) -> Spaces:
    server = module_postgres_factory(17, settings=HISTORY_SETTINGS, name="two-spaces")
    places = server.data_dir.parent / "fast place", server.data_dir.parent / "slow place"
    for place, name in zip(places, ("fast", "slow"), strict=True):
        place.mkdir()
        place.chmod(0o777)
        server.execute(f"CREATE TABLESPACE {name} LOCATION '{place}'")
        server.execute(f"CREATE TABLE in_{name} (n int PRIMARY KEY, bytes bytea) TABLESPACE {name}")
        server.execute(ROWS.format(f"in_{name}"))
    oid = int(str(server.value("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'")))
    history = make_history(server, postgres_house.user, MemoryStore())
    server.stop()
    return Spaces(history, *places, oid)


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def refused(spaces: Spaces, request: RestoreRequest, words: str) -> None:
    """Assert that the restore is refused, and that not a byte of what is there has changed."""
    before = tree(request.target.parent), tree(spaces.fast), tree(spaces.slow)
    with pytest.raises(RestoreRefused, match=words):
        spaces.history.restores.restore(request)
    assert (tree(request.target.parent), tree(spaces.fast), tree(spaces.slow)) == before


def places_of(target: Path) -> set[Path]:
    return {link.readlink() for link in (target / "pg_tblspc").iterdir()}


def test_two_tablespaces_go_to_new_places_by_oid_and_by_old_location(
    spaces: Spaces, server_tmp_path: Path, judge: Judge
) -> None:
    new = {str(spaces.fast_oid): server_tmp_path / "one", str(spaces.slow): server_tmp_path / "two"}
    (server_tmp_path / "two").mkdir()
    result = spaces.history.restores.restore(spaces.request(server_tmp_path / "data", new))
    assert places_of(result.target) == set(new.values())
    assert judge.examine(spaces.history, result.target) == spaces.history.end


def test_a_tablespace_is_never_restored_over_anything(spaces: Spaces, server_tmp_path: Path) -> None:
    target = server_tmp_path / "data"
    one = server_tmp_path / "one"
    # Where it was: the old cluster's files are there.
    refused(spaces, spaces.request(target, {"fast": one}), "slow place is not empty")
    full = server_tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("data")
    for is_delta in (False, True):
        request = spaces.request(target, {"fast": one, "slow": full}, is_delta=is_delta)
        refused(spaces, request, "full is not empty")
    refused(spaces, spaces.request(target, {"fast": one, "slow": one}), "given twice")
    refused(spaces, spaces.request(target, {"fast": one, "slow": one / "in"}), "does not exist")
    refused(spaces, spaces.request(target, {"fast": one, "slow": target / "in"}), "does not exist")
    refused(spaces, spaces.request(target, {"fast": one, "slow": Path("two")}), "absolute path")
    refused(spaces, spaces.request(target, {"fast": one, "quick": server_tmp_path}), "no tablespace .* quick")
    twice = {"fast": one, str(spaces.fast): server_tmp_path / "two"}
    refused(spaces, spaces.request(target, twice), "mapped twice")


def test_delta_replaces_what_is_the_old_clusters_own_and_leaves_the_rest(
    spaces: Spaces, server_tmp_path: Path, judge: Judge
) -> None:
    data, fast, slow = spaces.copy(server_tmp_path)
    before = tree(slow)
    elsewhere = server_tmp_path / "elsewhere"
    request = spaces.request(data, {"fast": fast, "slow": elsewhere}, is_delta=True)
    result = spaces.history.restores.restore(request)
    # The bytes of the one that moves are read where they were.
    assert result.kept_bytes > result.size_bytes * 0.8
    assert places_of(data) == {fast, elsewhere}
    assert judge.examine(spaces.history, data) == spaces.history.end
    assert tree(slow) == before
    assert [entry.name[:6] for entry in fast.iterdir()] == ["PG_17_"]


def test_a_refused_delta_gives_the_tablespaces_back(
    spaces: Spaces, server_tmp_path: Path, judge: Judge
) -> None:
    data, fast, slow = spaces.copy(server_tmp_path)
    before = tree(data), tree(fast), tree(slow)
    request = spaces.request(data, {"fast": fast, "slow": slow}, is_delta=True)
    stop = request.plan.stop
    assert stop is not None
    wrong = replace(request.plan, stop=replace(stop, replay_end=stop.replay_end + 8))
    with pytest.raises(ArrivedElsewhere):
        spaces.history.restores.restore(replace(request, plan=wrong))
    refused_names = {
        name for place in (fast, slow) for name in tree(place) if name.startswith(".pitr-refused/")
    }
    assert refused_names
    after = [{n: c for n, c in tree(p).items() if n not in refused_names} for p in (data, fast, slow)]
    assert tuple(after) == before
    spaces.history.restores.restore(request)
    assert judge.examine(spaces.history, data) == spaces.history.end


def test_delta_moves_nothing_aside_that_is_not_the_old_clusters(
    spaces: Spaces, server_tmp_path: Path
) -> None:
    data, fast, slow = spaces.copy(server_tmp_path)
    here = {"fast": fast, "slow": slow}
    (slow / "precious").write_text("data")
    refused(spaces, spaces.request(data, here, is_delta=True), "slow is not empty")
    (slow / "precious").unlink()
    (slow / "PG_16_202307071").mkdir()
    refused(spaces, spaces.request(data, here, is_delta=True), "slow is not empty")
    (slow / "PG_16_202307071").rmdir()
    # Each holds the right kind of directory, of the other tablespace.
    refused(spaces, spaces.request(data, {"fast": slow, "slow": fast}, is_delta=True), "is not empty")
    # One that the backup has not: its place would be written over by replay.
    later = server_tmp_path / "later"
    (later / "PG_17_202406281").mkdir(parents=True)
    (data / "pg_tblspc" / "99999").symlink_to(later)
    refused(spaces, spaces.request(data, here, is_delta=True), "that the backup has not")
