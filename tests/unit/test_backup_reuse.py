"""Whether a file still is what is stored of it: by its bytes, and by nothing that only looks like them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from pitr.backup_frames import FrameContent
from pitr.backup_reuse import Match, compare_frames
from pitr.pipeline.content_mac import ContentMac
from pitr.pipeline.crc import crc32c
from pitr.pipeline.pack_contents import PackedFrame
from pitr.pipeline.pack_writer import Run, extents_of

# CRC-32C's own polynomial, its highest power first as bits go through it: adding it changes no sum.
_POLYNOMIAL = (1 | 0x82F63B78 << 1).to_bytes(5, "little")
MAC = ContentMac(bytes(32), os.urandom)
CONTENTS = [random.Random(number).randbytes(1000) for number in range(3)]


def frames_of(contents: Sequence[bytes], start: int = 0) -> Iterator[FrameContent]:
    for number, content in enumerate(contents):
        yield FrameContent(content, (Run(start + number * 1000, len(content)),))


def stored(contents: Sequence[bytes]) -> list[PackedFrame]:
    return [
        PackedFrame(
            tuple(
                replace(each, pack=4, frame=7)
                for each in extents_of(frame.content, frame.runs, frame_offset=0)
            ),
            MAC.make(frame.content),
            500,
        )
        for frame in frames_of(contents)
    ]


@pytest.mark.parametrize(
    ("now", "match"),
    [
        (CONTENTS, Match.SAME),
        ([*CONTENTS, b"more"], Match.BEGINS),
        (CONTENTS[:2], Match.DIFFERS),
        ([], Match.DIFFERS),
        ([CONTENTS[0], CONTENTS[2], CONTENTS[1]], Match.DIFFERS),
        ([*CONTENTS[:2], CONTENTS[2][:-1]], Match.DIFFERS),
        ([*CONTENTS[:2], CONTENTS[2] + b"x"], Match.DIFFERS),
    ],
)
def test_what_is_stored_is_compared_frame_by_frame(now: list[bytes], match: Match) -> None:
    assert compare_frames(stored(CONTENTS), frames_of(now), MAC).match is match


def test_the_frame_behind_what_is_stored_is_given_back() -> None:
    frames = frames_of([*CONTENTS, b"next", b"last"])
    found = compare_frames(stored(CONTENTS), frames, MAC)
    assert found.next_frame is not None
    assert [found.next_frame.content, *(frame.content for frame in frames)] == [b"next", b"last"]


def test_other_bytes_of_the_same_sum_differ() -> None:
    forged = bytearray(CONTENTS[1])
    for at, byte in enumerate(_POLYNOMIAL, 300):
        forged[at] ^= byte
    assert crc32c(bytes(forged)) == crc32c(CONTENTS[1])
    now = [CONTENTS[0], bytes(forged), CONTENTS[2]]
    assert compare_frames(stored(CONTENTS), frames_of(now), MAC).match is Match.DIFFERS


def test_the_same_bytes_elsewhere_in_the_file_differ() -> None:
    assert compare_frames(stored(CONTENTS), frames_of(CONTENTS, 1000), MAC).match is Match.DIFFERS


def test_a_digest_that_somebody_changed_matches_nothing() -> None:
    known = stored(CONTENTS)
    known[1] = replace(known[1], mac=MAC.make(b"else"))
    assert compare_frames(known, frames_of(CONTENTS), MAC).match is Match.DIFFERS
