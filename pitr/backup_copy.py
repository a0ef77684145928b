"""Copies a data directory into sealed parts: several threads, each with its own files, pack and index.

Part 0 is the owner's: directories, links and, last of all, the control file.  Parts 1 to N are the
workers'; files are dealt to them largest first.
"""

from __future__ import annotations

import heapq
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from pitr.backup_changes import ChangeFinder, FilePlan, LeftEmpty, PagesSince
from pitr.backup_pace import Pace, PaceLimits
from pitr.backup_parent import NoteWriter
from pitr.catalogue.backup_record import FINDINGS_MAX
from pitr.catalogue.backup_signs import ALIEN_NAMED_MAX, RELATIONS_NAMED_MAX, BackupSigns, RelationSign
from pitr.errors import BackupFailed
from pitr.pipeline.pack_writer import SMALL_BYTES_MAX, FileStatus, FileWriter, PartWriter, Run
from pitr.pipeline.seal import FRAME_CONTENT_BYTES
from pitr.postgres.basebackup import FileReader, FoundPage, OpenedFile
from pitr.postgres.datadir import (
    DataDirectory,
    DataEntry,
    DataFile,
    LeftOut,
    TablespaceLink,
    is_alien,
    largest_first,
)
from pitr.postgres.page import PAGE_BYTES, Blocks
from pitr.postgres.summaries import ChangedPart
from pitr.priority import Priority, lower_priority

_QUEUE_FILES: Final = 256
_FRAME_PAGES: Final = FRAME_CONTENT_BYTES // PAGE_BYTES
_POLL_S: Final = 0.2
_ZEROS: Final = bytes(FRAME_CONTENT_BYTES)
# Said one by one up to here; a directory of a million sockets is one note.
_NOTES_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class BackupProgress:
    """How far a base backup is: ``bytes_done`` of ``bytes_listed``, which grows until ``is_listed``.

    ``restored_bytes`` is the true size of the files copied so far, ``stored_bytes`` what the store holds.
    ``paused`` says why nothing is read now; None: it is.
    """

    phase: str = "starting"
    files_done: int = 0
    bytes_done: int = 0
    bytes_listed: int = 0
    is_listed: bool = False
    stored_bytes: int = 0
    findings: int = 0
    restored_bytes: int = 0
    notes: tuple[str, ...] = ()
    paused: str | None = None


class Tally:
    """The one place where all threads of a backup count.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress = BackupProgress()
        self._found: list[FoundPage] = []
        self._alien: list[str] = []
        self._alien_count = 0
        self._relations: list[tuple[int, str, RelationSign]] = []

    @property
    def progress(self) -> BackupProgress:
        with self._lock:
            return self._progress

    @property
    def found(self) -> tuple[FoundPage, ...]:
        """The bad pages by path and block; at most FINDINGS_MAX, though all are counted."""
        with self._lock:
            return tuple(sorted(self._found, key=lambda page: (page.path, page.block)))

    @property
    def signs(self) -> BackupSigns:
        """What the files looked like."""
        with self._lock:
            relations = tuple(sorted((each for _, _, each in self._relations), key=lambda each: each.path))
            return BackupSigns(tuple(sorted(self._alien)), self._alien_count, relations)

    def alien(self, path: bytes) -> None:
        """Count a file that is no relation where only relations are."""
        with self._lock:
            self._alien_count += 1
            if len(self._alien) < ALIEN_NAMED_MAX:
                self._alien.append(os.fsdecode(path))

    def relation(self, path: bytes, size_bytes: int, writer: FileWriter) -> None:
        """Note how a large relation file compressed; the largest are kept."""
        found = RelationSign(os.fsdecode(path), size_bytes, writer.content_bytes, writer.stored_bytes)
        with self._lock:
            heapq.heappush(self._relations, (found.copied_bytes, found.path, found))
            if len(self._relations) > RELATIONS_NAMED_MAX:
                heapq.heappop(self._relations)

    def enter(self, phase: str) -> None:
        with self._lock:
            self._progress = replace(self._progress, phase=phase)

    def listed(self, size_bytes: int) -> None:
        with self._lock:
            self._progress = replace(self._progress, bytes_listed=self._progress.bytes_listed + size_bytes)

    def all_listed(self) -> None:
        with self._lock:
            self._progress = replace(self._progress, is_listed=True)

    def copied(self, size_bytes: int) -> None:
        with self._lock:
            self._progress = replace(self._progress, bytes_done=self._progress.bytes_done + size_bytes)

    def file_copied(self, size_bytes: int, found: Sequence[FoundPage]) -> None:
        with self._lock:
            self._found += found[: max(0, FINDINGS_MAX - len(self._found))]
            self._progress = replace(
                self._progress,
                files_done=self._progress.files_done + 1,
                findings=self._progress.findings + len(found),
                restored_bytes=self._progress.restored_bytes + size_bytes,
            )

    def stored(self, size_bytes: int) -> None:
        with self._lock:
            self._progress = replace(self._progress, stored_bytes=self._progress.stored_bytes + size_bytes)

    def note(self, text: str) -> None:
        """Keep a remark that a person should see; each once."""
        with self._lock:
            notes = self._progress.notes
            if len(notes) < _NOTES_MAX and text not in notes:
                self._progress = replace(self._progress, notes=(*notes, text))


class CopyCrew:
    """The workers.  The first failure sets ``stop`` and is kept in ``failure``.

    ``changes`` None copies all of every file; ``note`` is told each relation file that was copied.  ``pace``
    says how many of them work at once; None: all.
    """

    def __init__(
        self,
        readers: Sequence[FileReader],
        writers: Sequence[PartWriter],
        tally: Tally,
        stop: threading.Event,
        *,
        pace: Pace | None = None,
        priority: Priority = Priority(),  # noqa: B008 - a frozen value
        changes: ChangeFinder | None = None,
        note: NoteWriter | None = None,
    ) -> None:
        self._tally = tally
        self._stop = stop
        self._pace = pace or Pace(PaceLimits(None, len(readers)))
        self._priority = priority
        self._changes = changes
        self._note = note
        self._queue: queue.Queue[DataFile | None] = queue.Queue(_QUEUE_FILES)
        self._lock = threading.Lock()
        self.failure: Exception | None = None
        self._threads = [
            threading.Thread(
                target=self._run, args=(reader, writer), name=f"backup-copy-{number}", daemon=True
            )
            for number, (reader, writer) in enumerate(zip(readers, writers, strict=True), 1)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def deal(self, file: DataFile | None, watch: Callable[[], None]) -> None:
        """Hand a file to whoever is free; None ends one worker.

        ``watch`` is called while all are busy, and may raise.
        """
        while True:
            watch()
            try:
                self._queue.put(file, timeout=_POLL_S)
            except queue.Full:
                continue
            return

    def finish(self, watch: Callable[[], None]) -> None:
        """Return when all files are copied and all parts handed over.  ``watch`` as in ``deal``."""
        for _ in self._threads:
            self.deal(None, watch)
        for thread in self._threads:
            while thread.is_alive():
                watch()
                thread.join(_POLL_S)
        watch()

    def abandon(self) -> None:
        """End every worker as soon as it looks up; return when all have ended."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _run(self, reader: FileReader, writer: PartWriter) -> None:
        try:
            for text in lower_priority(self._priority):
                self._tally.note(text)
            while (file := self._next()) is not None:
                with self._pace.working(self._stop):
                    self._copy(file, reader, writer)
            if not self._stop.is_set():
                writer.finish()
        except Exception as failure:  # noqa: BLE001 - the top of a thread: kept for the owner
            with self._lock:
                self.failure = self.failure or failure
            self._stop.set()

    def _next(self) -> DataFile | None:
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                continue
        return None

    def _copy(self, file: DataFile, reader: FileReader, writer: PartWriter) -> None:
        copied_bytes = 0
        with reader.open(file) as opened:
            # None: dropped meanwhile, and replay drops it again.
            if opened is not None:
                plan = self._plan(file, opened)
                if isinstance(plan, LeftEmpty):
                    writer.add_small(file.path, b"", FileStatus(opened.mode, opened.mtime))
                elif plan is not None:
                    copied_bytes = self._copy_changed(file, opened, writer, plan)
                elif opened.size_bytes <= SMALL_BYTES_MAX:
                    copied_bytes = self._copy_small(file, opened, writer)
                else:
                    copied_bytes = self._copy_large(file, opened, writer)
                self._tally.file_copied(copied_bytes, opened.found)
                if self._note is not None and file.relation is not None:
                    self._note.add(file.path)
        # What the listing promised is done, though the file has grown, shrunk or gone since.
        self._tally.copied(file.size_bytes - copied_bytes)

    def _plan(self, file: DataFile, opened: OpenedFile) -> FilePlan:
        if self._changes is None:
            return None
        return self._changes.plan(replace(file, size_bytes=opened.size_bytes))

    def _copy_changed(
        self, file: DataFile, opened: OpenedFile, writer: PartWriter, plan: ChangedPart | PagesSince
    ) -> int:
        """Copy the pages that changed; the parent backup has the rest."""
        if isinstance(plan, ChangedPart):
            found, kept_bytes = opened.changed(plan.blocks), plan.parent_blocks * PAGE_BYTES
        else:
            found, kept_bytes = opened.changed_since(plan.since), opened.size_bytes
        target: FileWriter | None = None
        first: tuple[bytes, tuple[Run, ...]] = (b"", ())
        for pages in found:
            self._check_going()
            for at in range(0, len(pages.blocks), _FRAME_PAGES):
                blocks = pages.blocks[at : at + _FRAME_PAGES]
                content = bytes(pages.content[at * PAGE_BYTES : (at + len(blocks)) * PAGE_BYTES])
                if target is None and not first[1]:
                    # It may be all there is, and then it shares a frame with others.
                    first = content, runs_of(blocks)
                    continue
                if target is None:
                    target = writer.open_file(file.path)
                    target.add_runs(*first)
                target.add_runs(content, runs_of(blocks))
        return self._end_changed(file, opened, writer, target, first, kept_bytes)

    def _end_changed(
        self,
        file: DataFile,
        opened: OpenedFile,
        writer: PartWriter,
        target: FileWriter | None,
        first: tuple[bytes, tuple[Run, ...]],
        kept_bytes: int,
    ) -> int:
        size_bytes, status = opened.size_bytes, FileStatus(opened.mode, opened.mtime)
        kept_bytes = min(kept_bytes, size_bytes)
        content, runs = first
        if target is None and len(content) > SMALL_BYTES_MAX:
            target = writer.open_file(file.path)
            target.add_runs(content, runs)
        if target is None:
            writer.add_changed(file.path, content, runs, size_bytes, status, parent_bytes=kept_bytes)
        else:
            target.close(size_bytes, status, parent_bytes=kept_bytes)
            self._note_relation(file, size_bytes, target)
        self._tally.copied(size_bytes)
        return size_bytes

    def _check_going(self) -> None:
        if self._stop.is_set():
            raise BackupFailed("the base backup is being stopped")

    def _copy_small(self, file: DataFile, opened: OpenedFile, writer: PartWriter) -> int:
        content = b"".join(bytes(piece.content) for piece in opened.pieces())
        writer.add_small(file.path, content, FileStatus(opened.mode, opened.mtime))
        self._tally.copied(len(content))
        return len(content)

    def _copy_large(self, file: DataFile, opened: OpenedFile, writer: PartWriter) -> int:
        target = writer.open_file(file.path)
        for piece in opened.pieces():
            self._check_going()
            for start in range(0, len(piece.content), FRAME_CONTENT_BYTES):
                content = bytes(piece.content[start : start + FRAME_CONTENT_BYTES])
                # A run of zeros is left out: the index says nothing of it, and it is restored as a hole.
                if content[0] or content != _ZEROS[: len(content)]:
                    target.add(piece.offset + start, content)
            self._tally.copied(len(piece.content))
        target.close(opened.size_bytes, FileStatus(opened.mode, opened.mtime))
        self._note_relation(file, opened.size_bytes, target)
        return opened.size_bytes

    def _note_relation(self, file: DataFile, size_bytes: int, writer: FileWriter) -> None:
        if file.relation is not None and file.relation.fork == "main":
            self._tally.relation(file.path, size_bytes, writer)


def runs_of(blocks: Blocks) -> tuple[Run, ...]:
    """Return ascending blocks as runs of bytes."""
    cuts = np.flatnonzero(np.diff(blocks.astype(np.int64)) != 1) + 1
    return tuple(
        Run(int(run[0]) * PAGE_BYTES, len(run) * PAGE_BYTES) for run in np.split(blocks, cuts) if len(run)
    )


def copy_directory(
    entries: Iterator[DataEntry],
    crew: CopyCrew,
    owner: PartWriter,
    tally: Tally,
    watch: Callable[[], None],
) -> None:
    """Deal all files among ``entries`` to the crew, put the rest into the owner's part; wait for the crew.

    ``watch`` is called often, and ends the copying by raising.
    """

    def other(entry: DataEntry) -> None:
        match entry:
            case DataDirectory():
                owner.add_directory(entry.path, entry.mode)
            case TablespaceLink():
                owner.add_link(entry.path, entry.oid)
            case LeftOut():
                tally.note(f"{os.fsdecode(entry.path)}: {entry.reason}")

    def counted() -> Iterator[DataEntry]:
        for entry in entries:
            if isinstance(entry, DataFile):
                tally.listed(entry.size_bytes)
                if is_alien(entry.path):
                    tally.alien(entry.path)
            yield entry
        tally.all_listed()

    for file in largest_first(counted(), other):
        crew.deal(file, watch)
    crew.finish(watch)
