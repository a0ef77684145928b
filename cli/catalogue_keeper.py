"""Keeps the catalogue beside a running archiver: a cache, whose trouble stops nothing.

What is durable is recorded as it comes.  If the last daemon did not end cleanly, or the file is bad or
gone, it is made anew from the regions in the background, while what comes meanwhile is kept and added.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from pitr.catalogue.sqlite import Catalogue
from pitr.catalogue_rebuild import rebuild
from pitr.errors import PitrError
from pitr.repository import Repository

RETRY_S = 60.0
# What comes during a rebuild is kept in memory; some hours of a busy server.
WAITING_MAX = 100_000
_CLEAN = "catalogue.clean"

Record: TypeAlias = Callable[[Catalogue], None]


class CatalogueKeeper:
    """Owns the daemon's catalogue file.  ``record`` may be called from any thread, and never raises."""

    def __init__(
        self,
        path: Path,
        repository: Repository,
        say: Callable[[str], None],
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self._path = path
        self._clean_mark = path.with_name(_CLEAN)
        self._repository = repository
        self._say = say
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._catalogue: Catalogue | None = None
        self._waiting: list[Record] = []
        self._is_rebuilding = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the file, or begin to make it anew."""
        was_clean = self._clean_mark.exists()
        self._clean_mark.unlink(missing_ok=True)
        if was_clean:
            try:
                self._catalogue = Catalogue(self._path, create=False)
                return
            except PitrError as error:
                self._say(f"catalogue: {error.message}; it is rebuilt")
        self._begin_rebuild()

    def stop(self) -> None:
        """Close the file; it is marked as complete if nothing was left out."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(RETRY_S)
        with self._lock:
            catalogue, self._catalogue = self._catalogue, None
            is_complete = catalogue is not None and not self._is_rebuilding
        if catalogue is not None:
            catalogue.close()
        if is_complete:
            self._clean_mark.touch()

    @property
    def is_complete(self) -> bool:
        """Tell whether the catalogue holds everything; else it is being made anew."""
        with self._lock:
            return self._catalogue is not None and not self._is_rebuilding

    def record(self, record: Record) -> None:
        """Record something that is at quorum."""
        with self._lock:
            if self._is_rebuilding:
                # Beyond the limit the rebuild begins again, and then lists what was let go here.
                if len(self._waiting) < WAITING_MAX:
                    self._waiting.append(record)
                return
            catalogue = self._catalogue
            if catalogue is None:
                return
            try:
                record(catalogue)
                return
            except (PitrError, OSError) as error:
                message = str(error)
                self._catalogue = None
        self._say(f"catalogue: {message}; archiving goes on, and it is rebuilt")
        catalogue.close()
        self._begin_rebuild()

    def read(self, read: Callable[[Catalogue], None]) -> bool:
        """Look into the catalogue; False if there is none now."""
        with self._lock:
            if self._catalogue is None or self._is_rebuilding:
                return False
            read(self._catalogue)
            return True

    def _begin_rebuild(self) -> None:
        with self._lock:
            self._is_rebuilding = True
            self._waiting.clear()
        self._thread = threading.Thread(target=self._rebuild_until_done, name="catalogue", daemon=True)
        self._thread.start()

    def _rebuild_until_done(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._rebuild():
                    return
            except Exception as error:  # noqa: BLE001 — the top of a thread: it is told and tried again
                self._say(f"catalogue: it cannot be rebuilt now: {error}")
                self._stopping.wait(self._retry_s)

    def _rebuild(self) -> bool:
        staged = self._path.with_name(f"{self._path.name}.new")
        remove_catalogue(staged)
        fresh = Catalogue(staged)
        try:
            result = rebuild(self._repository, fresh)
        except BaseException:
            fresh.close()
            raise
        with self._lock:
            if len(self._waiting) >= WAITING_MAX:
                self._waiting.clear()
                fresh.close()
                return False
            for record in self._waiting:
                record(fresh)
            self._waiting.clear()
            fresh.close()
            remove_catalogue(self._path)
            staged.replace(self._path)
            self._catalogue = Catalogue(self._path)
            self._is_rebuilding = False
        for refused in result.refused:
            self._say(f"catalogue: {refused.key} cannot be used: {refused.reason}")
        self._say(f"catalogue: made from the regions, {result.wal_objects} WAL objects")
        return True


def remove_catalogue(path: Path) -> None:
    """Remove an SQLite file and what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
