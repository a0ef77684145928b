"""Parts of the daemon that are only put together: each is made here from the settings and what it asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from cli.adoption import HostJudge
from cli.backup_runner import BackupRunner
from cli.disk_watch import DiskWatch
from cli.heartbeat_keeper import HeartbeatKeeper
from cli.recovery_outlook import RecoveryOutlook
from cli.release_signer import ReleaseSigner
from cli.settings import Settings
from cli.space_watch import SpaceWatch
from pitr.archive import WalArchiver
from pitr.event_log import EventLog
from pitr.layout import ArchiveId
from pitr.postgres.leader import LeaderAddress
from pitr.release_journal import ReleaseJournal
from storage.repair import RepairQueue, RepairQueueDamaged
from storage.replicated import ReplicatedStore

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.snapshot import DaemonSnapshot
    from pitr.postgres.address import ServerAddress
    from pitr.repository import Repository


def open_queue(settings: Settings, log: FilteringBoundLogger) -> RepairQueue:
    """Open what regions still lack; a damaged one is replaced, and the regions are compared."""
    path = settings.daemon.repair_queue_path
    try:
        queue = RepairQueue(path)
    except RepairQueueDamaged as error:
        # What was in it is found again by comparing the regions.
        log.warning("the repair queue is replaced, and the regions are compared", reason=str(error))
        return RepairQueue.replace_damaged(path)
    names = {region.name for region in settings.regions}
    for gone in (name for name in queue.regions() if name not in names):
        # Nobody sends it anything any more, and the queue has room for so many copies of all regions.
        log.warning("a region is not configured any more", region=gone, forgotten=queue.pending(gone))
        queue.forget_region(gone)
    return queue


def fork_judge(
    settings: Settings,
    archive: ArchiveId,
    address: ServerAddress,
    repository: Repository,
    log: FilteringBoundLogger,
) -> HostJudge:
    """Return who says of a fork that it was a failover's."""
    # What is handed over need not come from the server that has the lock.
    leader = address if isinstance(address, LeaderAddress) and settings.wal.source == "stream" else None
    return HostJudge(
        settings.daemon.state_dir,
        archive,
        leader,
        backups=lambda: [one.manifest for one in repository.manifests(archive).backups],
        say=lambda text: log.warning(text),
    )


def disk_watch(
    settings: Settings, address: ServerAddress, archiver: WalArchiver, log: FilteringBoundLogger
) -> DiskWatch:
    """Return who looks at the room for WAL, and gives the slot up by policy."""
    return DiskWatch(
        address.session,
        settings.cluster.slot,
        settings.wal.drop,
        sees_disk=settings.backup.source == "files",
        give_up=archiver.give_up_slot,
        log=log,
        monotonic=time.monotonic,
    )


def release_signer(
    settings: Settings, signed: EventLog, log: FilteringBoundLogger, now: Callable[[], datetime]
) -> ReleaseSigner:
    """Return who signs what the watchdog noted."""
    return ReleaseSigner(
        ReleaseJournal(settings.daemon.releases_path),
        signed,
        say=lambda text: log.warning(text),
        now=now,
    )


def recovery_outlook(
    settings: Settings,
    archive: ArchiveId,
    store: ReplicatedStore,
    archiver: WalArchiver,
    backups: BackupRunner,
    log: FilteringBoundLogger,
    *,
    show: Callable[[dict[str, object] | None], None],
    begin: Callable[[], None],
) -> RecoveryOutlook:
    """Return who forecasts recovery time, and takes an incremental early where an objective asks for it."""
    return RecoveryOutlook(
        store,
        archive.system_identifier,
        settings.verify_or_default.public_key_file,
        settings.backup.rto_objective_s,
        backups=backups,
        log=log,
        show=show,
        durable=lambda: archiver.status().durable,
        begin=begin,
    )


def space_watch(
    address: ServerAddress, backups: BackupRunner, log: FilteringBoundLogger, *, begin: Callable[[], None]
) -> SpaceWatch:
    """Return who asks for a backup where a tablespace is newer than the last one."""
    return SpaceWatch(address.session, backups, ask=begin, log=log, monotonic=time.monotonic)


def start_heart(
    settings: Settings, address: ServerAddress, log: FilteringBoundLogger, count: Callable[[str], None]
) -> Callable[[], None]:
    """Start the heartbeat where the configuration says so; return what ends it."""
    if settings.wal.heartbeat_s is None:
        return lambda: None
    heart = HeartbeatKeeper(address, settings.wal.heartbeat_s, log, count)
    heart.start()
    return heart.stop


def serve_metrics(
    settings: Settings, snapshot: Callable[[], DaemonSnapshot], log: FilteringBoundLogger
) -> Callable[[], None] | None:
    """Serve metrics where the configuration says so; return what ends that."""
    host, port = settings.daemon.metrics_host, settings.daemon.metrics_port
    if port is None:
        return None
    from cli.metrics import MetricsServer

    metrics = MetricsServer(snapshot, host, port)
    log.info("metrics", address=f"http://{host}:{metrics.port}/metrics")
    return metrics.stop
