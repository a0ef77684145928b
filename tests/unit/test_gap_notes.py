"""What a report says of moments that cannot be restored, whatever moment it proved."""

from __future__ import annotations

from typing import Any

from cli.map_sources import gap_notes


def span(state: str, start: str, from_at: str | None = None, cause: str | None = None) -> dict[str, Any]:
    return {"state": state, "start_lsn": start, "from_at": from_at, "cause": cause}


def test_of_an_archive_without_a_hole_nothing_is_said() -> None:
    assert gap_notes([span("restorable", "0/1")]) == []


def test_the_newest_hole_is_told_with_its_cause_and_how_many_there_are() -> None:
    hole = span("gap", "0/5", "2026-12-01T03:58:49Z", "wal missing")
    (told,) = gap_notes([span("restorable", "0/1"), hole])
    assert "a stretch of time cannot be restored, the newest from 2026-12-01T03:58:49Z on" in told
    assert told.endswith(": wal missing")
    (said,) = gap_notes([hole, span("gap", "0/6")])
    assert said.endswith("2 stretches of time cannot be restored, the newest from lsn:0/6 on")
