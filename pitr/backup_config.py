"""Configuration that lies outside of the data directory, as on Debian: backed up, and never a reason to fail.

What ``config_file``, ``hba_file`` and ``ident_file`` name, where settings come from, and what those include.
Of what cannot be read, or is too large, there is a note.  Reference: docs/format.md §8.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pitr.backup_tally import Tally
from pitr.config_includes import (
    FILE_SETTINGS,
    Syntax,
    includes_of,
    is_included_name,
    parents_of,
    stored_path,
)
from pitr.pipeline.pack_writer import FileStatus, PartWriter
from pitr.postgres.datadir import DataEntry
from pitr.postgres.server import Server, ServerFacts

# A pg_hba.conf of thousands of lines has 100 KiB.  What is larger is no configuration file.
FILE_BYTES_MAX: Final = 256 * 1024
TOTAL_BYTES_MAX: Final = 4 * 1024 * 1024
FILES_MAX: Final = 500
_READ_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY_MODE: Final = 0o700


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file that lies elsewhere; ``path`` is what it is called in the backup."""

    path: bytes
    content: bytes
    status: FileStatus


def read_config(
    settings: Mapping[str, str], sources: Collection[str], data_dir: bytes, note: Callable[[str], None]
) -> list[ConfigFile]:
    """Return the configuration files outside of ``data_dir``, by path; what is left out is noted.

    ``settings`` are the server's, ``sources`` the files where it found settings.
    """
    return _Reader(data_dir, note).read(settings, sources)


def config_of(
    server: Server, facts: ServerFacts, data_dir: bytes, note: Callable[[str], None]
) -> list[ConfigFile]:
    """Return what ``read_config`` does for a server."""
    return read_config(dict(facts.settings), server.setting_sources(), data_dir, note)


def add_config(files: Collection[ConfigFile], owner: PartWriter, tally: Tally) -> None:
    """Put the files into the owner's part, each after the directories above it."""
    made: set[bytes] = set()
    for file in files:
        for folder in parents_of(file.path):
            if folder not in made:
                made.add(folder)
                owner.add_directory(folder, _DIRECTORY_MODE)
        owner.add_small(file.path, file.content, file.status)
        tally.listed(len(file.content))
        tally.copied(len(file.content))
        tally.file_copied(len(file.content), [])


def without_config(entries: Iterator[DataEntry], files: Collection[ConfigFile]) -> Iterator[DataEntry]:
    """Leave out what an earlier restore put into the data directory under the names of ``files``."""
    names = {file.path for file in files}
    taken = names | {folder for file in files for folder in parents_of(file.path)}
    for entry in entries:
        # A directory that goes takes with it what is in it.
        if entry.path not in taken and not any(folder in names for folder in parents_of(entry.path)):
            yield entry


class _Reader:
    """One look at the configuration."""

    def __init__(self, data_dir: bytes, note: Callable[[str], None]) -> None:
        self._inside = os.path.realpath(data_dir) + b"/"
        self._note = note
        self._found: dict[bytes, ConfigFile] = {}
        self._seen: set[tuple[str, Syntax]] = set()
        self._waiting: deque[tuple[str, Syntax]] = deque()
        self._total_bytes = 0

    def read(self, settings: Mapping[str, str], sources: Collection[str]) -> list[ConfigFile]:
        for name in FILE_SETTINGS:
            self._want(settings.get(name, ""), "settings" if name == "config_file" else "access")
        for source in sorted(sources):
            self._want(source, "settings")
        while self._waiting:
            self._visit(*self._waiting.popleft())
        return [self._found[path] for path in sorted(self._found)]

    def _want(self, path: str, syntax: Syntax) -> None:
        if path.startswith("/") and (path, syntax) not in self._seen and len(self._seen) < 2 * FILES_MAX:
            self._seen.add((path, syntax))
            self._waiting.append((path, syntax))

    def _visit(self, path: str, syntax: Syntax) -> None:
        stored = stored_path(path)
        if stored is None:
            return
        try:
            content, status = self._content(path)
        except FileNotFoundError:
            # As with include_if_exists; what the server needs and has not, it says itself.
            return
        except OSError as cause:
            self._note(f"{path}: configuration that is not in the backup: {cause.strerror or cause}")
            return
        # What is inside is copied with the rest, and may include what is outside.
        is_outside = not os.path.realpath(os.fsencode(path)).startswith(self._inside)
        if is_outside and not self._keep(path, stored, content, status):
            return
        for included in includes_of(content.decode("utf-8", "surrogateescape"), syntax, path):
            if not included.is_directory:
                self._want(included.path, syntax)
                continue
            for name in self._names(included.path):
                self._want(f"{included.path}/{name}", syntax)

    def _keep(self, path: str, stored: bytes, content: bytes, status: FileStatus) -> bool:
        if stored not in self._found:
            if (
                len(self._found) >= FILES_MAX
                or self._total_bytes + len(content) > TOTAL_BYTES_MAX
                # A directory here, a file there: only one of them has the name.
                or any(folder in self._found for folder in parents_of(stored))
            ):
                self._note(f"{path}: configuration that is not in the backup: there is too much of it")
                return False
            self._total_bytes += len(content)
            self._found[stored] = ConfigFile(stored, content, status)
        return True

    def _content(self, path: str) -> tuple[bytes, FileStatus]:
        descriptor = os.open(path, _READ_FLAGS)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(f"{path} is no file")
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise OSError(f"it has more than {FILE_BYTES_MAX} bytes")
        return content, FileStatus(stat.S_IMODE(status.st_mode), int(status.st_mtime))

    def _names(self, folder: str) -> list[str]:
        try:
            names = sorted(name for name in os.listdir(folder) if is_included_name(name))  # noqa: PTH208 - text paths
        except OSError as cause:
            self._note(f"{folder}: configuration that is not in the backup: {cause.strerror or cause}")
            return []
        return names[:FILES_MAX]
