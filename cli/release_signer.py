"""Signs what the watchdog did: its journal, read by the daemon, becomes events in the regions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from pitr.event_log import EventLog, NotesFailed
from pitr.release_events import new_happenings
from pitr.release_journal import ReleaseJournal


class ReleaseSigner:
    """Looks when it is asked to; what cannot be noted now is noted at a later look."""

    def __init__(
        self,
        journal: ReleaseJournal,
        events: EventLog,
        *,
        say: Callable[[str], None],
        now: Callable[[], datetime],
    ) -> None:
        self._journal: Final = journal
        self._events: Final = events
        self._say: Final = say
        self._now: Final = now
        self._complaint = ""

    def look(self) -> None:
        """Note what is new in the journal, each note once, however this process and the watchdog end."""
        try:
            for happening, position in new_happenings(
                self._journal.notes(), self._events.position, self._now()
            ):
                self._events.note(happening, position=position)
        except (OSError, NotesFailed) as error:
            if str(error) != self._complaint:
                self._say(f"what the watchdog did cannot be signed now: {error}")
            self._complaint = str(error)
            return
        self._complaint = ""
