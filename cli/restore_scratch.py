"""A scratch directory that is ours from its making to its end, and that of a killed run after it."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cli.errors import UsageRefused
from pitr.errors import AlreadyRunning

# Made first and removed last, and locked in between: what holds it is ours, and who locks it works there.
_MARK: Final = "pitr-scratch"


@contextmanager
def scratch_place(path: Path) -> Iterator[Path]:
    """Make a directory, or take over what a killed run left; remove it with all that is in it.

    Raises UsageRefused if something else is there, AlreadyRunning if another run works in it; nothing in it
    was touched then.
    """
    path = path.absolute()
    try:
        descriptor = _claim(path)
    except OSError as error:
        raise UsageRefused(f"{path} cannot be made", detail=error.strerror) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _claim(path: Path) -> int:
    """Return the locked mark of a directory that holds nothing else."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        _check_ours(path)
    descriptor = os.open(path / _MARK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A run that ended between the two has removed what is locked here.
        if not os.path.samestat(os.fstat(descriptor), (path / _MARK).stat()):
            raise BlockingIOError
        path.chmod(0o700)
        for entry in path.iterdir():
            if entry.name == _MARK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise AlreadyRunning(
                f"another run works in {path}", hint="name another directory, or wait for its end"
            ) from error
        raise
    return descriptor


def _check_ours(path: Path) -> None:
    """Refuse a place that is not what a killed run of ours may have left, which a plain copy never is."""
    found = path.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    # Killed before the mark was made, it left an empty directory.
    if not is_ours or not ((path / _MARK).is_file() or next(path.iterdir(), None) is None):
        raise UsageRefused(
            f"{path} exists already, and no run of pitr left it there",
            hint="name a directory that does not exist yet, or remove this one if nobody needs it",
        )
