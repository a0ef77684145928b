"""Directories that are filled beside their place and moved there whole, and what they replace.

All moves are renames on one filesystem, and each may be repeated after a crash at any point.  What is
replaced is moved aside first, all of it; at every moment either it or what replaces it is whole.  Nothing is
overwritten.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.errors import RestoreRefused
from pitr.postgres.processes import postmaster_pid
from pitr.postgres.server_user import ServerUser, hand_over
from pitr.restore_journal import WorkDirectory, remove_tree
from storage.synced_file import sync_directory

# What mkfs leaves in the top of a new filesystem.
IGNORED: Final = frozenset({"lost+found"})
_STAGING_NAME: Final = ".pitr-partial"
_REFUSED_NAME: Final = ".pitr-refused"
# Takes what is moved one by one; it gets the other name when all is in it.
_REFUSING_NAME: Final = ".pitr-refusing"
KEPT_NAME: Final = ".pitr-kept"
_KEEPING_NAME: Final = ".pitr-keeping"
_GONE_SUFFIX: Final = "-gone"
# All that a restore may have beside the files of a cluster while it is not over.
OURS: Final = (KEPT_NAME, f"{KEPT_NAME}{_GONE_SUFFIX}")
# What a restore may have left in a place that has not been moved to: ``begin`` deletes it.
LEFT_OVER: Final = frozenset({_STAGING_NAME, _REFUSED_NAME})


@dataclass(frozen=True, slots=True)
class StagedDirectory:
    """A directory that is filled in ``staging`` and then moved to ``final``, on the same filesystem.

    ``kept``: where what ``final`` holds before goes; None if it must hold nothing.
    """

    final: Path
    staging: Path
    kept: Path | None = None

    @classmethod
    def inside(cls, final: Path, *, replaces: bool) -> StagedDirectory:
        """Return one whose ``final`` cannot be renamed: a mount point, or a tablespace's place."""
        return cls(final, final / _STAGING_NAME, final / KEPT_NAME if replaces else None)

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
        self.throw_away()
        self.staging.mkdir(mode=0o700)

    def keep(self) -> None:
        """Move what is in the way to ``kept``; then ``kept`` has all of it, or there was nothing.

        Raises RestoreRefused if a server runs on it, or it cannot be moved: nothing is lost then.
        """
        if self.kept is None or self.kept.exists() or not self.staging.exists():
            return
        if not self.final.exists():
            return
        check_stopped(self.final)
        try:
            if self.is_inside:
                self._keep_inside(self.kept)
            elif any(self.final.iterdir()):
                self.final.rename(self.kept)
                sync_directory(self.kept.parent)
                sync_directory(self.final.parent)
        except OSError as cause:
            raise RestoreRefused(
                f"could not move {self.final} aside", detail=str(cause), hint="run the restore again"
            ) from cause

    def _keep_inside(self, kept: Path) -> None:
        # Made even if there is nothing to keep: it says that whatever comes to ``final`` later is new.
        keeping = self.final / _KEEPING_NAME
        keeping.mkdir(mode=0o700, exist_ok=True)
        _move_all(self.final, keeping, but={_STAGING_NAME, _KEEPING_NAME})
        keeping.chmod(stat.S_IMODE(self.final.stat().st_mode))
        keeping.rename(kept)
        sync_directory(self.final)

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
            if not refused.exists():
                self.final.rename(refused)
            return refused
        inner = self.final / _REFUSED_NAME
        if not inner.exists():
            moving = self.final / _REFUSING_NAME
            moving.mkdir(mode=0o700, exist_ok=True)
            _move_all(self.final, moving, but={_REFUSING_NAME, KEPT_NAME})
            moving.rename(inner)
        return inner

    def throw_away(self) -> None:
        """Delete what was set aside inside ``final``."""
        if self.is_inside:
            remove_tree(self.final / _REFUSED_NAME)

    def give_back(self) -> None:
        """Put back what was kept, after ``set_aside``.  May be repeated."""
        if self.kept is None or not self.kept.exists():
            return
        if self.is_inside:
            mode = stat.S_IMODE(self.kept.stat().st_mode)
            _move_all(self.kept, self.final, but=())
            self.final.chmod(mode)
            self.kept.rmdir()
        else:
            self.kept.rename(self.final)
        sync_directory(self.final)
        sync_directory(self.final.parent)

    def forget(self) -> None:
        """Delete what was kept: the restore has succeeded.  May be repeated; what cannot be deleted stays."""
        if self.kept is None:
            return
        # From here on there is nothing to give back, however far the deletion comes.
        gone = self.kept.with_name(f"{self.kept.name}{_GONE_SUFFIX}")
        with contextlib.suppress(OSError):
            if self.kept.exists():
                self.kept.rename(gone)
            remove_tree(gone)


@dataclass(frozen=True, slots=True)
class RestorePlace:
    """All places of one restore, checked.  ``tablespaces`` by oid; ``wal`` if pg_wal is to be a link."""

    data: StagedDirectory
    tablespaces: tuple[tuple[int, StagedDirectory], ...]
    work: WorkDirectory
    wal: StagedDirectory | None = None

    @property
    def directories(self) -> tuple[StagedDirectory, ...]:
        others = tuple(directory for _, directory in self.tablespaces)
        return (self.data, *others) if self.wal is None else (self.data, *others, self.wal)

    @property
    def kept(self) -> tuple[Path, ...]:
        """Where parts of the old cluster are kept now, or could not be deleted."""
        all_kept = [directory.kept for directory in self.directories if directory.kept is not None]
        found = [*all_kept, *(path.with_name(f"{path.name}{_GONE_SUFFIX}") for path in all_kept)]
        return tuple(path for path in found if path.exists() and any(path.iterdir()))

    def place(self) -> None:
        """Move everything to its place: first all that is replaced goes aside, then what is new comes."""
        for directory in self.directories:
            directory.keep()
        # The data directory last: once it is there a server starts on it.
        for directory in reversed(self.directories):
            directory.place()

    def set_aside(self) -> tuple[Path, ...]:
        """Move what must not be used out of the way and give back what was there; return where it is now."""
        aside = tuple(directory.set_aside(self.work.path / "refused") for directory in self.directories)
        for directory in self.directories:
            directory.give_back()
        return aside

    def throw_away(self) -> None:
        """Delete what ``set_aside`` moved.  Only once a journal says so: it would set aside once more."""
        for directory in self.directories:
            directory.throw_away()
        self.work.clear()

    def forget(self) -> None:
        """Delete what was replaced."""
        for directory in self.directories:
            directory.forget()


def check_stopped(data_dir: Path) -> None:
    """Raise RestoreRefused if a server runs on a cluster that is to be replaced."""
    pid = postmaster_pid(data_dir)
    if pid is not None:
        raise RestoreRefused(
            f"a PostgreSQL server is running on {data_dir}",
            detail=f"its process id is {pid}",
            hint="stop it, and run the restore again; or restore into another directory",
        )


def _move_all(source: Path, to: Path, *, but: Collection[str]) -> None:
    for entry in sorted(source.iterdir()):
        if entry.name not in IGNORED and entry.name not in but:
            entry.rename(to / entry.name)
    sync_directory(to)
    sync_directory(source)
