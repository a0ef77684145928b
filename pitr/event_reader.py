"""Signed events, read: what happened to an archive, each signed by its host and naming the one before.

Reference: docs/format.md §6.7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pitr.catalogue.event_record import EventRecord
from pitr.errors import MalformedValue, NotAuthentic
from pitr.layout import ArchiveId, event_key, event_sequence
from pitr.listed import read_names
from pitr.pipeline.sign import open_record, payload_sha256
from pitr.repository import Repository
from pitr.verified import check_place, get_verified
from storage.store import ObjectMissing

# As with heads: so many that are bad are no rot but an attack, and a reader stops.
BAD_EVENTS_MAX: Final = 16


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

        Raises NotAuthentic after BAD_EVENTS_MAX bad ones, StoreError.
        """
        events: list[ListedEvent] = []
        faults: list[str] = []
        for sequence in self._sequences(archive):
            if len(events) == limit:
                break
            try:
                event = self.get(archive, sequence)
            except (NotAuthentic, MalformedValue, ObjectMissing) as cause:
                faults.append(f"event {sequence} cannot be used: {cause}")
                if len(faults) >= BAD_EVENTS_MAX:
                    raise NotAuthentic(
                        f"{len(faults)} of the newest events of archive {archive} are bad",
                        detail=str(cause),
                        hint="look at the other regions one by one with `--region`",
                    ) from cause
                continue
            faults += _broken(events[-1] if events else None, event)
            events.append(event)
        return EventPage(tuple(events), tuple(faults))

    def _sequences(self, archive: ArchiveId) -> Iterator[int]:
        yield from read_names(self._repository.store.list_objects(f"events/{archive}/"), event_sequence)


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
