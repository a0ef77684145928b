"""The base backup: from a running server's files to a signed manifest in the store.

The manifest is written last, once everything that it names is at quorum and so is all WAL that the backup
needs; before that nothing lists the backup, and what an attempt left behind is only bytes.

Co-located: reads the data directory itself.  Reference: PostgreSQL manual, "Making a Base Backup Using
the Low Level API"; docs/format.md §8.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from pitr.backup_attempt import await_wal, backup_attempt
from pitr.backup_changes import ChangeFinder, find_changes
from pitr.backup_checks import (
    check_checksums_stayed,
    check_label,
    check_server,
    check_timeline,
    name_findings,
)
from pitr.backup_config import add_config, config_of, without_config
from pitr.backup_continuation import Continuation
from pitr.backup_copy import CopyCrew, copy_directory
from pitr.backup_file_copy import FileCopier
from pitr.backup_manifest import TakenBackup, manifest_of
from pitr.backup_pace import Pace, PaceLimits
from pitr.backup_parent import NoteWriter
from pitr.backup_parts import BackupParts
from pitr.backup_puts import failed_by
from pitr.backup_request import BackupRequest, BackupWriter, WalGate
from pitr.backup_strain import StrainWatch
from pitr.backup_tally import BackupProgress, Tally
from pitr.catalogue.backup_record import BackupManifest, Tablespace
from pitr.errors import BackupFailed, ServerUnavailable
from pitr.lease import Lease
from pitr.pipeline.pack_writer import FileStatus
from pitr.postgres.basebackup import FileReader, PageRules, read_control_file
from pitr.postgres.datadir import CONTROL_PATH, list_data_directory
from pitr.postgres.server import Server, ServerFacts, StoppedBackup
from pitr.postgres.summaries import NotIncremental
from pitr.restore_staged import OURS
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

# How often the session that holds the backup is asked whether it lives: its loss voids the backup.
_SESSION_CHECK_S: Final = 5.0
_PROGRESS_S: Final = 0.2


def take_backup(
    request: BackupRequest,
    writer: BackupWriter,
    wait_for_wal: WalGate,
    *,
    clock: Callable[[], datetime],
    random: Callable[[int], bytes],
    progress: Callable[[BackupProgress], None] = lambda _progress: None,
    cancel: threading.Event | None = None,
) -> BackupManifest:
    """Take a base backup; return its manifest, which is at quorum then.

    It is incremental if the request has a parent and somebody can tell what changed since; else it is full,
    and a note says why.  Opens its own session, which ends with the call.  May be repeated at once after any
    error.
    ``progress`` is called in this thread.  Raises ServerRefused, ServerUnavailable or AlreadyRunning before
    anything was done, BackupFailed after that, also when ``cancel`` is set or the lease was lost.
    """
    cancel = cancel or threading.Event()
    with Server.connect(request.dsn) as server:
        facts = server.facts()
        data_dir = os.fsencode(request.data_dir or facts.data_directory)
        check_server(request.archive, facts, data_dir)
        with backup_attempt(
            writer,
            request.archive,
            request.holder,
            terms=request.lease,
            clock=clock,
            random=random,
            cancel=cancel,
        ) as lease:
            run = _Run(request, writer, server, facts, data_dir, lease, clock, random, progress, cancel)
            return run.take(wait_for_wal)


class _Run:
    """One attempt: its key, its id, its session, its threads."""

    def __init__(
        self,
        request: BackupRequest,
        writer: BackupWriter,
        server: Server,
        facts: ServerFacts,
        data_dir: bytes,
        lease: Lease,
        clock: Callable[[], datetime],
        random: Callable[[int], bytes],
        progress: Callable[[BackupProgress], None],
        cancel: threading.Event,
    ) -> None:
        self._request = request
        self._writer = writer
        self._server = server
        self._facts = facts
        self._data_dir = data_dir
        self._lease = lease
        self._clock = clock
        self._random = random
        self._progress = progress
        self._cancel = cancel
        self._stop = threading.Event()
        self._tally = Tally(request.full_because)
        self._started_at = clock().astimezone(UTC)
        # Known once the server has said whether it can tell what changed.
        self._changes: ChangeFinder | None = None
        self._databases: dict[int, str] = {}
        self._note = NoteWriter()
        self._continuation = Continuation(
            request.notes_dir,
            writer,
            request.archive,
            clock=clock,
            random=random,
            note=self._tally.note,
        )
        self._parts = BackupParts(
            writer.repository,
            request.archive,
            self._stop,
            cancel=cancel,
            random=random,
            on_stored=self._tally.stored,
            on_acknowledged=self._continuation.note_pack,
            puts_in_flight=request.puts_in_flight,
            pack_bytes=request.pack_bytes,
        )
        self._crew: CopyCrew | None = None
        self._pace = request.pace or Pace(PaceLimits(None, request.workers))
        self._paused_before_s = self._pace.paused_s
        self._strain = StrainWatch(
            request.dsn, request.strain, self._pace, self._tally.note, monotonic=time.monotonic
        )
        # By the monotonic clock.
        self._session_checked_s = self._reported_s = time.monotonic()

    def take(self, wait_for_wal: WalGate) -> BackupManifest:
        """Go through all steps.  Whatever happens, no thread is left behind."""
        try:
            self._parts.put_envelope(self._writer.signer, self._writer.recipients, self._started_at)
            self._enter("checkpoint")
            start_lsn = self._start()
            self._look_for_changes(start_lsn)
            tablespaces = {space.oid: space for space in self._server.tablespaces()}
            self._enter(self._continuation.phase)
            self._copy(start_lsn)
            tablespaces |= {space.oid: space for space in self._server.tablespaces()}
            check_checksums_stayed(self._facts, self._server.data_checksums())
            stopped = self._server.stop_backup()
            stopped_at = self._clock()
            self._enter("uploading")
            self._parts.finish()
            self._watch()
            timeline = check_label(stopped, start_lsn)
            if self._changes is not None:
                check_timeline(self._facts.timeline, timeline)
            self._enter("waiting for WAL")
            await_wal(
                wait_for_wal,
                timeline,
                self._wal_from(start_lsn),
                stopped.stop_lsn,
                timeout_s=self._request.wal_timeout_s,
                monotonic=time.monotonic,
                watch=self._watch,
            )
            spaces = [Tablespace(oid, each.name, each.location) for oid, each in tablespaces.items()]
            manifest = self._manifest(timeline, start_lsn, stopped, stopped_at, spaces)
            self._check_cancelled()
            self._enter("writing the manifest")
            self._lease.confirm()
            self._continuation.forget()
            self._parts.put_manifest(manifest, self._writer.signer)
            self._keep_note()
        finally:
            self._stop.set()
            self._strain.stop()
            if self._crew is not None:
                self._crew.abandon()
            self._parts.finish()
            self._continuation.close()
        self._enter("done")
        return manifest

    def _start(self) -> LSN:
        """Start the backup on the server; a checkpoint may take minutes, and can be cancelled."""
        with self._server.interrupted_by(self._cancel):
            try:
                return self._server.start_backup(self._request.label, fast=self._request.fast_checkpoint)
            except ServerUnavailable:
                self._check_cancelled()
                raise

    def _look_for_changes(self, start_lsn: LSN) -> None:
        """Find out what changed since the parent, and so what kind of backup this is."""
        self._databases = self._server.database_versions()
        parent = self._request.parent
        if parent is not None:
            self._enter("reading WAL summaries")
            try:
                self._changes = find_changes(
                    self._server,
                    self._facts,
                    self._data_dir,
                    parent,
                    start_lsn,
                    self._databases,
                    compare_pages=self._request.compare_pages,
                    wait=self._cancel.wait,
                )
            except NotIncremental as reason:
                self._tally.make_full(str(reason))
        self._check_cancelled()
        if parent is None or self._changes is None:
            self._continuation.begin(self._parts, "full", None, self._started_at)
        else:
            self._continuation.begin(self._parts, "incr", parent.manifest.backup, self._started_at)

    def _keep_note(self) -> None:
        """Note what the next backup can be built on; without the note that is a full one."""
        folder = self._request.notes_dir
        if folder is None:
            return
        try:
            self._note.write(folder, self._parts.backup, self._databases)
        except OSError as cause:
            self._tally.note(f"no incremental backup can be built on this one: {cause}")

    def _copy(self, start_lsn: LSN) -> None:
        """Copy all files, the control file last: a standby's backup relies on that."""
        major = self._facts.major
        control = read_control_file(self._data_dir, self._stop.wait).control
        rules = PageRules(
            self._facts.has_checksums, self._facts.relation_segment_blocks, start_lsn, self._server.insert_lsn
        )
        readers = [
            FileReader(
                self._data_dir,
                rules,
                wait=self._stop.wait,
                use_direct_io=self._request.use_direct_io,
                note=self._tally.note,
                pace=lambda size_bytes: self._pace.spend(size_bytes, self._stop),
            )
            for _ in range(self._request.workers)
        ]
        owner = self._parts.part(0)
        already = self._continuation
        copier = FileCopier(
            self._tally, self._stop, changes=self._changes, note=self._note, resume=already.resume
        )
        self._crew = CopyCrew(
            readers,
            [
                self._parts.part(number, mac=already.mac)
                for number, _ in enumerate(readers, already.first_part)
            ],
            copier,
            self._tally,
            self._stop,
            pace=self._pace,
            priority=self._request.priority,
        )
        self._strain.start()
        self._crew.start()
        config = config_of(self._server, self._facts, self._data_dir, self._tally.note)
        # In a mount point a restore may have left the cluster that it replaced, as large as this one.
        but = frozenset(os.fsencode(name) for name in OURS)
        entries = list_data_directory(self._data_dir, control.version_directory(major), but=but)
        copy_directory(without_config(entries, config), self._crew, owner, self._tally, self._watch)
        already.adopt(copier, readers[0], self._parts, self._watch)
        self._strain.stop()
        add_config(config, owner, self._tally)
        last = read_control_file(self._data_dir, self._stop.wait)
        owner.add_small(CONTROL_PATH, last.content, FileStatus(last.mode, last.mtime))
        self._tally.file_copied(len(last.content), [])
        owner.finish()

    def _wal_from(self, start_lsn: LSN) -> LSN:
        """Return where the WAL begins that must be archived without a hole.

        From the parent's start on, though a restore needs none of that: only WAL that was followed all the
        way shows that this server came from the parent, and was not set back to an older copy of its files.
        """
        parent = self._request.parent
        return start_lsn if parent is None or self._changes is None else parent.manifest.start_lsn

    def _manifest(
        self,
        timeline: TimelineId,
        start_lsn: LSN,
        stopped: StoppedBackup,
        stopped_at: datetime,
        tablespaces: Iterable[Tablespace],
    ) -> BackupManifest:
        asked = self._request.parent
        taken = TakenBackup(
            repository=self._writer.repository.repository_id,
            archive=self._request.archive,
            label=self._request.label,
            parent=None if asked is None or self._changes is None else asked.manifest.backup,
            started_at=self._started_at,
            stopped_at=stopped_at,
            timeline=timeline,
            start_lsn=start_lsn,
            stopped=stopped,
            tablespaces=tablespaces,
            packs=[*self._parts.stored("pack"), *self._continuation.adopted],
            findings=name_findings(self._server, self._tally.found, self._tally.progress.findings),
        )
        return manifest_of(taken, self._facts, self._parts, self._tally)

    def _watch(self) -> None:
        """Look after everything that goes on elsewhere; raise if the backup must end."""
        self._check_cancelled()
        crew_failure = self._crew.failure if self._crew is not None else None
        failure = self._lease.lost or self._parts.failure or crew_failure
        if failure is not None:
            raise failed_by(failure)
        now_s = time.monotonic()
        if now_s - self._session_checked_s >= _SESSION_CHECK_S:
            self._session_checked_s = now_s
            self._server.insert_lsn()
        if now_s - self._reported_s >= _PROGRESS_S:
            self._reported_s = now_s
            self._progress(replace(self._tally.progress, paused=self._pace.pause))
        if self._pace.paused_s - self._paused_before_s > self._request.pause_max_s:
            raise BackupFailed(
                f"copying paused for more than {self._request.pause_max_s:g} s, for the server suffers",
                detail=self._pace.pause,
                hint="look at the server; or set [backup] pause_lag and pause_latency higher",
            )

    def _enter(self, phase: str) -> None:
        self._tally.enter(phase)
        self._progress(self._tally.progress)

    def _check_cancelled(self) -> None:
        if self._cancel.is_set():
            raise BackupFailed("the base backup was cancelled", detail="Nothing lists it.")
