"""A file of the server as the frames that a backup stores of it: the same of the same bytes, however often.

That is what lets a later attempt tell which frames of an interrupted one still hold what the file holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from pitr.backup_changes import PagesSince
from pitr.pipeline.pack_writer import SMALL_BYTES_MAX, Run
from pitr.pipeline.seal import FRAME_CONTENT_BYTES
from pitr.postgres.basebackup import OpenedFile
from pitr.postgres.page import PAGE_BYTES, Blocks
from pitr.postgres.summaries import ChangedPart

_FRAME_PAGES: Final = FRAME_CONTENT_BYTES // PAGE_BYTES
_ZEROS: Final = bytes(FRAME_CONTENT_BYTES)


@dataclass(frozen=True, slots=True)
class FrameContent:
    """At most 1 MiB of a file, which lie at ``runs``."""

    content: bytes
    runs: tuple[Run, ...]


def frames_of(opened: OpenedFile, plan: ChangedPart | PagesSince | None) -> Iterator[FrameContent]:
    """Yield what a backup stores of a file; ``plan`` None: all of it."""
    if plan is not None:
        yield from changed_frames(opened, plan)
    elif opened.size_bytes > SMALL_BYTES_MAX:
        yield from whole_frames(opened)
    elif content := small_content(opened):
        yield FrameContent(content, (Run(0, len(content)),))


def small_content(opened: OpenedFile) -> bytes:
    """Return all of a file that shares a frame with others."""
    return b"".join(bytes(piece.content) for piece in opened.pieces())


def whole_frames(
    opened: OpenedFile, on_read: Callable[[int], None] = lambda _bytes: None
) -> Iterator[FrameContent]:
    """Yield a large file; ``on_read`` counts its bytes.

    A run of zeros is left out: the index says nothing of it, and it is restored as a hole.
    """
    for piece in opened.pieces():
        for at in range(0, len(piece.content), FRAME_CONTENT_BYTES):
            content = bytes(piece.content[at : at + FRAME_CONTENT_BYTES])
            if content[0] or content != _ZEROS[: len(content)]:
                yield FrameContent(content, (Run(piece.offset + at, len(content)),))
        on_read(len(piece.content))


def changed_frames(opened: OpenedFile, plan: ChangedPart | PagesSince) -> Iterator[FrameContent]:
    """Yield the pages that changed, many to a frame."""
    found = opened.changed(plan.blocks) if isinstance(plan, ChangedPart) else opened.changed_since(plan.since)
    for pages in found:
        for at in range(0, len(pages.blocks), _FRAME_PAGES):
            blocks = pages.blocks[at : at + _FRAME_PAGES]
            content = bytes(pages.content[at * PAGE_BYTES : (at + len(blocks)) * PAGE_BYTES])
            yield FrameContent(content, runs_of(blocks))


def runs_of(blocks: Blocks) -> tuple[Run, ...]:
    """Return ascending blocks as runs of bytes."""
    cuts = np.flatnonzero(np.diff(blocks.astype(np.int64)) != 1) + 1
    return tuple(
        Run(int(run[0]) * PAGE_BYTES, len(run) * PAGE_BYTES) for run in np.split(blocks, cuts) if len(run)
    )
