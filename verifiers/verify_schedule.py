"""When a verification is due, and which were missed.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from verifiers.log_entry import EntryKind, LogEntry

# More misses than this in a row are one long silence, and said once.
MISSED_MAX: Final = 60


@dataclass(frozen=True, slots=True)
class Due:
    """The time that is run for now, and those before it that nobody ran for, the oldest first."""

    scheduled_at: datetime
    missed: tuple[datetime, ...] = ()


def due(last_scheduled_at: datetime | None, every_s: float, now: datetime) -> Due | None:
    """Return what is due; None if nothing is.  One run catches up for all that were missed."""
    if last_scheduled_at is None:
        return Due(now)
    step = timedelta(seconds=every_s)
    passed = (now - last_scheduled_at) // step
    if passed < 1:
        return None
    first = max(1, passed - MISSED_MAX)
    missed = tuple(last_scheduled_at + step * number for number in range(first, passed))
    return Due(last_scheduled_at + step * passed, missed)


def last_scheduled_at(entries: Iterable[LogEntry], system_identifier: int) -> datetime | None:
    """Return when the newest scheduled verification of a cluster that came to a report was to be.

    One that was abandoned is still due.
    """
    ended = {
        entry.run_id
        for entry in entries
        if entry.kind == EntryKind.VERIFICATION_ENDED and entry.text("report_id") is not None
    }
    found = [
        datetime.fromisoformat(at)
        for entry in entries
        if entry.kind == EntryKind.VERIFICATION_INTENDED
        and entry.run_id in ended
        and entry.text("system_identifier") == str(system_identifier)
        and (at := entry.text("scheduled_at")) is not None
    ]
    return max(found, default=None)


def next_region(entries: Iterable[LogEntry], regions: Iterable[str]) -> str:
    """Return the region whose turn it is: the one that was read longest ago, or never."""
    order = list(regions)
    last: dict[str, int] = {}
    for entry in entries:
        region = entry.text("region")
        if entry.kind == EntryKind.VERIFICATION_INTENDED and region is not None:
            last[region] = entry.sequence
    return min(order, key=lambda name: (last.get(name, -1), order.index(name)))
