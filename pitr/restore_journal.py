"""The journal of one restore: what it has claimed and how far it is, so that an interrupted one is known.

It lies in the *work directory* beside the target (``DIR.pitr`` for ``DIR``), which also holds the plan for
fetching WAL, the spool, the server's log and the files while they are incomplete.  A restore deletes
only what lies there, or in folders that the journal names.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from pitr.errors import AlreadyRunning, MalformedValue, RestoreRefused
from pitr.fetch_desk import Desk
from pitr.postgres.server_user import ServerUser, hand_over
from pitr.restore_aim import Aim
from pitr.wal_deliveries import notes_file
from storage.synced_file import sync_directory

# files: staged files are incomplete.  placing: they are complete, and on their way to their place.
# recovering, promoting: the server may have run.  renewing: what cannot be recovered any further is on its
# way aside, to be made again.  refusing: what must not be used is.  refused: recovery went elsewhere than
# planned.
Phase: TypeAlias = Literal[
    "files", "placing", "recovering", "promoting", "renewing", "refusing", "refused", "done"
]

JOURNAL_NAME: Final = "pitr-restore.json"
PLAN_NAME: Final = "wal-plan.json"
LOG_NAME: Final = "server.log"
KEPT_NAME: Final = "kept"
_STAGED_NAME: Final = f"{JOURNAL_NAME}.new"
_FORMAT: Final = "pitr-restore/1"
_JOURNAL_BYTES_MAX: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Journal:
    """``plan_sha256`` identifies plan, target directory and tablespaces; ``reason`` why it was refused.

    ``aim``: what was asked for; None where nobody typed it, and in journals of before 2026-11-30.
    """

    plan_sha256: str
    phase: Phase
    reason: str | None = None
    aim: Aim | None = None


@dataclass(frozen=True, slots=True)
class WorkDirectory:
    """The folder beside the target that belongs to its restore."""

    path: Path

    @classmethod
    def of(cls, target: Path) -> WorkDirectory:
        return cls(target.with_name(f"{target.name}.pitr"))

    @property
    def plan_file(self) -> Path:
        return self.path / PLAN_NAME

    @property
    def desk(self) -> Desk:
        return Desk(self.path)

    @property
    def log_file(self) -> Path:
        return self.path / LOG_NAME

    @property
    def kept(self) -> Path:
        """Where the data directory that is replaced is kept."""
        return self.path / KEPT_NAME

    def read(self) -> Journal | None:
        """Return the journal of an earlier run; None if there is no work directory.

        Raises RestoreRefused if the folder is there and not known to be a restore's.
        """
        if not self.path.exists():
            return None
        # A run that was killed while it wrote its first journal has left nothing else.
        if not {entry.name for entry in self.path.iterdir()} - {_STAGED_NAME}:
            return None
        try:
            with (self.path / JOURNAL_NAME).open("rb") as file:
                fields = json.loads(file.read(_JOURNAL_BYTES_MAX))
            if fields["format"] == _FORMAT and fields["phase"] in get_args(Phase):
                aim = None if fields.get("aim") is None else Aim.from_fields(fields["aim"])
                return Journal(str(fields["plan"]), fields["phase"], fields.get("reason"), aim)
            cause: Exception | None = None
        except (OSError, ValueError, KeyError, TypeError, MalformedValue) as error:
            cause = error
        raise RestoreRefused(
            f"{self.path} is no work directory of a restore",
            detail=f"a restore would use it, and its {JOURNAL_NAME} cannot be read",
            hint="move it away, or restore into another directory",
        ) from cause

    def write(self, journal: Journal) -> None:
        """Make the journal durable, replacing the one before."""
        fields = {
            "format": _FORMAT,
            "plan": journal.plan_sha256,
            "phase": journal.phase,
            "reason": journal.reason,
            "aim": None if journal.aim is None else journal.aim.to_fields(),
        }
        text = json.dumps(fields)
        staged = self.path / _STAGED_NAME
        with staged.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self.path / JOURNAL_NAME)
        sync_directory(self.path)

    def check_unlocked(self) -> None:
        """Raise AlreadyRunning if another run holds the work directory now.  Makes nothing."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return  # not there, or not to be looked at: ``read`` and ``locked`` tell
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise self._is_running() from cause
        finally:
            os.close(descriptor)

    def _is_running(self) -> AlreadyRunning:
        return AlreadyRunning(
            "another restore into this directory is running", detail=f"it holds {self.path}"
        )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the work directory for one run.  Raises AlreadyRunning, RestoreRefused."""
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as cause:
            raise RestoreRefused(
                f"could not make the work directory {self.path}",
                detail=str(cause),
                hint="the folder above the target must exist and be writable",
            ) from cause
        try:
            # On the directory itself: a lock file in it would have to be left behind.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as cause:
            raise self._is_running() from cause
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Delete what an earlier run left, but for the journal and an old data directory."""
        for entry in self.path.iterdir():
            if entry.name != JOURNAL_NAME and not entry.name.startswith(KEPT_NAME):
                remove_tree(entry)

    def hand_over(self, user: ServerUser | None) -> None:
        """Give all but an old data directory to the server's user."""
        if user is None or user.is_mapped:
            return
        os.chown(self.path, user.uid, user.gid)
        for entry in self.path.iterdir():
            if not entry.name.startswith(KEPT_NAME):
                hand_over(entry, user)

    def remove(self) -> None:
        """Delete the whole work directory, but for an old data directory that is still there."""
        # The journal goes last: without it the rest would be nobody's, and refuse the next restore.
        self.clear()
        if not any(entry.name.startswith(KEPT_NAME) for entry in self.path.iterdir()):
            remove_tree(self.path)

    def remove_feed(self) -> None:
        """Delete what recovery needed; what a running server uses, and the journal, stay."""
        desk = self.desk
        for entry in (self.plan_file, desk.script, desk.feeder, desk.spool, desk.ask, desk.answers):
            remove_tree(entry)
        notes_file(self.plan_file).unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Delete a file, link or directory.  Links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
