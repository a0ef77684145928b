"""When a verification or a drill is due, which were missed, and whose turn it is.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from verifiers.log_entry import EntryKind, LogEntry

# More misses than this in a row are one long silence, and said once.
MISSED_MAX: Final = 60
_KINDS: Final = {
    False: (EntryKind.VERIFICATION_INTENDED, EntryKind.VERIFICATION_ENDED),
    True: (EntryKind.DRILL_INTENDED, EntryKind.DRILL_ENDED),
}


@dataclass(frozen=True, slots=True)
class Due:
    """The time that is run for now, and those before it that nobody ran for, the oldest first.

    ``repeats``: the run that was begun for the same time and came to no report, as one that was killed.
    """

    scheduled_at: datetime
    missed: tuple[datetime, ...] = ()
    repeats: str | None = None


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


def due_run(
    entries: Iterable[LogEntry],
    system_identifier: int,
    every_s: float,
    now: datetime,
    *,
    drill: str | None = None,
) -> Due | None:
    """Return what is due by the log; None if nothing is.  ``drill`` as of ``last_scheduled_at``.

    A time that a run was begun for is not one that nobody ran for, whatever came of that run.
    """
    log = list(entries)
    tries = _tries(log, system_identifier, drill)
    last = last_scheduled_at(log, system_identifier, drill)
    if last is None and tries:
        # None has come to a report yet: the first that was begun was the first that was due.
        last = min(tries) - timedelta(seconds=every_s)
    found = due(last, every_s, now)
    if found is None:
        return None
    begun = tries.get(found.scheduled_at)
    is_given_up = any(
        one.run_id == begun and one.kind == _KINDS[drill is not None][1] and one.text("report_id") is None
        for one in log
    )
    missed = tuple(at for at in found.missed if at not in tries)
    return replace(found, missed=missed, repeats=begun if is_given_up else None)


def _tries(log: Iterable[LogEntry], system_identifier: int, drill: str | None) -> dict[datetime, str]:
    """Return the newest run that was intended for each scheduled time."""
    return {
        datetime.fromisoformat(at): entry.run_id
        for entry in log
        if entry.kind == _KINDS[drill is not None][0]
        and entry.text("system_identifier") == str(system_identifier)
        and entry.text("drill") == drill
        and (at := entry.text("scheduled_at")) is not None
    }


def last_scheduled_at(
    entries: Iterable[LogEntry], system_identifier: int, drill: str | None = None
) -> datetime | None:
    """Return when the newest scheduled run on a cluster that came to a report was to be.

    ``drill`` is the drill's kind; None: verifications.  One that was abandoned is still due.
    """
    intended, kind = _KINDS[drill is not None]
    log = list(entries)
    ended = {one.run_id for one in log if one.kind == kind and one.text("report_id") is not None}
    found = [
        datetime.fromisoformat(at)
        for entry in log
        if entry.kind == intended
        and entry.run_id in ended
        and entry.text("system_identifier") == str(system_identifier)
        and entry.text("drill") == drill
        and (at := entry.text("scheduled_at")) is not None
    ]
    return max(found, default=None)


def next_region(entries: Iterable[LogEntry], regions: Iterable[str]) -> str:
    """Return the region whose turn it is: the one that was read longest ago, or never."""
    return _longest_ago(entries, regions, EntryKind.VERIFICATION_INTENDED, "region")


def next_cut(entries: Iterable[LogEntry], regions: Iterable[str]) -> str:
    """Return the region that a drill cuts off now: the one that was cut off longest ago, or never."""
    return _longest_ago(entries, regions, EntryKind.DRILL_INTENDED, "without_region")


def _longest_ago(entries: Iterable[LogEntry], regions: Iterable[str], kind: EntryKind, fact: str) -> str:
    order = list(regions)
    last = {
        region: entry.sequence
        for entry in entries
        if entry.kind == kind and (region := entry.text(fact)) is not None
    }
    return min(order, key=lambda name: (last.get(name, -1), order.index(name)))
