"""The pace of base backups: how fast, with how many threads, and whether at all for now.

One for all backups of a process; it may be changed from any thread while a backup runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from pitr.errors import BackupFailed
from pitr.throttle import TokenBucket

# How soon a waiting thread sees that the backup is being stopped.
_POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class PaceLimits:
    """``rate`` in bytes a second, None without a limit; ``workers`` that read at once."""

    rate: float | None
    workers: int


class Pace:
    """What every read asks first.  Thread-safe."""

    def __init__(self, limits: PaceLimits, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._bucket = TokenBucket(limits.rate, monotonic())
        self._workers = limits.workers
        self._active = 0
        self._pause: str | None = None
        self._paused_since_s = 0.0
        self._paused_s = 0.0

    @property
    def limits(self) -> PaceLimits:
        with self._changed:
            return PaceLimits(self._bucket.rate, self._workers)

    def change(self, limits: PaceLimits) -> None:
        """Go on at other limits from now on."""
        with self._changed:
            self._bucket.set_rate(limits.rate, self._monotonic())
            self._workers = limits.workers
            self._changed.notify_all()

    @property
    def pause(self) -> str | None:
        """Why nothing is read now; None if it is."""
        with self._changed:
            return self._pause

    def set_pause(self, reason: str | None) -> None:
        """Read nothing for ``reason``; None: go on."""
        with self._changed:
            now_s = self._monotonic()
            if self._pause is None and reason is not None:
                self._paused_since_s = now_s
            if self._pause is not None and reason is None:
                self._paused_s += now_s - self._paused_since_s
            self._pause = reason
            self._changed.notify_all()

    @property
    def paused_s(self) -> float:
        """How long nothing was read, in all."""
        with self._changed:
            running = self._monotonic() - self._paused_since_s if self._pause is not None else 0.0
            return self._paused_s + running

    @contextmanager
    def working(self, stop: threading.Event) -> Iterator[None]:
        """Be one of the workers in the block; wait for a place first.  Raises BackupFailed when stopped."""
        with self._changed:
            self._enter(stop)
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def spend(self, size_bytes: int, stop: threading.Event) -> None:
        """Return when ``size_bytes`` may be read.  Only in a ``working`` block.  Raises as that does."""
        with self._changed:
            while True:
                _check_going(stop)
                if self._active > self._workers:
                    # Another one goes on in this one's place, and it takes the next that is free.
                    self._active -= 1
                    try:
                        self._enter(stop)
                    except BackupFailed:
                        self._active += 1
                        raise
                if self._pause is not None:
                    self._changed.wait(_POLL_S)
                    continue
                wait_s = self._bucket.take(size_bytes, self._monotonic())
                if wait_s <= 0:
                    return
                self._changed.wait(min(wait_s, _POLL_S))

    def _enter(self, stop: threading.Event) -> None:
        while self._active >= self._workers:
            _check_going(stop)
            self._changed.wait(_POLL_S)
        _check_going(stop)
        self._active += 1


def _check_going(stop: threading.Event) -> None:
    if stop.is_set():
        raise BackupFailed("the base backup is being stopped")
