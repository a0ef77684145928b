"""A directory takes another's place: cut anywhere, one of them is whole, and a run later all is done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pitr.errors import RestoreRefused
from pitr.restore_place import find_place
from pitr.restore_replace import find_old
from pitr.restore_staged import RestorePlace, StagedDirectory

OLD = {"PG_VERSION": "old", "base/1": "old", "global/pg_control": "old"}
NEW = {"PG_VERSION": "new", "base/1": "new", "base/2": "new"}
SPACE = {"PG_17_1/5/6": "old"}
NEW_SPACE = {"PG_17_1/5/6": "new", "PG_17_1/5/7": "new"}


class Cut(BaseException):
    """Where the run is killed."""


@pytest.fixture
def cut_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], None]]:
    """Return what makes the Nth change of a name fail, before or after it is done."""
    left: list[int | None] = [None]

    def wrap(name: str) -> None:
        real = getattr(Path, name)

        def changed(path: Path, *words: object, **options: object) -> object:
            if left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    left[0] = None
                    raise Cut
            return real(path, *words, **options)

        monkeypatch.setattr(Path, name, changed)

    for name in ("rename", "rmdir", "chmod"):
        wrap(name)

    def cut(count: int | None) -> None:
        left[0] = count

    yield cut
    monkeypatch.undo()


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def files_of(folder: Path) -> dict[str, str]:
    """Return the files of a directory, without what only passes through it."""
    return {
        name: path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and not (name := str(path.relative_to(folder))).startswith(".pitr-")
    }


def make(folder: Path, *, is_inside: bool) -> RestorePlace:
    """Return a place with an old cluster and a tablespace, and the new one staged."""
    place = find_place(folder / "data", {7: folder / "space"}, replaces=True)
    if is_inside:
        data = StagedDirectory.inside(folder / "data", replaces=True)
        place = RestorePlace(data, place.tablespaces, place.work)
    place.work.path.mkdir(parents=True)
    fill(folder / "data", OLD)
    fill(folder / "space", SPACE)
    for directory in place.directories:
        directory.begin(None)
    fill(place.data.staging, NEW)
    fill(place.tablespaces[0][1].staging, NEW_SPACE)
    return place


def is_whole(place: RestorePlace, number: int, files: dict[str, str]) -> bool:
    """Tell whether all of ``files`` are together somewhere, but for what is just being moved."""
    directory = place.directories[number]
    places = [directory.final, directory.staging, directory.kept, place.work.path / "refused"]
    places += [directory.final / name for name in (".pitr-keeping", ".pitr-refused", ".pitr-refusing")]
    return any(each is not None and each.exists() and files_of(each) == files for each in places)


@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("is_refused", [False, True])
def test_cut_anywhere_the_old_or_the_new_one_is_whole_and_the_next_run_ends_the_same(
    tmp_path: Path, cut_at: Callable[[int | None], None], is_inside: bool, is_refused: bool
) -> None:
    def run(place: RestorePlace) -> None:
        place.place()
        if is_refused:
            place.set_aside()

    def finish(place: RestorePlace) -> None:
        # The journal says which of both it was in.
        if is_refused and not place.data.staging.exists():
            place.directories[1].place()
            place.set_aside()
        else:
            run(place)

    for count in range(1, 100):
        folder = tmp_path / str(count)
        place = make(folder, is_inside=is_inside)
        cut_at(count)
        try:
            run(place)
        except Cut:
            for number, (old, new) in enumerate(((OLD, NEW), (SPACE, NEW_SPACE))):
                assert is_whole(place, number, old) or is_whole(place, number, new), count
            finish(place)
            was_cut = True
        else:
            was_cut = False
        cut_at(None)
        assert files_of(folder / "data") == (OLD if is_refused else NEW), count
        assert files_of(folder / "space") == (SPACE if is_refused else NEW_SPACE), count
        if not is_refused:
            assert files_of(place.data.kept or folder) == OLD
            place.forget()
        assert not any(".pitr-kept" in str(path) for path in folder.rglob("*"))
        shutil.rmtree(folder)
        if not was_cut:
            assert count > 5
            return


@pytest.mark.parametrize("is_inside", [False, True])
def test_what_is_being_forgotten_is_not_given_back_and_forgetting_goes_on(
    tmp_path: Path, is_inside: bool
) -> None:
    place = make(tmp_path, is_inside=is_inside)
    place.place()
    kept = place.kept
    assert len(kept) == 2
    # A run is killed while it deletes: the name has changed, and some of it is gone.
    for path in kept:
        path.rename(path.with_name(f"{path.name}-gone"))
    assert len(place.kept) == 2
    place.forget()
    assert place.kept == ()
    assert files_of(tmp_path / "data") == NEW
    assert files_of(tmp_path / "space") == NEW_SPACE


def test_an_old_directory_in_the_way_of_another_is_never_lost(tmp_path: Path) -> None:
    place = make(tmp_path, is_inside=False)
    place.place()
    # Somebody makes the directory again between two runs.
    (tmp_path / "data.pitr" / "partial").mkdir()
    with pytest.raises(OSError, match="not empty"):
        place.place()
    assert files_of(tmp_path / "data") == NEW
    assert files_of(tmp_path / "data.pitr" / "kept") == OLD


def test_an_old_directory_that_is_no_cluster_is_refused(tmp_path: Path) -> None:
    from fix_small_backup import SmallBackup

    manifest = SmallBackup().manifest()
    assert find_old(tmp_path / "none", {}, manifest, foreign=None) is None
    (tmp_path / "data").mkdir()
    assert find_old(tmp_path / "data", {}, manifest, foreign=None) is None
    fill(tmp_path / "data", {"PG_VERSION": "17", "global/other": ""})
    # Nobody writes to it.
    os.mkfifo(tmp_path / "data" / "global" / "pg_control")
    with pytest.raises(RestoreRefused, match="no cluster that is known"):
        find_old(tmp_path / "data", {}, manifest, foreign=None)
    (tmp_path / "data").rename(tmp_path / "other")
    (tmp_path / "data").symlink_to("other")
    with pytest.raises(RestoreRefused, match="is a link"):
        find_old(tmp_path / "data", {}, manifest, foreign=None)
