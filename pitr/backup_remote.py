"""A base backup over the replication protocol: for a host that cannot read the server's files.

The server sends its files as tar archives; they become the same packs and indexes as files that were read
here, and are restored in the same way.  Incremental ones (17 and later) are the server's own: it is given the
manifest that it wrote for the parent, and sends what changed.  Pages are judged as they come; a bad one
cannot be read again.  Reference: PostgreSQL src/backend/backup/basebackup.c.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from pitr.backup_attempt import await_wal, backup_attempt
from pitr.backup_checks import (
    check_checksums_stayed,
    check_cluster,
    check_label,
    name_findings,
    switched_checksums,
)
from pitr.backup_manifest import TakenBackup, manifest_of
from pitr.backup_pace import Pace, PaceLimits
from pitr.backup_parent import ServerManifestFile, open_server_manifest
from pitr.backup_parts import BackupParts
from pitr.backup_puts import failed_by
from pitr.backup_request import BackupWriter, WalGate
from pitr.backup_tally import BackupProgress, Tally
from pitr.backup_tar import TarCopier
from pitr.catalogue.backup_record import BackupManifest, Tablespace
from pitr.catalogue.lease_record import Holder
from pitr.errors import BackupFailed, ServerRefused
from pitr.layout import ArchiveId
from pitr.lease import Lease
from pitr.lease_terms import LeaseTerms
from pitr.postgres.base_backup_stream import Archive, BaseBackupStream, StreamStart
from pitr.postgres.basebackup import PageRules
from pitr.postgres.datadir import CONTROL_PATH
from pitr.postgres.server import Server, ServerFacts, StoppedBackup

_PROGRESS_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class RemoteRequest:
    """What to back up.  ``parent``: one that was taken so, whose server manifest is in ``notes_dir``.

    ``full_because``: why there is none though there should be one.  ``pace`` may be changed meanwhile; of it
    only the rate counts, for one thread takes what comes.  None: at full speed.
    """

    dsn: str
    archive: ArchiveId
    label: str
    notes_dir: Path
    parent: BackupManifest | None = None
    holder: Holder | None = None
    fast_checkpoint: bool = True
    wal_timeout_s: float = 600.0
    full_because: str | None = None
    lease: LeaseTerms = field(default_factory=LeaseTerms)
    pace: Pace | None = None


def take_remote_backup(
    request: RemoteRequest,
    writer: BackupWriter,
    wait_for_wal: WalGate,
    *,
    clock: Callable[[], datetime],
    random: Callable[[int], bytes],
    progress: Callable[[BackupProgress], None] = lambda _progress: None,
    cancel: threading.Event | None = None,
) -> BackupManifest:
    """Take a base backup over the protocol; return its manifest, which is at quorum then.

    It is incremental if the request has a parent and the server agrees; else it is full, and a note says why.
    May be repeated at once after any error.  Raises as ``pitr.backup.take_backup``.
    """
    cancel = cancel or threading.Event()
    with Server.connect(request.dsn) as server:
        facts = server.facts()
        check_cluster(request.archive, facts)
        with backup_attempt(
            writer,
            request.archive,
            request.holder,
            terms=request.lease,
            clock=clock,
            random=random,
            cancel=cancel,
        ) as lease:
            run = _Run(request, writer, server, facts, lease, clock, random, progress, cancel)
            return run.take(wait_for_wal)


class _Run:
    """One attempt."""

    def __init__(
        self,
        request: RemoteRequest,
        writer: BackupWriter,
        server: Server,
        facts: ServerFacts,
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
        self._lease = lease
        self._clock = clock
        self._progress = progress
        self._cancel = cancel
        self._pace = request.pace or Pace(PaceLimits(None, 1))
        self._stop = threading.Event()
        self._tally = Tally(request.full_because)
        self._started_at = clock().astimezone(UTC)
        self._reported_s = time.monotonic()
        self._parts = BackupParts(
            writer.repository,
            request.archive,
            self._stop,
            cancel=cancel,
            random=random,
            on_stored=self._tally.stored,
        )

    def take(self, wait_for_wal: WalGate) -> BackupManifest:
        server_manifest: ServerManifestFile | None = None
        try:
            self._parts.put_envelope(self._writer.signer, self._writer.recipients, self._started_at)
            self._enter("checkpoint")
            stream, start, parent = self._begin()
            with closing(stream):
                self._parts.name(self._started_at, "full" if parent is None else "incr")
                self._enter("copying")
                server_manifest = ServerManifestFile(self._request.notes_dir, self._parts.backup)
                copied = self._copy(stream, start, server_manifest, is_incremental=parent is not None)
                stop_lsn = stream.finish(self._watch)
            check_checksums_stayed(self._facts, self._server.data_checksums())
            stopped = StoppedBackup(stop_lsn, copied.label, copied.tablespace_map)
            stopped_at = self._clock()
            self._enter("uploading")
            self._parts.finish()
            self._watch()
            if check_label(stopped, start.lsn) != start.timeline:
                raise BackupFailed("the server's backup label is of another timeline than the backup's start")
            self._enter("waiting for WAL")
            # Also of the time since the parent: a server that was set back would have a hole there.
            wal_from = start.lsn if parent is None else parent.start_lsn
            await_wal(
                wait_for_wal,
                start.timeline,
                wal_from,
                stopped.stop_lsn,
                timeout_s=self._request.wal_timeout_s,
                monotonic=time.monotonic,
                watch=self._watch,
            )
            manifest = self._manifest(start, stopped, stopped_at, parent)
            self._enter("writing the manifest")
            self._lease.confirm()
            self._parts.put_manifest(manifest, self._writer.signer)
            self._keep(server_manifest)
        finally:
            self._stop.set()
            self._parts.finish()
            if server_manifest is not None:
                server_manifest.discard()
        self._enter("done")
        return manifest

    def _begin(self) -> tuple[BaseBackupStream, StreamStart, BackupManifest | None]:
        """Start the backup; it is a full one if the server refuses to build on the parent.

        It refuses the parent's manifest (before 17), or, once it looks, WAL summaries that are not there.
        """
        parent = self._request.parent
        # Of this the server knows nothing, and would leave pages to the parent that are other ones now.
        switched = None if parent is None else switched_checksums(parent, self._facts)
        if switched is not None:
            self._tally.make_full(switched)
        elif parent is not None:
            try:
                with open_server_manifest(self._request.notes_dir, parent.backup) as known:
                    return *self._start(known), parent
            except (OSError, ServerRefused) as reason:
                self._tally.make_full(str(reason))
        return *self._start(None), None

    def _start(self, known: IO[bytes] | None) -> tuple[BaseBackupStream, StreamStart]:
        """Start a backup that builds on the one of which the server's manifest is ``known``."""
        request = self._request
        stream = BaseBackupStream.connect(request.dsn)
        try:
            if known is not None:
                stream.upload_manifest(known, self._watch)
            start = stream.begin(
                request.label,
                fast=request.fast_checkpoint,
                is_incremental=known is not None,
                cancelled=self._watch,
            )
        except BaseException:
            stream.close()
            raise
        return stream, start

    def _copy(
        self,
        stream: BaseBackupStream,
        start: StreamStart,
        server_manifest: ServerManifestFile,
        *,
        is_incremental: bool,
    ) -> TarCopier:
        owner, body = self._parts.part(0), self._parts.part(1)
        facts = self._facts
        rules = PageRules(
            facts.has_checksums, facts.relation_segment_blocks, start.lsn, self._server.insert_lsn
        )
        copier = TarCopier(
            rules,
            self._tally,
            body,
            self._watch,
            system_identifier=self._request.archive.system_identifier,
            is_incremental=is_incremental,
        )
        with self._pace.working(self._stop):
            copier.copy(self._paced(stream.messages(self._watch, server_manifest.add)))
        for path, mode in sorted(copier.directories):
            owner.add_directory(path, mode)
        for oid, _ in start.tablespaces:
            owner.add_link(b"pg_tblspc/%d" % oid, oid)
        content, status = copier.control
        owner.add_small(CONTROL_PATH, content, status)
        self._tally.file_copied(len(content), [])
        body.finish()
        owner.finish()
        return copier

    def _paced(self, messages: Iterator[Archive | bytes]) -> Iterator[Archive | bytes]:
        """Take what comes at the rate that is set; the server waits meanwhile."""
        for message in messages:
            if isinstance(message, bytes):
                try:
                    self._pace.spend(len(message), self._stop)
                except BackupFailed:
                    self._watch()  # which knows why
                    raise
            yield message

    def _manifest(
        self, start: StreamStart, stopped: StoppedBackup, stopped_at: datetime, parent: BackupManifest | None
    ) -> BackupManifest:
        names = {space.oid: space.name for space in self._server.tablespaces()}
        taken = TakenBackup(
            repository=self._writer.repository.repository_id,
            archive=self._request.archive,
            label=self._request.label,
            parent=None if parent is None else parent.backup,
            started_at=self._started_at,
            stopped_at=stopped_at,
            timeline=start.timeline,
            start_lsn=start.lsn,
            stopped=stopped,
            tablespaces=[
                Tablespace(oid, names.get(oid, str(oid)), location) for oid, location in start.tablespaces
            ],
            packs=self._parts.stored("pack"),
            findings=name_findings(self._server, self._tally.found, self._tally.progress.findings),
        )
        return manifest_of(taken, self._facts, self._parts, self._tally)

    def _keep(self, server_manifest: ServerManifestFile) -> None:
        try:
            server_manifest.keep()
        except OSError as cause:
            self._tally.note(f"no incremental backup can be built on this one: {cause}")

    def _watch(self) -> None:
        if self._cancel.is_set():
            raise BackupFailed("the base backup was cancelled", detail="Nothing lists it.")
        failure = self._lease.lost or self._parts.failure
        if failure is not None:
            raise failed_by(failure)
        now_s = time.monotonic()
        if now_s - self._reported_s >= _PROGRESS_S:
            self._reported_s = now_s
            self._progress(self._tally.progress)

    def _enter(self, phase: str) -> None:
        self._tally.enter(phase)
        self._progress(self._tally.progress)
