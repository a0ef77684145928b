"""Writes one part of a base backup: files in, sealed packs and the index that finds them out.

One owner thread per part.  It holds one pack, one shared frame and one object of the index, whatever
the size of the cluster.

Reference: docs/format.md §8.  ``pitr.pipeline.packs`` has the index's lines.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from pitr.pipeline.compress import compress_frame, frame_bytes_max
from pitr.pipeline.crc import FileCrc32c, crc32c
from pitr.pipeline.frames import LENGTH, TAG_BYTES
from pitr.pipeline.keys import DataKey
from pitr.pipeline.packs import (
    PACK_BYTES_MAX,
    PACK_FRAMES_MAX,
    Extent,
    FramePlace,
    IndexDirectory,
    IndexFile,
    IndexFileMore,
    IndexLine,
    IndexLink,
    IndexPack,
    encode_line,
)
from pitr.pipeline.seal import FRAME_CONTENT_BYTES, Context, Sealer
from storage.digest import BodyDigest

PartKind: TypeAlias = Literal["pack", "index"]
# Two being built, and two on their way that a slow region may still have, keep a backup's memory below
# 300 MiB, also while WAL of a backlog is archived beside it; of 32 MiB each they did not.
PACK_BYTES_DEFAULT: Final = 16 * 1024 * 1024
# A frame that came last, and the shared one, may still go on top.
PACK_BYTES_ROOM: Final = 3 * frame_bytes_max(FRAME_CONTENT_BYTES)
_INDEX_BYTES: Final = 8 * 1024 * 1024
# Files this small share frames; a frame of its own would cost each a tag and an object's attention.
SMALL_BYTES_MAX: Final = FRAME_CONTENT_BYTES // 2
# Bounds the line of a file whose pages changed here and there.
RUNS_MAX: Final = 4096
# Bounds a shared frame's lines: empty files cost no bytes of it.
_SHARED_FILES_MAX: Final = 4096
# A reader holds what the index says of a pack, some 250 bytes for each of its files and extents, and as many
# packs at once as it has workers, and two more.  Of 8-KiB files that compress well 65,536 would fit into one.
PACK_ENTRIES_MAX: Final = 32_768


@dataclass(frozen=True, slots=True)
class SealedPart:
    """A finished object: which pack or index of which part it is, and its bytes with their SHA-256."""

    kind: PartKind
    part: int
    number: int
    body: bytes
    sha256: BodyDigest
    frames: int


# Takes a finished object; may block until there is room for it, and raise to stop the writer.
PartSink: TypeAlias = Callable[[SealedPart], None]
# Gives the context of pack or index ``number`` of a part.
PartContext: TypeAlias = Callable[[PartKind, int, int], Context]


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What the index says of a file beside its bytes; ``mtime`` in seconds since 1970."""

    mode: int
    mtime: int


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a file's bytes: ``size_bytes`` of them at ``offset``."""

    offset: int
    size_bytes: int


class PartWriter:
    """Packs and index of one part.  Not thread-safe.  ``finish`` must be called, or nothing is listed."""

    def __init__(
        self,
        part: int,
        data_key: DataKey,
        context: PartContext,
        sink: PartSink,
        *,
        pack_bytes: int = PACK_BYTES_DEFAULT,
    ) -> None:
        if not 0 < pack_bytes <= PACK_BYTES_MAX - PACK_BYTES_ROOM:
            raise ValueError(f"a pack of {pack_bytes} bytes is too large")
        self._packs = _ContainerSeries("pack", part, data_key, context, sink)
        self._index = _IndexWriter(_ContainerSeries("index", part, data_key, context, sink))
        self._pack_bytes = pack_bytes
        self._pack_entries = 0
        self._shared = bytearray()
        self._shared_files: list[_SharedFile] = []
        self._open: FileWriter | None = None

    def add_directory(self, path: bytes, mode: int) -> None:
        """List a directory, even an empty one."""
        self._index.add(IndexDirectory(path, mode))

    def add_link(self, path: bytes, oid: int) -> None:
        """List a tablespace's symbolic link."""
        self._index.add(IndexLink(path, oid))

    def add_small(self, path: bytes, content: bytes, status: FileStatus) -> None:
        """Add a whole file of at most SMALL_BYTES_MAX bytes; it shares a frame with others."""
        runs = (Run(0, len(content)),) if content else ()
        self._share(path, content, runs, len(content), status, None)

    def add_changed(
        self,
        path: bytes,
        content: bytes | memoryview,
        runs: Sequence[Run],
        size_bytes: int,
        status: FileStatus,
        *,
        parent_bytes: int,
    ) -> None:
        """Add what changed of a file, at most SMALL_BYTES_MAX bytes of ``content`` that lie at ``runs``.

        The rest of it below ``parent_bytes`` is as the parent backup has it.
        """
        self._share(path, content, runs, size_bytes, status, parent_bytes)

    def _share(
        self,
        path: bytes,
        content: bytes | memoryview,
        runs: Sequence[Run],
        size_bytes: int,
        status: FileStatus,
        parent_bytes: int | None,
    ) -> None:
        if len(content) > SMALL_BYTES_MAX or len(runs) > RUNS_MAX:
            raise ValueError(f"too much to share a frame: {len(content)} bytes in {len(runs)} runs")
        if len(self._shared) + len(content) > FRAME_CONTENT_BYTES or (
            len(self._shared_files) >= _SHARED_FILES_MAX
        ):
            self._flush_shared()
            if self._is_pack_full:
                self._close_pack()
        extents = _extents_of(content, runs, frame_offset=len(self._shared))
        self._shared_files.append(_SharedFile(path, size_bytes, extents, status, parent_bytes))
        self._shared += content

    def open_file(self, path: bytes) -> FileWriter:
        """Begin a file of any size, whole or only what changed of it.  Only one may be open."""
        if self._open is not None:
            raise ValueError("the last file is still open")
        self._open = FileWriter(self, path)
        return self._open

    def finish(self) -> None:
        """Hand over what is left.  Nothing may be added after it."""
        if self._open is not None:
            raise ValueError("the last file is still open")
        self._flush_shared()
        self._close_pack()
        self._index.finish()

    @property
    def _is_pack_full(self) -> bool:
        return (
            self._packs.size_bytes >= self._pack_bytes
            # One less, for the shared frame is added to whatever pack there is when it is full.
            or self._packs.frames >= PACK_FRAMES_MAX - 1
            or self._pack_entries >= PACK_ENTRIES_MAX
        )

    def _place_frame(self, content: bytes | memoryview, runs: int) -> tuple[int, int, int]:
        """Put a frame of so many runs into the pack; return the pack's number, the frame's, its size."""
        if self._is_pack_full:
            self._close_pack()
        self._pack_entries += runs
        compressed = compress_frame(content)
        return self._packs.number, self._packs.add_frame(compressed), len(compressed)

    def _flush_shared(self) -> None:
        if not self._shared_files:
            return
        pack, frame = 0, 0
        if self._shared:
            pack, frame = self._packs.number, self._packs.add_frame(compress_frame(memoryview(self._shared)))
        self._pack_entries += sum(1 + len(file.extents) for file in self._shared_files)
        for file in self._shared_files:
            extents = tuple(replace(extent, pack=pack, frame=frame) for extent in file.extents)
            crc = FileCrc32c()
            for extent in extents:
                crc.add(extent.offset, extent.size_bytes, extent.crc32c)
            is_whole = file.parent_bytes is None
            self._index.add(
                IndexFile(
                    file.path,
                    file.size_bytes,
                    file.status.mode,
                    file.status.mtime,
                    crc.finish(file.size_bytes) if is_whole else None,
                    extents,
                    file.parent_bytes,
                )
            )
        self._shared.clear()
        self._shared_files.clear()

    def _close_pack(self) -> None:
        if not self._packs.frames:
            return
        if self._open is not None:
            self._open.flush(self._index)
        number = self._packs.number
        self._index.add(IndexPack(number, self._packs.finish()))
        self._pack_entries = 0


class FileWriter:
    """One file that is being added.  ``close`` must be called."""

    def __init__(self, part: PartWriter, path: bytes) -> None:
        self._part = part
        self._path = path
        # How well it compresses tells whether somebody has encrypted it.
        self.content_bytes = self.stored_bytes = 0
        self._runs = 0
        self._extents: list[Extent] = []
        self._crc = FileCrc32c()

    def add(self, offset: int, content: bytes) -> None:
        """Add at most 1 MiB at ``offset``, after what was added before."""
        self.add_runs(content, [Run(offset, len(content))])

    def add_runs(self, content: bytes | memoryview, runs: Sequence[Run]) -> None:
        """Add at most 1 MiB that lie at ``runs``, after what was added before."""
        if self._runs + len(runs) > RUNS_MAX:
            self.flush(self._part._index)
        pack, frame, stored_bytes = self._part._place_frame(content, len(runs))
        self.content_bytes += len(content)
        self.stored_bytes += stored_bytes
        self._runs += len(runs)
        for extent in _extents_of(content, runs, frame_offset=0):
            self._crc.add(extent.offset, extent.size_bytes, extent.crc32c)
            self._extents.append(replace(extent, pack=pack, frame=frame))

    def flush(self, index: _IndexWriter) -> None:
        """List what lies in the pack that is being closed."""
        if self._extents:
            index.add(IndexFileMore(self._path, tuple(self._extents)))
            self._extents.clear()
            self._runs = 0

    def close(self, size_bytes: int, status: FileStatus, *, parent_bytes: int | None = None) -> None:
        """End the file, of ``size_bytes`` bytes.

        What was left out is zero; with ``parent_bytes`` it is as the parent backup has it up to there.
        """
        line = IndexFile(
            self._path,
            size_bytes,
            status.mode,
            status.mtime,
            self._crc.finish(size_bytes) if parent_bytes is None else None,
            tuple(self._extents),
            parent_bytes,
        )
        self._part._index.add(line)
        self._part._open = None


@dataclass(frozen=True, slots=True)
class _SharedFile:
    """A file whose extents lie in the frame that is being filled; its pack and number come with it."""

    path: bytes
    size_bytes: int
    extents: tuple[Extent, ...]
    status: FileStatus
    parent_bytes: int | None


def _extents_of(content: bytes | memoryview, runs: Sequence[Run], *, frame_offset: int) -> tuple[Extent, ...]:
    """Return where ``runs`` lie in a frame whose number is not known yet.  They fill ``content``."""
    view, at, extents = memoryview(content), 0, []
    for run in runs:
        part = view[at : at + run.size_bytes]
        extents.append(Extent(run.offset, run.size_bytes, 0, 0, frame_offset + at, crc32c(part)))
        at += run.size_bytes
    if at != len(view):
        raise ValueError(f"{len(view)} bytes in runs of {at}")
    return tuple(extents)


class _IndexWriter:
    """Gathers lines into frames, and frames into objects, of whole lines each."""

    def __init__(self, objects: _ContainerSeries) -> None:
        self._objects = objects
        self._lines = bytearray()

    def add(self, line: IndexLine) -> None:
        encoded = encode_line(line)
        if len(self._lines) + len(encoded) > FRAME_CONTENT_BYTES:
            self._flush()
        self._lines += encoded

    def finish(self) -> None:
        self._flush()
        if self._objects.frames:
            self._objects.finish()

    def _flush(self) -> None:
        if self._lines:
            self._objects.add_frame(compress_frame(memoryview(self._lines)))
            self._lines.clear()
        if self._objects.size_bytes >= _INDEX_BYTES:
            self._objects.finish()


class _ContainerSeries:
    """Containers one after the other, each sealed as its frames come.

    The seal marks the last frame, so the newest frame waits until the next one, or the end, is there.
    """

    def __init__(
        self, kind: PartKind, part: int, data_key: DataKey, context: PartContext, sink: PartSink
    ) -> None:
        self._kind: PartKind = kind
        self._part = part
        self._data_key = data_key
        self._context = context
        self._sink = sink
        self._scratch = memoryview(bytearray(LENGTH.size + frame_bytes_max(FRAME_CONTENT_BYTES) + TAG_BYTES))
        self.number = 0
        self._sealer: Sealer | None = None
        self._body = io.BytesIO()
        self._places: list[FramePlace] = []
        self._waiting: bytes | None = None

    @property
    def frames(self) -> int:
        """Frames in the container that is being built."""
        return len(self._places) + (self._waiting is not None)

    @property
    def size_bytes(self) -> int:
        """Its size so far, without the frame that waits."""
        return self._body.tell()

    def add_frame(self, compressed: bytes) -> int:
        """Add a compressed frame; return its number."""
        if self._waiting is not None:
            self._seal(self._waiting, last=False)
        self._waiting = compressed
        return len(self._places)

    def finish(self) -> tuple[FramePlace, ...]:
        """Hand the container over and begin the next; return where its frames lie."""
        if self._waiting is None:
            raise ValueError("a container has at least one frame")
        self._seal(self._waiting, last=True)
        places = tuple(self._places)
        # BytesIO hands its buffer over without a copy, which a pack would notice.
        body = self._body.getvalue()
        part = SealedPart(self._kind, self._part, self.number, body, BodyDigest.of(body), len(places))
        self.number += 1
        self._begin()
        self._sink(part)
        return places

    def _begin(self) -> None:
        self._sealer = None
        self._body = io.BytesIO()
        self._places = []
        self._waiting = None

    def _seal(self, compressed: bytes, *, last: bool) -> None:
        if self._sealer is None:
            self._sealer = Sealer(self._data_key, self._context(self._kind, self._part, self.number))
            self._body.write(self._sealer.header)
        offset = self._body.tell()
        written = self._sealer.seal_frame_into(compressed, self._scratch, last=last)
        self._body.write(self._scratch[:written])
        self._places.append(FramePlace(offset, written - LENGTH.size))
