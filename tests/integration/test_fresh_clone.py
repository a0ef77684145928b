"""``make demo`` as whoever finds the project runs it: a fresh clone, an ordinary user, an empty home."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fix_cli import CHECKOUT

from pitr.postgres.server_user import ServerUser, as_user, hand_over, server_user

# The first one installs all that it needs; a network may be slow.
MAKE_TIMEOUT_S = 900.0
# What a set-up or the tests make beside the project's own files.
MADE = (".git", ".venv", ".cache", ".stamps", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
PROVED = "every acknowledged commit before it is there, and nothing after it"


def fresh(to: Path) -> None:
    """Clone the checkout; copy it where it is no clone of git's or holds what is not committed."""
    try:
        changes = subprocess.run(
            ["git", "status", "--porcelain"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        if not changes.stdout:
            subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(to)], check=True, timeout=300)
            return
        print("copied, since there are changes")
    except (OSError, subprocess.CalledProcessError) as failure:
        print(f"copied, since {failure}")
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(CHECKOUT, to, symlinks=True, ignore=shutil.ignore_patterns(*MADE, ".hypothesis"))


def make_demo(clone: Path, home: Path, user: ServerUser | None, python: Path) -> str:
    """Run it with nothing of the tests' own environment but the way to the packages; return what it says."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PITR_", "AWS_", "PYTHON"))
    }
    # What was said to the `make` that runs the tests is not meant for this one.
    for name in (
        "VIRTUAL_ENV",
        "MAKEFLAGS",
        "MAKEOVERRIDES",
        "MAKELEVEL",
        "ARGS",
        "PARTS",
        "WORKERS",
        "SEEDS",
    ):
        kept.pop(name, None)
    prefix, options = as_user(user)
    done = subprocess.run(
        [*prefix, "make", "demo", f"PYTHON={python}"],
        cwd=clone,
        env={**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MAKE_TIMEOUT_S,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(2 * MAKE_TIMEOUT_S + 300)
def test_the_demo_proves_itself_twice_in_a_fresh_clone(server_tmp_path: Path) -> None:
    # The tests' own Python may be of a virtual environment that nobody else can read.
    python = Path(sys.executable).resolve()
    user = server_user(must_run=[str(python), "--version"])
    clone, home = server_tmp_path / "clone", server_tmp_path / "home"
    fresh(clone)
    assert not (clone / ".venv").exists()
    (home / "cache").mkdir(parents=True)
    for path in (clone, home):
        hand_over(path, user)
    first = make_demo(clone, home, user, python)
    second = make_demo(clone, home, user, python)
    assert "-m venv" in first
    assert "-m venv" not in second, "what is set up is used again"
    for said in (first, second):
        assert PROVED in said
        compared = re.search(r"^(\d+) commits compared", said, re.MULTILINE)
        assert compared is not None
        assert int(compared[1]) > 50
