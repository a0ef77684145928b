"""Puts the sealed objects of one base backup: a few at a time, repeated while the store is unavailable.

What has been sealed is put again as the same bytes, so a lost answer costs nothing.  Whoever brings an
object waits while ``in_flight_max`` others are on their way: that bounds the backup's memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pitr.catalogue.backup_record import StoredObject
from pitr.errors import BackupFailed, PitrError
from pitr.judged_puts import Puts
from pitr.patience import with_patience
from pitr.pipeline.part_objects import PartKind, SealedPart
from storage.store import StoreError

# On top of the store's own patience in each put.  A daily backup that has run for hours is worth a wait.
PATIENCE_S: Final = 120.0
_SLOT_POLL_S: Final = 0.2

# Gives the key of pack or index ``number`` of a part; called once for each object.
PartKey = Callable[[PartKind, int, int], str]
# Told of an object once it is at quorum.
Acknowledged = Callable[[SealedPart, StoredObject], None]


class PutPool:
    """Objects on their way.  Thread-safe.  The first failure sets ``stop`` and is kept in ``failure``.

    ``on_acknowledged`` is told of each object once it is at quorum, from any thread.
    """

    def __init__(
        self,
        puts: Puts,
        key: PartKey,
        stop: threading.Event,
        *,
        in_flight_max: int,
        jitter: Callable[[], float],
        on_stored: Callable[[int], None],
        on_acknowledged: Acknowledged = lambda _part, _stored: None,
    ) -> None:
        self._puts = puts
        self._key = key
        self._stop = stop
        self._jitter = jitter
        self._on_stored = on_stored
        self._on_acknowledged = on_acknowledged
        self._slots = threading.BoundedSemaphore(in_flight_max)
        self._threads = ThreadPoolExecutor(in_flight_max, thread_name_prefix="backup-put")
        self._lock = threading.Lock()
        self._stored: dict[PartKind, list[StoredObject]] = {"pack": [], "index": []}
        self.failure: Exception | None = None

    def put(self, part: SealedPart) -> None:
        """Return once ``part`` is on its way.  Raises BackupFailed if an earlier put failed, or all ends."""
        while not self._slots.acquire(timeout=_SLOT_POLL_S):
            self._check_going()
        try:
            self._check_going()
            self._threads.submit(self._run, part)
        except BackupFailed:
            self._slots.release()
            raise

    def finish(self) -> None:
        """Wait for all that is on its way.  May be repeated."""
        self._threads.shutdown(wait=True)

    def stored(self, kind: PartKind) -> tuple[StoredObject, ...]:
        """Return the objects that the store has acknowledged, by key."""
        with self._lock:
            return tuple(sorted(self._stored[kind], key=lambda each: each.key))

    def _check_going(self) -> None:
        if self.failure is not None:
            raise failed_by(self.failure)
        if self._stop.is_set():
            raise BackupFailed("the base backup is being stopped")

    def _run(self, part: SealedPart) -> None:
        try:
            key = self._key(part.kind, part.part, part.number)
            with_patience(
                lambda: self._puts.put(key, part.body, sha256=part.sha256),
                patience_s=PATIENCE_S,
                stopping=self._stop,
                jitter=self._jitter,
            )
            # The plain digest: the other one would hold every pack in memory until the backup's end.
            stored = StoredObject(key, len(part.body), bytes(part.sha256), part.frames)
            with self._lock:
                self._stored[part.kind].append(stored)
            self._on_acknowledged(part, stored)
            self._on_stored(stored.size_bytes)
        except Exception as failure:  # noqa: BLE001 - the top of a thread: kept for the owner
            with self._lock:
                self.failure = self.failure or failure
            self._stop.set()
        finally:
            self._slots.release()


def failed_by(failure: Exception) -> BackupFailed:
    """Return ``failure`` as the end of the backup, with what can be done about it."""
    if isinstance(failure, BackupFailed):
        return failure
    detail = failure.detail if isinstance(failure, PitrError) else None
    hint = failure.hint if isinstance(failure, PitrError) else None
    if isinstance(failure, StoreError):
        hint = "see `pitr status` for the regions; a backup needs a quorum of them to the end"
    return BackupFailed(f"base backup failed: {failure}", detail=detail, hint=hint)
