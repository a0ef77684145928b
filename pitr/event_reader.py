"""Signed events, read: what happened to an archive, each signed by its host and naming the one before.

Reference: docs/format.md §6.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pitr.catalogue.event_record import EventRecord
from pitr.errors import MalformedValue, NotAuthentic
from pitr.layout import ArchiveId, event_key, event_sequence
from pitr.pipeline.sign import open_record, payload_sha256
from pitr.repository import Repository
from pitr.verified import VerifiedSearch, check_place, get_verified
from storage.store import StoreError


@dataclass(frozen=True, slots=True)
class ListedEvent:
    """A verified event and the SHA-256 of its payload, which the next one names."""

    record: EventRecord
    payload_sha256: bytes


@dataclass(frozen=True, slots=True)
class EventPage:
    """The newest events, the newest first, and what is wrong with them: gaps in the chain, bad copies."""

    events: tuple[ListedEvent, ...]
    faults: tuple[str, ...]


class EventReader:
    """Reads the events of a repository's archives.  Thread-safe as far as the store is."""

    def __init__(self, repository: Repository) -> None:
        self._repository: Final = repository

    def get(self, archive: ArchiveId, sequence: int) -> ListedEvent:
        """Return one verified event.  Raises ObjectMissing, NotAuthentic, StoreError."""
        repository, key = self._repository, event_key(archive, sequence)
        host = repository.verifier(archive)

        def read(body: bytes) -> ListedEvent:
            record = EventRecord.from_payload(open_record(body, host, "event"))
            expected = event_key(record.archive, record.sequence)
            check_place(key, expected, record.repository, repository.repository_id)
            return ListedEvent(record, payload_sha256(body))

        return get_verified(repository.store, key, read)

    def newest(self, archive: ArchiveId) -> ListedEvent | None:
        """Return the newest event that can be used; None if there is none.  Raises as ``page``."""
        return next(iter(self.page(archive, limit=1).events), None)

    def page(self, archive: ArchiveId, *, limit: int) -> EventPage:
        """Return the newest ``limit`` events; a gap or a bad one among them is told, and hides no other.

        Raises NotAuthentic if they are all bad (``VerifiedSearch``), StoreError.
        """
        events: list[ListedEvent] = []
        faults: list[str] = []
        search = VerifiedSearch(self._repository.store, f"events/{archive}/", f"events of archive {archive}")

        def read(key: str) -> ListedEvent | None:
            try:
                sequence = event_sequence(key)
            except MalformedValue:
                return None
            try:
                return self.get(archive, sequence)
            except (NotAuthentic, MalformedValue, StoreError) as cause:
                faults.append(f"event {sequence} cannot be used: {cause}")
                raise

        for event in search.each(read):
            if event is None:
                continue
            faults += _broken(events[-1] if events else None, event)
            events.append(event)
            if len(events) == limit:
                break
        return EventPage(tuple(events), tuple(faults))


def _broken(newer: ListedEvent | None, older: ListedEvent) -> list[str]:
    """Say what is wrong between two neighbours of the listing."""
    if newer is None:
        return []
    after, before = newer.record, older.record
    if after.sequence != before.sequence + 1:
        return [f"events {before.sequence + 1} to {after.sequence - 1} are missing"]
    if after.previous != older.payload_sha256:
        return [f"event {after.sequence} does not go on from event {before.sequence} as it is stored"]
    return []
