"""What a restore was told, and which moment that turned out to be: so that it can be gone on with.

``latest`` and "10m ago" mean another moment each time they are read.  Pure; kept in the journal
(``pitr.restore_journal``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pitr.layout import ArchiveId
from pitr.recovery import RecoveryTarget, instant_text
from pitr.restore_plan import RestorePlan, StopPoint
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId


@dataclass(frozen=True, slots=True)
class Asked:
    """What was typed, and when: ``target`` with all that says how it is meant, and the whole ``command``."""

    target: str
    command: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Aim:
    """The moment that it was: where PostgreSQL is told to stop (None: at the backup's consistency point)."""

    asked: Asked
    archive: ArchiveId
    timeline: TimelineId
    backup: str
    stop_lsn: LSN | None
    is_inclusive: bool
    replay_end: LSN

    @classmethod
    def of(cls, asked: Asked, plan: RestorePlan, stop: StopPoint) -> Aim:
        """Return what a plan makes of the words."""
        return cls(
            asked,
            plan.archive,
            plan.timeline,
            plan.backup.backup,
            stop.target_lsn,
            stop.is_inclusive,
            stop.replay_end,
        )

    @property
    def target(self) -> RecoveryTarget:
        """Return the same moment as a target that means it at any time."""
        if self.stop_lsn is None:
            return RecoveryTarget("immediate", timeline=self.timeline)
        return RecoveryTarget(
            "lsn", lsn=self.stop_lsn, is_inclusive=self.is_inclusive, timeline=self.timeline
        )

    def __str__(self) -> str:
        return (
            f"the restore of {instant_text(self.asked.at)} to {self.asked.target},"
            f" which was {self.replay_end} on timeline {self.timeline} then"
        )

    def to_fields(self) -> dict[str, object]:
        """Return it for the journal."""
        return {
            "target": self.asked.target,
            "command": self.asked.command,
            "at": self.asked.at.isoformat(),
            "archive": str(self.archive),
            "timeline": self.timeline.number,
            "backup": self.backup,
            "stop_lsn": None if self.stop_lsn is None else str(self.stop_lsn),
            "is_inclusive": self.is_inclusive,
            "replay_end": str(self.replay_end),
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Aim:
        """Read it back.  Raises KeyError, TypeError, ValueError, MalformedValue."""
        stop_lsn = fields["stop_lsn"]
        return cls(
            Asked(str(fields["target"]), str(fields["command"]), datetime.fromisoformat(fields["at"])),
            ArchiveId.parse(fields["archive"]),
            TimelineId(int(fields["timeline"])),
            str(fields["backup"]),
            None if stop_lsn is None else LSN.parse(stop_lsn),
            fields["is_inclusive"] is True,
            LSN.parse(fields["replay_end"]),
        )
