"""Sealing: what a sealer refuses, what a context may be, and compression's own promises."""

from __future__ import annotations

import concurrent.futures
import random

import pytest

from pitr.errors import MalformedValue, NotAuthentic
from pitr.layout import ArchiveId
from pitr.pipeline import compress, frames, keys, seal
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

KEY = keys.DataKey(b"k" * 32)
ARCHIVE = ArchiveId(7, 1)
REPOSITORY = "ab" * 16
PACK = seal.Context(REPOSITORY, ARCHIVE, "pack", "b/0001/000001")
FRAME = compress.compress_frame(b"content")


def test_nothing_follows_the_last_frame() -> None:
    sealer = seal.Sealer(KEY, PACK)
    sealer.seal_frame(FRAME, last=True)
    with pytest.raises(ValueError, match="no frame may follow"):
        sealer.seal_frame(FRAME, last=True)
    assert sealer.frames == 1


@pytest.mark.parametrize("size_bytes", [0, compress.frame_bytes_max(1 << 20) + 1])
def test_a_sealer_refuses_frames_that_a_reader_would_refuse(size_bytes: int) -> None:
    sealer = seal.Sealer(KEY, PACK)
    with pytest.raises(ValueError, match="compressed frame has"):
        sealer.seal_frame(bytes(size_bytes), last=True)
    assert sealer.frames == 0


def test_a_container_has_at_least_one_frame() -> None:
    with pytest.raises(ValueError, match="at least one"):
        seal.seal_frames([], KEY, PACK)
    body = seal.seal(b"", KEY, PACK)
    assert len(list(seal.iter_frames(body, KEY, PACK))) == 1


def test_short_matches_make_wal_smaller_and_any_reader_opens_it() -> None:
    # As records do: five bytes that came before, between ones that did not.
    draw = random.Random(5)
    known = [draw.randbytes(5) for _ in range(200)]
    content = b"".join(draw.choice(known) + draw.randbytes(4) for _ in range(20_000))
    plain = list(frames.compress_frames(content))
    short = list(frames.compress_frames(content, match_bytes_min=compress.WAL_MATCH_BYTES_MIN))
    assert sum(map(len, short)) < 0.9 * sum(map(len, plain))
    opened = [compress.decompress_frame(frame, content_bytes_max=1 << 20) for frame in short]
    assert b"".join(opened) == content


def test_a_container_sealed_into_its_place_is_the_container() -> None:
    frames = [compress.compress_frame(bytes([number]) * 1000) for number in range(3)]
    size_bytes = seal.container_bytes(frames)
    room = bytearray(b"!" * (size_bytes + 2))
    seal.seal_frames_into(frames, KEY, PACK, memoryview(room)[1:-1])
    assert room[:1] == room[-1:] == b"!"
    assert [bytes(content) for content in seal.iter_frames(room[1:-1], KEY, PACK)] == [
        bytes([number]) * 1000 for number in range(3)
    ]


@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_container_is_not_sealed_into_a_place_of_another_size(off_by: int) -> None:
    frames = [compress.compress_frame(b"content")]
    with pytest.raises(ValueError, match="its place"):
        seal.seal_frames_into(frames, KEY, PACK, memoryview(bytearray(seal.container_bytes(frames) + off_by)))


def test_sealing_twice_gives_no_equal_bytes_in_header_or_frame() -> None:
    one, other = seal.seal(b"content", KEY, PACK), seal.seal(b"content", KEY, PACK)
    assert one[8:40] != other[8:40]
    assert one[40:72] != other[40:72]
    assert one[88:] != other[88:]


def test_a_file_id_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="file id"):
        seal.Sealer(KEY, PACK, file_id=b"short")


def test_sealing_into_a_buffer_gives_the_frame_and_leaves_the_rest() -> None:
    plain = seal.Sealer(KEY, PACK, file_id=bytes(32))
    buffered = seal.Sealer(KEY, PACK, file_id=bytes(32))
    buffer = bytearray(b"\xaa" * 200)
    length = buffered.seal_frame_into(FRAME, memoryview(buffer), last=True)
    assert buffer[:length] == plain.seal_frame(FRAME, last=True)
    assert buffer[length:] == b"\xaa" * (200 - length)


def test_a_key_id_is_read_from_the_header_without_the_key() -> None:
    body = seal.seal(b"content", KEY, PACK)
    assert seal.container_key_id(body[:88]) == KEY.key_id
    with pytest.raises(NotAuthentic):
        seal.container_key_id(body)


def test_an_opener_serves_many_threads() -> None:
    contents = [bytes([number]) * 5000 for number in range(40)]
    sealer = seal.Sealer(KEY, PACK)
    sealed = [
        sealer.seal_frame(compress.compress_frame(content), last=number == 39)[4:]
        for number, content in enumerate(contents)
    ]
    opener = seal.Opener(sealer.header, KEY, PACK)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        opened = pool.map(lambda n: opener.open_frame(sealed[n], n, last=n == 39), range(40))
        assert list(opened) == contents


def test_the_wals_context_needs_its_position_and_a_packs_has_none() -> None:
    position = (TimelineId(1), LSN(1), LSN(2))
    seal.Context(REPOSITORY, ARCHIVE, "wal-piece", "1", *position)
    for timeline, start, end in ((None, LSN(1), LSN(2)), (TimelineId(1), None, LSN(2)), (None, None, None)):
        with pytest.raises(MalformedValue, match="lacks"):
            seal.Context(REPOSITORY, ARCHIVE, "wal-segment", "1", timeline, start, end)
    with pytest.raises(MalformedValue, match="has"):
        seal.Context(REPOSITORY, ARCHIVE, "index", "1", *position)


@pytest.mark.parametrize(
    ("repository", "kind", "name"),
    [
        ("ab" * 15, "pack", "n"),
        ("AB" * 16, "pack", "n"),
        (REPOSITORY, "wal", "n"),
        (REPOSITORY, "", "n"),
        (REPOSITORY, "pack", ""),
    ],
)
def test_what_is_no_context_is_refused(repository: str, kind: str, name: str) -> None:
    with pytest.raises(MalformedValue):
        seal.Context(repository, ARCHIVE, kind, name)


def test_cutting_copies_nothing() -> None:
    content = bytearray(b"x" * ((1 << 20) + 1))
    first, second = frames.cut(content)
    assert (len(first), len(second)) == (1 << 20, 1)
    content[0] = ord("y")
    assert first[0] == ord("y")


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, 1 << 20])
def test_no_content_compresses_to_more_than_the_bound(size_bytes: int) -> None:
    # Bytes of a counter's digest-like order do not compress; the bound must hold for them too.
    content = (b"".join(bytes([i * 7 % 256, i >> 8 & 255, i * 31 % 251]) for i in range(1 << 12)) * 86)[
        :size_bytes
    ]
    for level in (-5, 1, 3):
        frame = compress.compress_frame(content, level=level)
        assert len(frame) <= compress.frame_bytes_max(size_bytes)
        assert compress.decompress_frame(frame, content_bytes_max=size_bytes) == content
