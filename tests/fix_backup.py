"""A repository to back up into, and the least restore that can be: files in place, nothing else."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fix_postgres import RunningPostgres

from pitr.backup import take_backup
from pitr.backup_request import BackupRequest, BackupWriter, WalGate
from pitr.backup_tally import BackupProgress
from pitr.catalogue.backup_record import BackupManifest, StoredObject
from pitr.catalogue.records import EpochRecord, RepositoryRecord
from pitr.layout import ArchiveId
from pitr.pipeline.crc import crc32c
from pitr.pipeline.keys import DataKey, Identity, Recipient, open_envelope
from pitr.pipeline.packs import (
    IndexDirectory,
    IndexFile,
    IndexFileMore,
    IndexLine,
    IndexLink,
    IndexPack,
    iter_index,
)
from pitr.pipeline.seal import Context, Opener, iter_frames
from pitr.pipeline.sign import Signer
from pitr.postgres.manifest import BackupManifestWriter
from pitr.repository import Repository
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from storage.store import ObjectStore

REPOSITORY_ID = "5a" * 16


def wal_is_there(_timeline: TimelineId, _start: LSN, _end: LSN, _timeout_s: float) -> bool:
    """Stand for an archive that has all WAL."""
    return True


@dataclass(slots=True)
class BackupHouse:
    """A repository with one archive in ``store``, and both sides' keys."""

    store: ObjectStore
    archive: ArchiveId
    identity: Identity = field(default_factory=lambda: Identity.generate(os.urandom))
    signer: Signer = field(default_factory=lambda: Signer.generate(os.urandom))
    progress: list[BackupProgress] = field(default_factory=list)
    repository: Repository = field(init=False)

    def __post_init__(self) -> None:
        root, now = self.identity.root_signer(), datetime.now(UTC)
        recipient = self.identity.recipient()
        record = RepositoryRecord(REPOSITORY_ID, now, str(root.public), (str(recipient),))
        self.repository = Repository.create(self.store, record, root)
        epoch = EpochRecord(REPOSITORY_ID, self.archive, now, str(self.signer.public), None)
        self.repository.write_epoch(epoch, root)

    def back_up(
        self,
        dsn: str,
        *,
        wait_for_wal: WalGate = wal_is_there,
        cancel: threading.Event | None = None,
        on_progress: Callable[[BackupProgress], None] | None = None,
        **options: Any,
    ) -> BackupManifest:
        """Take a backup of the server at ``dsn``; ``options`` are those of BackupRequest."""
        request = BackupRequest(dsn, self.archive, "a test", **options)
        recipients: list[Recipient] = [self.identity.recipient()]
        return take_backup(
            request,
            BackupWriter(self.repository, self.signer, recipients),
            wait_for_wal,
            clock=lambda: datetime.now(UTC),
            random=os.urandom,
            progress=on_progress or self.progress.append,
            cancel=cancel,
        )

    def listed(self) -> list[str]:
        return [info.key for info in self.store.list_objects("manifests/")]

    def data_key(self, manifest: BackupManifest) -> DataKey:
        return open_envelope(self.repository.get_envelope(self.archive, manifest.key_id), self.identity)

    def lines(self, manifest: BackupManifest, part: int) -> Iterator[IndexLine]:
        """Yield the lines of one part's index."""
        key = self.data_key(manifest)
        prefix = f"backups/{self.archive}/{manifest.backup}/index-{part:04d}-"
        stored = [each for each in manifest.indexes if each.key.startswith(prefix)]
        bodies = [self.store.get(each.key) for each in stored]
        names = [f"{manifest.backup}/{part:04d}/{number:06d}" for number in range(len(stored))]
        return iter_index(
            iter_frames(body, key, Context(REPOSITORY_ID, self.archive, "index", name))
            for body, name in zip(bodies, names, strict=True)
        )

    def all_lines(self, manifest: BackupManifest) -> list[IndexLine]:
        return [line for part in parts_of(manifest) for line in self.lines(manifest, part)]

    def restore(
        self, manifest: BackupManifest, target: Path, tablespaces: dict[int, Path] | None = None
    ) -> None:
        """Write the backup's files, its label and PostgreSQL's manifest to ``target``."""
        target.mkdir(mode=0o700, exist_ok=True)
        with (target / "backup_manifest").open("wb") as stream:
            listing = BackupManifestWriter(
                stream,
                server_version=manifest.server_version,
                system_identifier=self.archive.system_identifier,
            )
            for part in parts_of(manifest):
                self._restore_part(manifest, part, target, tablespaces or {}, listing)
            at = int(manifest.stopped_at.timestamp())
            (target / "backup_label").write_bytes(manifest.backup_label)
            listing.add_content(b"backup_label", manifest.backup_label, at)
            listing.finish(manifest.timeline, manifest.start_lsn, manifest.stop_lsn)

    def _restore_part(
        self,
        manifest: BackupManifest,
        part: int,
        root: Path,
        tablespaces: dict[int, Path],
        listing: BackupManifestWriter,
    ) -> None:
        key = self.data_key(manifest)
        waiting: list[IndexFile | IndexFileMore] = []
        for line in self.lines(manifest, part):
            match line:
                case IndexDirectory():
                    (root / os.fsdecode(line.path)).mkdir(line.mode)
                case IndexLink():
                    (root / os.fsdecode(line.path)).symlink_to(tablespaces[line.oid])
                case IndexPack():
                    name = f"{manifest.backup}/{part:04d}/{line.number:06d}"
                    prefix = f"backups/{self.archive}/{manifest.backup}/pack-{part:04d}-{line.number:06d}-"
                    (stored,) = [each for each in manifest.packs if each.key.startswith(prefix)]
                    context = Context(REPOSITORY_ID, self.archive, "pack", name)
                    self._place(root, waiting, line, self._frames(stored, key, context))
                    waiting.clear()
                case IndexFile() | IndexFileMore():
                    waiting.append(line)
                    if isinstance(line, IndexFile):
                        listing.add_file(line.path, line.size_bytes, line.mtime, line.crc32c)
        self._place(root, waiting, None, [])

    def _frames(self, stored: StoredObject, key: DataKey, context: Context) -> list[bytes]:
        body = self.store.get(stored.key)
        Opener(body[:88], key, context)
        frames = list(iter_frames(body, key, context))
        assert len(frames) == stored.frames
        assert len(body) == stored.size_bytes
        return frames

    def _place(
        self,
        root: Path,
        lines: list[IndexFile | IndexFileMore],
        pack: IndexPack | None,
        frames: list[bytes],
    ) -> None:
        assert pack is None or len(pack.frames) == len(frames)
        for line in lines:
            descriptor = os.open(root / os.fsdecode(line.path), os.O_WRONLY | os.O_CREAT, 0o600)
            for extent in line.extents:
                start = extent.frame_offset
                run = frames[extent.frame][start : start + extent.size_bytes]
                assert crc32c(run) == extent.crc32c
                os.pwrite(descriptor, run, extent.offset)
            if isinstance(line, IndexFile):
                os.ftruncate(descriptor, line.size_bytes)
                os.fchmod(descriptor, line.mode)
            os.close(descriptor)


def parts_of(manifest: BackupManifest) -> list[int]:
    """Return the numbers of a backup's parts; part 0, with the directories, comes first."""
    return sorted({int(each.key.rpartition("/index-")[2][:4]) for each in manifest.indexes})


def house_for(server: RunningPostgres, store: ObjectStore | None = None) -> BackupHouse:
    system = server.value("SELECT system_identifier FROM pg_control_system()")
    return BackupHouse(store or MemoryStore(), ArchiveId(int(str(system)), 1))


def fill(server: RunningPostgres, rows: int = 60_000) -> None:
    server.execute("CREATE TABLE notes (id int PRIMARY KEY, text text)")
    server.execute("INSERT INTO notes SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, %s) g", rows)


def in_thread(work: Callable[[], BackupManifest]) -> Callable[[], BackupManifest | Exception]:
    """Start ``work``; return a callable that waits for it and gives its result or error."""
    results: list[BackupManifest | Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as failure:  # noqa: BLE001 - handed to the test
            results.append(failure)

    thread = threading.Thread(target=run)
    thread.start()

    def outcome() -> BackupManifest | Exception:
        thread.join(120)
        assert not thread.is_alive()
        return results[0]

    return outcome


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("backup-")]
