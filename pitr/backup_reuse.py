"""Whether a file still is what an interrupted attempt stored of it.  Pure: frames in, a verdict out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from pitr.backup_frames import FrameContent
from pitr.pipeline.content_mac import ContentMac
from pitr.pipeline.pack_contents import PackedFrame
from pitr.pipeline.pack_writer import extents_of


class Match(Enum):
    """What comparing a file with what is stored of it gave."""

    SAME = auto()
    BEGINS = auto()  # All that is stored is the same, and the file goes on.
    DIFFERS = auto()


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict; where the file goes on, its first frame of which nothing is stored."""

    match: Match
    next_frame: FrameContent | None = None


def compare_frames(
    stored: Iterable[PackedFrame], frames: Iterator[FrameContent], mac: ContentMac
) -> Comparison:
    """Compare what is stored of a file with its frames, in order.  Only bytes count, no size and no time."""
    for known in stored:
        frame = next(frames, None)
        if frame is None or not _is_same(known, frame, mac):
            return Comparison(Match.DIFFERS)
    rest = next(frames, None)
    return Comparison(Match.SAME if rest is None else Match.BEGINS, rest)


def _is_same(known: PackedFrame, frame: FrameContent, mac: ContentMac) -> bool:
    # The sums are compared too: they are what a restore will be told of these bytes.
    found = extents_of(frame.content, frame.runs, frame_offset=known.extents[0].frame_offset)
    places = [(each.offset, each.size_bytes, each.frame_offset, each.crc32c) for each in known.extents]
    if places != [(each.offset, each.size_bytes, each.frame_offset, each.crc32c) for each in found]:
        return False
    return mac.holds(known.mac, frame.content)
