"""Writing a new file, and its name, so that they are on disk: past the page cache where that is allowed.

What is stored here is read again in a restore at the earliest.  Kept in the page cache it would push out
the database's own pages; and to copy megabytes there costs more CPU than to hand them to the disk.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

# Of a smaller file the page cache holds little, and one write to it is quicker than one to the disk.
DIRECT_BYTES_MIN = 128 * 1024
# Stays in the processor's cache between the copy into it and the write.  One per thread that writes.
_BUFFER_BYTES = 512 * 1024
# What every disk and file system takes as the unit of offset, length and address.
_ALIGNMENT_BYTES = 4096


class _Buffers(threading.local):
    """One thread's buffer; a mapping begins with a page, as direct writes must."""

    def __init__(self) -> None:
        self.view = memoryview(mmap.mmap(-1, _BUFFER_BYTES))


_buffers = _Buffers()

Write = Callable[[int, memoryview, int], int]


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on disk.  Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_synced(path: Path, *, mode: int = 0o777) -> None:
    """Make a directory and those above it; return when their names are on disk.  Raises OSError.

    Its own name is synced also where it is there: whoever made it may have been killed before.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for each in {path, *missing}:
        sync_directory(each.parent)


def write_synced(descriptor: int, *parts: bytes, pwrite: Write = os.pwrite) -> None:
    """Write ``parts``, one after the other, to a new and empty file; return when they are on disk.

    The file's name is not: that is in its directory.  Raises OSError.
    """
    size_bytes = sum(len(part) for part in parts)
    is_written = size_bytes >= DIRECT_BYTES_MIN and _write_direct(descriptor, parts, size_bytes, pwrite)
    if not is_written:
        offset = 0
        for part in parts:
            offset = _write_all(descriptor, memoryview(part), offset, pwrite)
    os.fsync(descriptor)


def replace_synced(path: Path, *parts: bytes) -> None:
    """Return when ``parts`` are the whole of a file of its owner's, on disk with its name.

    A crash leaves it as it was or as it is to be, and perhaps a file ``.new`` beside it.  May be repeated.
    Raises OSError.
    """
    staged = path.with_name(f"{path.name}.new")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_synced(descriptor, *parts)
    finally:
        os.close(descriptor)
    staged.replace(path)
    sync_directory(path.parent)


def _write_direct(descriptor: int, parts: tuple[bytes, ...], size_bytes: int, pwrite: Write) -> bool:
    """Write past the page cache; False, with the file empty again, where that is not to be had."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        _write_aligned(descriptor, parts, pwrite)
        os.ftruncate(descriptor, size_bytes)
    except OSError as error:
        # Some file systems refuse the flag, others take it and then refuse the write.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        os.ftruncate(descriptor, 0)
        return False
    return True


def _write_aligned(descriptor: int, parts: tuple[bytes, ...], pwrite: Write) -> None:
    """Write ``parts`` through the buffer, and zeros up to the next whole unit."""
    buffer = _buffers.view
    filled = offset = 0
    for part in parts:
        view = memoryview(part)
        while view:
            taken = min(len(view), _BUFFER_BYTES - filled)
            buffer[filled : filled + taken] = view[:taken]
            filled, view = filled + taken, view[taken:]
            if filled == _BUFFER_BYTES:
                offset, filled = _write_all(descriptor, buffer, offset, pwrite), 0
    padding = -filled % _ALIGNMENT_BYTES
    buffer[filled : filled + padding] = bytes(padding)
    _write_all(descriptor, buffer[: filled + padding], offset, pwrite)


def _write_all(descriptor: int, view: memoryview, offset: int, pwrite: Write) -> int:
    """Write all of ``view`` at ``offset``; return where it ends."""
    while view:
        written = pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
    return offset
