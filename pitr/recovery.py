"""Recovery: which moment a restore goes to, and what PostgreSQL is told about it.  Pure.

Every target becomes an LSN before recovery starts (``pitr.stop``), because PostgreSQL's own time
and name targets end in "recovery ended before configured recovery target was reached" on an idle
server, and cannot be proved afterwards.  Reference: PostgreSQL manual, "Recovery Target".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias
from zoneinfo import ZoneInfo

from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

TargetKind: TypeAlias = Literal["latest", "immediate", "lsn", "xid", "name", "time"]
TargetTimeline: TypeAlias = TimelineId | Literal["latest", "current"]
RecoveryAction: TypeAlias = Literal["pause", "promote", "shutdown"]

# xid 0 to 2 are never a transaction's own (src/include/access/transam.h).
XID_MIN: Final = 3
XID_MAX: Final = 0xFFFF_FFFF
# MAXFNAMELEN - 1 (src/include/access/xlog_internal.h).
RESTORE_POINT_BYTES_MAX: Final = 63


@dataclass(frozen=True, slots=True)
class RecoveryTarget:
    """A moment to restore to.  The field of its kind is set, the others are None.

    ``is_inclusive``: a transaction at exactly this time, LSN or xid stays (the default), or goes.
    ``timeline``: "latest" is the one that the archive's signed end is on, "current" the backup's.
    """

    kind: TargetKind
    instant: datetime | None = None
    lsn: LSN | None = None
    xid: int | None = None
    name: str | None = None
    is_inclusive: bool = True
    timeline: TargetTimeline = "latest"

    def __post_init__(self) -> None:
        given = {
            "time": self.instant is not None,
            "lsn": self.lsn is not None,
            "xid": self.xid is not None,
            "name": self.name is not None,
        }
        if [kind for kind, is_given in given.items() if is_given] != [self.kind][: self.kind in given]:
            raise MalformedValue(f"a recovery target {self.kind!r} has the wrong fields")
        if self.instant is not None and self.instant.tzinfo is None:
            raise MalformedValue("a recovery target's time must have a zone")
        if self.xid is not None and not XID_MIN <= self.xid <= XID_MAX:
            raise MalformedValue(f"transaction id out of range: {self.xid}")

    def __str__(self) -> str:
        """Return the text that ``parse_target`` reads back, without inclusiveness and timeline."""
        if self.instant is not None:
            return instant_text(self.instant)
        if self.lsn is not None:
            return f"lsn:{self.lsn}"
        if self.xid is not None:
            return f"xid:{self.xid}"
        return f"name:{self.name}" if self.name is not None else self.kind

    def describe(self, zone: str) -> str:
        """Return the target in words for a person in ``zone``: a time is given in UTC and locally."""
        side = "inclusive" if self.is_inclusive else "exclusive"
        if self.instant is not None:
            return f"{instant_text(self.instant)} = {local_text(self.instant, zone)}, {side}"
        return str(self) if self.kind in ("latest", "immediate", "name") else f"{self}, {side}"


def instant_text(at: datetime) -> str:
    """Return a moment as RFC 3339 in UTC, with microseconds only where there are any."""
    text = at.astimezone(UTC).replace(tzinfo=None).isoformat()
    return f"{text}Z"


def local_text(at: datetime, zone: str) -> str:
    """Return a moment as a wall clock in the IANA zone ``zone`` shows it, with offset and zone."""
    local = at.astimezone(ZoneInfo(zone))
    text = local.replace(tzinfo=None).isoformat(sep=" ")
    offset = local.strftime("%z")
    return f"{text}{offset[:3]}:{offset[3:5]} {zone}"


@dataclass(frozen=True, slots=True)
class RecoverySetting:
    """One line for postgresql.auto.conf."""

    name: str
    value: str

    def __str__(self) -> str:
        # As ALTER SYSTEM writes them: only quotes and backslashes need care, and a line has no line break.
        # (src/backend/utils/misc/guc.c, write_auto_conf_file; guc-file.l reads '' and \\ in quotes.)
        if "\n" in self.value or "\r" in self.value or "\0" in self.value:
            raise MalformedValue(f"{self.name} cannot hold a line break")
        quoted = self.value.replace("\\", "\\\\").replace("'", "''")
        return f"{self.name} = '{quoted}'"


# All that decides where recovery stops; one that is left over from an earlier restore would win or clash.
RECOVERY_SETTINGS: Final = (
    "restore_command",
    "recovery_target",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_name",
    "recovery_target_lsn",
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "recovery_target_action",
    "archive_cleanup_command",
    "recovery_end_command",
)


def recovery_settings(
    *,
    restore_command: str,
    timeline: TimelineId,
    stop_lsn: LSN | None,
    is_inclusive: bool,
    action: RecoveryAction = "pause",
) -> tuple[RecoverySetting, ...]:
    """Return the settings for one recovery, in the order in which they should stand.

    ``stop_lsn`` None means the consistency point of the backup (``immediate``).  The timeline is
    given by number: "latest" would let a history file that turns up meanwhile lead elsewhere.
    """
    if stop_lsn is None:
        target = [RecoverySetting("recovery_target", "immediate")]
    else:
        target = [
            RecoverySetting("recovery_target_lsn", str(stop_lsn)),
            RecoverySetting("recovery_target_inclusive", "true" if is_inclusive else "false"),
        ]
    return (
        RecoverySetting("restore_command", restore_command),
        *target,
        # Decimal: PostgreSQL reads it with strtoul(…, 0), and hexadecimal digits without 0x would be refused.
        RecoverySetting("recovery_target_timeline", str(timeline.number)),
        RecoverySetting("recovery_target_action", action),
    )


def with_recovery_settings(auto_conf: str, settings: Sequence[RecoverySetting]) -> str:
    """Return postgresql.auto.conf with these recovery settings and no other ones; all else stays as it is."""
    kept = without_recovery_settings(auto_conf)
    if kept and not kept.endswith("\n"):
        kept += "\n"
    return kept + "".join(f"{setting}\n" for setting in settings)


def without_recovery_settings(auto_conf: str) -> str:
    """Return postgresql.auto.conf without any recovery setting, as after promotion."""
    names = "|".join(RECOVERY_SETTINGS)
    # Names are case-insensitive and the "=" is optional (src/backend/utils/misc/guc-file.l).
    return re.sub(rf"(?im)^[ \t]*(?:{names})(?=[ \t=])[^\n]*(?:\n|\Z)", "", auto_conf)
