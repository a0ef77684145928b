"""A base backup over the replication protocol: for a host that cannot read the server's files.

The server sends its files as tar archives; they become the same packs and indexes as files that were read
here, and are restored in the same way.  Incremental ones (17 and later) are the server's own: it is given the
manifest that it wrote for the parent, and sends what changed.  Pages are judged as they come; a bad one
cannot be read again.  Reference: PostgreSQL src/backend/backup/basebackup.c.
"""

from __future__ import annotations

import os
import re
import tarfile
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Final

from pitr.backup_attempt import await_wal, backup_attempt
from pitr.backup_checks import check_cluster, name_findings
from pitr.backup_copy import BackupProgress, Tally, runs_of
from pitr.backup_parent import keep_server_manifest, read_server_manifest
from pitr.backup_parts import BackupParts
from pitr.backup_puts import failed_by
from pitr.backup_request import BackupWriter, WalGate
from pitr.catalogue.backup_record import BackupManifest, Tablespace
from pitr.catalogue.lease_record import Holder
from pitr.errors import BackupFailed, MalformedValue, ServerRefused
from pitr.layout import ArchiveId
from pitr.lease import Lease
from pitr.lease_terms import LeaseTerms
from pitr.pipeline.pack_writer import SMALL_BYTES_MAX, FileStatus, PartWriter
from pitr.pipeline.seal import FRAME_CONTENT_BYTES
from pitr.postgres.base_backup_stream import (
    Archive,
    BaseBackupStream,
    StreamStart,
    iter_archives,
    read_incremental_head,
)
from pitr.postgres.basebackup import FoundPage
from pitr.postgres.datadir import CONTROL_PATH, parse_relation_path
from pitr.postgres.page import PAGE_BYTES, Blocks, blocks_from, check_pages
from pitr.postgres.server import Server, ServerFacts
from pitr.wal.lsn import LSN

_PREFIX: Final = b"INCREMENTAL."
_LABELS: Final = (b"backup_label", b"tablespace_map")
_INCREMENTAL_LINE: Final = re.compile(rb"^INCREMENTAL FROM (?:LSN|TLI): .*\n", re.MULTILINE)
_LABEL_BYTES_MAX: Final = 1024 * 1024
_ZEROS: Final = bytes(FRAME_CONTENT_BYTES)
_PROGRESS: Final = timedelta(milliseconds=500)


@dataclass(frozen=True, slots=True)
class RemoteRequest:
    """What to back up.  ``parent``: one that was taken so, whose server manifest is in ``notes_dir``."""

    dsn: str
    archive: ArchiveId
    label: str
    notes_dir: Path
    parent: BackupManifest | None = None
    holder: Holder | None = None
    fast_checkpoint: bool = True
    wal_timeout_s: float = 600.0


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
            terms=LeaseTerms(),
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
        self._stop = threading.Event()
        self._tally = Tally()
        self._started_at = self._reported_at = clock().astimezone(UTC)
        self._parts = BackupParts(
            writer.repository,
            request.archive,
            self._stop,
            cancel=cancel,
            random=random,
            on_stored=self._tally.stored,
        )
        self._labels: dict[bytes, bytes] = {}
        self._directories: list[tuple[bytes, int]] = []
        self._control: tuple[bytes, FileStatus] | None = None
        self._start_lsn = LSN(1)

    def take(self, wait_for_wal: WalGate) -> BackupManifest:
        try:
            self._parts.put_envelope(self._writer.signer, self._writer.recipients, self._started_at)
            stream, parent = self._begin()
            with closing(stream):
                self._enter("checkpoint")
                start = stream.begin(
                    self._request.label,
                    fast=self._request.fast_checkpoint,
                    is_incremental=parent is not None,
                    cancelled=self._watch,
                )
                self._start_lsn = start.lsn
                self._parts.name(self._started_at, "full" if parent is None else "incr")
                self._enter("copying")
                self._copy(stream, start)
                stop_lsn = stream.finish(self._watch)
                server_manifest = bytes(stream.manifest)
            stopped_at = self._clock()
            self._enter("uploading")
            self._parts.finish()
            self._watch()
            self._enter("waiting for WAL")
            # Also of the time since the parent: a server that was set back would have a hole there.
            wal_from = start.lsn if parent is None else parent.start_lsn
            await_wal(
                wait_for_wal,
                start.timeline,
                wal_from,
                stop_lsn,
                timeout_s=self._request.wal_timeout_s,
                clock=self._clock,
                watch=self._watch,
            )
            manifest = self._manifest(start, stop_lsn, stopped_at, parent)
            self._enter("writing the manifest")
            self._lease.confirm()
            self._parts.put_manifest(manifest, self._writer.signer)
            self._keep(server_manifest)
        finally:
            self._stop.set()
            self._parts.finish()
        self._enter("done")
        return manifest

    def _begin(self) -> tuple[BaseBackupStream, BackupManifest | None]:
        """Open the connection; the parent is None if the server does not take its manifest."""
        stream = BaseBackupStream.connect(self._request.dsn)
        assert isinstance(stream, BaseBackupStream)
        parent = self._request.parent
        if parent is None:
            return stream, None
        try:
            stream.upload_manifest(read_server_manifest(self._request.notes_dir, parent.backup))
        except (OSError, ServerRefused) as reason:
            self._tally.note(f"a full backup and no incremental one: {reason}")
            stream.close()
            fresh = BaseBackupStream.connect(self._request.dsn)
            assert isinstance(fresh, BaseBackupStream)
            return fresh, None
        return stream, parent

    def _copy(self, stream: BaseBackupStream, start: StreamStart) -> None:
        owner, body = self._parts.part(0), self._parts.part(1)
        try:
            for archive, members in iter_archives(stream.messages(self._watch)):
                for member in members:
                    self._member(archive, member, members, body)
        except tarfile.TarError as cause:
            raise MalformedValue(f"what the server sent is no tar archive: {cause}") from cause
        for path, mode in sorted(self._directories):
            owner.add_directory(path, mode)
        for oid, _ in start.tablespaces:
            owner.add_link(b"pg_tblspc/%d" % oid, oid)
        if self._control is None:
            raise BackupFailed("the server sent no control file")
        content, status = self._control
        owner.add_small(CONTROL_PATH, content, status)
        self._tally.file_copied(len(content), [])
        body.finish()
        owner.finish()

    def _member(
        self, archive: Archive, member: tarfile.TarInfo, members: tarfile.TarFile, body: PartWriter
    ) -> None:
        self._watch()
        path = os.fsencode(member.name.removeprefix("./").rstrip("/"))
        if archive.tablespace is not None:
            path = b"pg_tblspc/%d/%b" % (archive.tablespace, path)
        if member.isdir():
            if path:
                self._directories.append((path, member.mode & 0o7777))
            return
        if not member.isfile():
            return  # a tablespace's link, which is made from what the server said at the start
        content = members.extractfile(member)
        assert content is not None, "a regular file has content"
        status = FileStatus(member.mode & 0o7777, max(0, int(member.mtime)))
        if path in _LABELS:
            self._labels[path] = _read(content, min(member.size, _LABEL_BYTES_MAX))
        elif path == CONTROL_PATH:
            self._control = _read(content, member.size), status
        else:
            self._file(path, member.size, content, status, body)

    def _file(
        self, path: bytes, size_bytes: int, content: IO[bytes], status: FileStatus, body: PartWriter
    ) -> None:
        folder, slash, name = path.rpartition(b"/")
        found: list[FoundPage] = []
        if name.startswith(_PREFIX):
            size_bytes = self._changed(folder + slash + name[len(_PREFIX) :], content, status, body, found)
        elif size_bytes <= SMALL_BYTES_MAX:
            data = _read(content, size_bytes)
            self._judge(path, 0, data, found)
            body.add_small(path, data, status)
        else:
            target = body.open_file(path)
            for offset in range(0, size_bytes, FRAME_CONTENT_BYTES):
                data = _read(content, min(FRAME_CONTENT_BYTES, size_bytes - offset))
                self._judge(path, offset, data, found)
                if data != _ZEROS[: len(data)]:
                    target.add(offset, data)
                self._watch()
            target.close(size_bytes, status)
        self._tally.file_copied(size_bytes, found)
        self._tally.copied(size_bytes)

    def _changed(
        self, path: bytes, content: IO[bytes], status: FileStatus, body: PartWriter, found: list[FoundPage]
    ) -> int:
        """Copy the server's own form of a file of which only some blocks changed; return the file's size."""
        head = read_incremental_head(
            lambda size: _read(content, size), blocks_max=self._facts.relation_segment_blocks
        )
        blocks, count, kept_blocks = head.blocks, len(head.blocks), head.kept_blocks
        size_bytes = head.file_blocks * PAGE_BYTES
        if count * PAGE_BYTES <= SMALL_BYTES_MAX:
            data = _read(content, count * PAGE_BYTES)
            self._judge_blocks(path, blocks, data, found)
            body.add_changed(
                path, data, runs_of(blocks), size_bytes, status, parent_bytes=kept_blocks * PAGE_BYTES
            )
            return size_bytes
        target = body.open_file(path)
        step = FRAME_CONTENT_BYTES // PAGE_BYTES
        for at in range(0, count, step):
            some = blocks[at : at + step]
            data = _read(content, len(some) * PAGE_BYTES)
            self._judge_blocks(path, some, data, found)
            target.add_runs(data, runs_of(some))
            self._watch()
        target.close(size_bytes, status, parent_bytes=kept_blocks * PAGE_BYTES)
        return size_bytes

    def _judge(self, path: bytes, offset: int, data: bytes, found: list[FoundPage]) -> None:
        whole = len(data) // PAGE_BYTES
        self._judge_blocks(path, blocks_from(offset // PAGE_BYTES, whole), data[: whole * PAGE_BYTES], found)

    def _judge_blocks(self, path: bytes, blocks: Blocks, data: bytes, found: list[FoundPage]) -> None:
        """Look at pages; what the server wrote since the start may be torn, and replay mends it."""
        relation = parse_relation_path(path)
        if relation is None or not len(blocks):
            return
        first = relation.segment * self._facts.relation_segment_blocks
        for bad in check_pages(memoryview(data), blocks + first, checksums=self._facts.has_checksums):
            if bad.lsn is None or bad.lsn < self._start_lsn:
                found.append(FoundPage(path, relation, int(blocks[bad.index]) + first, bad.reason))

    def _manifest(
        self, start: StreamStart, stop_lsn: LSN, stopped_at: datetime, parent: BackupManifest | None
    ) -> BackupManifest:
        progress, facts = self._tally.progress, self._facts
        names = {space.oid: space.name for space in self._server.tablespaces()}
        return BackupManifest(
            repository=self._writer.repository.repository_id,
            archive=self._request.archive,
            backup=self._parts.backup,
            label=self._request.label,
            type="full" if parent is None else "incr",
            parent=None if parent is None else parent.backup,
            started_at=self._started_at,
            stopped_at=max(stopped_at, self._started_at),
            timeline=start.timeline,
            start_lsn=start.lsn,
            stop_lsn=stop_lsn,
            server_version=facts.version_num,
            segment_bytes=facts.segment_bytes,
            page_checksums=facts.has_checksums,
            key_id=self._parts.key.key_id,
            tablespaces=tuple(
                Tablespace(oid, names.get(oid, str(oid)), location)
                for oid, location in sorted(start.tablespaces)
            ),
            settings=facts.settings,
            # What a chain gives is whole, and the server does not start on a label that says otherwise.
            backup_label=_INCREMENTAL_LINE.sub(b"", self._labels.get(b"backup_label", b"")),
            tablespace_map=self._labels.get(b"tablespace_map", b""),
            files=progress.files_done,
            size_bytes=progress.restored_bytes,
            packs=self._parts.stored("pack"),
            indexes=self._parts.stored("index"),
            findings=name_findings(self._server, self._tally.found, progress.findings),
            relation_segment_blocks=facts.relation_segment_blocks,
        )

    def _keep(self, server_manifest: bytes) -> None:
        try:
            keep_server_manifest(self._request.notes_dir, self._parts.backup, server_manifest)
        except OSError as cause:
            self._tally.note(f"no incremental backup can be built on this one: {cause}")

    def _watch(self) -> None:
        if self._cancel.is_set():
            raise BackupFailed("the base backup was cancelled", detail="Nothing lists it.")
        failure = self._lease.lost or self._parts.failure
        if failure is not None:
            raise failed_by(failure)
        now = self._clock()
        if now - self._reported_at >= _PROGRESS:
            self._reported_at = now
            self._progress(self._tally.progress)

    def _enter(self, phase: str) -> None:
        self._tally.enter(phase)
        self._progress(self._tally.progress)


def _read(content: IO[bytes], size_bytes: int) -> bytes:
    """Return exactly so many bytes.  Raises MalformedValue if the archive ends before."""
    data = content.read(size_bytes)
    if len(data) != size_bytes:
        raise MalformedValue("the server's archive ends inside a file")
    return data
