"""The spool: sealed objects on local disk until they are at quorum.

Sealing twice never gives equal bytes, so what may have reached a region must be sent again as it
was, also after a crash.  It holds no plaintext and no key.  Not a cache: losing it loses nothing
that was acknowledged.

    DIR/SEQUENCE        "PITRSP1\\n", u32 length of the key, key, SHA-256 of the body,
                        SHA-256 of all that, body
    DIR/SEQUENCE.new    not complete; removed when the spool is opened

SEQUENCE is the order in which objects were added, 16 digits.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pitr.errors import AlreadyRunning, PitrError
from storage.digest import BodyDigest
from storage.synced_file import make_synced, write_synced

_MAGIC = b"PITRSP1\n"
_KEY_LENGTH = struct.Struct(">I")
_KEY_BYTES_MAX = 512
_DIGEST_BYTES = 32
_HEAD_BYTES_MAX = len(_MAGIC) + _KEY_LENGTH.size + _KEY_BYTES_MAX + 2 * _DIGEST_BYTES
_NAME_DIGITS = 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SpoolFull(PitrError):
    """There is no room for the object.  Nothing of it was kept; the call may be repeated."""


class SpoolFailed(PitrError):
    """The spool's disk does not work.  Nothing was kept; the call may be repeated."""


@dataclass(frozen=True, slots=True)
class SpooledObject:
    """One object as it was added, whole and with the digest that it had."""

    key: str
    body: bytes
    sha256: bytes


class Spool(Protocol):
    """Where sealed objects wait.  Thread-safe."""

    def add(self, key: str, body: bytes, sha256: bytes) -> None:
        """Return once the object is on disk.  Raises SpoolFull, SpoolFailed."""

    def remove(self, key: str) -> None:
        """Forget an object that is at quorum; one that is not there is forgotten already."""

    def objects(self) -> Iterator[SpooledObject]:
        """Yield what is there, in the order in which it was added."""

    @property
    def held_bytes(self) -> int:
        """The sum of the objects' sizes."""

    @property
    def damaged(self) -> tuple[str, ...]:
        """The names of files that were left out because they are not what was written."""


class DirectorySpool:
    """A ``Spool`` in a directory of its own, which one process holds at a time."""

    def __init__(self, root: Path, *, bytes_max: int) -> None:
        """Open the spool in ``root``, made if need be; what a crash left incomplete is removed.

        Raises AlreadyRunning if another process has it open, SpoolFailed.
        """
        self._root: Final = root
        self._bytes_max: Final = bytes_max
        self._lock = threading.Lock()
        self._files: dict[str, tuple[Path, int]] = {}
        self._held_bytes = 0
        with _mapped(root):
            # What is spooled may count as flushed: after a power failure it must be found again.
            make_synced(root, mode=0o700)
            self._directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for left in root.glob("*.new"):
                    left.unlink()
                names = sorted(path.name for path in root.iterdir() if path.name.isdigit())
                self._damaged = [name for name in names if not self._index(root / name)]
            except BlockingIOError as cause:
                self.close()
                raise AlreadyRunning(f"another process uses the spool {root}") from cause
            except OSError:
                self.close()  # else whoever tries again would meet this very lock
                raise
        self._next = int(names[-1]) + 1 if names else 1

    @property
    def held_bytes(self) -> int:
        """See ``Spool``."""
        with self._lock:
            return self._held_bytes

    @property
    def damaged(self) -> tuple[str, ...]:
        """See ``Spool``."""
        with self._lock:
            return tuple(self._damaged)

    def add(self, key: str, body: bytes, sha256: bytes) -> None:
        """See ``Spool.add``."""
        with self._lock:
            if self._held_bytes + len(body) > self._bytes_max:
                raise SpoolFull(
                    f"the spool {self._root} is full",
                    detail=f"{self._held_bytes} of {self._bytes_max} bytes are in use.",
                    hint="It empties when the regions can be reached again.",
                )
            path = self._root / f"{self._next:0{_NAME_DIGITS}d}"
            self._next += 1
            # Counted before it is written, so that several at once stay within the limit.
            self._held_bytes += len(body)
        encoded = key.encode("ascii")
        head = b"".join((_MAGIC, _KEY_LENGTH.pack(len(encoded)), encoded, sha256))
        # A body put under a name that has rotted would be worse than one that is lost.
        head += hashlib.sha256(head).digest()
        try:
            with _mapped(self._root):
                self._write(path, head, body)
        except PitrError:
            with self._lock:
                self._held_bytes -= len(body)
            raise
        with self._lock:
            self._files[key] = (path, len(body))

    def _write(self, path: Path, head: bytes, body: bytes) -> None:
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            try:
                write_synced(descriptor, head, body)
            finally:
                os.close(descriptor)
            new.rename(path)
            os.fsync(self._directory)
        except OSError:
            for left in (new, path):  # under its own name too: nobody would count it or remove it
                with suppress(OSError):
                    left.unlink(missing_ok=True)
            raise

    def remove(self, key: str) -> None:
        """See ``Spool.remove``.  Not synced: an object that comes back is only put once more."""
        with self._lock:
            found = self._files.pop(key, None)
            if found is None:
                return
            self._held_bytes -= found[1]
        with _mapped(self._root):
            found[0].unlink(missing_ok=True)

    def objects(self) -> Iterator[SpooledObject]:
        """See ``Spool.objects``.  A file that has rotted is left out, and named in ``damaged``."""
        with self._lock:
            found = sorted(self._files.items(), key=lambda item: item[1][0].name)
        for key, (path, size_bytes) in found:
            with _mapped(self._root):
                held = _read(path)
            if held is not None:
                yield held
                continue
            with self._lock:
                self._damaged.append(path.name)
                if self._files.pop(key, None) is not None:
                    self._held_bytes -= size_bytes

    def close(self) -> None:
        """Let another process have the spool."""
        os.close(self._directory)

    def _index(self, path: Path) -> bool:
        """Note one file; False if its head is not whole."""
        with path.open("rb") as file:
            head = _Head.parse(file.read(_HEAD_BYTES_MAX))
        if head is None:
            return False
        size_bytes = path.stat().st_size - head.size_bytes
        before = self._files.get(head.key)
        if before is not None:
            # What was taken back and came again after a crash: the later one is what was added.
            before[0].unlink()
            self._held_bytes -= before[1]
        self._files[head.key] = (path, size_bytes)
        self._held_bytes += size_bytes
        return True


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before the body."""

    key: str
    sha256: bytes
    size_bytes: int

    @classmethod
    def parse(cls, content: bytes) -> _Head | None:
        """Read the head at a file's start; None if it is not what was written."""
        key_at = len(_MAGIC) + _KEY_LENGTH.size
        if len(content) < key_at or not content.startswith(_MAGIC):
            return None
        (length,) = _KEY_LENGTH.unpack_from(content, len(_MAGIC))
        digest_at = key_at + length
        end = digest_at + 2 * _DIGEST_BYTES
        if not 0 < length <= _KEY_BYTES_MAX or len(content) < end:
            return None
        check_at = end - _DIGEST_BYTES
        if hashlib.sha256(content[:check_at]).digest() != content[check_at:end]:
            return None
        return cls(content[key_at:digest_at].decode("ascii"), content[digest_at:check_at], end)


def _read(path: Path) -> SpooledObject | None:
    """Return what a file holds; None if it is not what was written."""
    content = path.read_bytes()
    head = _Head.parse(content)
    if head is None:
        return None
    body = content[head.size_bytes :]
    digest = BodyDigest.of(body)
    return SpooledObject(head.key, body, digest) if digest == head.sha256 else None


@contextmanager
def _mapped(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        if cause.errno in _FULL:
            raise SpoolFull(
                f"the disk of the spool {root} is full", hint="Make room, or give the spool another disk."
            ) from cause
        raise SpoolFailed(f"the spool {root} cannot be used: {cause.strerror}") from cause
