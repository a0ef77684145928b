"""Takes base backups, one at a time, for the timetable and for whoever asks on the control socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from pitr.backup_choice import BackupKind
from pitr.errors import AlreadyRunning, BackupFailed
from pitr.page_history import still_bad

if TYPE_CHECKING:
    from pitr.backup_tally import BackupProgress
    from pitr.catalogue.backup_record import BackupManifest, PageFinding

SCHEDULED_LABEL = "scheduled backup"


class TakeBackup(Protocol):
    """Takes a backup.  Raises PitrError, StoreError."""

    def __call__(
        self,
        label: str,
        kind: BackupKind,
        cancel: threading.Event,
        progress: Callable[[BackupProgress], None],
        note: Callable[[str], None],
    ) -> BackupManifest: ...


@dataclass(frozen=True, slots=True)
class BackupOutcome:
    """How one attempt ended: with a manifest or a failure.  ``notes`` are what a person should see."""

    manifest: BackupManifest | None
    failure: Exception | None
    duration_s: float
    notes: tuple[str, ...] = ()


class BackupRunner:
    """One attempt after the other.  Thread-safe."""

    def __init__(self, take: TakeBackup) -> None:
        self._take = take
        self._changed = threading.Condition()
        self._asked: tuple[str, BackupKind] | None = None
        self._notes: list[str] = []
        self._is_running = False
        self._attempts = 0
        self._outcome: BackupOutcome | None = None
        self._progress: BackupProgress | None = None
        self._last: BackupManifest | None = None
        self._bad_pages: tuple[PageFinding, ...] = ()
        self._last_duration_s: float | None = None

    def run(self, cancel: threading.Event) -> None:
        """Take one backup now.  Raises what it failed with."""
        with self._changed:
            if self._is_running:
                raise AlreadyRunning("a base backup is being taken")
            self._is_running, self._progress = True, None
            self._notes.clear()
            label, kind = self._asked or (SCHEDULED_LABEL, "auto")
            self._asked = None
        begun = time.monotonic()
        manifest: BackupManifest | None = None
        failure: Exception | None = None
        try:
            manifest = self._take(label, kind, cancel, self._look, self._notes.append)
        except Exception as error:  # not handled here: kept for `status` and the metrics, and raised on
            failure = error
            raise
        finally:
            duration_s = time.monotonic() - begun
            with self._changed:
                noted = self._noted()
                self._is_running, self._progress = False, None
                self._attempts += 1
                self._outcome = BackupOutcome(
                    manifest,
                    failure or (None if manifest is not None else BackupFailed("interrupted")),
                    duration_s,
                    (*self._notes, *noted),
                )
                if manifest is not None:
                    self._last, self._last_duration_s = manifest, duration_s
                    self._bad_pages = still_bad([manifest], self._bad_pages)
                self._changed.notify_all()

    def ask_for(self, label: str, kind: BackupKind) -> int:
        """Say what the next backup is; return a ticket for ``wait``.  Raises AlreadyRunning."""
        with self._changed:
            if self._is_running:
                raise AlreadyRunning(
                    "a base backup is being taken", hint="pitr status shows how far it is; ask again after it"
                )
            if self._asked is not None:
                # One run serves one that asks: another kind or label would take the place of this one's.
                raise AlreadyRunning(
                    "a base backup was asked for already, and is about to begin",
                    detail=f"{self._asked[0]!r}, of type {self._asked[1]}",
                    hint="pitr status shows how far it is; ask again after it",
                )
            self._asked = label, kind
            return self._attempts + 1

    def wait(
        self,
        ticket: int,
        timeout_s: float,
        look: Callable[[BackupProgress | None], None],
        every_s: float = 0.5,
    ) -> BackupOutcome:
        """Wait for the attempt of a ticket, looking at its progress meanwhile.

        Raises BackupFailed when it has not ended after ``timeout_s``; it goes on then.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._changed:
                if self._attempts >= ticket and self._outcome is not None:
                    return self._outcome
                self._changed.wait(every_s)
                has_ended = self._attempts >= ticket
                progress = self._progress
            if not has_ended:
                look(progress)
            if time.monotonic() > deadline:
                raise BackupFailed(
                    f"the backup has not ended after {timeout_s:.0f} s",
                    hint="pitr status shows how far it is",
                )

    def remember(self, earlier: Iterable[BackupManifest]) -> None:
        """Take the newest backup of earlier runs for the last one, and what they know of bad pages."""
        found = list(earlier)
        with self._changed:
            if self._last is None and found:
                self._last = max(found, key=lambda one: one.stopped_at)
                self._last_duration_s = (self._last.stopped_at - self._last.started_at).total_seconds()
                self._bad_pages = still_bad(found)

    def last_success_at(self) -> datetime | None:
        """Return when the last complete backup was begun."""
        with self._changed:
            return None if self._last is None else self._last.started_at

    @property
    def last(self) -> BackupManifest | None:
        with self._changed:
            return self._last

    @property
    def bad_pages(self) -> tuple[PageFinding, ...]:
        """Return the pages that the last full backup found bad, and those that others found since."""
        with self._changed:
            return self._bad_pages

    @property
    def last_duration_s(self) -> float | None:
        with self._changed:
            return self._last_duration_s

    @property
    def last_notes(self) -> tuple[str, ...]:
        """Return what a person should see of the last attempt of this process."""
        with self._changed:
            return () if self._outcome is None else self._outcome.notes

    @property
    def last_result(self) -> str | None:
        """Return ``done`` or ``failed`` for the last attempt of this process; None before it."""
        with self._changed:
            if self._outcome is None:
                return None
            return "failed" if self._outcome.failure is not None else "done"

    @property
    def progress(self) -> BackupProgress | None:
        with self._changed:
            return self._progress

    @property
    def is_running(self) -> bool:
        with self._changed:
            return self._is_running

    def _noted(self) -> tuple[str, ...]:
        return () if self._progress is None else self._progress.notes

    def _look(self, progress: BackupProgress) -> None:
        with self._changed:
            self._progress = progress
