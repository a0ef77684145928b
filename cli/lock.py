"""The lock that lets one daemon (or stand-alone run) and one watchdog work on a state directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from pitr.errors import AlreadyRunning


class RunLock:
    """Held from ``acquire`` until ``release`` or the end of the process, however it ends (flock(2))."""

    def __init__(self, path: Path, *, whose: str = "daemon") -> None:
        self._path = path
        self._whose = whose
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock at once.  Raises AlreadyRunning with the holder's process id."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise AlreadyRunning(
                f"another {self._whose} works on this state directory",
                detail=f"process {holder or 'unknown'} holds {self._path}",
                hint="pitr status; stop it first if this one shall take over",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        self._descriptor = descriptor

    @staticmethod
    def holder(path: Path) -> str | None:
        """Return the process id of whoever holds the lock now; None if nobody does."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        finally:
            os.close(descriptor)
        return None

    def release(self) -> None:
        """Give the lock back.  The file stays: removing it would let two hold it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
