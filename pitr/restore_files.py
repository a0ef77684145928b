"""Puts the files of a base backup back: index and packs in, a data directory out.

Each pack is fetched once, its digest compared with the signed manifest, its frames opened, and every
extent's CRC-32C compared with what was read from the server.  Memory: one pack per
worker, whatever the size of the cluster.

Not here: where the directory may lie (``pitr.restore_place``) and PostgreSQL's own manifest of it
(``pitr.postgres.manifest``).  Reference: docs/format.md §8.
"""

from __future__ import annotations

import hashlib
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pitr.catalogue.backup_record import BackupManifest, StoredObject
from pitr.errors import MalformedValue, NoGoodCopy, NotAuthentic
from pitr.patience import with_patience
from pitr.pipeline.crc import crc32c
from pitr.pipeline.frames import LENGTH
from pitr.pipeline.keys import DataKey
from pitr.pipeline.packs import (
    Extent,
    IndexDirectory,
    IndexFile,
    IndexFileMore,
    IndexLink,
    IndexPack,
    iter_index,
)
from pitr.pipeline.seal import HEADER_BYTES, Context, Opener, iter_frames
from pitr.restore_paths import BackupPaths, OpenFile
from storage.store import CopyDamaged, ObjectMissing, ObjectStore

# Each holds a pack of 32 to 48 MiB.  Four were measured at 170 MiB beside the program itself; three leave
# room for the largest packs below 300 MiB, and two cores are busy with them.
WORKERS: Final = 3
PATIENCE_S: Final = 60.0
_QUEUE_POLL_S: Final = 0.2
_PART_KEY: Final = re.compile(r".*/(?:pack|index)-([0-9]{4})-([0-9]{6})-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class FileProgress:
    """How far the files are: bytes of content written, of ``total_bytes``; files begun."""

    written_bytes: int
    total_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class RestoredFiles:
    """What was written, and how many bytes were fetched for it."""

    files: int
    size_bytes: int
    fetched_bytes: int


@dataclass(frozen=True, slots=True)
class _PackTask:
    part: int
    pack: IndexPack
    stored: StoredObject
    extents: tuple[tuple[bytes, Extent], ...]


@dataclass(slots=True)
class _Shared:
    """What the threads of one restore share; ``lock`` guards the numbers and the failure."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None
    written_bytes: int = 0
    fetched_bytes: int = 0
    files: int = 0


class FileRestorer:
    """Restores one backup's files below ``root``, an empty directory that is only ours.

    ``tablespaces`` gives, by oid, the empty directory for each tablespace's files; their links are
    made by the caller.  ``on_file`` is called for every file, from one thread, in index order;
    ``on_progress`` after each extent, from any thread.
    """

    def __init__(
        self,
        store: ObjectStore,
        manifest: BackupManifest,
        data_key: DataKey,
        root: Path,
        tablespaces: Mapping[int, Path],
        *,
        on_file: Callable[[IndexFile], None],
        on_progress: Callable[[FileProgress], None],
        workers: int = WORKERS,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._data_key = data_key
        self._places = BackupPaths(root, tablespaces)
        self._on_file = on_file
        self._on_progress = on_progress
        self._workers = workers
        self._patience_s = patience_s
        self._shared = _Shared()
        self._tasks: queue.Queue[_PackTask | None] = queue.Queue(maxsize=1)

    def run(self) -> RestoredFiles:
        """Write all files; they are not yet synced.  After any error the directory must be thrown away.

        Raises NotAuthentic if no region has an object as the manifest says, MalformedValue if the index
        makes no sense, RestoreRefused if the disk is full or says no, StoreError.
        """
        threads = [
            threading.Thread(target=self._work, name=f"restore-{number}") for number in range(self._workers)
        ]
        for thread in threads:
            thread.start()
        try:
            for part, indexes in sorted(_by_part(self._manifest.indexes).items()):
                self._read_part(part, indexes)
        except _Stopped:
            pass  # the failure of a worker is raised below
        except BaseException:
            self._shared.stopping.set()
            raise
        finally:
            for _ in threads:
                self._put(None)
            for thread in threads:
                thread.join()
        if self._shared.failure is not None:
            raise self._shared.failure
        done = self._shared
        if done.files != self._manifest.files:
            raise NotAuthentic(
                f"the index of backup {self._manifest.backup} lists {done.files} files",
                detail=f"its manifest says {self._manifest.files}",
            )
        return RestoredFiles(done.files, done.written_bytes, done.fetched_bytes)

    def _read_part(self, part: int, indexes: Sequence[StoredObject]) -> None:
        """Make directories and files of one part, and hand its packs to the workers."""
        packs = {
            number: stored
            for stored in self._manifest.packs
            for found, number in [_part_and_number(stored.key)]
            if found == part
        }
        extents: list[tuple[bytes, Extent]] = []
        for line in iter_index(self._open_index(part, stored) for stored in indexes):
            match line:
                case IndexDirectory():
                    self._places.make_directory(line.path, line.mode)
                case IndexLink():
                    self._places.check_link(line)
                case IndexFileMore():
                    extents += [(line.path, extent) for extent in line.extents]
                case IndexFile():
                    self._places.make_file(line)
                    self._on_file(line)
                    with self._shared.lock:
                        self._shared.files += 1
                    extents += [(line.path, extent) for extent in line.extents]
                case IndexPack():
                    stored = packs.pop(line.number, None)
                    if stored is None:
                        raise MalformedValue(f"pack {line.number} of part {part} is not in the manifest")
                    self._put(_PackTask(part, line, stored, tuple(extents)))
                    extents = []
        if packs:
            raise MalformedValue(f"packs of part {part} are in the manifest and not in the index")

    def _open_index(self, part: int, stored: StoredObject) -> Iterator[bytes]:
        number = _part_and_number(stored.key)[1]
        body = self._get(stored)
        yield from iter_frames(body, self._data_key, self._context("index", part, number))

    def _context(self, kind: str, part: int, number: int) -> Context:
        name = f"{self._manifest.backup}/{part:04d}/{number:06d}"
        return Context(self._manifest.repository, self._manifest.archive, kind, name)

    def _get(self, stored: StoredObject) -> bytes:
        """Return the object as the manifest has it, from whichever region has it so."""

        def check(body: bytes) -> None:
            if len(body) != stored.size_bytes or hashlib.sha256(body).digest() != stored.sha256:
                raise CopyDamaged(f"{stored.key} is not the object that the manifest names")

        try:
            body = with_patience(
                lambda: self._store.get(stored.key, check=check),
                patience_s=self._patience_s,
                stopping=self._shared.stopping,
            )
        except (CopyDamaged, ObjectMissing) as cause:
            raise NoGoodCopy(
                f"no region has a good copy of {stored.key}",
                detail=str(cause),
                hint="restore from an older backup: pitr backups list",
            ) from cause
        with self._shared.lock:
            self._shared.fetched_bytes += len(body)
        return body

    def _put(self, task: _PackTask | None) -> None:
        while True:
            if self._shared.stopping.is_set() and task is not None:
                raise _Stopped
            try:
                self._tasks.put(task, timeout=_QUEUE_POLL_S)
            except queue.Full:
                continue
            return

    def _work(self) -> None:
        """Write packs until there are none: one worker's life."""
        while (task := self._tasks.get()) is not None:
            if self._shared.stopping.is_set():
                continue
            try:
                self._write_pack(task)
            except Exception as cause:  # noqa: BLE001 - the top of a thread; raised again by ``run``
                with self._shared.lock:
                    self._shared.failure = self._shared.failure or cause
                self._shared.stopping.set()

    def _write_pack(self, task: _PackTask) -> None:
        body = memoryview(self._get(task.stored))
        context = self._context("pack", task.part, task.pack.number)
        opener = Opener(bytes(body[:HEADER_BYTES]), self._data_key, context)
        last = len(task.pack.frames) - 1
        by_frame: dict[int, list[tuple[bytes, Extent]]] = {}
        for path, extent in task.extents:
            by_frame.setdefault(extent.frame, []).append((path, extent))
        with OpenFile(self._places) as file:
            for number, place in enumerate(task.pack.frames):
                start = place.offset + LENGTH.size
                sealed = body[start : start + place.sealed_bytes]
                content = opener.open_frame(sealed, number, last=number == last)
                for path, extent in by_frame.get(number, ()):
                    self._write_extent(file, path, extent, content)

    def _write_extent(self, file: OpenFile, path: bytes, extent: Extent, content: bytes) -> None:
        part = content
        if extent.size_bytes != len(content):
            part = content[extent.frame_offset : extent.frame_offset + extent.size_bytes]
        if len(part) != extent.size_bytes or crc32c(part) != extent.crc32c:
            raise NotAuthentic(
                f"{os.fsdecode(path)} at {extent.offset} is not what was read from the server",
                detail="its CRC differs from the one in the index",
            )
        file.write(path, memoryview(part), extent.offset)
        with self._shared.lock:
            self._shared.written_bytes += extent.size_bytes
            progress = FileProgress(self._shared.written_bytes, self._manifest.size_bytes, self._shared.files)
        self._on_progress(progress)


class _Stopped(Exception):
    """A worker failed; the reader has nothing more to do."""


def _by_part(objects: Sequence[StoredObject]) -> dict[int, list[StoredObject]]:
    """Group index objects by part, in each by number."""
    parts: dict[int, list[tuple[int, StoredObject]]] = {}
    for stored in objects:
        part, number = _part_and_number(stored.key)
        parts.setdefault(part, []).append((number, stored))
    ordered = {}
    for part, numbered in parts.items():
        numbered.sort(key=lambda pair: pair[0])
        if [number for number, _ in numbered] != list(range(len(numbered))):
            raise MalformedValue(f"index objects of part {part} are missing from the manifest")
        ordered[part] = [stored for _, stored in numbered]
    return ordered


def _part_and_number(key: str) -> tuple[int, int]:
    match = _PART_KEY.fullmatch(key)
    if match is None:
        raise MalformedValue(f"not the key of a pack or index: {key!r}")
    return int(match[1]), int(match[2])
