"""What of an old data directory is right already, pack by pack: it is kept, and only the rest is fetched.

By content alone; times, sizes and names decide nothing.  An old directory may be rotten, or the work of
whoever encrypted it, and a CRC-32C can be made to fit by anybody; every pg_control has the same one, for it
ends with its own.  Here it only tells what is worth trying.
What is kept is proved: its frames are compressed and sealed again as the backup did it, the others are
fetched, and all together must have the SHA-256 that the signed manifest gives for the pack.  One that has not
is fetched.

The old directory is only read.  Reference: docs/format.md §3, §8.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.catalogue.backup_record import StoredObject
from pitr.pipeline.compress import compress_frame
from pitr.pipeline.crc import crc32c
from pitr.pipeline.frames import LENGTH, TAG_BYTES
from pitr.pipeline.packs import IndexPack
from pitr.pipeline.seal import HEADER_BYTES, Opener
from pitr.restore_layer import Layer, fetch_bytes
from pitr.restore_paths import BackupPaths
from pitr.restore_uses import HeldExtent

# Nobody knows what lies in an old directory: a pipe or a device must not keep us waiting.
_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotKept(Exception):
    """Nothing of the pack is kept: it differs, or fetching what is wanted of it costs less."""


@dataclass(frozen=True, slots=True)
class OldDirectory:
    """A data directory that is being replaced; ``tablespaces`` by oid, where its own links lead."""

    root: Path
    tablespaces: Mapping[int, Path]


@dataclass(frozen=True, slots=True)
class PackTask:
    """A pack of a chain: its line of the index, all that it holds, and which of its frames are wanted."""

    part: int
    pack: IndexPack
    stored: StoredObject
    held: tuple[HeldExtent, ...]
    wanted: frozenset[int]


@dataclass(frozen=True, slots=True)
class PackLook:
    """What a look at the old directory says of a pack: which frames seem right, and what must be fetched."""

    right: frozenset[int]
    fetched_bytes: int


class PackKeeper:
    """Takes the frames of packs from an old directory where it has them.  Thread-safe."""

    def __init__(self, old: OldDirectory) -> None:
        self._places = BackupPaths(old.root, old.tablespaces)

    def look(self, task: PackTask) -> PackLook:
        """Compare the old directory with the index alone: what ``frames`` will most likely do."""
        limit = fetch_bytes(task.pack, task.stored, task.wanted)
        right, missing_bytes = set(), HEADER_BYTES
        with _OldReader(self._places) as old:
            for number, extents in enumerate(_by_frame(task)):
                if old.frame(extents) is not None:
                    right.add(number)
                    continue
                missing_bytes += task.pack.frames[number].sealed_bytes
                if missing_bytes >= limit:
                    return PackLook(frozenset(), limit)
        return PackLook(frozenset(right), missing_bytes)

    def frames(self, layer: Layer, task: PackTask) -> Iterator[tuple[int, bytes, bool]]:
        """Yield number and content of the wanted frames, and whether it was kept, in no order.

        They are proved only when the iteration has ended without an error.  Raises NotKept, and what
        fetching raises.
        """
        limit = fetch_bytes(task.pack, task.stored, task.wanted)
        again: _SealedAgain | None = None
        missing: list[int] = []
        missing_bytes = HEADER_BYTES
        with _OldReader(self._places) as old:
            for number, extents in enumerate(_by_frame(task)):
                content = old.frame(extents)
                if content is not None:
                    again = again or _SealedAgain(layer, task)
                    if again.add(number, content):
                        if number in task.wanted:
                            yield number, content, True
                        continue
                missing.append(number)
                missing_bytes += task.pack.frames[number].sealed_bytes
                if missing_bytes >= limit:
                    raise NotKept
        if again is None:
            raise NotKept
        for number, content in again.fetch(missing):
            if number in task.wanted:
                yield number, content, False
        if not again.is_proved():
            raise NotKept


class _SealedAgain:
    """One pack, sealed again frame by frame."""

    def __init__(self, layer: Layer, task: PackTask) -> None:
        self._layer = layer
        self._task = task
        self._header, self._opener = self._open()
        self._last = len(task.pack.frames) - 1
        self._sealed: dict[int, bytes] = {}

    def _open(self) -> tuple[bytes, Opener]:
        return self._layer.open_pack(self._task.part, self._task.pack, self._task.stored)

    def add(self, number: int, content: bytes) -> bool:
        """Seal a frame; False if it does not become what was stored, as with another version of zstd."""
        compressed = compress_frame(content)
        if len(compressed) + TAG_BYTES != self._task.pack.frames[number].sealed_bytes:
            return False
        self._sealed[number] = self._opener.seal_again(compressed, number, last=number == self._last)
        return True

    def fetch(self, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Yield the contents of frames that the old directory has not."""
        task = self._task
        for number, sealed, content in self._layer.sealed_frames(
            task.stored, task.pack, self._opener, numbers
        ):
            self._sealed[number] = sealed
            yield number, content

    def is_proved(self) -> bool:
        """Tell whether all frames together are the pack that the signed manifest names."""
        digest = hashlib.sha256(self._header)
        for number in range(self._last + 1):
            sealed = self._sealed[number]
            digest.update(LENGTH.pack(len(sealed)))
            digest.update(sealed)
        return digest.digest() == self._task.stored.sha256


class _OldReader:
    """Reads frames of one pack; the file that was read last stays open."""

    def __init__(self, places: BackupPaths) -> None:
        self._places = places
        self._path: bytes | None = None
        self._descriptor: int | None = None

    def __enter__(self) -> _OldReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._path = self._descriptor = None

    def frame(self, extents: Sequence[HeldExtent]) -> bytes | None:
        """Return the frame that these extents fill, if each has the CRC of the index; else None."""
        parts, at = [], 0
        for held in extents:
            extent = held.extent
            if extent.frame_offset != at:
                return None
            content = self._read(held.path, extent.offset, extent.size_bytes)
            if content is None or crc32c(content) != extent.crc32c:
                return None
            parts.append(content)
            at += extent.size_bytes
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, path: bytes, offset: int, size_bytes: int) -> bytes | None:
        """Return exactly these bytes; None for whatever reason they are not to be had."""
        try:
            if path != self._path:
                self.__exit__()
                self._path = path
                self._descriptor = open_regular(self._places.resolve(path))
            if self._descriptor is None:
                return None
            content = os.pread(self._descriptor, size_bytes, offset)
            while len(content) < size_bytes:
                more = os.pread(self._descriptor, size_bytes - len(content), offset + len(content))
                if not more:
                    return None
                content += more
        except OSError:  # a bad disk, a link, a folder: it will be fetched
            return None
        return content


def open_regular(place: bytes) -> int | None:
    """Open a file of an old directory for reading; None if it is something else.  Raises OSError."""
    descriptor = os.open(place, _READ_FLAGS)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def _by_frame(task: PackTask) -> list[list[HeldExtent]]:
    """Return, for each frame of the pack, the extents that fill it, in order."""
    frames: list[list[HeldExtent]] = [[] for _ in task.pack.frames]
    for held in task.held:
        frames[held.extent.frame].append(held)
    for extents in frames:
        extents.sort(key=lambda held: held.extent.frame_offset)
    return frames
