"""Where a restore may write: the checks before the first byte.

Files come to their place by renaming (``pitr.restore_staged``), so that a data directory is there complete or
not at all.  What was there before refuses the restore, unless it is the cluster that is to be replaced
(``pitr.restore_replace``); that is kept until the restore has succeeded.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import RestoreRefused
from pitr.postgres.processes import postmaster_pid
from pitr.postgres.server_user import ServerUser
from pitr.restore_journal import WorkDirectory
from pitr.restore_staged import IGNORED, LEFT_OVER, RestorePlace, StagedDirectory

_HINT_TARGET: Final = "restore into a new or empty directory; a stopped cluster is replaced with --delta"
_HINT_SPACE: Final = "give the tablespace a new or empty directory: --tablespace-map OLD=NEW"
_HINT_WAL: Final = "name a new or empty directory for WAL: --wal-dir DIR"
# Blocks and directories of the filesystem itself.
_ROOM_PERCENT: Final = 102


def tablespace_locations(manifest: BackupManifest, mapping: Mapping[str, Path]) -> dict[int, Path]:
    """Return where each tablespace goes: where it was, unless ``mapping`` (oid, name or location) moves it.

    Raises RestoreRefused for a mapping of no tablespace, of one that is named twice or could be either of
    two, or for a place that is not absolute.
    """
    unused = dict(mapping)
    places: dict[int, Path] = {}
    meant: dict[str, int] = {}
    for space in manifest.tablespaces:
        # One that lies in the data directory (allow_in_place_tablespaces) is part of it.
        if not space.location.startswith("/"):
            continue
        words = [
            text for text in dict.fromkeys((str(space.oid), space.name, space.location)) if text in mapping
        ]
        for text in words:
            if meant.setdefault(text, space.oid) != space.oid:
                raise RestoreRefused(
                    f"{text} could be tablespace {meant[text]} or {space.oid}", hint="use the oid"
                )
        if len(words) > 1:
            raise RestoreRefused(
                f"tablespace {space.name} ({space.oid}) is mapped twice", detail=", ".join(words)
            )
        places[space.oid] = mapping[words[0]] if words else Path(space.location)
        unused = {text: place for text, place in unused.items() if text not in words}
    if unused:
        raise RestoreRefused(
            f"no tablespace of the backup is called {', '.join(sorted(unused))}",
            detail="it has " + (", ".join(f"{s.name} ({s.oid})" for s in manifest.tablespaces) or "none"),
        )
    for place in places.values():
        if not place.is_absolute():
            raise RestoreRefused(f"a tablespace's place must be an absolute path: {place}")
    return places


def check_path(path: Path) -> None:
    """Refuse what could not be restored into as a data directory, by its name alone.

    Raises RestoreRefused.
    """
    text = str(path)
    if path.name in ("", ".."):
        raise RestoreRefused(f"{text} is no place for a restore", hint="name a new or empty directory")
    if any(ord(character) < 0x20 for character in text):
        # It becomes part of restore_command, and a line of PostgreSQL's configuration has no line break.
        raise RestoreRefused(f"a path with a line break or a control character cannot be used: {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as cause:
        raise RestoreRefused(f"a path that is not UTF-8 cannot be used: {text!r}") from cause


def check_place(
    target: Path,
    tablespaces: Mapping[int, Path],
    *,
    size_bytes: int,
    spool_bytes: int,
    user: ServerUser | None,
    is_claimed: bool,
    wal_dir: Path | None = None,
    replaced: Mapping[Path, Collection[str]] | None = None,
) -> RestorePlace:
    """Return the places of a restore into ``target`` after all that can be checked without writing.

    ``is_claimed``: an earlier run may have left folders of its own there, which ``begin`` deletes.
    ``replaced``: by place, the names that may be there because they are the old cluster's.
    Raises RestoreRefused; nothing was written.
    """
    target = target.absolute()
    finals = [target, *tablespaces.values(), *([] if wal_dir is None else [wal_dir])]
    check_path(target)
    if target.is_symlink() and target.is_dir() and not _is_mount(target):
        # The data directory comes to its place by renaming, which a link is not replaced by.
        raise RestoreRefused(f"{target} is a link", hint=f"name where it leads: --into {target.resolve()}")
    if wal_dir is not None and not wal_dir.is_absolute():
        raise RestoreRefused(f"the directory for WAL must be an absolute path: {wal_dir}")
    for final in finals:
        hint = _HINT_TARGET if final == target else _HINT_WAL if final == wal_dir else _HINT_SPACE
        _check_empty(final, (replaced or {}).get(final, ()), hint, is_claimed=is_claimed)
        _check_not_in_cluster(final, finals)
        _check_reachable(final, user)
    place = find_place(target, tablespaces, wal_dir=wal_dir, replaces=replaced is not None)
    # Beside the target, so where a target that is there may be written, its folder perhaps may not.
    _check_reachable(place.work.path, user)
    _check_room([*finals, place.work.path], size_bytes * _ROOM_PERCENT // 100 + spool_bytes)
    return place


def find_place(
    target: Path, tablespaces: Mapping[int, Path], *, wal_dir: Path | None = None, replaces: bool = False
) -> RestorePlace:
    """Return the places of a restore, without any check: for one that is past its files."""
    target = target.absolute()
    work = WorkDirectory.of(target)
    outer = StagedDirectory(target, work.path / "partial", work.kept if replaces else None)
    return RestorePlace(
        StagedDirectory.inside(target, replaces=replaces) if _is_mount(target) else outer,
        tuple(
            (oid, StagedDirectory.inside(place, replaces=replaces))
            for oid, place in sorted(tablespaces.items())
        ),
        work,
        # WAL of an old cluster is never moved or deleted: it may be the last there is.
        None if wal_dir is None else StagedDirectory.inside(wal_dir, replaces=False),
    )


def _is_mount(target: Path) -> bool:
    """Tell whether it cannot be replaced by renaming: what is beside it is on another filesystem."""
    return target.exists() and target.stat().st_dev != target.parent.stat().st_dev


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


def _check_empty(final: Path, replaced: Collection[str], hint: str, *, is_claimed: bool) -> None:
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
        entries = {entry.name for entry in final.iterdir()} - IGNORED - set(replaced)
    except OSError as cause:
        raise RestoreRefused(f"could not look into {final}", detail=str(cause)) from cause
    if pid is not None:
        raise RestoreRefused(
            f"a PostgreSQL server is running on {final}",
            detail=f"its process id is {pid}",
            hint="restore into another directory",
        )
    if is_claimed:
        entries -= LEFT_OVER
    if entries:
        what = "holds a PostgreSQL cluster" if "PG_VERSION" in entries else "is not empty"
        raise RestoreRefused(
            f"{final} {what}",
            detail=f"{len(entries)} entries, among them {', '.join(sorted(entries)[:5])}",
            hint=hint,
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
        raise RestoreRefused(
            f"{final} is given twice", hint="each tablespace, and WAL, needs a place of its own"
        )


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
