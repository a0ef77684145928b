"""A backup of a few files of noise, made by the writer that real backups use, with no server behind it."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pitr.catalogue.backup_record import BackupManifest, StoredObject, Tablespace
from pitr.layout import ArchiveId, index_key, pack_key
from pitr.pipeline.keys import DataKey
from pitr.pipeline.pack_writer import FileStatus, PartWriter
from pitr.pipeline.part_objects import PartKind, SealedPart
from pitr.pipeline.seal import Context
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore

ARCHIVE = ArchiveId(7_000_000_000_000_000_001, 1)
REPOSITORY = "ab" * 16
BACKUP = "20261123T130500Z-full-0a0b0c0d"
MIB = 1024 * 1024
STATUS = FileStatus(0o600, 1_700_000_000)


@dataclass
class SmallBackup:
    """A backup of two parts, made by the writer that real backups use."""

    store: MemoryStore = field(default_factory=MemoryStore)
    key: DataKey = field(default_factory=lambda: DataKey.generate(os.urandom))
    packs: list[StoredObject] = field(default_factory=list)
    indexes: list[StoredObject] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)

    def context(self, kind: PartKind, part: int, number: int) -> Context:
        return Context(REPOSITORY, ARCHIVE, kind, f"{BACKUP}/{part:04d}/{number:06d}")

    def sink(self, sealed: SealedPart) -> None:
        name = pack_key if sealed.kind == "pack" else index_key
        key = name(ARCHIVE, BACKUP, sealed.part, sealed.number, "0123abcd")
        self.store.put(key, sealed.body)
        stored = StoredObject(key, len(sealed.body), sealed.sha256, sealed.frames)
        (self.packs if sealed.kind == "pack" else self.indexes).append(stored)

    def writer(self, part: int) -> PartWriter:
        return PartWriter(part, self.key, self.context, self.sink, pack_bytes=2 * MIB)

    def add_large(self, writer: PartWriter, path: str, size: int, gap: tuple[int, int] = (0, 0)) -> None:
        """Add a file of noise whose bytes from ``gap[0]`` to ``gap[1]`` are a hole."""
        noise = bytearray(random.Random(path).randbytes(size))
        noise[gap[0] : gap[1]] = bytes(gap[1] - gap[0])
        file = writer.open_file(path.encode())
        for offset in range(0, size, MIB):
            if not gap[0] <= offset < gap[1]:
                file.add(offset, bytes(noise[offset : offset + MIB]))
        file.close(size, STATUS)
        self.contents[path] = bytes(noise)

    def add_small(self, writer: PartWriter, path: str, size: int) -> None:
        self.contents[path] = random.Random(path).randbytes(size)
        writer.add_small(path.encode(), self.contents[path], STATUS)

    def manifest(self) -> BackupManifest:
        at = datetime(2026, 11, 23, 13, 5, tzinfo=UTC)
        return BackupManifest(
            repository=REPOSITORY,
            archive=ARCHIVE,
            backup=BACKUP,
            label="test",
            type="full",
            parent=None,
            started_at=at,
            stopped_at=at,
            timeline=TimelineId(1),
            start_lsn=LSN(0x2000028),
            stop_lsn=LSN(0x2000120),
            server_version=170010,
            segment_bytes=16 * MIB,
            # The content is noise.
            page_checksums=False,
            key_id=self.key.key_id,
            tablespaces=(Tablespace(16385, "fast", "/old/fast"),),
            settings=(),
            backup_label=b"",
            tablespace_map=b"",
            files=len(self.contents),
            size_bytes=sum(map(len, self.contents.values())),
            packs=tuple(self.packs),
            indexes=tuple(self.indexes),
        )


def make_small_backup() -> SmallBackup:
    """Return one of a large file with a hole, small ones that share frames, an empty one, a tablespace."""
    made = SmallBackup()
    head = made.writer(0)
    for folder in ("base", "base/5", "global", "pg_tblspc", "pg_tblspc/16385/PG_17_202406281"):
        head.add_directory(folder.encode(), 0o700)
    head.add_link(b"pg_tblspc/16385", 16385)
    made.add_small(head, "PG_VERSION", 3)
    head.finish()
    body = made.writer(1)
    made.add_large(body, "base/5/16384", 7 * MIB + 8192, gap=(2 * MIB, 5 * MIB))
    for number in range(40):
        made.add_small(body, f"base/5/{number}", number * 700)
    made.add_large(body, "pg_tblspc/16385/PG_17_202406281/9", 3 * MIB)
    made.add_small(body, "global/empty", 0)
    body.finish()
    return made
