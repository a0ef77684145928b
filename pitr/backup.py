"""The base backup: from a running server's files to a signed manifest in the store.

The manifest is written last, once everything that it names is at quorum and so is all WAL that the backup
needs; before that nothing lists the backup, and what an attempt left behind is only bytes.

Co-located: reads the data directory itself.  Reference: PostgreSQL manual, "Making a Base Backup Using
the Low Level API"; docs/format.md §8.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from pitr.backup_changes import ChangeFinder, find_changes
from pitr.backup_checks import check_label, check_server, name_findings
from pitr.backup_config import add_config, config_of, without_config
from pitr.backup_copy import BackupProgress, CopyCrew, Tally, copy_directory
from pitr.backup_parent import NoteWriter, ParentBackup
from pitr.backup_puts import PATIENCE_S, PutPool, failed_by
from pitr.catalogue.backup_record import BackupManifest, Tablespace
from pitr.errors import BackupFailed, PitrError, ServerUnavailable
from pitr.layout import ArchiveId, index_key, pack_key
from pitr.patience import with_patience
from pitr.pipeline.keys import DataKey, Recipient, seal_envelope
from pitr.pipeline.pack_writer import PACK_BYTES_DEFAULT, FileStatus, PartKind, PartWriter
from pitr.pipeline.seal import Context
from pitr.pipeline.sign import Signer
from pitr.postgres.basebackup import FileReader, PageRules, read_control_file
from pitr.postgres.datadir import CONTROL_PATH, list_data_directory
from pitr.postgres.server import Server, ServerFacts, StoppedBackup
from pitr.postgres.summaries import NotIncremental
from pitr.repository import Repository
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.store import StoreError

WORKERS_MAX: Final = 64
# Packs being built, waiting and on their way, all together.
_PACKS_BYTES_MAX: Final = 128 * 1024 * 1024
_PACK_BYTES_MIN: Final = 4 * 1024 * 1024
# How often the session that holds the backup is asked whether it lives: its loss voids the backup.
_SESSION_CHECK: Final = timedelta(seconds=5)
_PROGRESS: Final = timedelta(milliseconds=200)


class WalGate(Protocol):
    """Waits until all WAL of ``timeline`` from ``start`` to ``end`` is at quorum.

    Returns False if it is not after ``timeout_s``; may raise a PitrError if it never will be.
    """

    def __call__(self, timeline: TimelineId, start: LSN, end: LSN, timeout_s: float) -> bool: ...


@dataclass(frozen=True, slots=True)
class BackupRequest:
    """What to back up and how.  ``data_dir`` if it lies elsewhere here than the server says.

    ``fast_checkpoint`` starts at once, with a burst of writes.  ``parent``: what an incremental backup is
    built on; ``compare_pages`` reads every page for it although the server has WAL summaries.  ``notes_dir``:
    where the host keeps what it needs to build on this one.
    """

    dsn: str
    archive: ArchiveId
    label: str
    data_dir: Path | None = None
    workers: int = 2
    puts_in_flight: int = 2
    fast_checkpoint: bool = True
    use_direct_io: bool = True
    wal_timeout_s: float = 600.0
    parent: ParentBackup | None = None
    compare_pages: bool = False
    notes_dir: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.workers <= WORKERS_MAX or not 0 < self.puts_in_flight <= WORKERS_MAX:
            raise ValueError(f"workers and puts in flight must be from 1 to {WORKERS_MAX}")

    @property
    def pack_bytes(self) -> int:
        """The size of packs that keeps memory bounded with so many of them at hand."""
        share = _PACKS_BYTES_MAX // (self.workers + self.puts_in_flight)
        return max(_PACK_BYTES_MIN, min(PACK_BYTES_DEFAULT, share))


@dataclass(frozen=True, slots=True)
class BackupWriter:
    """Who writes the backup, and for whom."""

    repository: Repository
    signer: Signer
    recipients: Sequence[Recipient]


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
    error.  ``progress`` is called in this thread.  Raises ServerRefused or ServerUnavailable before anything
    was done, BackupFailed after that, also when ``cancel`` is set.
    """
    cancel = cancel or threading.Event()
    with Server.connect(request.dsn) as server:
        facts = server.facts()
        data_dir = os.fsencode(request.data_dir or facts.data_directory)
        check_server(request.archive, facts, data_dir)
        run = _Run(request, writer, server, facts, data_dir, clock, random, progress, cancel)
        try:
            return run.take(wait_for_wal)
        except (PitrError, StoreError, OSError) as failure:
            raise failed_by(failure) from failure


class _Run:
    """One attempt: its key, its id, its session, its threads."""

    def __init__(
        self,
        request: BackupRequest,
        writer: BackupWriter,
        server: Server,
        facts: ServerFacts,
        data_dir: bytes,
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
        self._clock = clock
        self._random = random
        self._progress = progress
        self._cancel = cancel
        self._stop = threading.Event()
        self._tally = Tally()
        self._started_at = clock().astimezone(UTC)
        # Known once the server has said whether it can tell what changed.
        self._backup = ""
        self._changes: ChangeFinder | None = None
        self._databases: dict[int, str] = {}
        self._note = NoteWriter()
        self._key = DataKey.generate(random)
        self._puts = PutPool(
            writer.repository.store,
            self._object_key,
            self._stop,
            in_flight_max=request.puts_in_flight,
            jitter=self._jitter,
            on_stored=self._tally.stored,
        )
        self._crew: CopyCrew | None = None
        self._session_checked_at = self._reported_at = self._started_at

    def take(self, wait_for_wal: WalGate) -> BackupManifest:
        """Go through all steps.  Whatever happens, no thread is left behind."""
        try:
            self._put_envelope()
            self._enter("checkpoint")
            start_lsn = self._start()
            self._look_for_changes(start_lsn)
            tablespaces = {space.oid: space for space in self._server.tablespaces()}
            self._enter("copying")
            self._copy(start_lsn)
            tablespaces |= {space.oid: space for space in self._server.tablespaces()}
            stopped = self._server.stop_backup()
            stopped_at = self._clock()
            self._enter("uploading")
            self._finish_puts()
            timeline = check_label(stopped, start_lsn)
            self._enter("waiting for WAL")
            self._wait_for_wal(wait_for_wal, timeline, start_lsn, stopped.stop_lsn)
            manifest = self._manifest(timeline, start_lsn, stopped, stopped_at)
            spaces = tuple(
                Tablespace(oid, each.name, each.location) for oid, each in sorted(tablespaces.items())
            )
            manifest = replace(manifest, tablespaces=spaces)
            self._check_cancelled()
            self._enter("writing the manifest")
            self._put_manifest(manifest)
            self._keep_note()
        finally:
            self._stop.set()
            if self._crew is not None:
                self._crew.abandon()
            self._puts.finish()
        self._enter("done")
        return manifest

    def _put_envelope(self) -> None:
        repository = self._writer.repository
        envelope = seal_envelope(
            self._key,
            self._writer.recipients,
            repository=repository.repository_id,
            archive=self._request.archive,
            purpose="backup",
            created_at=self._started_at,
        )
        self._patiently(lambda: repository.put_envelope(envelope, self._writer.signer))

    def _put_manifest(self, manifest: BackupManifest) -> None:
        """Put what makes it a backup.  The same record gives the same bytes, so it may be repeated."""
        repository, signer = self._writer.repository, self._writer.signer
        self._patiently(lambda: repository.put_manifest(manifest, signer))

    def _patiently(self, put: Callable[[], object]) -> None:
        with_patience(put, patience_s=PATIENCE_S, stopping=self._cancel, jitter=self._jitter)

    def _jitter(self) -> float:
        return self._random(1)[0] / 256

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
                self._tally.note(f"a full backup and no incremental one: {reason}")
        self._check_cancelled()
        kind = "full" if self._changes is None else "incr"
        self._backup = f"{self._started_at:%Y%m%dT%H%M%SZ}-{kind}-{self._random(4).hex()}"

    def _keep_note(self) -> None:
        """Note what the next backup can be built on; without the note that is a full one."""
        folder = self._request.notes_dir
        if folder is None:
            return
        try:
            self._note.write(folder, self._backup, self._databases)
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
            )
            for _ in range(self._request.workers)
        ]
        owner = self._part(0)
        self._crew = CopyCrew(
            readers,
            [self._part(number) for number, _ in enumerate(readers, 1)],
            self._tally,
            self._stop,
            changes=self._changes,
            note=self._note,
        )
        self._crew.start()
        config = config_of(self._server, self._facts, self._data_dir, self._tally.note)
        entries = list_data_directory(self._data_dir, control.version_directory(major))
        copy_directory(without_config(entries, config), self._crew, owner, self._tally, self._watch)
        add_config(config, owner, self._tally)
        last = read_control_file(self._data_dir, self._stop.wait)
        owner.add_small(CONTROL_PATH, last.content, FileStatus(last.mode, last.mtime))
        self._tally.file_copied(len(last.content), [])
        owner.finish()

    def _part(self, number: int) -> PartWriter:
        return PartWriter(
            number, self._key, self._context, self._puts.put, pack_bytes=self._request.pack_bytes
        )

    def _context(self, kind: PartKind, part: int, number: int) -> Context:
        repository = self._writer.repository.repository_id
        return Context(repository, self._request.archive, kind, f"{self._backup}/{part:04d}/{number:06d}")

    def _object_key(self, kind: PartKind, part: int, number: int) -> str:
        name = pack_key if kind == "pack" else index_key
        return name(self._request.archive, self._backup, part, number, self._random(4).hex())

    def _finish_puts(self) -> None:
        self._puts.finish()
        self._watch()

    def _wait_for_wal(self, wait_for_wal: WalGate, timeline: TimelineId, start: LSN, stop: LSN) -> None:
        deadline = self._clock() + timedelta(seconds=self._request.wal_timeout_s)
        while True:
            self._watch()
            rest_s = (deadline - self._clock()).total_seconds()
            # In short waits, so that it can be cancelled.
            if wait_for_wal(timeline, start, stop, max(0.0, min(rest_s, 1.0))):
                return
            if rest_s <= 0:
                raise BackupFailed(
                    "the WAL that the base backup needs did not reach a quorum in time",
                    detail=f"Needed is {start} to {stop} on timeline {timeline.number}, "
                    f"within {self._request.wal_timeout_s:g} s.",
                    hint="look with `pitr status` whether WAL is streaming and the regions answer",
                )

    def _manifest(
        self, timeline: TimelineId, start_lsn: LSN, stopped: StoppedBackup, stopped_at: datetime
    ) -> BackupManifest:
        progress = self._tally.progress
        asked = self._request.parent
        parent = None if asked is None or self._changes is None else asked.manifest.backup
        return BackupManifest(
            repository=self._writer.repository.repository_id,
            archive=self._request.archive,
            backup=self._backup,
            label=self._request.label,
            type="full" if parent is None else "incr",
            parent=parent,
            started_at=self._started_at,
            stopped_at=max(stopped_at, self._started_at),
            timeline=timeline,
            start_lsn=start_lsn,
            stop_lsn=stopped.stop_lsn,
            server_version=self._facts.version_num,
            segment_bytes=self._facts.segment_bytes,
            relation_segment_blocks=self._facts.relation_segment_blocks,
            page_checksums=self._facts.has_checksums,
            key_id=self._key.key_id,
            tablespaces=(),
            settings=self._facts.settings,
            backup_label=stopped.backup_label,
            tablespace_map=stopped.tablespace_map,
            files=progress.files_done,
            size_bytes=progress.restored_bytes,
            packs=self._puts.stored("pack"),
            indexes=self._puts.stored("index"),
            findings=name_findings(self._server, self._tally.found, progress.findings),
        )

    def _watch(self) -> None:
        """Look after everything that goes on elsewhere; raise if the backup must end."""
        self._check_cancelled()
        failure = self._puts.failure or (self._crew.failure if self._crew is not None else None)
        if failure is not None:
            raise failed_by(failure)
        now = self._clock()
        if now - self._session_checked_at >= _SESSION_CHECK:
            self._session_checked_at = now
            self._server.insert_lsn()
        if now - self._reported_at >= _PROGRESS:
            self._reported_at = now
            self._progress(self._tally.progress)

    def _enter(self, phase: str) -> None:
        self._tally.enter(phase)
        self._progress(self._tally.progress)

    def _check_cancelled(self) -> None:
        if self._cancel.is_set():
            raise BackupFailed("the base backup was cancelled", detail="Nothing lists it.")
