"""DirectoryStore: objects as files below one directory: a disk, a NAS, a mounted share.

    ROOT/pitr-region    marker, made by ``create`` only
    ROOT/staging/       bodies on their way in; never read
    ROOT/objects/KEY    one file per object

A file system is not an object store: no key may be another's parent (``a`` and
``a/b``), and a part of a key has at most 255 characters.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.checks import check_body, check_digest, check_key, check_prefix, check_range
from storage.listing import sorted_names
from storage.store import (
    OBJECT_BYTES_MAX,
    CopyCheck,
    CopyDamaged,
    ObjectConflict,
    ObjectInfo,
    ObjectMissing,
    StoreRefused,
    StoreUnavailable,
)
from storage.synced_file import sync_directory, write_synced

MARKER = "pitr-region"
_MARKER_TEXT = b"This directory is a region of a pitr repository.  Do not change anything in it.\n"
# What a person must put right.  Everything else may pass by itself: a mount that
# comes back, a cable, a server behind a share.
_REFUSALS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.EFBIG,
    }
)
# A sweep undoes at most one try, but each delete that tidies up may take a directory that was just made
# (see _store), and nothing says that a process that is made to wait meets only one of them.
_TRIES_MAX = 100
_KNOWN_DIRECTORIES_MAX = 4096


class DirectoryStore:
    """An ``ObjectStore`` in the directory ``root``, which ``create`` has made.

    The constructor touches nothing.  A root without its marker is StoreUnavailable:
    an empty mount point is a region that is down, not a region without objects.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._objects = root / "objects"
        self._staging = root / "staging"
        self._lock = threading.Lock()
        self._swept = False
        # Directories whose own entries are known to be on disk.
        self._durable: set[Path] = set()

    @classmethod
    def create(cls, root: Path) -> DirectoryStore:
        """Make ``root`` a region, durably; may be repeated.  Raises StoreRefused if it holds other things."""
        store = cls(root)
        with _mapped(f"region directory {root}"):
            made = _missing_parents(root)
            root.mkdir(parents=True, exist_ok=True)
            if not (root / MARKER).exists():
                _check_creatable(root)
                store._objects.mkdir(exist_ok=True)
                store._staging.mkdir(exist_ok=True)
                # The marker comes last: it says that all of the above is there.
                with (root / MARKER).open("wb") as marker:
                    marker.write(_MARKER_TEXT)
                    marker.flush()
                    os.fsync(marker.fileno())
            for directory in (root, *made):
                sync_directory(directory)
        return store

    @staticmethod
    def is_region(root: Path) -> bool:
        """Tell whether ``root`` is a region already, or else could be made one; change nothing.

        Raises StoreRefused where ``create`` would.
        """
        with _mapped(f"region directory {root}"):
            if (root / MARKER).exists():
                return True
            existing = next(path for path in (root, *root.parents) if path.exists())
            if existing == root:
                _check_creatable(root)
            if not existing.is_dir():
                raise StoreRefused(f"{existing} is not a directory")
            if not os.access(existing, os.W_OK | os.X_OK):
                raise StoreRefused(f"no permission to write in {existing}")
        return False

    def put(
        self,
        key: str,
        body: bytes,
        *,
        sha256: bytes | None = None,
        after_all: bool = False,  # noqa: ARG002
    ) -> None:
        """See ``ObjectStore.put``.  One copy, so ``after_all`` holds by itself."""
        check_key(key)
        check_body(key, body, sha256)
        check_digest(key, body, sha256)
        with _mapped(f"object {key} in {self._root}"):
            self._check_marker()
            self._sweep()
            for _ in range(_TRIES_MAX):
                if self._store(key, body):
                    return
        raise StoreUnavailable(f"object {key} in {self._root}: its directory was removed {_TRIES_MAX} times")

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        """See ``ObjectStore.get``."""
        return self._read(key, 0, None, check)

    def get_range(self, key: str, start: int, length: int, *, check: CopyCheck | None = None) -> bytes:
        """See ``ObjectStore.get_range``."""
        check_range(key, start, length)
        return self._read(key, start, length, check)

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """See ``ObjectStore.list_objects``.  Memory is bounded whatever the number of objects."""
        check_prefix(prefix)
        return self._listing(prefix, start_after or "")

    def delete(self, key: str) -> None:
        """See ``ObjectStore.delete``.  Directories that become empty go too: WAL makes one per segment."""
        check_key(key)
        path = self._objects / key
        with _mapped(f"object {key} in {self._root}"):
            self._check_marker()
            # A name that is, or is below, something else than a directory and a file is no object either.
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()
                sync_directory(path.parent)
            for parent in path.parents:
                if parent == self._objects:
                    break
                with self._lock:
                    self._durable.discard(parent)
                try:
                    parent.rmdir()
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    break

    def _store(self, key: str, body: bytes) -> bool:
        """Write, link and sync once; False if a race with a delete took the directory or the staged file."""
        target = self._objects / key
        try:
            self._make_parents(target)
            with self._staged(body) as staged:
                os.link(staged, target)
        except FileExistsError:
            if target.is_dir():
                raise StoreRefused(
                    f"object {key} in {self._root}: other objects are below that name"
                ) from None
            try:
                same = self._read_file(target, 0, None, bytes_max=len(body)) == body
            except FileNotFoundError:
                return False
            except CopyDamaged:
                same = False
            if not same:
                raise ObjectConflict(f"object {key} in {self._root} already holds other bytes") from None
        except FileNotFoundError:
            self._forget_parents(target)
            self._check_marker()
            return False
        # Also when the bytes were there already: whoever linked them may not have synced yet.
        try:
            sync_directory(target.parent)
            self._make_parents(target)
        except FileNotFoundError:
            return False
        return True

    @contextmanager
    def _staged(self, body: bytes) -> Iterator[Path]:
        """Yield a synced file with ``body`` that no sweep takes for a leftover."""
        descriptor, name = tempfile.mkstemp(dir=self._staging, prefix="body-")
        try:
            # A sweep that got here first unlinks the file: os.link then fails, and put tries again.
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.fchmod(descriptor, 0o640)
            write_synced(descriptor, body)
            yield Path(name)
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                Path(name).unlink()

    def _sweep(self) -> None:
        """Once per process, remove what a killed one left in staging; a live one holds a lock on its file."""
        with self._lock:
            if self._swept:
                return
            self._swept = True
        for left in self._staging.iterdir():
            with suppress(FileNotFoundError, BlockingIOError), left.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()

    def _make_parents(self, target: Path) -> None:
        """Make the directories above ``target``; return when each one's entry is on disk."""
        with self._lock:
            # Those above it were noted before it, and none of them can go while it is there.
            if target.parent in self._durable:
                return
        for parent in reversed(target.parents[: len(target.relative_to(self._objects).parts) - 1]):
            with self._lock:
                if parent in self._durable:
                    continue
            with suppress(FileExistsError):
                parent.mkdir()
            # Not only if this call made it: another thread may have, and not yet have synced.
            sync_directory(parent.parent)
            with self._lock:
                if len(self._durable) >= _KNOWN_DIRECTORIES_MAX:
                    self._durable.clear()
                self._durable.add(parent)

    def _forget_parents(self, target: Path) -> None:
        with self._lock:
            self._durable.difference_update(target.parents)

    def _read(self, key: str, start: int, length: int | None, check: CopyCheck | None) -> bytes:
        check_key(key)
        with _mapped(f"object {key} in {self._root}"):
            try:
                part = self._read_file(self._objects / key, start, length)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                self._check_marker()
                raise ObjectMissing(f"no object {key} in {self._root}") from None
        if check is not None:
            check(part)
        return part

    def _read_file(
        self, path: Path, start: int, length: int | None, *, bytes_max: int = OBJECT_BYTES_MAX
    ) -> bytes:
        # O_NONBLOCK: a pipe planted in place of an object must not hold a reader for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
            if not stat.S_ISREG(found.st_mode) or (length is None and found.st_size > bytes_max):
                raise CopyDamaged(f"{path} is not an object: its kind or size is wrong")
            wanted = max(0, found.st_size - start) if length is None else length
            file.seek(start)
            parts = []
            while wanted and (part := file.read(wanted)):
                parts.append(part)
                wanted -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _listing(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        with _mapped(f"listing of {prefix!r} in {self._root}"):
            self._check_marker()
            for key in sorted_names(self._objects, prefix, start_after):
                try:
                    found = (self._objects / key).lstat()
                except FileNotFoundError:
                    continue
                yield ObjectInfo(key, found.st_size)
            # A share that went away in the middle looks like the end of the listing.
            self._check_marker()

    def _check_marker(self) -> None:
        try:
            (self._root / MARKER).lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreUnavailable(
                f"region directory {self._root} is not there: not mounted, destroyed, or never created"
            ) from error


@contextmanager
def _mapped(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{what}: {error.strerror or error}"
        if error.errno in _REFUSALS:
            raise StoreRefused(reason) from error
        raise StoreUnavailable(reason) from error


def _check_creatable(root: Path) -> None:
    """Refuse a directory that holds anything but what a killed ``create`` left."""
    if root.is_dir() and any(entry.name not in ("objects", "staging") for entry in root.iterdir()):
        raise StoreRefused(f"directory {root} is not empty and is not a region")


def _missing_parents(root: Path) -> list[Path]:
    """Return the directories whose entries change when ``root`` is made."""
    changed = []
    for directory in (root, *root.parents):
        if directory.exists():
            break
        changed.append(directory.parent)
    return changed
