"""What of the archiver's events is critical, signed and counted."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any, cast

import pytest
import structlog
from structlog.testing import CapturingLogger

from cli.daemon_events import DaemonEvents
from pitr.archive_values import ArchiveEvent, ArchiveEventKind
from pitr.catalogue.event_record import EventKind, Happening

AT = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "level", "signed"),
    [
        (ArchiveEventKind.DIVERGED, "critical", "writers-conflict"),
        (ArchiveEventKind.HANDED_DIFFERS, "critical", "writers-conflict"),
        (ArchiveEventKind.HANDED_REFUSED, "critical", None),
        (ArchiveEventKind.ORPHANED, "warning", "end-orphaned"),
        (ArchiveEventKind.WAL_LOST, "warning", "wal-lost"),
        (ArchiveEventKind.STREAMING, "info", None),
    ],
)
def test_a_second_writer_is_critical_signed_once_and_counted_under_one_name(
    kind: ArchiveEventKind, level: str, signed: str | None
) -> None:
    lines, noted, counted = CapturingLogger(), list[Happening](), Counter[str]()
    log = structlog.wrap_logger(lines, processors=[], wrapper_class=structlog.make_filtering_bound_logger(0))
    events = DaemonEvents(log)
    events.connect_log(noted.append, lambda: AT)
    events.connect(cast("Any", None), lambda name: counted.update([name]), lambda _reason: None)
    events.on_event(ArchiveEvent(kind, "what was found"))
    assert [call.method_name for call in lines.calls] == [level]
    assert [one.event for one in noted] == ([] if signed is None else [signed])
    assert counted[str(kind)] == 1
    is_conflict = signed == EventKind.WRITERS_CONFLICT
    assert counted["writers-conflict"] == int(is_conflict)
