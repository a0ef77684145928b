"""The objects that one part of a base backup is written as: sealed containers, one after the other.

``pitr.pipeline.pack_writer`` decides what is in them.  Reference: docs/format.md §3, §8.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from pitr.pipeline.compress import compress_frame, frame_bytes_max
from pitr.pipeline.frames import LENGTH, TAG_BYTES
from pitr.pipeline.keys import DataKey
from pitr.pipeline.pack_contents import PackContents, PackedFile
from pitr.pipeline.packs import FramePlace, IndexLine, encode_line
from pitr.pipeline.seal import FRAME_CONTENT_BYTES, Context, Sealer
from storage.digest import BodyDigest

PartKind: TypeAlias = Literal["pack", "index", "derived"]
_INDEX_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SealedPart:
    """A finished object: which pack or index of which part it is, and its bytes with their SHA-256.

    ``contents`` is what a pack holds, where somebody wants to know.
    """

    kind: PartKind
    part: int
    number: int
    body: bytes
    sha256: BodyDigest
    frames: int
    contents: PackContents | None = None


# Takes a finished object; may block until there is room for it, and raise to stop the writer.
PartSink: TypeAlias = Callable[[SealedPart], None]
# Gives the context of pack or index ``number`` of a part.
PartContext: TypeAlias = Callable[[PartKind, int, int], Context]


class IndexWriter:
    """Gathers lines into frames, and frames into objects, of whole lines each."""

    def __init__(self, objects: ContainerSeries) -> None:
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


class ContainerSeries:
    """Containers one after the other, each sealed as its frames come.

    The seal marks the last frame, so the newest frame waits until the next one, or the end, is there.
    """

    def __init__(
        self,
        kind: PartKind,
        part: int,
        data_key: DataKey,
        context: PartContext,
        sink: PartSink,
        *,
        first: int = 0,
    ) -> None:
        self._kind: PartKind = kind
        self._part = part
        self._data_key = data_key
        self._context = context
        self._sink = sink
        self._scratch = memoryview(bytearray(LENGTH.size + frame_bytes_max(FRAME_CONTENT_BYTES) + TAG_BYTES))
        self.number = first
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

    def finish(self, files: tuple[PackedFile, ...] = ()) -> tuple[FramePlace, ...]:
        """Hand the container over, with what is known of ``files`` in it; return where its frames lie."""
        if self._waiting is None:
            raise ValueError("a container has at least one frame")
        self._seal(self._waiting, last=True)
        places = tuple(self._places)
        # BytesIO hands its buffer over without a copy, which a pack would notice.
        body = self._body.getvalue()
        contents = PackContents(places, files) if files else None
        digest = BodyDigest.of(body)
        part = SealedPart(self._kind, self._part, self.number, body, digest, len(places), contents)
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
