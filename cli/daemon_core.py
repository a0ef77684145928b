"""The daemon's parts, put together, started in order and ended in the opposite one.

    regions → repair queue → replicated store → repository → archiver → catalogue
    timetable, control socket and metrics around them

The archiver is what it lives for: when that cannot go on, the daemon ends with its error; trouble of
any other part is reported, and mended beside it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cli import daemon_parts as parts
from cli.archive_settings import archive_settings
from cli.backup_runner import BackupOutcome, BackupRunner
from cli.backup_taker import BackupTaker
from cli.catalogue_keeper import CatalogueKeeper
from cli.control_server import ControlServer
from cli.daemon_begin import Beginning
from cli.daemon_events import DaemonEvents
from cli.daemon_state import DaemonState
from cli.daemon_verbs import Verbs
from cli.daemon_watch import Watch
from cli.events_parts import fence_keeper, fence_now, with_fence
from cli.last_backups import wait_for_backups
from cli.own_processes import OwnProcesses
from cli.protection_keeper import ProtectionKeeper, ProtectionMark
from cli.put_bill import PutBill
from cli.regions import open_regions, open_writing
from cli.settings import Settings
from cli.sync_server import ReleaseNote, SyncServerSession
from cli.task_report import BACKUP_TASK, report_task
from cli.timetable import Task, Timetable
from cli.wiring import (
    gate_folder,
    host_identity,
    host_repository,
    server_address,
)
from pitr.archive import WalArchiver
from pitr.archive_gate import Gate
from pitr.archive_values import ArchiveEvent, ArchiveEventKind, DrainResult
from pitr.backup_pace import Pace, PaceLimits
from pitr.backup_request import BackupWriter
from pitr.datakeys import HostKeys
from pitr.errors import ArchiveDiverged, BackupFailed
from pitr.event_log import EventLog, NotesFile
from pitr.postgres.leader import LeaderAddress
from pitr.spool import DirectorySpool
from verifiers.gone_keys import what_is_gone

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from cli.fence_keeper import FenceKeeper
    from pitr.backup_choice import BackupKind
    from pitr.backup_tally import BackupProgress
    from pitr.layout import ArchiveId
    from storage.reconcile import Reconciliation

OBSERVE_EVERY_S = 0.25
CLOSE_STORE_S = 10.0


def _now() -> datetime:
    return datetime.now(UTC)


class Daemon:
    """One daemon, from ``run`` to its end.  ``ask_to_stop`` may be called from anywhere, also a signal."""

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        self._settings = settings
        self._log = log
        self._stopping = threading.Event()
        self._stop_reason = ""
        self._failure: BaseException | None = None
        self._host = host_identity(settings)
        self._address = server_address(settings.cluster)
        self._queue = parts.open_queue(settings, log)
        self._events = DaemonEvents(log)
        self.store = open_writing(
            open_regions(settings.regions),
            settings.repository.quorum,
            self._queue,
            on_event=self._events.on_store_event,
            puts_in_flight=max(settings.wal.puts_in_flight, settings.wal.sync_puts_in_flight),
        )
        self._repository = host_repository(settings, self.store)
        # None once the parts run.
        self.beginning: Beginning | None = Beginning(
            settings,
            self._repository,
            self._host.signer,
            self._address,
            self.store.status,
            log,
            _now,
        )
        self._control = ControlServer(settings.daemon.control_path, Verbs(self))
        self.workers_max = settings.backup.workers if settings.backup.source == "files" else 1
        self.pace = Pace(PaceLimits(settings.backup.rate_limit, self.workers_max))
        self._keeper = CatalogueKeeper(
            settings.daemon.catalogue_path, self._repository, lambda text: log.info(text)
        )
        self._processes = OwnProcesses(settings, log)
        self._backups: BackupRunner
        self._taker: BackupTaker
        self._archive: ArchiveId
        self._archiver: WalArchiver
        self._fences: FenceKeeper | None
        self._signed: EventLog
        self._server: SyncServerSession
        self._protection: ProtectionKeeper
        self._timetable: Timetable
        self.state: DaemonState
        self.drained: DrainResult | None = None

    def ask_to_stop(self, by: str) -> None:
        """Begin to end."""
        if not self._stopping.is_set():
            self._stop_reason = by
        self._stopping.set()

    def run(self, *, on_ready: Callable[[], None], on_stopping: Callable[[], None]) -> None:
        """Archive until asked to stop.  Raises what the archiver cannot go on with.

        While server or regions are away at the start it waits for them: the slot keeps the WAL.
        """
        assert self.beginning is not None, "a daemon runs once"
        try:
            with ExitStack() as ending:
                ending.callback(self._control.stop)
                self._control.start()
                archive = self.beginning.find_archive(self._stopping)
                if archive is None:
                    return
                self._archive = archive
                self._build()
                self._start_parts(ending)
                self.beginning = None
                archiving = threading.Thread(target=self._archive_wal, name="archiver", daemon=True)
                archiving.start()
                on_ready()
                while not self._stopping.wait(OBSERVE_EVERY_S):
                    self.state.observe()
                on_stopping()
                self._stop_archiving(archiving)
            if self._failure is not None:
                raise self._failure
        finally:
            self.store.close(CLOSE_STORE_S)
            self._queue.close()

    def back_up(
        self, label: str, kind: BackupKind, look: Callable[[BackupProgress | None], None]
    ) -> BackupOutcome:
        """Take a base backup now, and wait for it.  Raises AlreadyRunning."""
        ticket = self._backups.ask_for(label, kind)
        self._timetable.run_soon(BACKUP_TASK)
        return self._backups.wait(ticket, self._settings.backup.deadline_s, look)

    def take_fence(self) -> Mapping[str, Any]:
        """Take a fence now, and bring it to the regions soon.  Raises NotInitialised, ServerUnavailable."""
        return fence_now(self._fences)

    def compare_regions(self) -> Reconciliation:
        """Queue what a region lacks and has not expired.  Raises StoreError."""
        return self.store.reconcile(is_gone=what_is_gone(self._repository))

    def _build(self) -> None:
        settings = self._settings
        keys = HostKeys(
            self._repository, self._archive, self._host.signer, self._host.recipients, random=os.urandom
        )
        self._archiver = WalArchiver(
            address=self._address,
            archive=self._archive,
            repository=self._repository,
            signer=self._host.signer,
            keys=keys,
            spool=DirectorySpool(settings.daemon.spool_dir, bytes_max=settings.daemon.spool_bytes_max),
            events=self._events,
            settings=archive_settings(settings),
            judge=parts.fork_judge(settings, self._archive, self._address, self._repository, self._log),
            gate=Gate(gate_folder(settings), is_source=settings.wal.source == "archive"),
            clock=_now,
            random=os.urandom,
        )
        self._build_protection()
        self._build_backups(keys)
        self.state = DaemonState(
            cluster=settings.cluster.name,
            archive=str(self._archive),
            quorum=settings.repository.quorum,
            started_at=_now(),
            now=_now,
            monotonic=time.monotonic,
            backups=self._backups,
            pace=self.pace,
            archiver=self._archiver,
            regions=self.store.status,
            tasks=self._timetable.states,
            is_catalogue_complete=lambda: self._keeper.is_complete,
            put_bill=PutBill(price_per_1000=settings.wal.put_price, regions=len(settings.regions)),
            events_waiting=lambda: self._signed.waiting,
            level=lambda: self._protection.level,
            tally=self._signed.tally,
            fences=lambda: None if self._fences is None else self._fences.snapshot(),
            redis=self._processes.redis_ages,
        )
        self._events.connect(self._keeper, self.state.count, self._ask_for_backup)

    def _build_backups(self, keys: HostKeys) -> None:
        """Make what takes backups, each after a fence, and when."""
        settings = self._settings
        self._taker = BackupTaker(
            settings,
            self._archive,
            BackupWriter(self._repository, self._host.signer, self._host.recipients),
            self._archiver,
            self._address,
            self._keeper,
            self.pace,
        )
        self._fences = fence_keeper(
            settings,
            self._repository,
            self._archive,
            self._host.signer,
            keys,
            self._address,
            self._log,
            lambda kind: self.state.count(kind),
        )
        self._backups = BackupRunner(with_fence(self._taker.take, self._fences))
        task = Task(
            BACKUP_TASK,
            settings.backup.every_s,
            settings.backup.deadline_s,
            self._backups.run,
            self._backups.last_success_at,
        )
        self._timetable = Timetable([task, *self._processes.tasks()], now=_now, report=self._report_task)

    def _build_protection(self) -> None:
        """Make what keeps the promise to commits that wait; a level that an earlier run left is in force."""
        settings = self._settings
        self._signed = EventLog(
            self._repository,
            self._archive,
            self._host.signer,
            NotesFile(settings.daemon.events_path),
            on_failure=lambda text: self._log.warning(text),
        )
        self._events.connect_log(self._signed.note, _now)
        self._server = SyncServerSession(self._address.session, ReleaseNote(settings.daemon.release_path))
        self._protection = ProtectionKeeper(
            settings.wal.protection,
            settings.write_quorum,
            ProtectionMark(settings.daemon.protection_path),
            self._server,
            self.store,
            self._archiver,
            note=self._signed.note,
            now=_now,
            monotonic=time.monotonic,
            log=self._log,
            count=lambda kind: self.state.count(kind),
        )
        self._protection.begin()

    def _start_parts(self, ending: ExitStack) -> None:
        """Start what is around the archiver; ``ending`` stops it in the opposite order."""
        settings = self._settings
        self._keeper.start()
        ending.callback(self._keeper.stop)
        self._signed.start()
        ending.callback(self._signed.stop, CLOSE_STORE_S)
        self._protection.start()
        ending.callback(self._server.close)
        ending.callback(self._protection.stop)
        epoch = self._repository.epoch(self._archive)
        self._keeper.record(lambda catalogue: catalogue.record_epoch(epoch))
        watch = Watch(
            settings,
            self._repository,
            self._archive,
            self.store,
            self._queue,
            self.state,
            self._keeper,
            self._log,
            self._address,
            parts.disk_watch(settings, self._address, self._archiver, self._log),
            parts.release_signer(settings, self._signed, self._log, _now),
            parts.space_watch(
                self._address, self._backups, self._log, begin=lambda: self._ask_for_backup("tablespaces")
            ),
        )
        watch.start()
        ending.callback(watch.stop)
        if isinstance(self._address, LeaderAddress):
            self._address.start(self._archiver.look_at_server)
            ending.callback(self._address.stop)
        outlook = parts.recovery_outlook(
            settings,
            self._archive,
            self.store,
            self._archiver,
            self._backups,
            self._log,
            show=self.state.foresee,
            begin=lambda: self._ask_for_backup("outlook"),
        )
        outlook.start()
        ending.callback(outlook.stop)
        if self._fences is not None:
            self._fences.start()
            ending.callback(self._fences.stop)
        # It answers since before the parts were there, and ends before those that it asks.
        ending.callback(self._control.stop)
        ending.callback(parts.start_heart(settings, self._address, self._log, self.state.count))
        stop_metrics = parts.serve_metrics(settings, self.state.snapshot, self._log)
        if stop_metrics is not None:
            ending.callback(stop_metrics)

    def _archive_wal(self) -> None:
        """Archive in a thread of its own; the timetable begins once the last backup is known."""
        timetable = threading.Thread(target=self._start_timetable, name="timetable-start", daemon=True)
        timetable.start()
        try:
            self.drained = self._archiver.run()
        except BaseException as error:  # noqa: BLE001 — the top of a thread: the daemon ends with it
            self._failure = error
            self._log.error("archiving cannot go on", error=str(error))
            if isinstance(error, ArchiveDiverged):
                self._events.on_event(ArchiveEvent(ArchiveEventKind.DIVERGED, error.in_one_line))
        self.ask_to_stop("the archiver")

    def _start_timetable(self) -> None:
        """Learn of the last backup from the regions, then begin: without one, a full one at once."""
        listing = wait_for_backups(
            lambda: self._repository.manifests(self._archive),
            self._stopping,
            lambda reason: self._log.warning("the timetable waits", reason=reason),
        )
        if listing is None:
            return
        for refused in listing.refused:
            self._log.warning("a backup cannot be used", key=refused.key, reason=refused.reason)
        self._taker.chains.remember(one.manifest for one in listing.backups)
        self._backups.remember(one.manifest for one in listing.backups)
        try:
            self._processes.learn(self.store, self._repository, self._archive)
        finally:
            # Whatever is wrong with a verifier's files: backups are taken.
            self._timetable.start()

    def _stop_archiving(self, archiving: threading.Thread) -> None:
        self._log.info("stopping", by=self._stop_reason)
        drain_s = self._settings.daemon.drain_s
        # A backup needs the archiver; it gives up first, and its session ends.
        if not self._timetable.stop(drain_s / 2):
            self._log.warning("a task does not end; it is left behind")
        self._archiver.stop(drain_s)
        archiving.join(drain_s + CLOSE_STORE_S)
        if archiving.is_alive():
            self._failure = self._failure or BackupFailed("the archiver does not end")
        if self.drained is not None:
            self._log.info(str(self.drained))

    def _ask_for_backup(self, _reason: str) -> None:
        self._timetable.run_soon(BACKUP_TASK)

    def _report_task(self, name: str, event: str, error: str | None) -> None:
        self.state.count(f"task-{name}-{event}")
        report_task(self._log, name, event, error, self._backups)
