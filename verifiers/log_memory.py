"""What a verifier remembers of its own log on its own disk: a store that goes back in time is seen by it.

A file of one entry a line, only ever appended to, each line durable before the next step.  It spares
reading the whole log, too.  Lost, it is made again from the store, which is then believed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pitr.errors import MalformedValue, PitrError
from storage.synced_file import sync_directory
from verifiers.log_entry import ENTRY_BYTES_MAX, LogEntry

# As many lines as a log may have entries, of a usual length.
FILE_BYTES_MAX: Final = 1 << 30


class MemoryFailed(PitrError):
    """The verifier's own copy of its log cannot be read or written."""


class LogMemory:
    """The file; one process has it."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path

    def read(self) -> list[LogEntry]:
        """Return the entries, from the first on; a line that a crash cut off is dropped.

        Raises MemoryFailed if the file cannot be read, or holds what was never written.
        """
        try:
            if not self._path.exists():
                return []
            if self._path.stat().st_size > FILE_BYTES_MAX:
                raise MemoryFailed(f"{self._path} has more than {FILE_BYTES_MAX} bytes")
            entries: list[LogEntry] = []
            kept = 0
            with self._path.open("rb") as file:
                while line := file.readline(ENTRY_BYTES_MAX + 1):
                    if not line.endswith(b"\n"):
                        break
                    entries.append(self._parse(line[:-1], len(entries)))
                    kept += len(line)
            if kept < self._path.stat().st_size:
                os.truncate(self._path, kept)
        except OSError as cause:
            raise self._failed("read", cause) from cause
        return entries

    def append(self, entry: LogEntry) -> None:
        """Return once the entry is on disk.  Raises MemoryFailed."""
        try:
            is_new = not self._path.exists()
            with self._path.open("ab") as file:
                file.write(entry.content() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                sync_directory(self._path.parent)
        except OSError as cause:
            raise self._failed("written", cause) from cause

    def _parse(self, line: bytes, sequence: int) -> LogEntry:
        try:
            entry = LogEntry.parse(line)
        except MalformedValue as cause:
            raise MemoryFailed(f"{self._path} is damaged", detail=f"line {sequence + 1}: {cause}") from cause
        if entry.sequence != sequence:
            raise MemoryFailed(
                f"{self._path} is damaged", detail=f"line {sequence + 1} holds entry {entry.sequence}"
            )
        return entry

    def _failed(self, verb: str, cause: OSError) -> MemoryFailed:
        return MemoryFailed(
            f"the verifier's copy of its log {self._path} cannot be {verb}",
            detail=cause.strerror or str(cause),
            hint="check the path, its owner and the disk",
        )
