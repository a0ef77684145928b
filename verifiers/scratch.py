"""Scratch places: where a verification restores to.  At most two at once; what a killed one left is found.

ROOT/slot-1.lock, slot-2.lock     held by who works here (flock(2)), so that they end with their process
ROOT/run-RUN.lock                 held by a run until its outcome is logged, also when its folder is gone
ROOT/RUN/pitr-verify.json         says whose the folder is; made first, removed last
ROOT/RUN/data, data.pitr          the restored cluster, and its restore's own folder
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from pitr.errors import AlreadyRunning, PitrError, RestoreRefused
from pitr.postgres.processes import descendants, postmaster_pid
from pitr.restore_instance import remove_socket_folder
from pitr.restore_journal import WorkDirectory
from storage.synced_file import replace_synced

SLOTS: Final = 2
MARK_NAME: Final = "pitr-verify.json"
# What a crash leaves of a mark that was being written: ``storage.synced_file.replace_synced``.
_MARK_STAGED: Final = f"{MARK_NAME}.new"
_FORMAT: Final = "pitr-verify/1"
_RUN: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MARK_BYTES_MAX: Final = 64 * 1024
_ABANDONED_MAX: Final = 1000
# The restore keeps so much WAL ahead of replay, and PostgreSQL some of its own.
_RESERVE_BYTES: Final = 512 * 1024 * 1024
_RESERVE_SHARE: Final = 0.1
_KILL_TIMEOUT_S: Final = 20.0
_MAKING_TIMEOUT_S: Final = 60.0


class NotWiped(PitrError):
    """A scratch place could not be removed: what was restored lies there still."""


@dataclass(slots=True)
class ScratchPlace:
    """The folder of one run."""

    path: Path
    run_id: str

    @property
    def data_dir(self) -> Path:
        return self.path / "data"

    @property
    def certificate(self) -> Path:
        return self.path / "recovery-certificate.json"

    def tablespace(self, oid: int) -> Path:
        """Return where the files of a tablespace go."""
        return self.path / f"tablespace-{oid}"

    @property
    def programs(self) -> Path:
        """Where PostgreSQL's programs are copied to that the server's user cannot run where they are."""
        return self.path / "programs"

    def wipe(self) -> int:
        """End what still runs in it, remove it all, and return how many files that were.  May be repeated.

        Raises NotWiped.
        """
        _end_server(self.data_dir)
        remove_socket_folder(WorkDirectory.of(self.data_dir).path)
        files = sum(len(names) for _, _, names in os.walk(self.path))
        failures: list[str] = []
        mark = self.path / MARK_NAME
        for entry in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            if entry == mark:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, onerror=lambda _f, name, _e: failures.append(str(name)))
            else:
                entry.unlink(missing_ok=True)
        if failures:
            raise NotWiped(f"{failures[0]} cannot be removed", detail=f"{len(failures)} entries are left")
        with contextlib.suppress(FileNotFoundError):
            mark.unlink(missing_ok=True)
            self.path.rmdir()
        return files


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A run that was killed, by what it had noted of itself."""

    run_id: str
    started_at: str
    place: ScratchPlace


@dataclass(frozen=True, slots=True)
class ScratchRoot:
    """The folder for all scratch places."""

    path: Path

    def prepare(self) -> None:
        """Make the folder.  Raises RestoreRefused."""
        try:
            self.path.mkdir(mode=0o711, parents=True, exist_ok=True)
        except OSError as cause:
            raise RestoreRefused(
                f"the scratch folder {self.path} cannot be made",
                detail=cause.strerror,
                hint="set [verify] scratch_dir",
            ) from cause
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise RestoreRefused(
                f"{self.path} is not this user's own folder", hint="set [verify] scratch_dir to another one"
            )

    @contextlib.contextmanager
    def slot(self) -> Iterator[int]:
        """Hold one of the slots, and give its number.  Raises AlreadyRunning."""
        for number in range(1, SLOTS + 1):
            lock = os.open(self.path / f"slot-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            try:
                yield number
            finally:
                os.close(lock)
            return
        raise AlreadyRunning(
            f"{SLOTS} verifications run already", detail=f"in {self.path}", hint="wait until one has ended"
        )

    @contextlib.contextmanager
    def place(self, run_id: str, started_at: datetime) -> Iterator[ScratchPlace]:
        """Make the folder of a run.  It is not removed here: ``ScratchPlace.wipe``.

        The run holds its lock until the end of the context, however early the folder is gone: the store is
        read after that, and only then is the outcome logged.
        """
        place = ScratchPlace(self.path / run_id, run_id)
        fields = {"format": _FORMAT, "run": run_id, "started_at": started_at.isoformat()}
        path = self._lock_path(run_id)
        lock: int | None = None
        try:
            with self._making():
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                place.path.mkdir(mode=0o711)
                replace_synced(place.path / MARK_NAME, json.dumps(fields).encode())
            yield place
        finally:
            if lock is not None:
                path.unlink(missing_ok=True)
                os.close(lock)

    def is_held(self, run_id: str) -> bool:
        """Tell whether a run with this id goes on here now, be its folder there or not."""
        return _is_locked(self._lock_path(run_id))

    def drop_locks(self) -> None:
        """Remove the locks of runs that were killed."""
        with self._making():
            for path in self.path.glob("run-*.lock"):
                if not _is_locked(path):
                    path.unlink(missing_ok=True)

    def abandoned(self) -> list[Abandoned]:
        """Return what killed runs left, the oldest first; nothing else in the folder is looked at."""
        found = []
        # While nobody makes one: what has no mark now was killed before it had one, or after.
        with self._making():
            for entry in sorted(self.path.iterdir())[:_ABANDONED_MAX]:
                if entry.is_dir() and not entry.is_symlink() and not self.is_held(entry.name):
                    one = _abandoned(entry) or _unmarked(entry)
                    if one is not None:
                        found.append(one)
        return sorted(found, key=lambda one: one.started_at)

    def _lock_path(self, run_id: str) -> Path:
        return self.path / f"run-{run_id}.lock"

    @contextlib.contextmanager
    def _making(self) -> Iterator[None]:
        """Hold the folder while a place is made in it, or while those without a mark are looked for.

        Raises AlreadyRunning if another run holds it for long: it takes some milliseconds.
        """
        lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        deadline = time.monotonic() + _MAKING_TIMEOUT_S
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise AlreadyRunning(f"another run holds {self.path}") from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(lock)


def _is_locked(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _abandoned(folder: Path) -> Abandoned | None:
    """Return whose a folder was, if it is a run's."""
    try:
        mark = os.open(folder / MARK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fields = json.loads(os.read(mark, _MARK_BYTES_MAX))
        if fields["format"] != _FORMAT or fields["run"] != folder.name:
            return None
        return Abandoned(folder.name, str(fields["started_at"]), ScratchPlace(folder, folder.name))
    except (ValueError, KeyError, TypeError):
        return None
    finally:
        os.close(mark)


def _unmarked(folder: Path) -> Abandoned | None:
    """Return a run's folder that has no mark yet, or no longer: there is nothing else in it then."""
    is_ours = _RUN.fullmatch(folder.name) is not None and folder.lstat().st_uid == os.geteuid()
    if not is_ours or any(entry.name != _MARK_STAGED for entry in folder.iterdir()):
        return None
    return Abandoned(folder.name, "", ScratchPlace(folder, folder.name))


def check_room(root: Path, size_bytes: int) -> None:
    """Refuse to begin what will not fit.  Raises RestoreRefused."""
    needed = size_bytes + round(size_bytes * _RESERVE_SHARE) + _RESERVE_BYTES
    free = shutil.disk_usage(root).free
    if free < needed:
        raise RestoreRefused(
            f"the scratch folder {root} lacks room",
            detail=f"{needed} bytes are needed, {free} are free",
            hint="make room, or set [verify] scratch_dir to a larger disk",
        )


def _end_server(data_dir: Path) -> None:
    """Kill a server that a killed run left on its files; no client of it is anybody's."""
    pid = postmaster_pid(data_dir)
    if pid is None:
        return
    doomed = [pid, *descendants(pid)]
    for process in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while postmaster_pid(data_dir) is not None:
        if time.monotonic() >= deadline:
            raise NotWiped(f"the server on {data_dir} does not end")
        time.sleep(0.05)
