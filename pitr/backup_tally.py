"""What a base backup has done so far, counted by all its threads in one place."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pitr.catalogue.backup_record import FINDINGS_MAX
from pitr.catalogue.backup_signs import ALIEN_NAMED_MAX, RELATIONS_NAMED_MAX, BackupSigns, RelationSign
from pitr.postgres.basebackup import FoundPage

# Said one by one up to here; a directory of a million sockets is one note.
_NOTES_MAX: Final = 100
# A server's message may be of any length.
_REASON_CHARS_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class BackupProgress:
    """How far a base backup is: ``bytes_done`` of ``bytes_listed``, which grows until ``is_listed``.

    ``restored_bytes`` is the true size of the files copied so far, ``stored_bytes`` what the store holds.
    ``paused`` says why nothing is read now; None: it is.
    """

    phase: str = "starting"
    files_done: int = 0
    bytes_done: int = 0
    bytes_listed: int = 0
    is_listed: bool = False
    stored_bytes: int = 0
    findings: int = 0
    restored_bytes: int = 0
    notes: tuple[str, ...] = ()
    paused: str | None = None


def full_note(reason: str) -> str:
    """Return what a person is told of a backup that is full where an incremental one was asked for."""
    return f"a full backup and no incremental one: {reason}"


class Tally:
    """The one place where all threads of a backup count.  Thread-safe."""

    def __init__(self, full_because: str | None = None) -> None:
        self._lock = threading.Lock()
        self._progress = BackupProgress()
        self._found: list[FoundPage] = []
        self._alien: list[str] = []
        self._alien_count = 0
        self._relations: list[tuple[int, str, RelationSign]] = []
        # Who asked has told this one.
        self._full_because = full_because

    @property
    def full_because(self) -> str | None:
        """Why it is full where an incremental one was asked for."""
        with self._lock:
            return self._full_because

    @property
    def progress(self) -> BackupProgress:
        with self._lock:
            return self._progress

    @property
    def found(self) -> tuple[FoundPage, ...]:
        """The bad pages by path and block; at most FINDINGS_MAX, though all are counted."""
        with self._lock:
            return tuple(sorted(self._found, key=lambda page: (page.path, page.block)))

    @property
    def signs(self) -> BackupSigns:
        """What the files looked like."""
        with self._lock:
            relations = tuple(sorted((each for _, _, each in self._relations), key=lambda each: each.path))
            return BackupSigns(tuple(sorted(self._alien)), self._alien_count, relations)

    def alien(self, path: bytes) -> None:
        """Count a file that is no relation where only relations are."""
        with self._lock:
            self._alien_count += 1
            if len(self._alien) < ALIEN_NAMED_MAX:
                self._alien.append(os.fsdecode(path))

    def relation(self, path: bytes, size_bytes: int, content_bytes: int, stored_bytes: int) -> None:
        """Note how a large relation file compressed; the largest are kept."""
        found = RelationSign(os.fsdecode(path), size_bytes, content_bytes, stored_bytes)
        with self._lock:
            heapq.heappush(self._relations, (found.copied_bytes, found.path, found))
            if len(self._relations) > RELATIONS_NAMED_MAX:
                heapq.heappop(self._relations)

    def enter(self, phase: str) -> None:
        with self._lock:
            self._progress = replace(self._progress, phase=phase)

    def listed(self, size_bytes: int) -> None:
        with self._lock:
            self._progress = replace(self._progress, bytes_listed=self._progress.bytes_listed + size_bytes)

    def all_listed(self) -> None:
        with self._lock:
            self._progress = replace(self._progress, is_listed=True)

    def copied(self, size_bytes: int) -> None:
        with self._lock:
            self._progress = replace(self._progress, bytes_done=self._progress.bytes_done + size_bytes)

    def file_copied(self, size_bytes: int, found: Sequence[FoundPage]) -> None:
        with self._lock:
            self._found += found[: max(0, FINDINGS_MAX - len(self._found))]
            self._progress = replace(
                self._progress,
                files_done=self._progress.files_done + 1,
                findings=self._progress.findings + len(found),
                restored_bytes=self._progress.restored_bytes + size_bytes,
            )

    def stored(self, size_bytes: int) -> None:
        with self._lock:
            self._progress = replace(self._progress, stored_bytes=self._progress.stored_bytes + size_bytes)

    def make_full(self, reason: str) -> None:
        """Say why it is full where an incremental one was asked for."""
        with self._lock:
            self._full_because = reason[:_REASON_CHARS_MAX]
        self.note(full_note(reason))

    def note(self, text: str) -> None:
        """Keep a remark that a person should see; each once."""
        with self._lock:
            notes = self._progress.notes
            if len(notes) < _NOTES_MAX and text not in notes:
                self._progress = replace(self._progress, notes=(*notes, text))
