"""Frames: content cut into pieces of at most 1 MiB, and the sealed frames found in a container.

Knows lengths only: neither keys (``pitr.pipeline.seal``) nor what a frame holds.

Reference: docs/format.md §2 and §3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pitr.errors import NotAuthentic
from pitr.pipeline.compress import LEVEL_DEFAULT, compress_frame, frame_bytes_max

# 1 MiB: AES-GCM and zstd are at their best, and a ranged read of one page costs one frame.
FRAME_LOG2 = 20
LENGTH = struct.Struct(">I")
TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class FrameSpan:
    """Where a sealed frame lies: ``offset`` is that of its ciphertext, after the length, in the container."""

    number: int
    offset: int
    size_bytes: int
    is_last: bool


def cut(content: bytes | memoryview, *, frame_log2: int = FRAME_LOG2) -> Iterator[memoryview]:
    """Yield ``content`` in frames, without a copy; empty content is one empty frame."""
    view = memoryview(content).cast("B")
    step = 1 << frame_log2
    if not view:
        yield view
    for start in range(0, len(view), step):
        yield view[start : start + step]


def compress_frames(
    content: bytes | memoryview, *, level: int = LEVEL_DEFAULT, match_bytes_min: int = 0
) -> Iterator[bytes]:
    """Yield the compressed frames of ``content``, in order; at least one.  See ``compress_frame``."""
    for frame in cut(content):
        yield compress_frame(frame, level=level, match_bytes_min=match_bytes_min)


def sealed_bytes_max(frame_log2: int) -> int:
    """Return the largest length that a sealed frame may have, tag included."""
    return frame_bytes_max(1 << frame_log2) + TAG_BYTES


def spans(body: bytes | memoryview, *, start: int, frame_log2: int) -> Iterator[FrameSpan]:
    """Yield the sealed frames of a container from offset ``start`` on; at least one.

    The lengths are not authenticated themselves: a wrong one gives a frame whose tag, number or
    place as the last is wrong.  Raises NotAuthentic where the lengths do not add up.
    """
    limit, end = sealed_bytes_max(frame_log2), len(body)
    number, offset = 0, start
    while True:
        if end - offset < LENGTH.size:
            raise NotAuthentic("container is cut short", detail=f"Frame {number} has no length.")
        (size_bytes,) = LENGTH.unpack_from(body, offset)
        offset += LENGTH.size
        if not TAG_BYTES < size_bytes <= limit:
            raise NotAuthentic(
                "container's frame has an impossible length", detail=f"Frame {number}: {size_bytes} bytes."
            )
        if size_bytes > end - offset:
            raise NotAuthentic(
                "container is cut short",
                detail=f"Frame {number} has {end - offset} of its {size_bytes} bytes.",
            )
        is_last = offset + size_bytes == end
        yield FrameSpan(number, offset, size_bytes, is_last)
        if is_last:
            return
        number, offset = number + 1, offset + size_bytes
