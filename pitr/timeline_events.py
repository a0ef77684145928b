"""What signed events say of stretches of WAL: lost to the archive, or left behind by a failover.  Pure.

An event's facts are texts that a host wrote; one that does not say where is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pitr.catalogue.event_record import EventKind, EventRecord
from pitr.errors import MalformedValue
from pitr.timeline_spans import Cause, KnownCause
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId


def event_causes(records: Iterable[EventRecord]) -> Iterator[KnownCause]:
    """Yield what these events explain of an archive's WAL."""
    for record in records:
        happening = record.happening
        try:
            if happening.event == EventKind.WAL_LOST:
                yield _cause(record, "timeline", "start", "end", Cause.WAL_LOST)
            elif happening.event == EventKind.END_ORPHANED:
                yield _cause(record, "ended_on", "left_at", "end", Cause.ORPHANED_END)
        except MalformedValue:
            continue


def _cause(record: EventRecord, timeline: str, start: str, end: str, cause: Cause) -> KnownCause:
    happening = record.happening
    facts = {name: happening.fact(name) or "" for name in (timeline, start, end)}
    return KnownCause(
        record.archive,
        TimelineId.parse(facts[timeline]),
        LSN.parse(facts[start]),
        LSN.parse(facts[end]),
        cause,
        f"event {record.sequence}, {happening.at:%Y-%m-%d %H:%M:%S} UTC: {happening.message}",
    )
