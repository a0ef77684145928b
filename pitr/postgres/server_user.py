"""The server's user: as whom PostgreSQL runs when we are root, since it refuses to run as root.

Two ways: to become another user, or, where that is not allowed (a container without CAP_SETUID, or
with one user only), to take another user's number in a user namespace of our own.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from pitr.errors import ServerRefused
from pitr.postgres.installation import Installation

PROBE_TIMEOUT_S = 20.0
_USER_NAMES = ("postgres", "nobody")


@dataclass(frozen=True, slots=True)
class ServerUser:
    """Whom PostgreSQL runs as.  ``is_mapped``: only in a user namespace; outside it stays root's process."""

    uid: int
    gid: int
    is_mapped: bool = False


class UserOptions(TypedDict, total=False):
    """The options of ``subprocess`` that change the user."""

    user: int
    group: int
    extra_groups: list[int]


def server_user(*, must_run: Sequence[str] = ("true",)) -> ServerUser | None:
    """Return whom PostgreSQL must run as: None when we are not root.

    ``must_run`` is a command that this user must be able to run, such as the Python that
    ``restore_command`` names: in a home of mode 0700 only the user namespace can.
    Raises ServerRefused if this root can neither become another user nor make a user namespace.
    """
    if os.geteuid() != 0:
        return None
    candidates = []
    for name in _USER_NAMES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        candidates.append(ServerUser(entry.pw_uid, entry.pw_gid))
    # initdb looks its user up in the list of users, so any number will not do.
    candidates += [ServerUser(e.pw_uid, e.pw_gid) for e in pwd.getpwall() if e.pw_uid != 0][:1]
    candidates += [ServerUser(one.uid, one.gid, is_mapped=True) for one in candidates]
    for candidate in candidates:
        if _runs(must_run, candidate):
            return candidate
    raise ServerRefused(
        f"PostgreSQL does not run as root, and no other user can run {must_run[0]}",
        hint="run as an ordinary user; or open the folders above that program to others (chmod o+x);"
        " or give the container the capabilities SETUID and SETGID",
    )


def as_user(user: ServerUser | None) -> tuple[list[str], UserOptions]:
    """Return the words before a command, and the options of ``subprocess``, that run it as ``user``."""
    if user is None:
        return [], {}
    if user.is_mapped:
        return ["unshare", "--user", f"--map-user={user.uid}", f"--map-group={user.gid}", "--"], {}
    return [], {"user": user.uid, "group": user.gid, "extra_groups": []}


def hand_over(path: Path, user: ServerUser | None) -> None:
    """Give a file, or a directory and everything in it, to the server's user.  Links are not followed."""
    if user is None or user.is_mapped:
        return
    os.chown(path, user.uid, user.gid, follow_symlinks=False)
    if path.is_symlink() or not path.is_dir():
        return
    for _, folders, files, folder_fd in os.fwalk(path, follow_symlinks=False):
        for name in [*folders, *files]:
            os.chown(name, user.uid, user.gid, dir_fd=folder_fd, follow_symlinks=False)


def readable_installation(
    installation: Installation, user: ServerUser | None, make_cache_dir: Callable[[], Path]
) -> Installation:
    """Return the installation, or a copy in a folder of ours if ``user`` cannot run it where it is.

    That is so for a wheel in a home of mode 0700.  May be repeated, and run by several at once.
    The folder is asked for only then: it lies where others write too, and what is wrong with it must not
    stop who needs no copy.
    Raises ServerRefused if the copy cannot be run either: every folder above the copy must be
    open to the user.
    """
    if user is None or _runs([str(installation.tool("postgres")), "--version"], user):
        return installation
    top = installation.bin_dir.parent  # <package>/pginstall
    package = top.parent
    cache_dir = make_cache_dir()
    mark = hashlib.sha256(f"{top}\n{top.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    home = cache_dir / f"{package.name}-{installation.version}-{mark}"
    copy = Installation(home / package.name / top.name / "bin", installation.major, installation.version)
    if not home.is_dir():
        cache_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=cache_dir, prefix=".copy-"))
        shutil.copytree(top, staging / package.name / top.name, symlinks=True)
        # The programs find these libraries by a path relative to themselves.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, staging / libraries.name, symlinks=True)
        for folder in (staging, staging / package.name):
            folder.chmod(0o755)
        try:
            staging.rename(home)
        except OSError:  # another process was first; its copy is as good
            shutil.rmtree(staging)
    if not _runs([str(copy.tool("postgres")), "--version"], user):
        raise ServerRefused(
            f"user {user.uid} cannot run PostgreSQL at {installation.bin_dir}",
            detail=f"nor a copy of it in {cache_dir}",
            hint="open the folders above it to others (chmod o+x), or install PostgreSQL for all users",
        )
    return copy


def _runs(command: Sequence[str], user: ServerUser) -> bool:
    """Tell whether the command ends with 0 as that user."""
    prefix, options = as_user(user)
    try:
        done = subprocess.run(
            [*prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            cwd="/",
            **options,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
