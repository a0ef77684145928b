"""Attempts at one backup without a server: plain files, a store that fails as it is told to, the journals."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fix_backup import BackupHouse
from fix_chain import ARCHIVE, BEGAN, MIB, restore_chain
from fix_stores import FaultyStore

from pitr.backup_changes import FilePlan
from pitr.backup_continuation import Continuation
from pitr.backup_copy import CopyCrew, copy_directory
from pitr.backup_file_copy import FileCopier
from pitr.backup_parts import BackupParts
from pitr.backup_request import BackupWriter
from pitr.backup_tally import Tally
from pitr.catalogue.backup_record import BackupManifest
from pitr.datakeys import DataKeys
from pitr.errors import BackupFailed
from pitr.postgres.basebackup import FileReader, PageRules
from pitr.postgres.datadir import DataDirectory, DataEntry, DataFile
from pitr.restore_files import ChainLink
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from storage.store import StoreRefused


class PackLimit(FaultyStore):
    """Refuses packs after ``left`` of them; None: takes all.  ``on_pack`` is called after each."""

    left: int | None = None
    on_pack: Callable[[], None] | None = None

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        if "/pack-" in key and self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise StoreRefused("no more packs")
        super().put(key, body, sha256=sha256, after_all=after_all)
        if "/pack-" in key and self.on_pack is not None:
            self.on_pack()


@dataclass(frozen=True)
class PlansByPath:
    """Says of an incremental backup's files what a test says."""

    plans: Mapping[bytes, FilePlan]

    def plan(self, file: DataFile) -> FilePlan:
        return self.plans.get(file.path)


@dataclass
class Attempts:
    """A directory of files, and attempts at its backup."""

    folder: Path
    workers: int = 2
    pack_bytes: int = MIB
    now: datetime = BEGAN
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = PackLimit(MemoryStore())
        self.house = BackupHouse(self.store, ARCHIVE)
        self.data, self.journals = self.folder / "data", self.folder / "journals"
        (self.data / "base" / "5").mkdir(parents=True)

    def write(self, name: str, content: bytes) -> None:
        """Write a file; its time stays what it always is."""
        path = self.data / "base" / "5" / name
        path.write_bytes(content)
        os.utime(path, (1_700_000_000, 1_700_000_000))

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.data / "base" / "5").iterdir()}

    def journal_paths(self) -> list[Path]:
        return sorted(self.journals.glob("*.resume-*"))

    def packs_put(self) -> list[str]:
        """Return the packs that were put since ``store.calls`` was cleared."""
        return sorted(key for operation, key in self.store.calls if operation == "put" and "/pack-" in key)

    def fail(self, packs: int, **options: Any) -> None:
        """Make an attempt that fails when ``packs`` packs are stored; it may also end before that."""
        self.store.left = packs
        try:
            self.attempt(is_final=False, **options)
        except (BackupFailed, StoreRefused):
            pass
        finally:
            self.store.left = None

    def attempt(
        self,
        *,
        parent: BackupManifest | None = None,
        plans: Mapping[bytes, FilePlan] | None = None,
        is_final: bool = True,
    ) -> ChainLink:
        """Take the backup as ``pitr.backup`` does; ``is_final`` False leaves it without its manifest."""
        self.now += timedelta(minutes=1)
        self.notes.clear()
        stop, tally = threading.Event(), Tally()
        writer = BackupWriter(self.house.repository, self.house.signer, [self.house.identity.recipient()])
        continuation = Continuation(
            self.journals, writer, ARCHIVE, clock=lambda: self.now, random=os.urandom, note=self.notes.append
        )
        parts = BackupParts(
            self.house.repository,
            ARCHIVE,
            stop,
            cancel=stop,
            random=os.urandom,
            on_stored=tally.stored,
            on_acknowledged=continuation.note_pack,
            pack_bytes=self.pack_bytes,
        )
        parts.put_envelope(self.house.signer, writer.recipients, self.now)
        try:
            kind = "full" if parent is None else "incr"
            continuation.begin(
                parts, kind, None if parent is None else parent.backup, self.now.astimezone(UTC)
            )
            self._copy(continuation, parts, tally, stop, plans)
            manifest = self._manifest(continuation, parts, tally, parent)
            if is_final:
                continuation.forget()
                parts.put_manifest(manifest, self.house.signer)
        finally:
            stop.set()
            parts.finish()
            continuation.close()
        return ChainLink.open(manifest, DataKeys(self.house.repository, self.house.identity))

    def _copy(
        self,
        continuation: Continuation,
        parts: BackupParts,
        tally: Tally,
        stop: threading.Event,
        plans: Mapping[bytes, FilePlan] | None,
    ) -> None:
        def watch() -> None:
            failure = parts.failure or crew.failure
            if failure is not None:
                raise failure

        rules = PageRules(False, 131_072, LSN(1), lambda: LSN(1))
        readers = [
            FileReader(os.fsencode(self.data), rules, wait=lambda _seconds: None, use_direct_io=False)
            for _ in range(self.workers)
        ]
        changes = None if plans is None else PlansByPath(plans)
        copier = FileCopier(tally, stop, changes=changes, resume=continuation.resume)
        writers = [
            parts.part(number, mac=continuation.mac)
            for number, _ in enumerate(readers, continuation.first_part)
        ]
        crew = CopyCrew(readers, writers, copier, tally, stop)
        owner = parts.part(0)
        crew.start()
        try:
            entries: list[DataEntry] = [DataDirectory(b"base", 0o700), DataDirectory(b"base/5", 0o700)]
            entries += [
                DataFile(b"base/5/" + os.fsencode(path.name), path.stat().st_size, None)
                for path in sorted((self.data / "base" / "5").iterdir())
            ]
            copy_directory(iter(entries), crew, owner, tally, watch)
            continuation.adopt(copier, readers[0], parts, watch)
            owner.finish()
        except BaseException:
            crew.abandon()
            raise
        parts.finish()
        watch()

    def _manifest(
        self,
        continuation: Continuation,
        parts: BackupParts,
        tally: Tally,
        parent: BackupManifest | None,
    ) -> BackupManifest:
        minute = int((self.now - BEGAN).total_seconds()) // 60
        return BackupManifest(
            repository=self.house.repository.repository_id,
            archive=ARCHIVE,
            backup=parts.backup,
            label="test",
            type="full" if parent is None else "incr",
            parent=None if parent is None else parent.backup,
            started_at=self.now,
            stopped_at=self.now,
            timeline=TimelineId(1),
            start_lsn=LSN(0x2000028 + minute * 0x1000),
            stop_lsn=LSN(0x2000120 + minute * 0x1000),
            server_version=170010,
            segment_bytes=16 * MIB,
            page_checksums=False,
            key_id=parts.key.key_id,
            tablespaces=(),
            settings=(),
            backup_label=b"",
            tablespace_map=b"",
            files=tally.progress.files_done,
            size_bytes=tally.progress.restored_bytes,
            packs=tuple(sorted((*parts.stored("pack"), *continuation.adopted), key=lambda each: each.key)),
            indexes=parts.stored("index"),
        )

    def restored(self, chain: list[ChainLink], name: str) -> dict[str, bytes]:
        """Restore a chain, the newest backup first; return the files."""
        folder = self.folder / name
        restore_chain(self.store, chain, folder)
        return {path.name: path.read_bytes() for path in (folder / "root" / "base" / "5").iterdir()}
