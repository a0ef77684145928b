"""What the daemon observes of its parts, put together into snapshots."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from cli.backup_runner import BackupRunner
from cli.put_bill import PutBill
from cli.rpo import RecoveryPoint
from cli.snapshot import (
    BackupSnapshot,
    DaemonSnapshot,
    FenceSnapshot,
    ProtectionSnapshot,
    RedisSnapshotAge,
    RegionSnapshot,
    TaskSnapshot,
    WalDiskSnapshot,
)
from pitr.catalogue.event_record import EventKind
from pitr.protection import Level

if TYPE_CHECKING:
    from cli.timetable import TaskState
    from pitr.archive_values import ArchiveStatus
    from pitr.backup_pace import Pace
    from pitr.event_log import Tally
    from storage.regions import RegionStatus

# Kinds of events come from enumerations of ours; the limit only guards against a mistake.
EVENT_KINDS_MAX = 100
BAD_PAGES_NAMED_MAX = 5
# Counted over all runs, and shown also while there are none: an alert asks whether they grew.
_KEPT = (EventKind.WAL_LOST, EventKind.WRITERS_CONFLICT)


class StatusSource(Protocol):
    """Whoever knows how the archiver does."""

    def status(self) -> ArchiveStatus: ...


@dataclass(slots=True)
class DaemonState:
    """Shared by the daemon's threads; everything in it is under one lock."""

    cluster: str
    archive: str
    quorum: int
    started_at: datetime
    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    backups: BackupRunner
    pace: Pace
    archiver: StatusSource
    regions: Callable[[], Sequence[RegionStatus]]
    tasks: Callable[[], Sequence[TaskState]]
    is_catalogue_complete: Callable[[], bool]
    put_bill: PutBill
    events_waiting: Callable[[], int]
    level: Callable[[], Level]
    tally: Callable[[EventKind], Tally | None]
    slot_retained_bytes: int | None = None
    wal_disk: WalDiskSnapshot | None = None
    last_error: str | None = None
    # How long recovery to the latest moment would take, by what was measured; None where nothing was.
    forecast: dict[str, object] | None = None
    fences: Callable[[], FenceSnapshot | None] = lambda: None
    redis: Callable[[], tuple[RedisSnapshotAge, ...]] = tuple
    _recovery_point: RecoveryPoint = field(default_factory=RecoveryPoint)
    _received_bytes: int = 0
    _events: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    # What earlier runs counted: a hole does not go away when the daemon is started again, and the one that
    # found a second writer has ended with it.
    _before: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for kind in _KEPT:
            before = self.tally(kind)
            self._before[kind.value] = 0 if before is None else before.count

    def count(self, kind: str) -> None:
        """Count an event."""
        with self._lock:
            if kind in self._events or len(self._events) < EVENT_KINDS_MAX:
                self._events[kind] += 1

    def foresee(self, forecast: dict[str, object] | None) -> None:
        """Take note of how long recovery would take."""
        self.forecast = forecast

    def observe(self) -> None:
        """Look at the archiver; called several times a second."""
        status = self.archiver.status()
        with self._lock:
            self._recovery_point.observe(
                self.monotonic(),
                status.server_end,
                status.durable,
                # Nobody knows what PostgreSQL has not handed over: what came last was the last look.
                is_streaming=status.is_streaming
                and not (status.is_handed_over and status.received_bytes == self._received_bytes),
            )
            self.put_bill.note(self.monotonic(), status.puts)
            self._received_bytes = status.received_bytes

    def snapshot(self) -> DaemonSnapshot:
        """Return how everything is now."""
        status = self.archiver.status()
        tasks = tuple(self.tasks())
        at = self.now()
        with self._lock:
            rpo_s = self._recovery_point.age_s(self.monotonic(), status.oldest_unshipped_age_s)
            kept = {kind.value: self._before[kind.value] + self._events[kind.value] for kind in _KEPT}
            events = {**self._events, **kept}
        released = self.tally(EventKind.COMMITS_RELEASED)
        # Also what the watchdog did while no daemon was there.
        events[EventKind.COMMITS_RELEASED.value] = 0 if released is None else released.count
        losses = self.tally(EventKind.WAL_LOST)
        return DaemonSnapshot(
            at=at,
            started_at=self.started_at,
            pid=os.getpid(),
            cluster=self.cluster,
            archive=self.archive,
            quorum=self.quorum,
            is_streaming=status.is_streaming,
            timeline=None if status.timeline is None else str(status.timeline),
            received_lsn=status.received,
            shipped_lsn=status.sealed,
            durable_lsn=status.durable,
            server_lsn=status.server_end,
            received_bytes=status.received_bytes,
            durable_bytes=status.durable_bytes,
            backlog_bytes=status.backlog_bytes,
            spool_bytes=status.spool_bytes,
            rpo_s=rpo_s,
            slot_retained_bytes=self.slot_retained_bytes,
            wal_disk=self.wal_disk,
            head_at=status.last_head_at,
            is_catalogue_complete=self.is_catalogue_complete(),
            regions=tuple(_region(region, rpo_s, at) for region in self.regions()),
            protection=self._protection(status),
            backup=self._backup(tasks),
            tasks=tuple(
                TaskSnapshot(
                    task.name,
                    task.is_running,
                    task.is_overdue,
                    task.next_at,
                    task.last_error,
                    task.runs,
                    task.failures,
                )
                for task in tasks
            ),
            events=events,
            last_error=status.last_error or self.last_error,
            wal_lost_at=None if losses is None else losses.last_at,
            forecast=self.forecast,
            fences=self.fences(),
            redis=self.redis(),
        )

    def _protection(self, status: ArchiveStatus) -> ProtectionSnapshot:
        level, now_s = self.level(), self.monotonic()
        with self._lock:
            rate = self.put_bill.puts_per_s(now_s, status.puts)
            cost = self.put_bill.per_month(now_s, status.puts)
        return ProtectionSnapshot(
            is_synchronous=status.is_synchronous,
            level=int(level),
            worth=level.described,
            acknowledged_lsn=status.acknowledged,
            events_waiting=self.events_waiting(),
            puts_per_s=rate,
            puts_cost_per_month=cost,
        )

    def _backup(self, tasks: Sequence[TaskState]) -> BackupSnapshot:
        last, progress = self.backups.last, self.backups.progress
        next_at = next((task.next_at for task in tasks if task.name == "backup"), None)
        step = None
        if self.backups.is_running:
            step = "starting" if progress is None else progress.phase
        return BackupSnapshot(
            last_backup=None if last is None else last.backup,
            last_completed_at=None if last is None else last.stopped_at,
            last_duration_s=self.backups.last_duration_s,
            last_result=self.backups.last_result,
            running_step=step,
            running_bytes=0 if progress is None else progress.bytes_done,
            running_total_bytes=progress.bytes_listed
            if progress is not None and progress.is_listed
            else None,
            next_at=next_at,
            running_paused=None if progress is None else progress.paused,
            rate_limit=self.pace.limits.rate,
            workers=self.pace.limits.workers,
            bad_pages=len(self.backups.bad_pages),
            bad_pages_named=self.backups.bad_pages[:BAD_PAGES_NAMED_MAX],
        )


def _region(region: RegionStatus, rpo_s: float, at: datetime) -> RegionSnapshot:
    """Return a region's figures.  What no region has, this one lacks as well."""
    lacks_s = 0.0
    if region.oldest_pending_at is not None:
        lacks_s = max(0.0, (at - region.oldest_pending_at).total_seconds())
    return RegionSnapshot(
        name=region.name,
        is_healthy=region.is_healthy,
        rpo_s=max(rpo_s, lacks_s),
        pending_repairs=region.pending_repairs,
        stuck_repairs=region.stuck_repairs,
        last_error=region.last_error,
        put_latency_s=region.put_latency_s,
        bad_copies=region.bad_copies,
        bad_copies_named=region.bad_copies_named,
    )
