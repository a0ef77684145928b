"""Whatever is done to a container's bytes, name or key: it is refused, and nothing of it is returned."""

from __future__ import annotations

import dataclasses
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from pitr.errors import MalformedValue, NotAuthentic
from pitr.layout import ArchiveId
from pitr.pipeline import compress, frames, keys, seal
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

HEADER = seal.HEADER_BYTES
KEY = keys.DataKey(b"k" * 32)
CONTEXT = seal.Context("ab" * 16, ArchiveId(7, 1), "wal-piece", "17", TimelineId(1), LSN(0x100), LSN(0x300))
CONTENTS = [b"first frame" * 20, b"second" * 9, b"third and last"]


def container(contents: list[bytes] = CONTENTS, key: keys.DataKey = KEY) -> bytes:
    return seal.seal_frames([compress.compress_frame(content) for content in contents], key, CONTEXT)


def parts(body: bytes) -> list[bytes]:
    """The frames as they stand, lengths included."""
    found = frames.spans(body, start=HEADER, frame_log2=20)
    return [body[span.offset - 4 : span.offset + span.size_bytes] for span in found]


def assert_refused(body: bytes, *, key: keys.DataKey = KEY, context: seal.Context = CONTEXT) -> None:
    with pytest.raises(NotAuthentic):
        seal.open_container(body, key, context, content_bytes_max=1000)
    with pytest.raises(NotAuthentic):
        list(seal.iter_frames(body, key, context))


def test_every_flipped_bit_is_refused() -> None:
    body = container()
    for position in range(len(body)):
        for bit in range(8):
            damaged = bytearray(body)
            damaged[position] ^= 1 << bit
            with pytest.raises(NotAuthentic):
                seal.open_container(damaged, KEY, CONTEXT, content_bytes_max=1000)


def test_every_cut_is_refused() -> None:
    body = container()
    for length in range(len(body)):
        assert_refused(body[:length])


@pytest.mark.parametrize("missing", [1, 5, 20])
def test_a_cut_inside_a_frame_is_called_one(missing: int) -> None:
    with pytest.raises(NotAuthentic, match="cut short"):
        seal.open_container(container()[:-missing], KEY, CONTEXT, content_bytes_max=1000)


@pytest.mark.parametrize("extra", [b"\0", b"\0\0\0\0", b"\0\0\0\x14" + bytes(20), b"x" * 100])
def test_appended_bytes_are_refused(extra: bytes) -> None:
    assert_refused(container() + extra)


RESHAPES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "dropped first": lambda p: p[1:],
    "dropped middle": lambda p: [p[0], p[2]],
    "dropped last": lambda p: p[:-1],
    "swapped": lambda p: [p[1], p[0], p[2]],
    "swapped last": lambda p: [p[0], p[2], p[1]],
    "repeated first": lambda p: [p[0], *p],
    "repeated last": lambda p: [*p, p[-1]],
    "no frame": lambda p: [],
    "last alone": lambda p: p[-1:],
    "itself again": lambda p: [*p, *p],
}


@pytest.mark.parametrize("reshape", RESHAPES.values(), ids=RESHAPES.keys())
def test_reordered_frames_are_refused(reshape: Callable[[list[bytes]], list[bytes]]) -> None:
    body = container()
    assert_refused(body[:HEADER] + b"".join(reshape(parts(body))))


def test_a_frame_of_another_container_is_refused() -> None:
    # The same content, key and context: only the file ids differ.
    one, other = container(), container()
    assert one != other
    assert_refused(one[:HEADER] + b"".join([*parts(one)[:2], parts(other)[2]]))
    assert_refused(other[:HEADER] + one[HEADER:])


def test_a_header_with_another_part_of_a_good_header_is_refused() -> None:
    one, other = container(), container()
    for start, end in ((8, 40), (40, 72)):
        assert_refused(one[:start] + other[start:end] + one[end:])


@pytest.mark.parametrize(
    "change",
    [
        {"repository": "ac" * 16},
        {"archive": ArchiveId(8, 1)},
        {"archive": ArchiveId(7, 2)},
        {"kind": "wal-segment"},
        {"name": "18"},
        {"timeline": TimelineId(2)},
        {"start": LSN(0x101)},
        {"end": LSN(0x301)},
        {"start": LSN(0x300), "end": LSN(0x100)},
    ],
    ids=str,
)
def test_another_context_is_refused(change: dict[str, Any]) -> None:
    assert_refused(container(), context=dataclasses.replace(CONTEXT, **change))


def test_another_key_is_refused_even_if_the_header_names_it() -> None:
    other = keys.DataKey(b"o" * 32)
    body = container()
    assert_refused(body, key=other)
    assert_refused(body[:72] + other.key_id + body[88:], key=other)


def test_the_opener_refuses_before_it_decrypts_anything() -> None:
    header = container()[:HEADER]
    for bad in (
        header[:-1],
        header + b"x",
        b"",
        header[:40] + bytes(32) + header[72:],
        header[:72] + bytes(16),
    ):
        with pytest.raises(NotAuthentic):
            seal.Opener(bad, KEY, CONTEXT)


@pytest.mark.parametrize("number", [-1, 0, 1, 3, 2**32, 2**64])
def test_a_frame_opens_only_at_its_own_number_and_place(number: int) -> None:
    body = container()
    opener, sealed = seal.Opener(body[:HEADER], KEY, CONTEXT), parts(body)[2][4:]
    assert opener.open_frame(sealed, 2, last=True) == CONTENTS[2]
    with pytest.raises(NotAuthentic):
        opener.open_frame(sealed, number, last=True)
    with pytest.raises(NotAuthentic):
        opener.open_frame(sealed, 2, last=False)


@pytest.mark.parametrize("length", [0, 1, 16, 2**20 + 2**12 + 64 + 16 + 1, 2**31, 2**32 - 1])
def test_an_impossible_length_is_refused(length: int) -> None:
    body = container()
    assert_refused(body[:HEADER] + struct.pack(">I", length) + body[HEADER + 4 :])


def test_a_bomb_in_an_authentic_frame_is_refused_without_its_memory() -> None:
    # Only who has the data key can make one; the reader's memory is bounded all the same.
    bomb = compress.compress_frame(bytes(64 << 20))
    assert len(bomb) < 1 << 20
    body = seal.seal_frames([bomb], KEY, CONTEXT)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedValue, match="larger than allowed"):
            seal.open_container(body, KEY, CONTEXT, content_bytes_max=1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_more_content_than_asked_for_is_refused_at_the_frame_that_exceeds_it() -> None:
    body, total = container(), sum(map(len, CONTENTS))
    assert seal.open_container(body, KEY, CONTEXT, content_bytes_max=total) == b"".join(CONTENTS)
    with pytest.raises(MalformedValue, match="larger than allowed"):
        seal.open_container(body, KEY, CONTEXT, content_bytes_max=total - 1)


@pytest.mark.parametrize("frame_log2", [0, 11, 27, 255])
def test_an_unbounded_frame_size_is_refused_whoever_wrote_it(frame_log2: int) -> None:
    body = container()
    assert_refused(body[:7] + bytes([frame_log2]) + body[8:])


GOOD_FRAME = compress.compress_frame(b"content " * 10)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0" * 20,
        GOOD_FRAME[:-1],
        GOOD_FRAME + b"\0",
        GOOD_FRAME + GOOD_FRAME,
        compress.compress_frame(b"") + b"x",
        compress.compress_frame(b"") + GOOD_FRAME,
        compress.compress_frame(b"")[:-1],
        # A frame without a content size (one segment off, a window of 1 KiB, raw block "x").
        bytes.fromhex("28b52ffd0000090000") + b"x",
        # A declared size of 0 over a block of 1 byte, and of 2 over a block of 1.
        bytes.fromhex("28b52ffd2000090000") + b"x",
        bytes.fromhex("28b52ffd2002090000") + b"x",
        # A skippable frame, alone: no content and no frame of ours.
        bytes.fromhex("502a4d1801000000ff"),
    ],
    ids=lambda frame: frame[:12].hex() or "empty",
)
def test_what_is_no_frame_of_its_declared_size_is_refused(frame: bytes) -> None:
    with pytest.raises(MalformedValue):
        compress.decompress_frame(frame, content_bytes_max=1000)
