"""Signed events explain gaps and ends in the map of timelines; what makes no sense explains nothing."""

from __future__ import annotations

import fix_archive as fix

from pitr.catalogue.event_record import EventKind, EventRecord, Happening
from pitr.timeline_events import event_causes
from pitr.timeline_spans import Cause
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId


def record(kind: EventKind, **facts: object) -> EventRecord:
    return EventRecord(
        fix.REPOSITORY, fix.archive_of(1), 1, None, Happening.of(fix.BEGIN, kind, "x", **facts)
    )


def test_a_loss_and_an_orphaned_end_are_known_by_their_places() -> None:
    lost = record(EventKind.WAL_LOST, timeline=TimelineId(2), start=LSN(0x3000000), end=LSN(0x5000000))
    orphan = record(
        EventKind.END_ORPHANED, ended_on=TimelineId(1), left_at=LSN(0x2000100), end=LSN(0x2900000)
    )
    causes = list(event_causes([lost, orphan]))
    assert [(one.cause, one.timeline.number, one.start, one.end) for one in causes] == [
        (Cause.WAL_LOST, 2, LSN(0x3000000), LSN(0x5000000)),
        (Cause.ORPHANED_END, 1, LSN(0x2000100), LSN(0x2900000)),
    ]
    assert all(one.archive == fix.archive_of(1) for one in causes)


def test_what_does_not_say_where_explains_nothing() -> None:
    nowhere = [
        record(EventKind.WAL_LOST),
        record(EventKind.WAL_LOST, timeline="1", start="0/1", end="0/2"),
        record(EventKind.END_ORPHANED, ended_on=TimelineId(1), left_at="x", end="0/2"),
        record(EventKind.WRITERS_CONFLICT, timeline=TimelineId(2), start=LSN(0x3000000), end=LSN(0x5000000)),
    ]
    assert list(event_causes(nowhere)) == []
