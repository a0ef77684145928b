"""Copies a data directory into sealed parts: several threads, each with its own files, pack and index.

Part 0 is the owner's: directories, links and, last of all, the control file.  Parts 1 to N are the
workers'; files are dealt to them largest first.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pitr.backup_file_copy import FileCopier
from pitr.backup_pace import Pace, PaceLimits
from pitr.backup_tally import Tally
from pitr.pipeline.pack_writer import PartWriter
from pitr.pipeline.seal import FRAME_CONTENT_BYTES
from pitr.postgres.basebackup import FileReader
from pitr.postgres.datadir import (
    DataDirectory,
    DataEntry,
    DataFile,
    LeftOut,
    TablespaceLink,
    is_alien,
    largest_first,
)
from pitr.postgres.page import PAGE_BYTES
from pitr.priority import Priority, lower_priority

_QUEUE_FILES: Final = 256
_FRAME_PAGES: Final = FRAME_CONTENT_BYTES // PAGE_BYTES
_POLL_S: Final = 0.2
_ZEROS: Final = bytes(FRAME_CONTENT_BYTES)


class CopyCrew:
    """The workers.  The first failure sets ``stop`` and is kept in ``failure``.

    ``pace`` says how many of them work at once; None: all.
    """

    def __init__(
        self,
        readers: Sequence[FileReader],
        writers: Sequence[PartWriter],
        copier: FileCopier,
        tally: Tally,
        stop: threading.Event,
        *,
        pace: Pace | None = None,
        priority: Priority = Priority(),  # noqa: B008 - a frozen value
    ) -> None:
        self._copier = copier
        self._tally = tally
        self._stop = stop
        self._pace = pace or Pace(PaceLimits(None, len(readers)))
        self._priority = priority
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
                    self._copier.copy(file, reader, writer)
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
