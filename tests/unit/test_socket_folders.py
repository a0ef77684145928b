"""A socket's folder lies elsewhere where a scratch folder's path is long: it goes with the scratch folder."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pitr.restore_instance import remove_socket_folder
from verifiers.scratch import ScratchRoot

RUN = "01a22fc4-7451-7708-be94-f1aefa2699ce"


@pytest.fixture
def elsewhere() -> Path:
    return Path(tempfile.mkdtemp(prefix="pitr-restore-"))


def test_the_wipe_of_a_scratch_place_takes_the_sockets_folder_along(tmp_path: Path, elsewhere: Path) -> None:
    root = ScratchRoot(tmp_path / "scratch")
    root.prepare()
    with root.place(RUN, datetime(2026, 12, 1, tzinfo=UTC)) as place:
        work = place.path / "data.pitr"
        work.mkdir()
        (work / "s").symlink_to(elsewhere)
        (elsewhere / ".s.PGSQL.5432.lock").touch()
        place.wipe()
        place.wipe()
    assert not elsewhere.exists()
    assert not place.path.exists()


@pytest.mark.parametrize("how", ["another name", "another parent", "a link"])
def test_a_link_that_leads_to_anything_else_is_removed_and_not_followed(
    tmp_path: Path, elsewhere: Path, how: str
) -> None:
    """The server's user, whose the link is, may have made it anew."""
    target = tmp_path / "precious"
    if how == "another parent":
        target = tmp_path / "pitr-restore-precious"
    target.mkdir()
    (target / "file").touch()
    elsewhere.rmdir()
    if how == "a link":
        elsewhere.symlink_to(target)
    work = tmp_path / "work"
    work.mkdir()
    (work / "s").symlink_to(elsewhere if how == "a link" else target)
    remove_socket_folder(work)
    assert (target / "file").exists()
    assert not (work / "s").is_symlink()
    elsewhere.unlink(missing_ok=True)
