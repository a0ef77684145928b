"""Writes one part of a base backup: files in, sealed packs and the index that finds them out.

One owner thread per part.  It holds one pack, one shared frame and one object of the index, whatever
the size of the cluster.

Reference: docs/format.md §8.  ``pitr.pipeline.packs`` has the index's lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pitr.pipeline.compress import compress_frame, frame_bytes_max
from pitr.pipeline.content_mac import ContentMac
from pitr.pipeline.crc import FileCrc32c, crc32c
from pitr.pipeline.keys import DataKey
from pitr.pipeline.pack_contents import ContentLog, PackedFrame
from pitr.pipeline.packs import (
    PACK_BYTES_MAX,
    PACK_FRAMES_MAX,
    Extent,
    FramePlace,
    IndexDirectory,
    IndexFile,
    IndexFileMore,
    IndexLink,
    IndexPack,
)
from pitr.pipeline.part_objects import ContainerSeries, IndexWriter, PartContext, PartSink
from pitr.pipeline.seal import FRAME_CONTENT_BYTES

# Two being built, and two on their way that a slow region may still have, keep a backup's memory below
# 300 MiB, also while WAL of a backlog is archived beside it; of 32 MiB each they did not.
PACK_BYTES_DEFAULT: Final = 16 * 1024 * 1024
# A frame that came last, and the shared one, may still go on top.
PACK_BYTES_ROOM: Final = 3 * frame_bytes_max(FRAME_CONTENT_BYTES)
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
    """Packs and index of one part.  Not thread-safe.  ``finish`` must be called, or nothing is listed.

    With ``mac`` the sink is told what is in each pack.  Packs are numbered from ``first_pack`` on; smaller
    numbers are those of packs that were stored before and are adopted.
    """

    def __init__(
        self,
        part: int,
        data_key: DataKey,
        context: PartContext,
        sink: PartSink,
        *,
        pack_bytes: int = PACK_BYTES_DEFAULT,
        mac: ContentMac | None = None,
        first_pack: int = 0,
    ) -> None:
        if not 0 < pack_bytes <= PACK_BYTES_MAX - PACK_BYTES_ROOM:
            raise ValueError(f"a pack of {pack_bytes} bytes is too large")
        self._packs = ContainerSeries("pack", part, data_key, context, sink, first=first_pack)
        self._log = ContentLog(mac)
        self._index = IndexWriter(ContainerSeries("index", part, data_key, context, sink))
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
        extents = extents_of(content, runs, frame_offset=len(self._shared))
        self._shared_files.append(_SharedFile(path, size_bytes, extents, status, parent_bytes))
        self._shared += content

    def open_file(self, path: bytes) -> FileWriter:
        """Begin a file of any size, whole or only what changed of it.  Only one may be open."""
        if self._open is not None:
            raise ValueError("the last file is still open")
        self._open = FileWriter(self, path)
        return self._open

    def adopt(self, number: int, places: tuple[FramePlace, ...]) -> None:
        """List a pack that is stored already, after the files that were adopted from it."""
        if self._packs.frames:
            raise ValueError("the pack before it is still open")
        if self._open is not None:
            self._open.flush(self._index)
        self._index.add(IndexPack(number, places))

    def end_pack(self) -> None:
        """Hand over the pack that is being filled, if there is one: another is adopted next."""
        self._flush_shared()
        self._close_pack()

    def finish(self) -> None:
        """Hand over what is left.  Nothing may be added after it."""
        if self._open is not None:
            raise ValueError("the last file is still open")
        self.end_pack()
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
            if extents:
                content = memoryview(self._shared)[extents[0].frame_offset :]
                self._log.add(file.path, extents, content[: sum(each.size_bytes for each in extents)], 0)
                # A view would keep the buffer from being cleared.
                content.release()
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
        self._index.add(IndexPack(number, self._packs.finish(self._log.take())))
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
        found = extents_of(content, runs, frame_offset=0)
        extents = tuple(replace(extent, pack=pack, frame=frame) for extent in found)
        self._list(extents)
        self._part._log.add(self._path, extents, content, stored_bytes)

    def adopt(self, frames: Sequence[PackedFrame]) -> None:
        """List what lies in a pack that ``PartWriter.adopt`` is called for next."""
        for frame in frames:
            if self._runs + len(frame.extents) > RUNS_MAX:
                self.flush(self._part._index)
            self.content_bytes += frame.content_bytes
            self.stored_bytes += frame.stored_bytes
            self._runs += len(frame.extents)
            self._list(frame.extents)

    def _list(self, extents: Sequence[Extent]) -> None:
        for extent in extents:
            self._crc.add(extent.offset, extent.size_bytes, extent.crc32c)
            self._extents.append(extent)

    def flush(self, index: IndexWriter) -> None:
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


def extents_of(content: bytes | memoryview, runs: Sequence[Run], *, frame_offset: int) -> tuple[Extent, ...]:
    """Return where ``runs`` lie in a frame whose number is not known yet.  They fill ``content``."""
    view, at, extents = memoryview(content), 0, []
    for run in runs:
        part = view[at : at + run.size_bytes]
        extents.append(Extent(run.offset, run.size_bytes, 0, 0, frame_offset + at, crc32c(part)))
        at += run.size_bytes
    if at != len(view):
        raise ValueError(f"{len(view)} bytes in runs of {at}")
    return tuple(extents)
