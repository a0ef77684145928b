"""What archiver and store tell while they work, brought to the log, the counters and the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING

from pitr.archive_values import ArchiveEvent, ArchiveEventKind
from pitr.catalogue.event_record import EventKind, Happening
from pitr.event_log import NotesFailed
from storage.regions import StoreEvent, StoreEventKind

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.catalogue_keeper import CatalogueKeeper
    from pitr.catalogue.records import HeadRecord, HistoryRecord
    from pitr.catalogue.wal_records import PieceHeader, SegmentHeader
    from pitr.layout import PieceKey, SegmentKey

_GOOD = frozenset(
    {
        ArchiveEventKind.STREAMING,
        ArchiveEventKind.STORE_RECOVERED,
        ArchiveEventKind.SLOT_CREATED,
        ArchiveEventKind.TIMELINE_SWITCHED,
    }
)
# What an auditor must find: docs/format.md §6.7.
_SIGNED = {
    ArchiveEventKind.WAL_LOST: EventKind.WAL_LOST,
    ArchiveEventKind.DIVERGED: EventKind.WRITERS_CONFLICT,
    ArchiveEventKind.ORPHANED: EventKind.END_ORPHANED,
    ArchiveEventKind.SLOT_DROPPED: EventKind.SLOT_DROPPED,
    ArchiveEventKind.HANDED_DIFFERS: EventKind.WRITERS_CONFLICT,
}
# Somebody must look at these now: there is other WAL than the archive's under its names.
_CRITICAL = frozenset(
    {ArchiveEventKind.DIVERGED, ArchiveEventKind.HANDED_DIFFERS, ArchiveEventKind.HANDED_REFUSED}
)
_GOOD_STORE = frozenset({StoreEventKind.REGION_RECOVERED, StoreEventKind.COPY_REPAIRED})
# Repairs come by thousands after an outage; the counters and the status tell of them.
_QUIET_STORE = frozenset({StoreEventKind.COPY_REPAIRED, StoreEventKind.COPY_MISSING})


class DaemonEvents:
    """Implements ``pitr.archive_values.ArchiveEvents``; each call is short, and none raises."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._keeper: CatalogueKeeper | None = None
        self._note: Callable[[Happening], None] | None = None
        self._now: Callable[[], datetime] | None = None
        self._count: Callable[[str], None] = lambda _kind: None
        self._ask_for_backup: Callable[[str], None] = lambda _reason: None

    def connect(
        self, keeper: CatalogueKeeper, count: Callable[[str], None], ask_for_backup: Callable[[str], None]
    ) -> None:
        """Say whom to tell; before that only the log is told."""
        self._keeper = keeper
        self._count = count
        self._ask_for_backup = ask_for_backup

    def connect_log(self, note: Callable[[Happening], None], now: Callable[[], datetime]) -> None:
        """Say where what changes the archive's promises is signed."""
        self._note, self._now = note, now

    def note(self, happening: Happening) -> None:
        """Note a signed event; where that cannot be, the log at least has it."""
        if self._note is None:
            return
        try:
            self._note(happening)
        except NotesFailed as failure:
            self._count("event-unsigned")
            self._log.error("an event cannot be noted", reason=failure.message, message=happening.message)

    def on_history(self, history: HistoryRecord) -> None:
        if self._keeper is not None:
            self._keeper.record(lambda catalogue: catalogue.record_history(history))

    def on_piece_durable(self, key: PieceKey, header: PieceHeader, header_sha256: bytes) -> None:  # noqa: ARG002
        if self._keeper is not None:
            self._keeper.record(lambda catalogue: catalogue.record_wal(header, key))

    def on_segment_durable(self, key: SegmentKey, header: SegmentHeader, header_sha256: bytes) -> None:  # noqa: ARG002
        if self._keeper is not None:
            self._keeper.record(lambda catalogue: catalogue.record_wal(header, key))
        self._count("segment-durable")

    def on_head(self, head: HeadRecord, payload_sha256: bytes) -> None:
        if self._keeper is not None:
            self._keeper.record(lambda catalogue: catalogue.record_head(head, payload_sha256))

    def on_event(self, event: ArchiveEvent) -> None:
        self._count(str(event.kind))
        signed = _SIGNED.get(event.kind)
        if signed is EventKind.WRITERS_CONFLICT:
            # However it was found, streamed or handed over: one alert asks for it.
            self._count(signed.value)
        if signed is not None and self._now is not None:
            facts: dict[str, object] = dict(event.facts)
            if event.fork is not None:
                facts |= {field.name: getattr(event.fork, field.name) for field in fields(event.fork)}
            self.note(Happening.of(self._now(), signed, event.message, **facts))
        tell = self._log.info if event.kind in _GOOD else self._log.warning
        if event.kind in _CRITICAL:
            tell = self._log.critical
        tell(event.message, kind=str(event.kind))

    def request_full_backup(self, reason: str) -> None:
        self._log.warning("a new full backup is needed", reason=reason)
        self._ask_for_backup(reason)

    def on_store_event(self, event: StoreEvent) -> None:
        self._count(f"store-{event.kind}")
        if event.kind in _QUIET_STORE:
            self._log.debug(event.detail, kind=str(event.kind), region=event.region)
            return
        tell = self._log.info if event.kind in _GOOD_STORE else self._log.warning
        about = {} if event.key is None else {"key": event.key}
        tell(event.detail, kind=str(event.kind), region=event.region, **about)
