"""What a daemon knows of itself at a moment: shown by ``pitr status``, and as metrics.

Values only.  Absent is None; ages are seconds, positions LSNs as text in JSON.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pitr.catalogue.backup_record import PageFinding
from pitr.wal.lsn import LSN
from storage.copy_faults import CopyFault


@dataclass(frozen=True, slots=True)
class RegionSnapshot:
    """One region: ``rpo_s`` is the age of the oldest thing that it lacks.

    ``bad_copies`` are known to be damaged or to be other bytes; the first of them by name.
    """

    name: str
    is_healthy: bool
    rpo_s: float
    pending_repairs: int
    stuck_repairs: int
    last_error: str | None
    put_latency_s: float | None
    bad_copies: int
    bad_copies_named: tuple[CopyFault, ...]


@dataclass(frozen=True, slots=True)
class BackupSnapshot:
    """The base backups: the last one that is complete, how the last attempt went, and the limits.

    ``rate_limit`` in bytes a second; ``running_paused`` says why nothing is read now.  ``bad_pages``: those
    of the last full one and of those after it, the first of them by name.
    """

    last_backup: str | None
    last_completed_at: datetime | None
    last_duration_s: float | None
    last_result: str | None
    running_step: str | None
    running_bytes: int
    running_total_bytes: int | None
    next_at: datetime | None
    running_paused: str | None
    rate_limit: float | None
    workers: int
    bad_pages: int = 0
    bad_pages_named: tuple[PageFinding, ...] = ()


@dataclass(frozen=True, slots=True)
class ProtectionSnapshot:
    """What an acknowledged commit is worth.  ``level`` 0 is the quorum; ``acknowledged_lsn`` is what counts.

    ``puts_per_s`` objects, and what a month of them costs in all regions; None while too little was seen.
    """

    is_synchronous: bool
    level: int
    worth: str
    acknowledged_lsn: LSN | None
    events_waiting: int
    puts_per_s: float | None
    puts_cost_per_month: float | None


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """One task of the timetable."""

    name: str
    is_running: bool
    is_overdue: bool
    next_at: datetime | None
    last_error: str | None
    runs: int
    failures: int


@dataclass(frozen=True, slots=True)
class WalDiskSnapshot:
    """The server's ``pg_wal`` and its disk: what the slot costs, and when there is no more room.

    ``slot_status`` and ``slot_spare_bytes`` are wal_status and safe_wal_size of pg_replication_slots;
    ``growth_rate`` in bytes a second.  What is not seen or not foreseen is None.
    """

    slot_status: str | None
    slot_spare_bytes: int | None
    wal_directory_bytes: int | None
    free_bytes: int | None
    total_bytes: int | None
    growth_rate: float | None
    full_in_s: float | None
    slot_lost_in_s: float | None
    when_disk_fills: str


@dataclass(frozen=True, slots=True)
class MirrorSnapshot:
    """How a mirror's pairs of offsets are kept: ``pairs`` were read by this run, ``behind`` are still to be.

    ``age_s`` is since they were last read, ``written_at`` when the mirror wrote its newest one, by its clock;
    ``stored`` objects went to the regions.
    """

    polled_at: datetime | None = None
    age_s: float | None = None
    pairs: int = 0
    behind: int = 0
    unreadable: int = 0
    written_at: datetime | None = None
    stored: int = 0
    trouble: str | None = None
    store_error: str | None = None


@dataclass(frozen=True, slots=True)
class RedisSnapshotAge:
    """A site of Redis, and when the newest snapshot of it was begun; None: there is none yet."""

    name: str
    taken_at: datetime | None
    age_s: float | None


@dataclass(frozen=True, slots=True)
class FenceSnapshot:
    """The fences between Kafka and the database.  ``number`` and what follows it are the last one's.

    ``unknown`` says why it knows nothing of Kafka, ``trouble`` why there is no newer one.  ``waiting`` are
    taken and not in the store yet; ``dropped`` never come there.  ``skew_s``: how far the server's clock is
    ahead of ours.
    """

    number: int | None
    at: datetime | None
    age_s: float | None
    took_s: float | None
    partitions: int
    missing: tuple[str, ...]
    unknown: str | None
    trouble: str | None
    skew_s: float | None
    waiting: int
    dropped: int
    stored_at: datetime | None
    store_error: str | None
    # None where no mirror is configured.
    mirror: MirrorSnapshot | None = None


class BeginningState(StrEnum):
    """What a daemon that does not archive yet is at."""

    STARTING = "starting"
    WAITING_FOR_SERVER = "waiting for the server"
    WAITING_FOR_REGIONS = "waiting for regions"


@dataclass(frozen=True, slots=True)
class RegionReached:
    """Whether a region answered when it was asked last."""

    name: str
    is_healthy: bool
    last_error: str | None


@dataclass(frozen=True, slots=True)
class BeginningSnapshot:
    """A daemon that has not found its archive yet.  ``last_error`` is what it waits for, in full."""

    at: datetime
    started_at: datetime
    pid: int
    cluster: str
    quorum: int
    state: BeginningState
    last_error: str | None
    regions: tuple[RegionReached, ...]

    def to_fields(self) -> dict[str, Any]:
        """Return the snapshot for JSON: nothing is streamed, and what would be lost is not known."""
        encoded: dict[str, Any] = _encode(asdict(self))
        return encoded | {"is_streaming": False, "durable_lsn": None, "rpo_s": None}


@dataclass(frozen=True, slots=True)
class DaemonSnapshot:
    """The whole daemon.  ``rpo_s`` is at quorum: what would be lost with the host now."""

    at: datetime
    started_at: datetime
    pid: int
    cluster: str
    archive: str
    quorum: int
    is_streaming: bool
    timeline: str | None
    received_lsn: LSN | None
    shipped_lsn: LSN | None
    durable_lsn: LSN | None
    server_lsn: LSN | None
    received_bytes: int
    durable_bytes: int
    backlog_bytes: int
    spool_bytes: int
    rpo_s: float
    slot_retained_bytes: int | None
    wal_disk: WalDiskSnapshot | None
    head_at: datetime | None
    is_catalogue_complete: bool
    regions: tuple[RegionSnapshot, ...]
    protection: ProtectionSnapshot
    backup: BackupSnapshot
    tasks: tuple[TaskSnapshot, ...]
    events: dict[str, int]
    last_error: str | None
    # When WAL was lost last, in whichever run; how often is in ``events``.
    wal_lost_at: datetime | None = None
    forecast: dict[str, object] | None = None
    # None where the configuration has no [events].
    fences: FenceSnapshot | None = None
    # Of the sites that the timetable takes snapshots of.
    redis: tuple[RedisSnapshotAge, ...] = ()

    @property
    def lag_bytes(self) -> int | None:
        """Return how much WAL the server has that is not durable; None if one end is not known."""
        if self.server_lsn is None or self.durable_lsn is None:
            return None
        return max(0, self.server_lsn - self.durable_lsn)

    @property
    def head_age_s(self) -> float | None:
        """Return the age of the last signed head."""
        return None if self.head_at is None else max(0.0, (self.at - self.head_at).total_seconds())

    def to_fields(self) -> dict[str, Any]:
        """Return the snapshot for JSON."""
        fields = {"state": "running", **asdict(self)}
        for name in ("received_lsn", "shipped_lsn", "durable_lsn", "server_lsn"):
            lsn = getattr(self, name)
            fields[name] = None if lsn is None else str(lsn)
        fields["lag_bytes"] = self.lag_bytes
        fields["head_age_s"] = self.head_age_s
        encoded: dict[str, Any] = _encode(fields)
        return encoded


def _encode(value: Any) -> Any:
    if isinstance(value, LSN):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, dict):
        return {name: _encode(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float):
        return round(value, 3)
    return value
