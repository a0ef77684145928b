"""Where a restore may write: the checks before the first byte, and files that come to their place whole.

Files are staged on the filesystem of their place and moved by renaming, so that a data directory is
there complete or not at all, and nothing that was there before is ever overwritten or deleted.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import RestoreRefused
from pitr.postgres.processes import postmaster_pid
from pitr.postgres.server_user import ServerUser, hand_over
from pitr.restore_journal import WorkDirectory, remove_tree, sync_directory

# What mkfs leaves in the top of a new filesystem.
_IGNORED: Final = frozenset({"lost+found"})
_STAGING_NAME: Final = ".pitr-partial"
_REFUSED_NAME: Final = ".pitr-refused"
# Blocks and directories of the filesystem itself.
_ROOM_PERCENT: Final = 102


@dataclass(frozen=True, slots=True)
class StagedDirectory:
    """A directory that is filled in ``staging`` and then moved to ``final``, on the same filesystem."""

    final: Path
    staging: Path

    @property
    def is_inside(self) -> bool:
        """Whether ``staging`` lies in ``final`` itself: a mount point, or a tablespace's place."""
        return self.staging.parent == self.final

    def begin(self, user: ServerUser | None) -> None:
        """Make an empty staging directory, throwing away what an interrupted run left in it."""
        if self.is_inside and not self.final.exists():
            self.final.mkdir(mode=0o700)
            hand_over(self.final, user)
        remove_tree(self.staging)
        if self.is_inside:
            remove_tree(self.final / _REFUSED_NAME)
        self.staging.mkdir(mode=0o700)

    def place(self) -> None:
        """Move the complete files to their place.  May be repeated after a crash at any point."""
        if not self.staging.exists():
            return
        if self.is_inside:
            # Without this file no server starts, so it comes when all else is there.
            for entry in sorted(self.staging.iterdir(), key=lambda one: (one.name == "PG_VERSION", one.name)):
                entry.rename(self.final / entry.name)
            self.final.chmod(stat.S_IMODE(self.staging.stat().st_mode))
            self.staging.rmdir()
        else:
            # An empty directory is replaced by renaming another one over it.
            self.staging.rename(self.final)
        sync_directory(self.final)
        sync_directory(self.final.parent)

    def set_aside(self, refused: Path) -> Path:
        """Move files that must not be used to ``refused``; return where they are now.  May be repeated."""
        if not self.is_inside:
            self.final.rename(refused)
            return refused
        inner = self.final / _REFUSED_NAME
        inner.mkdir(mode=0o700, exist_ok=True)
        for entry in sorted(self.final.iterdir()):
            if entry.name not in {*_IGNORED, _REFUSED_NAME}:
                entry.rename(inner / entry.name)
        return inner


@dataclass(frozen=True, slots=True)
class RestorePlace:
    """All places of one restore, checked.  ``tablespaces`` by oid."""

    data: StagedDirectory
    tablespaces: tuple[tuple[int, StagedDirectory], ...]
    work: WorkDirectory

    @property
    def directories(self) -> tuple[StagedDirectory, ...]:
        return (self.data, *(directory for _, directory in self.tablespaces))


def tablespace_locations(manifest: BackupManifest, mapping: Mapping[str, Path]) -> dict[int, Path]:
    """Return where each tablespace goes: where it was, unless ``mapping`` (oid, name or location) moves it.

    Raises RestoreRefused for a mapping of no tablespace, or for a place that is not absolute.
    """
    unused = dict(mapping)
    places: dict[int, Path] = {}
    for space in manifest.tablespaces:
        # One that lies in the data directory (allow_in_place_tablespaces) is part of it.
        if not space.location.startswith("/"):
            continue
        chosen = [unused.pop(text) for text in (str(space.oid), space.name, space.location) if text in unused]
        places[space.oid] = chosen[0] if chosen else Path(space.location)
    if unused:
        raise RestoreRefused(
            f"no tablespace of the backup is called {', '.join(sorted(unused))}",
            detail="it has " + (", ".join(f"{s.name} ({s.oid})" for s in manifest.tablespaces) or "none"),
        )
    for place in places.values():
        if not place.is_absolute():
            raise RestoreRefused(f"a tablespace's place must be an absolute path: {place}")
    return places


def check_place(
    target: Path,
    tablespaces: Mapping[int, Path],
    *,
    size_bytes: int,
    spool_bytes: int,
    user: ServerUser | None,
    is_claimed: bool,
) -> RestorePlace:
    """Return the places of a restore into ``target`` after all that can be checked without writing.

    ``is_claimed``: an earlier run may have left folders of its own there, which ``begin`` deletes.
    Raises RestoreRefused; nothing was written.
    """
    target = target.absolute()
    finals = [target, *tablespaces.values()]
    for final in finals:
        _check_empty(final, is_claimed=is_claimed)
        _check_not_in_cluster(final, finals)
        _check_reachable(final, user)
    place = find_place(target, tablespaces)
    # Beside the target, so where a target that is there may be written, its folder perhaps may not.
    _check_reachable(place.work.path, user)
    _check_room([*finals, place.work.path], size_bytes * _ROOM_PERCENT // 100 + spool_bytes)
    return place


def find_place(target: Path, tablespaces: Mapping[int, Path]) -> RestorePlace:
    """Return the places of a restore, without any check: for one that is past its files."""
    target = target.absolute()
    work = WorkDirectory.of(target)
    # A mount point cannot be replaced by renaming, and its sibling is on another filesystem.
    is_mount = target.exists() and target.stat().st_dev != target.parent.stat().st_dev
    staging = target / _STAGING_NAME if is_mount else work.path / "partial"
    return RestorePlace(
        StagedDirectory(target, staging),
        tuple(
            (oid, StagedDirectory(place, place / _STAGING_NAME)) for oid, place in sorted(tablespaces.items())
        ),
        work,
    )


def sync_filesystems(paths: Iterable[Path]) -> None:
    """Make everything that was written on the filesystems of ``paths`` durable.

    One call for each filesystem: syncing a hundred thousand files one by one takes minutes.
    Raises OSError, also for a write that failed before (Linux 5.8 and later).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    seen: set[int] = set()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            device = os.fstat(descriptor).st_dev
            if device not in seen and libc.syncfs(descriptor) != 0:
                raise OSError(ctypes.get_errno(), f"could not sync the filesystem of {path}")
            seen.add(device)
        finally:
            os.close(descriptor)


def _check_empty(final: Path, *, is_claimed: bool) -> None:
    if final.is_symlink() and not final.exists():
        raise RestoreRefused(f"{final} is a link to nothing")
    if not final.exists():
        if not final.parent.is_dir():
            raise RestoreRefused(
                f"{final.parent} does not exist",
                hint=f"make the folder, or choose another place than {final}",
            )
        return
    if not final.is_dir():
        raise RestoreRefused(f"{final} is not a directory")
    try:
        pid = postmaster_pid(final)
        entries = {entry.name for entry in final.iterdir()} - _IGNORED
    except OSError as cause:
        raise RestoreRefused(f"could not look into {final}", detail=str(cause)) from cause
    if pid is not None:
        raise RestoreRefused(
            f"a PostgreSQL server is running on {final}",
            detail=f"its process id is {pid}",
            hint="restore into another directory",
        )
    if is_claimed:
        entries -= {_STAGING_NAME, _REFUSED_NAME}
    if entries:
        what = "holds a PostgreSQL cluster" if "PG_VERSION" in entries else "is not empty"
        raise RestoreRefused(
            f"{final} {what}",
            detail=f"{len(entries)} entries, among them {', '.join(sorted(entries)[:5])}",
            hint="restore into a new or empty directory; nothing is ever overwritten",
        )


def _check_not_in_cluster(final: Path, finals: Sequence[Path]) -> None:
    for parent in final.resolve().parents:
        if (parent / "PG_VERSION").exists() or (parent / "postmaster.pid").exists():
            raise RestoreRefused(
                f"{final} lies in the data directory {parent}", hint="choose a place outside of it"
            )
        if any(parent == other.resolve() for other in finals):
            raise RestoreRefused(f"{final} lies in {parent}, which is restored as well")
    if [other.resolve() for other in finals].count(final.resolve()) > 1:
        raise RestoreRefused(f"{final} is given twice", hint="each tablespace needs a place of its own")


def _check_reachable(final: Path, user: ServerUser | None) -> None:
    """Check that we can write there, and that the server's user can pass through the folders above."""
    existing = _nearest(final)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RestoreRefused(f"no permission to write in {existing}")
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise RestoreRefused(f"{existing} is on a read-only filesystem")
    if user is None or user.is_mapped:
        return
    for parent in final.absolute().parents:
        if parent.exists() and not _may_pass(parent.stat(), user):
            raise RestoreRefused(
                f"the server's user {user.uid} cannot pass through {parent}",
                hint=f"chmod o+x {parent}, or choose another place",
            )


def _may_pass(status: os.stat_result, user: ServerUser) -> bool:
    if status.st_uid == user.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == user.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _check_room(places: Sequence[Path], needed_bytes: int) -> None:
    """Compare the room on all filesystems together: only the index tells how files divide among them."""
    free: dict[int, int] = {}
    for place in places:
        existing = _nearest(place)
        room = os.statvfs(existing)
        # f_bavail leaves out what only root may use; a full disk is no place to begin a restore.
        free[existing.stat().st_dev] = room.f_bavail * room.f_frsize
    if sum(free.values()) < needed_bytes:
        raise RestoreRefused(
            "there is not enough room for the restore",
            detail=f"{needed_bytes} bytes are needed, {sum(free.values())} are free at {places[0]}",
            hint="free some room, or choose another filesystem",
        )


def _nearest(path: Path) -> Path:
    for candidate in (path, *path.absolute().parents):
        if candidate.exists():
            return candidate
    return Path("/")
