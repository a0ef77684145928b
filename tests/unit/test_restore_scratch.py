"""The scratch directory of a command: ours alone, and a killed run's is taken over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.errors import UsageRefused
from cli.restore_scratch import scratch_place
from pitr.errors import AlreadyRunning

CHECKOUT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from pathlib import Path
from cli.restore_scratch import scratch_place
with scratch_place(Path(sys.argv[1])) as place:
    (place / "data").mkdir()
    (place / "data" / "1").write_text("left")
    (place / "data" / "away").symlink_to(sys.argv[2])
    (place / "files.sqlite").write_text("left")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_scratch_directory_is_made_and_removed(tmp_path: Path) -> None:
    with scratch_place(tmp_path / "new" / "scratch") as place:
        assert place.stat().st_mode & 0o777 == 0o700
        (place / "data").mkdir()
    assert not place.exists()


def test_what_a_killed_run_left_is_taken_over(tmp_path: Path) -> None:
    scratch, elsewhere = tmp_path / "scratch", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "theirs").write_text("stays")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(scratch), str(elsewhere)],
        check=False,
        cwd=CHECKOUT,
        timeout=60,
    )
    assert done.returncode == -9
    assert (scratch / "data" / "1").exists()
    with scratch_place(scratch) as place:
        assert [path.name for path in place.iterdir() if path.name != "pitr-scratch"] == []
    assert not scratch.exists()
    assert (elsewhere / "theirs").read_text() == "stays"


def test_an_empty_directory_is_what_a_run_leaves_that_was_killed_at_once(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir(mode=0o755)
    with scratch_place(tmp_path / "scratch") as place:
        assert place.stat().st_mode & 0o777 == 0o700
    assert not place.exists()


@pytest.mark.parametrize("what", ["directory", "file", "link"])
def test_what_is_not_ours_is_refused_and_stays(tmp_path: Path, what: str) -> None:
    place, other = tmp_path / "place", tmp_path / "other"
    if what == "file":
        place.write_text("theirs")
    else:
        folder = place if what == "directory" else other
        folder.mkdir()
        (folder / "theirs").write_text("theirs")
        if what == "link":
            (folder / "pitr-scratch").touch()
            place.symlink_to(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageRefused, match="no run of pitr left it there"), scratch_place(place):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_in_which_another_run_works_is_refused_and_stays(tmp_path: Path) -> None:
    with scratch_place(tmp_path / "scratch") as place:
        (place / "data").mkdir()
        with pytest.raises(AlreadyRunning, match="another run works in"), scratch_place(place):
            pass
        assert (place / "data").is_dir()
    assert not place.exists()
