"""Paths of a backup on the restoring host: directories and files made, extents written.

The index's reader has checked that a path stays below the data directory; here no link is ever followed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pitr.errors import MalformedValue, RestoreRefused
from pitr.pipeline.packs import IndexFile, IndexLink

_TABLESPACE: Final = re.compile(rb"pg_tblspc/([1-9][0-9]*)(?:/(.*))?", re.DOTALL)
_FILE_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
# One write of a MiB makes page cache folios of a MiB, and the server then writes pages of 8 KiB into those:
# Linux 6.18's ext4 walks all blocks of a folio for each (17 us instead of 3, half of a replay's CPU).
_WRITE_BYTES: Final = 64 * 1024


class BackupPaths:
    """Where paths of the backup lie on this host.  Thread-safe."""

    def __init__(self, root: Path, tablespaces: Mapping[int, Path]) -> None:
        self._root = os.fsencode(root)
        self._tablespaces = {oid: os.fsencode(place) for oid, place in tablespaces.items()}

    def resolve(self, path: bytes) -> bytes:
        """Return where ``path``, which the index's reader has checked, lies.

        The tablespaces' links do not exist yet, so a path never leads through a link.
        """
        match = _TABLESPACE.fullmatch(path)
        place = self._tablespaces.get(int(match[1])) if match is not None else None
        if match is not None and place is not None:
            return place if match[2] is None else place + b"/" + match[2]
        return self._root + b"/" + path

    def make_directory(self, path: bytes, mode: int) -> None:
        with file_named(path):
            Path(os.fsdecode(self.resolve(path))).mkdir(
                0o750 if mode & stat.S_IRGRP else 0o700, parents=True, exist_ok=True
            )

    def make_file(self, file: IndexFile) -> None:
        """Create the file at its size; what no extent gives is zero."""
        with file_named(file.path):
            descriptor = os.open(self.resolve(file.path), _FILE_FLAGS, 0o600)
            try:
                os.ftruncate(descriptor, file.size_bytes)
                os.fchmod(descriptor, 0o640 if file.mode & stat.S_IRGRP else 0o600)
            finally:
                os.close(descriptor)

    def check_link(self, link: IndexLink) -> None:
        if link.oid not in self._tablespaces or link.path != f"pg_tblspc/{link.oid}".encode("ascii"):
            raise MalformedValue(f"the index has a tablespace {link.oid} that the manifest has not")


class OpenFile:
    """The file that was written to last, kept open: the extents of a large file follow each other."""

    def __init__(self, places: BackupPaths) -> None:
        self._places = places
        self._path: bytes | None = None
        self._descriptor = -1

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            os.close(self._descriptor)
            self._path = None

    def write(self, path: bytes, content: memoryview, offset: int) -> None:
        with file_named(path):
            if path != self._path:
                self.__exit__()
                # A part of a large file may be here before the line that ends and creates it.
                self._descriptor = os.open(self._places.resolve(path), _FILE_FLAGS, 0o600)
                self._path = path
            while content:
                written = os.pwrite(self._descriptor, content[:_WRITE_BYTES], offset)
                content = content[written:]
                offset += written


class file_named:
    """Say which file an operating system's error is about, and what to do."""

    def __init__(self, path: bytes) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise MalformedValue(
                f"the index has {os.fsdecode(self._path)} and not the directory it is in"
            ) from error
        if isinstance(error, OSError):
            raise RestoreRefused(
                f"could not write {os.fsdecode(self._path)}",
                detail=str(error),
                hint="free some room or mend the disk, and run the restore again",
            ) from error
