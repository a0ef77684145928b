"""The event log: what happens is noted on disk at once; later it is signed, chained and put in the store.

An event is worth most when the regions are away, and just then it cannot be put.  So a note is durable
before ``note`` returns, and a thread puts the notes in their order when it can; a crash between the put and
the removal of the note finds the event in the store, and does not put it twice.
Reference: docs/format.md §6.7.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from pitr.catalogue.event_record import EventKind, EventRecord, Happening
from pitr.errors import MalformedValue, PitrError
from pitr.event_reader import EventReader, ListedEvent
from pitr.layout import ArchiveId, event_key
from pitr.pipeline.sign import Signer, decode_time, encode_time, payload_sha256, sign_record
from pitr.repository import Repository
from storage.store import ObjectConflict, StoreError
from storage.synced_file import replace_synced

# Transitions come by the minute at most; so many that wait are days of a store that is away.
NOTES_MAX: Final = 1000
_LINE_BYTES_MAX: Final = 1 << 16
# States rather than moments: a daemon that ends for one finds the same at each of its restarts.
_ONCE: Final = frozenset({EventKind.WRITERS_CONFLICT.value})
_FIRST_PAUSE_S: Final = 0.5
_PAUSE_S_MAX: Final = 30.0
_POSITION: Final = "position"
_TALLIES: Final = "tallies"
# Kinds come from an enumeration of ours; the limit only guards against a mistake.
_KINDS_MAX: Final = 100


class NotesFailed(PitrError):
    """A note could not be made durable.  Whatever it was about must not be done unsaid."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How often a kind of event was noted here, and when it happened last."""

    count: int
    last_at: datetime


@dataclass(frozen=True, slots=True)
class _Head:
    """The first line of the file: what outlives the notes."""

    position: str | None
    tallies: Mapping[str, Tally]

    def with_note(self, note: Happening, position: str | None) -> _Head:
        before = self.tallies.get(note.event)
        tallies = dict(self.tallies)
        if before is not None or len(tallies) < _KINDS_MAX:
            count, last_at = (0, note.at) if before is None else (before.count, before.last_at)
            tallies[note.event] = Tally(count + 1, max(last_at, note.at))
        return _Head(position or self.position, tallies)


class NotesFile:
    """The notes that wait, in a small file that is replaced whole.  Thread-safe; one process has it.

    It also keeps how far another process's journal has been noted, and how often each kind of event was: in
    one file with the notes, so that a kill leaves nothing that is noted or counted twice or not at all.
    """

    def __init__(self, path: Path) -> None:
        """Read what an earlier run left; lines that cannot be read are ``damaged``.  Raises NotesFailed."""
        self._path: Final = path
        self._lock = threading.Lock()
        self._notes, self._head, self.damaged = _read_notes(path)

    def add(self, note: Happening, *, position: str | None = None) -> None:
        """Return once the note is on disk, and with it ``position``, if there is a new one.

        Raises NotesFailed, also when NOTES_MAX notes wait already; the position is then the old one.
        """
        with self._lock:
            if len(self._notes) >= NOTES_MAX:
                raise NotesFailed(f"{NOTES_MAX} events wait to be put already")
            self._replace([*self._notes, note], self._head.with_note(note, position))

    def has_alike(self, note: Happening) -> bool:
        """Return whether a note waits that says the same, at whatever time."""
        with self._lock:
            return any(is_alike(one, note) for one in self._notes)

    @property
    def position(self) -> str | None:
        """Return the newest position that was given with a note."""
        with self._lock:
            return self._head.position

    def tally(self, event: str) -> Tally | None:
        """Return how often events of this kind were noted, also by earlier runs; None if none was."""
        with self._lock:
            return self._head.tallies.get(event)

    def first(self) -> Happening | None:
        """Return the oldest note that waits."""
        with self._lock:
            return self._notes[0] if self._notes else None

    def remove_first(self) -> None:
        """Forget the oldest note: it is in the store.  Raises NotesFailed; it is then found there again."""
        with self._lock:
            self._replace(self._notes[1:], self._head)

    @property
    def count(self) -> int:
        """How many notes wait."""
        with self._lock:
            return len(self._notes)

    def _replace(self, notes: list[Happening], head: _Head) -> None:
        try:
            replace_synced(self._path, _encode_head(head), *map(_encode, notes))
        except OSError as cause:
            raise NotesFailed(f"events cannot be noted in {self._path}: {cause.strerror or cause}") from cause
        self._notes, self._head = notes, head


def is_alike(one: Happening, other: Happening) -> bool:
    """Tell whether both say the same, at whatever time."""
    return replace(one, at=other.at) == other


def _encode(note: Happening) -> bytes:
    fields = {
        "at": encode_time(note.at),
        "event": note.event,
        "message": note.message,
        "facts": dict(note.facts),
    }
    return json.dumps(fields, ensure_ascii=True, sort_keys=True).encode() + b"\n"


def _encode_head(head: _Head) -> bytes:
    tallies = {event: [one.count, encode_time(one.last_at)] for event, one in head.tallies.items()}
    return json.dumps({_POSITION: head.position, _TALLIES: tallies}, sort_keys=True).encode() + b"\n"


def _read_notes(path: Path) -> tuple[list[Happening], _Head, int]:
    notes: list[Happening] = []
    damaged, head = 0, _Head(None, {})
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return notes, head, damaged
    except OSError as cause:
        raise NotesFailed(f"events noted in {path} cannot be read: {cause.strerror}") from cause
    for number, line in enumerate(body.splitlines()[: NOTES_MAX + 1]):
        try:
            if number == 0 and (found := _decode_head(line)) is not None:
                head = found
                continue
            notes.append(_decode(line))
        except (ValueError, KeyError, TypeError, AttributeError, MalformedValue):
            damaged += 1
    return notes, head, damaged


def _decode_head(line: bytes) -> _Head | None:
    """Read the first line; None if it is a note, of a file that has no head."""
    fields = json.loads(line) if len(line) <= _LINE_BYTES_MAX else {}
    if _POSITION not in fields:
        return None
    position = fields[_POSITION]
    return _Head(position if isinstance(position, str) else None, _decode_tallies(fields.get(_TALLIES)))


def _decode_tallies(fields: object) -> dict[str, Tally]:
    """Read the counts; without them, or where they are damaged, the position still stands."""
    if not isinstance(fields, dict):
        return {}
    try:
        return {
            str(event): Tally(int(count), decode_time(last_at))
            for event, (count, last_at) in list(fields.items())[:_KINDS_MAX]
        }
    except (ValueError, TypeError, AttributeError, MalformedValue):
        return {}


def _decode(line: bytes) -> Happening:
    if len(line) > _LINE_BYTES_MAX:
        raise MalformedValue("a note is too long")
    fields = json.loads(line)
    facts = tuple(sorted((str(name), str(text)) for name, text in fields["facts"].items()))
    return Happening(decode_time(fields["at"]), str(fields["event"]), str(fields["message"]), facts)


@dataclass(frozen=True, slots=True)
class _Signed:
    record: EventRecord
    body: bytes


class EventLog:
    """The events of one archive.  ``note`` may be called from any thread; one thread puts."""

    def __init__(
        self,
        repository: Repository,
        archive: ArchiveId,
        signer: Signer,
        notes: NotesFile,
        *,
        on_failure: Callable[[str], None],
    ) -> None:
        self._repository: Final = repository
        self._archive: Final = archive
        self._signer: Final = signer
        self._notes: Final = notes
        self._on_failure: Final = on_failure
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._put_notes, name="event-log", daemon=True)
        self._last: ListedEvent | None = None
        self._knows_last = False
        self._told: str | None = None

    def start(self) -> None:
        """Begin to put what is noted, also by an earlier run."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End, having put what can be put within the time; what is left stays noted.  False if any is."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_s)
        return self._notes.count == 0

    def note(self, happening: Happening, *, position: str | None = None) -> None:
        """Return once it is on disk; it is signed and put soon after.  Raises NotesFailed.

        ``position`` says how far another's journal is noted with it; it is kept with the note, or not at all.
        """
        self._notes.add(happening, position=position)
        self._wake.set()

    @property
    def position(self) -> str | None:
        """Return the newest position that was given with a note, also by an earlier run."""
        return self._notes.position

    def tally(self, event: str) -> Tally | None:
        """Return how often events of this kind were noted, also by earlier runs; None if none was."""
        return self._notes.tally(event)

    @property
    def waiting(self) -> int:
        """How many events are noted and not yet at quorum."""
        return self._notes.count

    def _put_notes(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            self._wake.clear()
            note = self._notes.first()
            if note is None:
                if self._stopping.is_set():
                    return
                self._wake.wait()
                continue
            if self._try_put(note):
                pause_s = _FIRST_PAUSE_S
            elif self._stopping.wait(pause_s):
                return
            else:
                pause_s = min(pause_s * 2, _PAUSE_S_MAX)

    def _try_put(self, note: Happening) -> bool:
        try:
            if not self._knows_last:
                self._last, self._knows_last = EventReader(self._repository).newest(self._archive), True
                if self._last is not None and self._last.record.happening == note:
                    # An earlier run put it, in one region at least, and did not get to say so.
                    self._put(self._signed(self._last.record))
                    self._notes.remove_first()
                    return True
            last = self._last
            if last is not None and note.event in _ONCE and is_alike(note, last.record.happening):
                self._notes.remove_first()
                return True
            self._put(
                self._signed(
                    EventRecord(
                        self._repository.repository_id,
                        self._archive,
                        1 if last is None else last.record.sequence + 1,
                        None if last is None else last.payload_sha256,
                        note,
                    )
                )
            )
            self._notes.remove_first()
        except ObjectConflict:
            # Another writer of this archive, or an event that only a region had which did not answer.
            self._knows_last = False
            self._say("an event's name is taken; the newest is looked up again")
            return False
        except (StoreError, PitrError) as failure:
            # It may have been put, and only not be forgotten: then it is found there, and not put once more.
            self._knows_last = False
            self._say(str(failure))
            return False
        self._told = None
        return True

    def _signed(self, record: EventRecord) -> _Signed:
        return _Signed(record, sign_record(record.to_payload(), self._signer))

    def _put(self, signed: _Signed) -> None:
        key = event_key(signed.record.archive, signed.record.sequence)
        self._repository.puts.put(key, signed.body)
        self._last = ListedEvent(signed.record, payload_sha256(signed.body))

    def _say(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._on_failure(f"an event cannot be put, and is tried again: {text}")
