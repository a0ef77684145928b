"""Consolidate: a chain of backups becomes a full one, from the store alone.

Whoever holds the reader's key may do it anywhere: the database host is neither read nor asked.  The files
are restored into a scratch place as a restore would, copied from there as a backup would, and the sums of all
files of the new backup, as the store gives them back, are compared with the chain's before it is signed.

The new backup stands for the one at the end of the chain: it has its LSNs, its label, its findings.  It is
signed by the root key, for the reader has no host's.  Reference: docs/format.md §8.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pitr.backup_copy import CopyCrew, copy_directory
from pitr.backup_file_copy import FileCopier
from pitr.backup_parts import BackupParts
from pitr.backup_tally import BackupProgress, Tally
from pitr.catalogue.backup_record import BackupManifest, StoredObject
from pitr.datakeys import DataKeys
from pitr.errors import BackupFailed, MalformedValue, NotAuthentic, TargetRefused
from pitr.pipeline.crc import crc32c
from pitr.pipeline.keys import Recipient
from pitr.pipeline.pack_writer import FileStatus, PartWriter
from pitr.pipeline.packs import Extent, IndexFile, IndexFileMore, IndexPack, iter_index
from pitr.pipeline.sign import Signer
from pitr.postgres.basebackup import FileReader, PageRules, read_control_file
from pitr.postgres.datadir import CONTROL_PATH, list_data_directory
from pitr.repository import Repository
from pitr.restore_directory import NOTES_NAME
from pitr.restore_files import ChainLink, FileProgress, FileRestorer
from pitr.restore_layer import Fetching, Layer

_PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ConsolidateRequest:
    """A chain, its newest backup first.  ``scratch``: an empty directory with room for all files."""

    chain: Sequence[BackupManifest]
    scratch: Path
    workers: int = 2


@dataclass(frozen=True, slots=True)
class Consolidated:
    """The new backup, and what was read for it."""

    manifest: BackupManifest
    fetched_bytes: int


@dataclass(slots=True)
class FilesSum:
    """A sum over path, size and CRC of files in any order: equal sums, equal files."""

    files: int = 0
    total: int = 0

    def add(self, file: IndexFile) -> None:
        """Count a file whose bytes are all known.  Raises MalformedValue if they are not."""
        if file.crc32c is None:
            raise MalformedValue(f"nobody has read all of {os.fsdecode(file.path)}")
        text = b"%d %08x " % (file.size_bytes, file.crc32c) + file.path
        self.total = (self.total + int.from_bytes(hashlib.sha256(text).digest(), "big")) % (1 << 256)
        self.files += 1


def consolidate(
    request: ConsolidateRequest,
    repository: Repository,
    data_keys: DataKeys,
    root_signer: Signer,
    recipients: Sequence[Recipient],
    *,
    clock: Callable[[], datetime],
    random: Callable[[int], bytes],
    on_files: Callable[[FileProgress], None] = lambda _progress: None,
    on_copy: Callable[[BackupProgress], None] = lambda _progress: None,
) -> Consolidated:
    """Make the full backup; it is in the store, checked and signed, when this returns.  May be repeated.

    What an attempt that failed has put is named by nothing.  Raises TargetRefused if the backup is full
    already, NotAuthentic, StoreError, RestoreRefused if the scratch place has no room, BackupFailed.
    """
    newest = request.chain[0]
    if newest.parent is None:
        raise TargetRefused(f"backup {newest.backup} is full already", hint="pitr backups list")
    scratch = _Scratch(request.scratch, newest)
    stop = threading.Event()
    expected = FilesSum()
    restored = FileRestorer(
        repository.store,
        [ChainLink.open(each, data_keys) for each in request.chain],
        scratch.root,
        scratch.tablespaces,
        request.scratch / NOTES_NAME,
        on_file=expected.add,
        on_progress=on_files,
        workers=request.workers + 1,
    ).run()
    scratch.link_tablespaces()
    writer = _Writer(request, repository, root_signer, recipients, scratch, clock, random, on_copy, stop)
    manifest = writer.copy()
    link = ChainLink(manifest, writer.parts.key)
    found = read_back(repository, link)
    if (found.files, found.total) != (expected.files, expected.total):
        raise NotAuthentic(
            "the consolidated backup is not what the chain holds",
            detail=f"{found.files} files were read back, {expected.files} were restored",
            hint="nothing lists it; check the scratch place's disk, and repeat",
        )
    writer.parts.put_manifest(manifest, root_signer)
    return Consolidated(manifest, restored.fetched_bytes)


def read_back(repository: Repository, link: ChainLink) -> FilesSum:
    """Read every frame of a full backup from the store; sum its files.  Raises NotAuthentic, StoreError."""
    found = FilesSum()
    fetching = Fetching(repository.store, _PATIENCE_S, threading.Event(), lambda _bytes: None)
    layer = Layer(link.manifest, link.data_key, fetching, link.other_keys)
    for part, (indexes, packs) in layer.parts().items():
        extents: list[Extent] = []
        for line in iter_index(layer.open_index(part, stored) for stored in indexes):
            match line:
                case IndexFile():
                    found.add(line)
                    extents += line.extents
                case IndexFileMore():
                    extents += line.extents
                case IndexPack():
                    _check_extents(layer, part, line, packs.pop(line.number), extents)
                    extents = []
                case _:
                    pass
    return found


def _check_extents(
    layer: Layer, part: int, pack: IndexPack, stored: StoredObject, extents: Sequence[Extent]
) -> None:
    by_frame: dict[int, list[Extent]] = {}
    for extent in extents:
        by_frame.setdefault(extent.frame, []).append(extent)
    for number, content in layer.frames(part, pack, stored, sorted(by_frame)):
        for extent in by_frame[number]:
            run = content[extent.frame_offset : extent.frame_offset + extent.size_bytes]
            if len(run) != extent.size_bytes or crc32c(run) != extent.crc32c:
                raise NotAuthentic(
                    f"part {part}, pack {pack.number}, frame {number} reads back as other bytes"
                )


class _Scratch:
    """The files of the chain on this host, as a data directory that no server will ever run on."""

    def __init__(self, place: Path, manifest: BackupManifest) -> None:
        self.root = place / "data"
        self.root.mkdir(mode=0o700)
        self.tablespaces = {space.oid: place / f"space-{space.oid}" for space in manifest.tablespaces}
        for folder in self.tablespaces.values():
            folder.mkdir(mode=0o700)

    def link_tablespaces(self) -> None:
        for oid, folder in self.tablespaces.items():
            (self.root / "pg_tblspc" / str(oid)).symlink_to(folder)


class _Writer:
    """Copies the scratch directory into sealed parts under a key of its own."""

    def __init__(
        self,
        request: ConsolidateRequest,
        repository: Repository,
        root_signer: Signer,
        recipients: Sequence[Recipient],
        scratch: _Scratch,
        clock: Callable[[], datetime],
        random: Callable[[int], bytes],
        on_copy: Callable[[BackupProgress], None],
        stop: threading.Event,
    ) -> None:
        self._request = request
        self._newest = request.chain[0]
        self._signer = root_signer
        self._recipients = recipients
        self._root = os.fsencode(scratch.root)
        self._on_copy = on_copy
        self._stop = stop
        self._now = clock().astimezone(UTC)
        self._tally = Tally()
        self.parts = BackupParts(
            repository,
            self._newest.archive,
            stop,
            cancel=stop,
            random=random,
            on_stored=self._tally.stored,
        )
        # The time in the name is that of the backup it stands for.
        self.parts.name(self._newest.started_at, "full")

    def copy(self) -> BackupManifest:
        """Copy all files; return the manifest, not put yet."""
        newest = self._newest
        self.parts.put_envelope(self._signer, self._recipients, self._now)
        rules = PageRules(
            newest.page_checksums, newest.relation_segment_blocks, newest.start_lsn, lambda: newest.stop_lsn
        )
        readers = [
            FileReader(self._root, rules, wait=lambda _seconds: None, use_direct_io=False)
            for _ in range(self._request.workers)
        ]
        owner = self.parts.part(0)
        parts = [self.parts.part(number) for number, _ in enumerate(readers, 1)]
        copier = FileCopier(self._tally, self._stop)
        crew = CopyCrew(readers, parts, copier, self._tally, self._stop)
        crew.start()
        try:
            self._copy_all(crew, owner)
        except BaseException:
            crew.abandon()
            raise
        finally:
            self.parts.finish()
        self._watch(crew)
        return self._manifest()

    def _copy_all(self, crew: CopyCrew, owner: PartWriter) -> None:
        control = read_control_file(self._root, self._stop.wait)
        major = self._newest.server_version // 10_000
        entries = list_data_directory(self._root, control.control.version_directory(major))
        copy_directory(entries, crew, owner, self._tally, lambda: self._watch(crew))
        owner.add_small(CONTROL_PATH, control.content, FileStatus(control.mode, control.mtime))
        self._tally.file_copied(len(control.content), [])
        owner.finish()

    def _manifest(self) -> BackupManifest:
        newest, progress = self._newest, self._tally.progress
        if progress.files_done != newest.files or progress.restored_bytes != newest.size_bytes:
            raise BackupFailed(
                "the scratch place does not hold what was restored into it",
                detail=f"{progress.files_done} files of {progress.restored_bytes} bytes, not {newest.files}"
                f" of {newest.size_bytes}",
            )
        known = {
            (finding.path, finding.block): finding
            for manifest in reversed(self._request.chain)
            for finding in manifest.findings
        }
        bad = [(os.fsdecode(page.path), page.block) for page in self._tally.found]
        unknown = [place for place in bad if place not in known]
        if unknown:
            raise NotAuthentic(f"block {unknown[0][1]} of {unknown[0][0]} is bad, and no backup found it so")
        return replace(
            newest,
            backup=self.parts.backup,
            type="full",
            parent=None,
            key_id=self.parts.key.key_id,
            stands_for=newest.backup,
            signs=self._tally.signs,
            packs=self.parts.stored("pack"),
            indexes=self.parts.stored("index"),
            findings=tuple(known[place] for place in bad),
        )

    def _watch(self, crew: CopyCrew) -> None:
        failure = self.parts.failure or crew.failure
        if failure is not None:
            raise failure
        self._on_copy(self._tally.progress)
