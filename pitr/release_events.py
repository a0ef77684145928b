"""The watchdog's notes as events that the daemon signs: which are new, and what each one says.  Pure.

The watchdog has no key, and acts when the daemon is dead.  Each outcome becomes one event; what it was about
to do becomes one only if it was ended before it said what came of it.  Reference: docs/format.md §6.7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from pitr.catalogue.event_record import EventKind, Happening
from pitr.release_journal import Note, ReleaseStep

# From the note of what it is about to do to the note of what came of it, it is a second.
UNFINISHED_AFTER: Final = timedelta(seconds=60)
# Half a SHA-256: two notes that differ in a microsecond only are told apart.
_IDENTITY_CHARS: Final = 32

_KINDS: Final = {
    ReleaseStep.RELEASING: (EventKind.COMMITS_RELEASED, "the watchdog was ended while it released commits"),
    ReleaseStep.RELEASED: (EventKind.COMMITS_RELEASED, "the watchdog released commits"),
    ReleaseStep.HELD: (EventKind.COMMITS_HELD_AGAIN, "commits wait again as before"),
    ReleaseStep.LEFT: (EventKind.RELEASE_LEFT, "the watchdog undoes nothing here"),
    ReleaseStep.FAILED: (EventKind.COMMITS_WAITED, "the watchdog could not do what it should"),
    ReleaseStep.WARNED: (EventKind.COMMITS_WAITED, "commits were not released"),
}


def identity_of(note: Note) -> str:
    """Return what tells a note from all others of its journal; an event has it as its fact ``note``."""
    return hashlib.sha256(str(note).encode("ascii")).hexdigest()[:_IDENTITY_CHARS]


def new_happenings(
    notes: Sequence[Note], position: str | None, now: datetime
) -> Iterator[tuple[Happening, str]]:
    """Yield what is to be signed of the notes after ``position``, each with its own position, in order.

    Where the note at ``position`` has made room, all there are come after it.  A note of what is about to be
    done is waited with while it is the last one and young.
    """
    identities = [identity_of(note) for note in notes]
    first = identities.index(position) + 1 if position in identities else 0
    for number in range(first, len(notes)):
        note, is_last = notes[number], number + 1 == len(notes)
        is_unfinished = is_last and note.step is ReleaseStep.RELEASING and now - note.at >= UNFINISHED_AFTER
        if note.step in (ReleaseStep.RELEASING, ReleaseStep.HOLDING) and not is_unfinished:
            continue
        yield _happening(note, identities[number]), identities[number]


def _happening(note: Note, identity: str) -> Happening:
    kind, text = _KINDS[note.step]
    facts = {"by": "watchdog", "note": identity, "step": note.step}
    if note.release is not None:
        facts |= {
            "server": note.release.server,
            "before": note.release.before,
            "released": note.release.released,
        }
    return Happening.of(note.at, kind, f"{text}: {note.reason}" if note.reason else text, **facts)
