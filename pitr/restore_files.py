"""Puts the files of a base backup back: indexes and packs in, a data directory out.

A *chain* is a backup and those that it is built on, the newest first; a full backup is a chain of one.  Each
byte is taken from the newest backup that has it; a pack is fetched once or, where little of it is wanted,
those of its frames; frames are opened, every extent's CRC-32C is compared with what was read from the
server, and every page's checksum with the place that it is written to.  What an old directory has already is
copied from there, if that is proved (``pitr.restore_keep``).  Memory: one pack per worker, whatever the
cluster's size.

Not here: where the directory may lie (``pitr.restore_place``) and PostgreSQL's own manifest of it
(``pitr.postgres.manifest``).  Reference: docs/format.md §8.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from pitr.catalogue.backup_record import BackupManifest, StoredObject
from pitr.errors import MalformedValue, NotAuthentic
from pitr.pipeline.crc import crc32c
from pitr.pipeline.keys import DataKey
from pitr.pipeline.packs import (
    IndexDirectory,
    IndexFile,
    IndexFileMore,
    IndexLink,
    IndexPack,
    iter_index,
)
from pitr.restore_keep import NotKept, OldDirectory, PackKeeper, PackTask
from pitr.restore_layer import Fetching, Layer
from pitr.restore_pages import PageJudge, RestoredPages
from pitr.restore_paths import BackupPaths, OpenFile
from pitr.restore_uses import HeldExtent, PartReader, Use
from pitr.restore_wanted import Piece, Span, WantedFiles
from pitr.wal_reader import DataKeySource
from storage.store import ObjectStore

# Each holds a pack of up to 48 MiB.  Four were measured at 170 MiB beside the program itself; three leave
# room for the largest packs below 300 MiB, and two cores are busy with them.
WORKERS: Final = 3
PATIENCE_S: Final = 60.0
_QUEUE_POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class FileProgress:
    """How far the files are: bytes of content written, of ``total_bytes``; files begun."""

    written_bytes: int
    total_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class RestoredFiles:
    """What was written, how many sealed bytes were fetched, and how many of an old directory were kept."""

    files: int
    size_bytes: int
    fetched_bytes: int
    kept_bytes: int


@dataclass(frozen=True, slots=True)
class ChainLink:
    """One backup of a chain, with the key that opens it.

    ``other_keys`` open the packs of attempts that it resumed, by id.
    """

    manifest: BackupManifest
    data_key: DataKey
    other_keys: Mapping[bytes, DataKey] = field(default_factory=dict)

    @classmethod
    def open(cls, manifest: BackupManifest, data_keys: DataKeySource) -> ChainLink:
        """Get the keys of a backup.  Raises KeyMissing, NotAuthentic, StoreError."""
        own, others = manifest.key_id, sorted(manifest.key_ids - {manifest.key_id})
        keys = {key_id: data_keys.get(manifest.archive, key_id) for key_id in others}
        return cls(manifest, data_keys.get(manifest.archive, own), keys)


@dataclass(frozen=True, slots=True)
class _PackTask:
    depth: int
    part: int
    pack: IndexPack
    stored: StoredObject
    uses: tuple[Use, ...]
    held: tuple[HeldExtent, ...]


@dataclass(slots=True)
class _Shared:
    """What the threads of one restore share; ``lock`` guards the numbers and the failure.

    ``taken_bytes`` is the reader's alone: what the workers are to write.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)
    failure: Exception | None = None
    taken_bytes: int = 0
    written_bytes: int = 0
    fetched_bytes: int = 0
    kept_bytes: int = 0
    files: int = 0


class FileRestorer:
    """Restores the files of a chain, the newest backup first, below ``root``: an empty directory, only ours.

    ``tablespaces`` gives, by oid, the empty directory for each tablespace's files; their links are
    made by the caller.  ``notes`` is a file for what does not fit into memory.  ``on_file`` is called for
    every file, from one thread: whole ones in index order, then those that were put together;
    ``on_progress`` after each extent, from any thread.  ``old``: a directory that may have some of the
    bytes already.  Raises MalformedValue if ``chain`` is none.
    """

    def __init__(
        self,
        store: ObjectStore,
        chain: Sequence[ChainLink],
        root: Path,
        tablespaces: Mapping[int, Path],
        notes: Path,
        *,
        on_file: Callable[[IndexFile], None],
        on_progress: Callable[[FileProgress], None],
        workers: int = WORKERS,
        patience_s: float = PATIENCE_S,
        old: OldDirectory | None = None,
    ) -> None:
        _check_chain(chain)
        self._shared = _Shared()
        self._keeper = None if old is None else PackKeeper(old)
        fetching = Fetching(store, patience_s, self._shared.stopping, self._count)
        self._layers = [Layer(link.manifest, link.data_key, fetching, link.other_keys) for link in chain]
        self._manifest = chain[0].manifest
        self._judges = [
            PageJudge(link.manifest, link.manifest.start_lsn if depth == 0 else None)
            for depth, link in enumerate(chain)
        ]
        self._places = BackupPaths(root, tablespaces)
        self._notes = notes
        self._on_file = on_file
        self._on_progress = on_progress
        self._workers = workers
        self._tasks: queue.Queue[_PackTask | None] = queue.Queue(maxsize=1)

    def run(self) -> RestoredFiles:
        """Write all files; they are not yet synced.  After any error the directory must be thrown away.

        Raises NoGoodCopy if no region has an object as the manifest says, MalformedValue if an index
        makes no sense, RestoreRefused if the disk is full or says no, StoreError.
        """
        wanted = WantedFiles(self._notes)
        try:
            self._write_all(wanted)
            done = self._shared
            if done.written_bytes != done.taken_bytes:
                # What was not written would be zero, and its sum that of zeros: nobody after us would see it.
                raise NotAuthentic(f"{done.written_bytes} bytes were written of {done.taken_bytes}")
            for file in wanted.finish(self._layers[-1].manifest.backup):
                self._on_file(file)
        finally:
            wanted.close()
        if done.files != self._manifest.files:
            raise NotAuthentic(
                f"the index of backup {self._manifest.backup} lists {done.files} files",
                detail=f"its manifest says {self._manifest.files}",
            )
        return RestoredFiles(done.files, done.written_bytes, done.fetched_bytes, done.kept_bytes)

    def _write_all(self, wanted: WantedFiles) -> None:
        """Read every backup of the chain, and let the workers write what is taken from it."""
        threads = [
            threading.Thread(target=self._work, args=(wanted,), name=f"restore-{number}")
            for number in range(self._workers)
        ]
        for thread in threads:
            thread.start()
        try:
            for depth, layer in enumerate(self._layers):
                if depth:
                    wanted.begin_parent()
                for part, (indexes, packs) in layer.parts().items():
                    objects = [layer.open_index(part, stored) for stored in indexes]
                    reader = PartReader(wanted, depth, keeps_all=self._keeper is not None)
                    self._read_part(reader, part, objects, packs)
                wanted.end_backup(layer.manifest.backup)
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

    def _read_part(
        self,
        reader: PartReader,
        part: int,
        objects: Sequence[Iterator[bytes]],
        packs: dict[int, StoredObject],
    ) -> None:
        """Make directories and files of one part, and hand what is wanted of its packs to the workers."""
        is_newest = reader.depth == 0
        for line in iter_index(objects):
            match line:
                case IndexDirectory() if is_newest:
                    self._places.make_directory(line.path, line.mode)
                case IndexLink() if is_newest:
                    self._places.check_link(line)
                case IndexFileMore():
                    reader.add_more(line)
                case IndexFile():
                    if is_newest:
                        self._places.make_file(line)
                        with self._shared.lock:
                            self._shared.files += 1
                        if line.parent_bytes is None:
                            self._on_file(line)
                    reader.add_file(line)
                case IndexPack():
                    stored = packs.pop(line.number, None)
                    if stored is None:
                        raise MalformedValue(f"pack {line.number} of part {part} is not in the manifest")
                    held, uses = reader.held, reader.end_pack()
                    if uses:
                        self._shared.taken_bytes += sum(span.size_bytes for use in uses for span in use.spans)
                        self._put(_PackTask(reader.depth, part, line, stored, uses, held))
                case _:
                    pass
        if packs:
            raise MalformedValue(f"packs of part {part} are in the manifest and not in the index")

    def _count(self, fetched_bytes: int) -> None:
        with self._shared.lock:
            self._shared.fetched_bytes += fetched_bytes

    def _put(self, task: _PackTask | None) -> None:
        while True:
            if self._shared.stopping.is_set() and task is not None:
                raise _Stopped
            try:
                self._tasks.put(task, timeout=_QUEUE_POLL_S)
            except queue.Full:
                continue
            return

    def _work(self, wanted: WantedFiles) -> None:
        """Write packs until there are none: one worker's life."""
        pages = RestoredPages()
        while (task := self._tasks.get()) is not None:
            if self._shared.stopping.is_set():
                continue
            try:
                self._write_pack(task, wanted, pages)
            except Exception as cause:  # noqa: BLE001 - the top of a thread; raised again by ``run``
                with self._shared.lock:
                    self._shared.failure = self._shared.failure or cause
                self._shared.stopping.set()

    def _write_pack(self, task: _PackTask, wanted: WantedFiles, pages: RestoredPages) -> None:
        layer = self._layers[task.depth]
        by_frame: dict[int, list[Use]] = {}
        for use in task.uses:
            by_frame.setdefault(use.extent.frame, []).append(use)
        if self._keeper is not None:
            pack = PackTask(task.part, task.pack, task.stored, task.held, frozenset(by_frame))
            written = _Written()
            try:
                self._write_frames(self._keeper.frames(layer, pack), by_frame, task.depth, written, pages)
                self._settle(written, wanted)
            except (NotKept, NotAuthentic):
                # Whatever was written of it is written again.
                self._count_written(-written.size_bytes)
            else:
                return
        frames = layer.frames(task.part, task.pack, task.stored, sorted(by_frame))
        written = _Written()
        fetched = ((number, content, False) for number, content in frames)
        self._write_frames(fetched, by_frame, task.depth, written, pages)
        self._settle(written, wanted)

    def _write_frames(
        self,
        frames: Iterator[tuple[int, bytes, bool]],
        by_frame: Mapping[int, Sequence[Use]],
        depth: int,
        written: _Written,
        pages: RestoredPages,
    ) -> None:
        pages.begin(self._judges[depth])
        with OpenFile(self._places) as file:
            for number, content, is_kept in frames:
                if self._shared.stopping.is_set():
                    # A pack of small files takes minutes on a slow disk, and somebody is waiting.
                    return
                for use in by_frame[number]:
                    part = _checked(use, content)
                    before = written.size_bytes
                    for span in use.spans:
                        at = span.start - use.extent.offset
                        piece = part[at : at + span.end - span.start]
                        pages.add(use.path, span.start, piece)
                        file.write(use.path, piece, span.start)
                        written.add(use, span, piece, is_kept=is_kept)
                    self._on_progress(self._count_written(written.size_bytes - before))
        pages.flush()

    def _settle(self, written: _Written, wanted: WantedFiles) -> None:
        """Note what was written of a pack once all of it is known to be right."""
        for piece in written.pieces:
            wanted.add_piece(piece)
        with self._shared.lock:
            self._shared.kept_bytes += written.kept_bytes

    def _count_written(self, size_bytes: int) -> FileProgress:
        with self._shared.lock:
            self._shared.written_bytes += size_bytes
            return FileProgress(self._shared.written_bytes, self._manifest.size_bytes, self._shared.files)


@dataclass(slots=True)
class _Written:
    """What was written of one pack."""

    size_bytes: int = 0
    kept_bytes: int = 0
    pieces: list[Piece] = field(default_factory=list)

    def add(self, use: Use, span: Span, content: memoryview, *, is_kept: bool) -> None:
        self.size_bytes += len(content)
        self.kept_bytes += len(content) if is_kept else 0
        if use.file is not None:
            is_all = len(content) == use.extent.size_bytes
            crc = use.extent.crc32c if is_all else crc32c(content)
            self.pieces.append(Piece(use.file, span.start, len(content), crc))


def _check_chain(chain: Sequence[ChainLink]) -> None:
    """Raise MalformedValue unless each backup is built on the next, or on the one that the next stands for.

    In another order all would seem well.
    """
    line = [link.manifest for link in chain]
    built = [child.parent in {one.backup, one.stands_for} - {None} for child, one in pairwise(line)]
    if not line or not all(built) or line[-1].parent is not None:
        names = ", ".join(one.backup for one in line)
        raise MalformedValue(f"backups {names} are not built on each other in this order")


def _checked(use: Use, content: bytes) -> memoryview:
    """Return the extent's bytes if they are what was read from the server.  Raises NotAuthentic."""
    extent = use.extent
    part = content
    if extent.size_bytes != len(content):
        part = content[extent.frame_offset : extent.frame_offset + extent.size_bytes]
    if len(part) != extent.size_bytes or crc32c(part) != extent.crc32c:
        raise NotAuthentic(
            f"{os.fsdecode(use.path)} at {extent.offset} is not what was read from the server",
            detail="its CRC differs from the one in the index",
        )
    return memoryview(part)


class _Stopped(Exception):
    """A worker failed; the reader has nothing more to do."""
