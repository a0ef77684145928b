"""The journal of releases: what the watchdog was about to do to a server, and what it did.  JSON lines.

Noted before it is done, so that one who is killed between the two knows at the next start what to look for,
and what to put back.  Each note is on disk when ``note`` returns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from pitr.errors import MalformedValue
from storage.synced_file import replace_synced, sync_directory

NOTES_MAX: Final = 1000
_NOTE_BYTES_MAX: Final = 16 * 1024
_TEXT_CHARS_MAX: Final = 2000


class ReleaseStep(StrEnum):
    """What a note says."""

    RELEASING = "releasing"
    RELEASED = "released"
    HOLDING = "holding-again"
    HELD = "held-again"
    LEFT = "left"
    FAILED = "failed"
    WARNED = "warned"


@dataclass(frozen=True, slots=True)
class Release:
    """A change of ``synchronous_standby_names`` on one server, and how to undo it."""

    server: str
    before: str
    was_in_auto_conf: bool
    released: str


@dataclass(frozen=True, slots=True)
class Note:
    """One line: when, which step, of which release (None for a warning), and why."""

    at: datetime
    step: ReleaseStep
    reason: str
    release: Release | None = None

    def __str__(self) -> str:
        fields: dict[str, object] = {"at": self.at.isoformat(), "step": self.step, "reason": self.reason}
        if self.release is not None:
            fields |= {
                "server": self.release.server,
                "before": self.release.before,
                "was_in_auto_conf": self.release.was_in_auto_conf,
                "released": self.release.released,
            }
        return json.dumps(fields, ensure_ascii=True)

    @classmethod
    def parse(cls, line: str) -> Note:
        """Read a line.  Raises MalformedValue."""
        try:
            fields = json.loads(line)
            at = datetime.fromisoformat(fields["at"])
            step, reason = ReleaseStep(fields["step"]), str(fields["reason"])
            release = None
            if "server" in fields:
                texts = [fields[name] for name in ("server", "before", "released")]
                was_in_auto_conf = fields["was_in_auto_conf"]
                if not all(isinstance(text, str) for text in texts) or not isinstance(was_in_auto_conf, bool):
                    raise ValueError("a release of other types")
                release = Release(texts[0], texts[1], was_in_auto_conf, texts[2])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
            raise MalformedValue("not a note of a release") from cause
        if at.tzinfo is None:
            raise MalformedValue("a note's time has no zone")
        return cls(at, step, reason, release)


def open_release(notes: Iterable[Note]) -> Release | None:
    """Return what was or may have been released and not undone, as far as the notes say.  Pure."""
    found: Release | None = None
    for note in notes:
        if _is_open(note):
            found = note.release
        elif note.step in (ReleaseStep.HELD, ReleaseStep.LEFT):
            found = None
    return found


def _is_open(note: Note) -> bool:
    return note.step in (ReleaseStep.RELEASING, ReleaseStep.RELEASED, ReleaseStep.HOLDING)


class ReleaseJournal:
    """One file of notes, of NOTES_MAX at most: the oldest make room.  Raises OSError.  Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def notes(self) -> list[Note]:
        """Return the notes, the oldest first; a line that a crash cut off, or that is none, is left out."""
        try:
            with self._path.open("rb") as file:
                content = file.read(2 * NOTES_MAX * _NOTE_BYTES_MAX)
        except FileNotFoundError:
            return []
        notes = []
        for line in content.decode("utf-8", "replace").splitlines():
            try:
                notes.append(Note.parse(line))
            except MalformedValue:
                continue
        return notes

    def note(self, note: Note) -> None:
        """Add a note; return when it is on disk."""
        if len(note.reason) > _TEXT_CHARS_MAX:
            note = Note(note.at, note.step, note.reason[:_TEXT_CHARS_MAX], note.release)
        notes = [*self.notes(), note]
        if len(notes) > NOTES_MAX:
            # Half of them, so that not every note writes the file anew.
            kept, is_open = notes[-NOTES_MAX // 2 :], open_release(notes)
            if is_open is not None and open_release(kept) != is_open:
                kept = [next(one for one in reversed(notes) if _is_open(one)), *kept]
            self._replace(kept)
        else:
            self._append(str(note))

    def _append(self, line: str) -> None:
        is_new = not self._path.exists()
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            size = os.fstat(descriptor).st_size
            # A line that a crash cut off must not swallow this one.
            is_cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            file.write((b"\n" if is_cut else b"") + line.encode("ascii") + b"\n")
            os.fsync(descriptor)
        if is_new:
            sync_directory(self._path.parent)

    def _replace(self, notes: list[Note]) -> None:
        replace_synced(self._path, "".join(f"{note}\n" for note in notes).encode("ascii"))
