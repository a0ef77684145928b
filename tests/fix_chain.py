"""Chains of backups without a server: files of pages, written by the writer and restored by the restorer."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from pitr.backup_frames import runs_of
from pitr.catalogue.backup_record import BackupManifest, StoredObject
from pitr.layout import ArchiveId, index_key, pack_key
from pitr.pipeline.keys import DataKey
from pitr.pipeline.pack_writer import SMALL_BYTES_MAX, FileStatus, PartWriter
from pitr.pipeline.packs import IndexFile
from pitr.pipeline.part_objects import PartKind, SealedPart
from pitr.pipeline.seal import FRAME_CONTENT_BYTES, Context
from pitr.postgres.page import PAGE_BYTES, blocks_from, page_checksums
from pitr.restore_files import ChainLink, FileRestorer, RestoredFiles
from pitr.restore_keep import OldDirectory
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from storage.store import ObjectStore

ARCHIVE = ArchiveId(7_000_000_000_000_000_001, 1)
REPOSITORY = "ab" * 16
MIB = 1024 * 1024
STATUS = FileStatus(0o600, 1_700_000_000)
BEGAN = datetime(2026, 11, 23, 13, 0, tzinfo=UTC)
FRAME_PAGES = FRAME_CONTENT_BYTES // PAGE_BYTES


def page(number: int) -> bytes:
    """Return page ``number``; 0 is a page of zeros, each other one differs from all others."""
    return bytes(PAGE_BYTES) if number == 0 else b"%016d" % number * (PAGE_BYTES // 16)


def noise_page(number: int) -> bytes:
    """Return a page that does not compress."""
    return random.Random(number).randbytes(PAGE_BYTES)


def real_page(block: int, lsn: int, fill: int = 1) -> bytes:
    """Return a page as PostgreSQL has it at ``block``, with its checksum."""
    content = bytearray(bytes([fill]) * PAGE_BYTES)
    header = np.array([lsn >> 32, lsn & 0xFFFF_FFFF, 0, 24 | 8192 << 16, 8192 | 8196 << 16, 0], "<u4")
    content[:24] = header.tobytes()
    (checksum,) = page_checksums(memoryview(content), blocks_from(block, 1))
    content[8:10] = int(checksum).to_bytes(2, "little")
    return bytes(content)


@dataclass
class LayerMaker:
    """One backup of a chain, while it is written."""

    store: ObjectStore
    depth: int
    parent: str | None
    pack_bytes: int = 2 * MIB
    checksums: bool = False
    key: DataKey = field(default_factory=lambda: DataKey.generate(os.urandom))
    files: int = 0
    size_bytes: int = 0
    packs: list[StoredObject] = field(default_factory=list)
    indexes: list[StoredObject] = field(default_factory=list)
    _writers: dict[int, PartWriter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind = "full" if self.parent is None else "incr"
        self.at = BEGAN + timedelta(minutes=self.depth)
        self.backup = f"{self.at:%Y%m%dT%H%M%SZ}-{kind}-{self.depth:08x}"
        for folder in (b"base", b"base/5"):
            self.part(0).add_directory(folder, 0o700)

    def part(self, number: int) -> PartWriter:
        if number not in self._writers:
            self._writers[number] = PartWriter(
                number, self.key, self._context, self._sink, pack_bytes=self.pack_bytes
            )
        return self._writers[number]

    def add_whole(self, path: str, content: bytes, part: int = 1) -> None:
        """Add a whole file, as a worker of a backup does."""
        writer = self.part(part)
        if len(content) <= SMALL_BYTES_MAX:
            writer.add_small(path.encode(), content, STATUS)
        else:
            file = writer.open_file(path.encode())
            for start in range(0, len(content), FRAME_CONTENT_BYTES):
                piece = content[start : start + FRAME_CONTENT_BYTES]
                if any(piece):
                    file.add(start, piece)
            file.close(len(content), STATUS)
        self._count(len(content))

    def add_changed(
        self,
        path: str,
        blocks: Sequence[int],
        pages: Iterable[bytes],
        *,
        size_bytes: int,
        parent_bytes: int,
        part: int = 1,
        frame_pages: int = FRAME_PAGES,
    ) -> None:
        """Add the changed pages of a file, as a worker of an incremental backup does."""
        writer, held = self.part(part), list(pages)
        content = b"".join(held)
        if len(content) <= SMALL_BYTES_MAX:
            runs = runs_of(np.array(blocks, np.uint32))
            writer.add_changed(path.encode(), content, runs, size_bytes, STATUS, parent_bytes=parent_bytes)
        else:
            file = writer.open_file(path.encode())
            for at in range(0, len(blocks), frame_pages):
                runs = runs_of(np.array(blocks[at : at + frame_pages], np.uint32))
                file.add_runs(b"".join(held[at : at + frame_pages]), runs)
            file.close(size_bytes, STATUS, parent_bytes=parent_bytes)
        self._count(size_bytes)

    def finish(self, **changes: object) -> ChainLink:
        for writer in self._writers.values():
            writer.finish()
        fields: dict[str, Any] = {
            "repository": REPOSITORY,
            "archive": ARCHIVE,
            "backup": self.backup,
            "label": "test",
            "type": "full" if self.parent is None else "incr",
            "parent": self.parent,
            "started_at": self.at,
            "stopped_at": self.at,
            "timeline": TimelineId(1),
            "start_lsn": LSN(0x2000028 + self.depth * 0x1000),
            "stop_lsn": LSN(0x2000120 + self.depth * 0x1000),
            "server_version": 170010,
            "segment_bytes": 16 * MIB,
            "page_checksums": self.checksums,
            "key_id": self.key.key_id,
            "tablespaces": (),
            "settings": (),
            "backup_label": b"",
            "tablespace_map": b"",
            "files": self.files,
            "size_bytes": self.size_bytes,
            "packs": tuple(self.packs),
            "indexes": tuple(self.indexes),
            **changes,
        }
        return ChainLink(BackupManifest(**fields), self.key)

    def _count(self, size_bytes: int) -> None:
        self.files += 1
        self.size_bytes += size_bytes

    def _context(self, kind: PartKind, part: int, number: int) -> Context:
        return Context(REPOSITORY, ARCHIVE, kind, f"{self.backup}/{part:04d}/{number:06d}")

    def _sink(self, sealed: SealedPart) -> None:
        name = pack_key if sealed.kind == "pack" else index_key
        key = name(ARCHIVE, self.backup, sealed.part, sealed.number, "0123abcd")
        self.store.put(key, sealed.body)
        stored = StoredObject(key, len(sealed.body), sealed.sha256, sealed.frames)
        (self.packs if sealed.kind == "pack" else self.indexes).append(stored)


@dataclass
class ChainMaker:
    """A chain that grows: ``links`` has its backups, the oldest first."""

    store: MemoryStore = field(default_factory=MemoryStore)
    links: list[ChainLink] = field(default_factory=list)

    def layer(self, **options: Any) -> LayerMaker:
        parent = self.links[-1].manifest.backup if self.links else None
        return LayerMaker(self.store, len(self.links), parent, **options)

    def add(self, layer: LayerMaker) -> ChainLink:
        self.links.append(layer.finish())
        return self.links[-1]

    def restore(
        self, folder: Path, store: ObjectStore | None = None, *, old: OldDirectory | None = None
    ) -> tuple[RestoredFiles, list[IndexFile]]:
        """Restore the newest backup below ``folder/root``."""
        return restore_chain(store or self.store, self.links[::-1], folder, old=old)


def restore_chain(
    store: ObjectStore, chain: Sequence[ChainLink], folder: Path, *, old: OldDirectory | None = None
) -> tuple[RestoredFiles, list[IndexFile]]:
    """Restore the first of ``chain`` below ``folder/root``; return what was done and every file's line."""
    (folder / "root").mkdir(parents=True)
    listed: list[IndexFile] = []
    restorer = FileRestorer(
        store,
        chain,
        folder / "root",
        {},
        folder / "notes",
        on_file=listed.append,
        on_progress=lambda _progress: None,
        workers=3,
        patience_s=0.05,
        old=old,
    )
    return restorer.run(), listed
