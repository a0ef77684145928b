"""Attempts at backups that nobody goes on with any more: what an expiry may take of them.  Pure.

An attempt that was interrupted has put packs that no manifest names.  The next backup of its kind may go on
with it, under its id; one that is old enough is only bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from pitr.catalogue.backup_record import check_backup_id
from pitr.errors import MalformedValue
from pitr.layout import ArchiveId

# Since it was first begun: no attempt is gone on with after that.  Long enough for a first backup that needs
# many nights, and the window is a month as a rule.
RESUMED_MAX: Final = timedelta(days=30)
# For clocks, and for what is on its way.
_MARGIN: Final = timedelta(days=1)
# What stands in an id between its time and its attempt; a consolidated backup has the time of the one that it
# stands for (docs/format.md §8.2).
_FULL, _INCR = "-full-", "-incr-"
# At once; the next run finds the others.
ABANDONED_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class AbandonedAttempt:
    """An attempt at a backup: its id, which no manifest has."""

    archive: ArchiveId
    backup: str


def begun_at(backup: str) -> datetime:
    """Return when a backup was first begun, as its id says.  Raises MalformedValue."""
    text = check_backup_id(backup).partition("-")[0]
    try:
        return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as cause:
        raise MalformedValue(f"not a backup's id: {backup!r}") from cause


def abandoned_before(now: datetime, deadline: timedelta) -> datetime:
    """Return before when an attempt must have been begun so that nobody is at it or goes on with it.

    ``deadline``: how long one backup may take, and so one that went on with it on the last possible day.
    """
    return now - RESUMED_MAX - deadline - _MARGIN


def abandoned(
    archive: ArchiveId, ids: Iterable[str], known: Collection[str], before: datetime
) -> tuple[AbandonedAttempt, ...]:
    """Return which of ``ids`` are abandoned, the oldest first; ``known`` have a manifest, or are gone.

    What is no backup's id is nobody's, and stays.  So does a full one of the time of a known incremental one:
    somebody may be making it of that one's chain just now, who holds no lease.
    """
    consolidated_as = {backup.partition(_INCR)[0] + _FULL for backup in known if _INCR in backup}
    found = []
    for backup in sorted(ids):
        try:
            if (
                backup not in known
                and backup[: backup.rfind("-") + 1] not in consolidated_as
                and begun_at(backup) < before
            ):
                found.append(AbandonedAttempt(archive, backup))
        except MalformedValue:
            continue
    return tuple(found[:ABANDONED_MAX])
