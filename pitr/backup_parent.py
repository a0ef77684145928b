"""What the host keeps of its last backups to build incremental ones on them: which relation files each holds.

The host cannot open what it has stored, so it notes the paths while it copies: 16 bytes of digest for each,
below its state directory.  Losing the note costs a full backup and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from pitr.catalogue.backup_record import BackupManifest, check_backup_id
from pitr.errors import MalformedValue

# Two paths of one digest would make a new file pass for an old one; of 2**20 paths, 1 in 2**88.
_DIGEST_BYTES: Final = 16
_SUM_BYTES: Final = 32
_NOTE_BYTES_MAX: Final = 1 << 30
# Only the newest can be built on, and one is kept in case it is thought better of.
NOTES_KEPT: Final = 2
_SUFFIX: Final = ".files"
_SERVER_SUFFIX: Final = ".server-manifest"


@dataclass(frozen=True, slots=True)
class ParentNote:
    """The note of one backup.  ``databases`` gives each database's row version (xmin) by its OID then."""

    backup: str
    databases: Mapping[int, str]
    # Ascending, end to end: objects of their own would take four times as much for a million files.
    _digests: bytes

    def holds(self, path: bytes) -> bool:
        """Tell whether the backup holds the relation file."""
        digest = _digest(path)
        places = range(len(self._digests) // _DIGEST_BYTES)
        at = bisect_left(places, digest, key=self._at)
        return at < len(places) and self._at(at) == digest

    def _at(self, place: int) -> bytes:
        return self._digests[place * _DIGEST_BYTES : (place + 1) * _DIGEST_BYTES]


@dataclass(frozen=True, slots=True)
class ParentBackup:
    """A backup to build on: its signed manifest, and what the host noted of it."""

    manifest: BackupManifest
    note: ParentNote


class NoteWriter:
    """Gathers the paths of a backup while it is taken.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests = bytearray()

    def add(self, path: bytes) -> None:
        digest = _digest(path)
        with self._lock:
            self._digests += digest

    def write(self, folder: Path, backup: str, databases: Mapping[int, str]) -> None:
        """Keep the note of a complete backup, and drop those of older ones.  Raises OSError."""
        with self._lock:
            digests = sorted(_split(bytes(self._digests)))
        versions = {str(oid): version for oid, version in databases.items()}
        head = {"backup": check_backup_id(backup), "databases": versions}
        content = json.dumps(head, sort_keys=True).encode("ascii") + b"\n" + b"".join(digests)
        _keep(folder, backup, _SUFFIX, content + hashlib.sha256(content).digest())


def read_note(folder: Path, backup: str) -> ParentNote | None:
    """Return the note of a backup; None if there is none.  Raises MalformedValue if damaged, OSError."""
    path = folder / f"{check_backup_id(backup)}{_SUFFIX}"
    try:
        with path.open("rb") as file:
            content = file.read(_NOTE_BYTES_MAX)
    except FileNotFoundError:
        return None
    body, digest = content[:-_SUM_BYTES], content[-_SUM_BYTES:]
    if len(content) < _SUM_BYTES or hashlib.sha256(body).digest() != digest:
        raise MalformedValue(f"{path} is damaged")
    line, _, digests = body.partition(b"\n")
    try:
        head = json.loads(line)
        databases = {int(oid): str(xmin) for oid, xmin in head["databases"].items()}
        if head["backup"] != backup or len(digests) % _DIGEST_BYTES:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise MalformedValue(f"{path} is not the note of backup {backup}") from cause
    return ParentNote(backup, databases, digests)


def _digest(path: bytes) -> bytes:
    return hashlib.blake2b(path, digest_size=_DIGEST_BYTES).digest()


def _split(digests: bytes) -> Iterator[bytes]:
    return (digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES))


class ServerManifestFile:
    """What the server is given to build on a backup that it sent, while it comes: 150 bytes for each file.

    No full disk fails a backup: only ``keep`` raises, OSError, also what ``add`` met.
    """

    def __init__(self, folder: Path, backup: str) -> None:
        self._folder = folder
        self._backup = check_backup_id(backup)
        self._file: IO[bytes] | None = None
        self._failure: OSError | None = None

    def add(self, content: bytes) -> None:
        """Write what comes next; nothing after a failure."""
        if self._failure is not None:
            return
        try:
            if self._file is None:
                self._file = _stage(self._folder, self._backup)
            self._file.write(content)
        except OSError as failure:
            self._failure = failure

    def keep(self) -> None:
        """Keep it, and drop those of older backups.  Raises OSError."""
        if self._failure is None and self._file is None:
            self._failure = OSError("the server sent no manifest")
        if self._failure is not None:
            raise self._failure
        file, self._file = self._file, None
        assert file is not None
        _publish(file, self._folder, self._backup, _SERVER_SUFFIX)

    def discard(self) -> None:
        """Drop what was not kept.  May be repeated."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                _staged(self._folder, self._backup).unlink(missing_ok=True)
            self._file = None


def open_server_manifest(folder: Path, backup: str) -> IO[bytes]:
    """Open it; the server itself tells whether it is whole.  Raises OSError."""
    return (folder / f"{check_backup_id(backup)}{_SERVER_SUFFIX}").open("rb")


def _keep(folder: Path, backup: str, suffix: str, content: bytes) -> None:
    """Write a backup's file so that it survives a crash, and drop those of older backups."""
    file = _stage(folder, check_backup_id(backup))
    with file:
        file.write(content)
        _publish(file, folder, backup, suffix)


def _staged(folder: Path, backup: str) -> Path:
    return folder / f"{backup}.new"


def _stage(folder: Path, backup: str) -> IO[bytes]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What a crash left behind.
    for staged in folder.glob("*.new"):
        staged.unlink(missing_ok=True)
    return _staged(folder, backup).open("wb")


def _publish(file: IO[bytes], folder: Path, backup: str, suffix: str) -> None:
    with file:
        file.flush()
        os.fsync(file.fileno())
    path = folder / f"{backup}{suffix}"
    _staged(folder, backup).rename(path)
    # Ids begin with the time, so their order is that of the backups, unless the clock was set back.
    others = sorted(other for other in folder.glob(f"*{suffix}") if other != path)
    for old in others[: len(others) - (NOTES_KEPT - 1)]:
        old.unlink(missing_ok=True)
