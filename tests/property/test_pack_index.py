"""What a part writer wrote, the index and the packs give back; hostile indexes are refused."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pitr.errors import MalformedValue
from pitr.layout import ArchiveId
from pitr.pipeline.crc import FileCrc32c, crc32c, crc32c_combine, crc32c_zeros
from pitr.pipeline.keys import DataKey
from pitr.pipeline.pack_writer import (
    PACK_ENTRIES_MAX,
    RUNS_MAX,
    SMALL_BYTES_MAX,
    FileStatus,
    PartWriter,
    Run,
)
from pitr.pipeline.packs import (
    LINE_BYTES_MAX,
    Extent,
    IndexDirectory,
    IndexFile,
    IndexFileMore,
    IndexLine,
    IndexLink,
    IndexPack,
    encode_line,
    iter_index,
)
from pitr.pipeline.part_objects import PartKind, SealedPart
from pitr.pipeline.seal import Context, Opener, iter_frames

DATA_KEY = DataKey(bytes(range(32)))
STATUS = FileStatus(0o600, 1_700_000_000)
CHUNK = 1 << 20


def context(kind: PartKind, part: int, number: int) -> Context:
    return Context("0" * 32, ArchiveId(7, 1), kind, f"backup/{part:04d}/{number:06d}")


def read_back(parts: list[SealedPart]) -> dict[bytes, bytearray]:
    """Rebuild every file from the sealed objects, as a restore does: one pack at a time."""
    packs = {part.number: part.body for part in parts if part.kind == "pack"}
    files: dict[bytes, bytearray] = {}
    waiting: list[IndexFile | IndexFileMore] = []

    def place(body: bytes | None, pack: IndexPack | None) -> None:
        for line in waiting:
            content = files.setdefault(line.path, bytearray())
            for extent in line.extents:
                assert body is not None
                assert pack is not None
                where = pack.frames[extent.frame]
                sealed = body[where.offset + 4 : where.offset + 4 + where.sealed_bytes]
                opener = Opener(body[:88], DATA_KEY, context("pack", 3, pack.number))
                frame = opener.open_frame(sealed, extent.frame, last=extent.frame == len(pack.frames) - 1)
                run = frame[extent.frame_offset : extent.frame_offset + extent.size_bytes]
                assert crc32c(run) == extent.crc32c
                content.extend(bytes(extent.offset - len(content)))
                content.extend(run)
            if isinstance(line, IndexFile):
                content.extend(bytes(line.size_bytes - len(content)))
        waiting.clear()

    for line in iter_index(index_frames(parts)):
        if isinstance(line, IndexPack):
            place(packs.pop(line.number), line)
        elif isinstance(line, IndexFile | IndexFileMore):
            waiting.append(line)
    place(None, None)
    assert not packs
    return files


def index_frames(parts: list[SealedPart]) -> list[list[bytes]]:
    indexes = [part for part in parts if part.kind == "index"]
    assert [part.number for part in indexes] == list(range(len(indexes)))
    return [list(iter_frames(part.body, DATA_KEY, context("index", 3, part.number))) for part in indexes]


@st.composite
def file_plans(draw: st.DrawFn) -> list[list[tuple[int, int]]]:
    """Files as runs of (zero bytes before, bytes); a small one is a single run from 0."""
    run = st.tuples(st.sampled_from([0, 1, 8192, CHUNK]), st.sampled_from([1, 700, CHUNK // 2 + 1, CHUNK]))
    return draw(st.lists(st.lists(run, max_size=6), max_size=12))


@settings(max_examples=40, deadline=None)
@given(plans=file_plans(), pack_bytes=st.sampled_from([1, CHUNK, 3 * CHUNK]), seed=st.integers(0, 255))
def test_files_come_back_from_packs_and_index(
    plans: list[list[tuple[int, int]]], pack_bytes: int, seed: int
) -> None:
    parts: list[SealedPart] = []
    writer = PartWriter(3, DATA_KEY, context, parts.append, pack_bytes=pack_bytes)
    expected: dict[bytes, bytes] = {}
    for number, plan in enumerate(plans):
        path = b"base/5/%d\xff" % number if number % 2 else b"base/5/%d" % number
        content = bytearray()
        is_small = sum(gap + size for gap, size in plan) <= SMALL_BYTES_MAX
        file = None if is_small else writer.open_file(path)
        for gap, size in plan:
            content.extend(bytes(gap))
            run = hashlib.shake_128(bytes([seed, number & 0xFF])).digest(size)
            if file is not None:
                file.add(len(content), run)
            content.extend(run)
        if file is None:
            writer.add_small(path, bytes(content), STATUS)
        else:
            content.extend(bytes(100))
            file.close(len(content), STATUS)
        expected[path] = bytes(content)
    writer.finish()
    assert {path: bytes(content) for path, content in read_back(parts).items()} == expected
    for part in parts:
        assert hashlib.sha256(part.body).digest() == part.sha256
    for line in iter_index(index_frames(parts)):
        if isinstance(line, IndexFile):
            assert line.crc32c == crc32c(expected[line.path])


def test_packs_of_many_small_files_are_closed_when_full() -> None:
    parts: list[SealedPart] = []
    writer = PartWriter(3, DATA_KEY, context, parts.append, pack_bytes=CHUNK)
    contents = {b"base/%d" % n: hashlib.shake_128(b"%d" % n).digest(SMALL_BYTES_MAX) for n in range(12)}
    for path, content in contents.items():
        writer.add_small(path, content, STATUS)
    writer.finish()
    assert sum(part.kind == "pack" for part in parts) >= 3
    assert {path: bytes(content) for path, content in read_back(parts).items()} == contents


def test_what_the_index_says_of_one_pack_is_bounded_however_well_its_files_compress() -> None:
    parts: list[SealedPart] = []
    writer = PartWriter(3, DATA_KEY, context, parts.append)
    page = bytes(8192)
    for number in range(PACK_ENTRIES_MAX):
        writer.add_small(b"base/5/%d" % number, page[:16], STATUS)
    # Every other page of a large file.
    file = writer.open_file(b"base/5/large")
    for first in range(0, PACK_ENTRIES_MAX, 128):
        file.add_runs(page * 128, [Run((first + n) * 16_384, 8192) for n in range(128)])
    file.close(PACK_ENTRIES_MAX * 16_384, STATUS)
    writer.finish()
    entries, most = 0, 0
    for line in iter_index(index_frames(parts)):
        if isinstance(line, IndexFile | IndexFileMore):
            entries += 1 + len(line.extents)
        if isinstance(line, IndexPack):
            entries, most = 0, max(most, entries)
    # Those of the frame that is shared when the pack is full come on top.
    assert PACK_ENTRIES_MAX <= most <= PACK_ENTRIES_MAX + 2 * 4096 + 2


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.lists(st.sets(st.integers(0, 9000), max_size=90), max_size=6),
    pack_bytes=st.sampled_from([1, CHUNK]),
    parent_pages=st.integers(0, 9001),
)
def test_files_of_which_pages_changed_come_back_as_those_pages(
    blocks: list[set[int]], pack_bytes: int, parent_pages: int
) -> None:
    check_partial_files([sorted(each) for each in blocks], pack_bytes, parent_pages)


def test_more_runs_than_a_line_holds_go_on_in_the_next_line_and_pack() -> None:
    check_partial_files([[1, 2, 3], list(range(0, 9001, 2)), [7]], CHUNK, 9001)


def check_partial_files(wanted: list[list[int]], pack_bytes: int, parent_pages: int) -> None:
    """Write files of 9,001 pages of which some changed; read the index and every frame back."""
    parts: list[SealedPart] = []
    writer = PartWriter(3, DATA_KEY, context, parts.append, pack_bytes=pack_bytes)
    size, kept = 9001 * 8192, parent_pages * 8192
    expected: dict[bytes, dict[int, bytes]] = {}
    for number, numbers in enumerate(wanted):
        path = b"base/5/%d" % number
        pages = {block * 8192: b"%08d" % (number * 10_000 + block) * 1024 for block in numbers}
        runs = [Run(offset, 8192) for offset in pages]
        content = b"".join(pages.values())
        if len(content) <= SMALL_BYTES_MAX:
            writer.add_changed(path, content, runs, size, STATUS, parent_bytes=kept)
        else:
            file = writer.open_file(path)
            for first in range(0, len(runs), 128):
                file.add_runs(content[first * 8192 : (first + 128) * 8192], runs[first : first + 128])
            file.close(size, STATUS, parent_bytes=kept)
        expected[path] = pages
    writer.finish()
    found: dict[bytes, dict[int, Extent]] = {}
    lines = list(iter_index(index_frames(parts)))
    for line in lines:
        if isinstance(line, IndexFile | IndexFileMore):
            assert len(line.extents) <= RUNS_MAX
            assert len(encode_line(line)) <= LINE_BYTES_MAX
            extents = found.setdefault(line.path, {})
            extents |= {extent.offset: extent for extent in line.extents}
        if isinstance(line, IndexFile):
            assert (line.size_bytes, line.crc32c, line.parent_bytes) == (size, None, kept)
    assert {path: list(extents) for path, extents in found.items()} == {
        path: list(pages) for path, pages in expected.items()
    }
    frames = read_frames(parts, lines)
    for path, extents in found.items():
        for offset, extent in extents.items():
            run = frames[extent.pack, extent.frame][extent.frame_offset :][: extent.size_bytes]
            assert run == expected[path][offset]
            assert crc32c(run) == extent.crc32c


def read_frames(parts: list[SealedPart], lines: list[IndexLine]) -> dict[tuple[int, int], bytes]:
    """Open every frame alone, by what the pack's line says of it."""
    packs = {part.number: part.body for part in parts if part.kind == "pack"}
    frames = {}
    for pack in lines:
        if isinstance(pack, IndexPack):
            body = packs[pack.number]
            opener = Opener(body[:88], DATA_KEY, context("pack", 3, pack.number))
            for number, place in enumerate(pack.frames):
                sealed = body[place.offset + 4 : place.offset + 4 + place.sealed_bytes]
                is_last = number == len(pack.frames) - 1
                frames[pack.number, number] = opener.open_frame(sealed, number, last=is_last)
    return frames


def test_too_much_to_share_a_frame_is_refused() -> None:
    writer = PartWriter(3, DATA_KEY, context, lambda _part: None)
    with pytest.raises(ValueError, match="too much"):
        writer.add_changed(
            b"a", bytes(SMALL_BYTES_MAX + 1), [Run(0, SMALL_BYTES_MAX + 1)], 1 << 20, STATUS, parent_bytes=0
        )
    runs = [Run(2 * n, 1) for n in range(RUNS_MAX + 1)]
    with pytest.raises(ValueError, match="too much"):
        writer.add_changed(b"a", bytes(len(runs)), runs, 1 << 20, STATUS, parent_bytes=0)
    with pytest.raises(ValueError, match="bytes in runs"):
        writer.add_changed(b"a", bytes(10), [Run(0, 9)], 1 << 20, STATUS, parent_bytes=0)


def test_directories_and_links_come_back() -> None:
    parts: list[SealedPart] = []
    writer = PartWriter(3, DATA_KEY, context, parts.append)
    writer.add_directory(b"pg_wal", 0o700)
    writer.add_directory(b"odd\xff", 0o750)
    writer.add_link(b"pg_tblspc/16400", 16400)
    writer.finish()
    assert list(iter_index(index_frames(parts))) == [
        IndexDirectory(b"pg_wal", 0o700),
        IndexDirectory(b"odd\xff", 0o750),
        IndexLink(b"pg_tblspc/16400", 16400),
    ]
    assert [part.kind for part in parts] == ["index"]


@given(first=st.binary(max_size=300), second=st.binary(max_size=300), gap=st.integers(0, 5000))
@example(first=b"", second=b"", gap=0)
def test_crcs_join(first: bytes, second: bytes, gap: int) -> None:
    whole = first + bytes(gap) + second
    assert crc32c_combine(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)
    assert crc32c_zeros(gap) == crc32c(bytes(gap))
    crc = FileCrc32c()
    crc.add(0, len(first), crc32c(first))
    crc.add(len(first) + gap, len(second), crc32c(second))
    assert crc.finish(len(whole) + 7) == crc32c(whole + bytes(7))


def file_line(**changes: object) -> dict[str, object]:
    return {
        "path": "base/1/2",
        "size": 10,
        "mode": 0o600,
        "mtime": 1,
        "crc32c": f"{crc32c(b'0123456789'):08x}",
        "extents": [[0, 10, 0, 0, 0, f"{crc32c(b'0123456789'):08x}"]],
        **changes,
    }


PACK = {"pack": 0, "frames": [[88, 50]]}
EXTENT = file_line()["extents"][0]  # type: ignore[index]


def lines_of(*lines: object) -> list[IndexLine]:
    return list(iter_index([[b"".join(json.dumps(line).encode() + b"\n" for line in lines)]]))


def test_a_good_index_is_accepted() -> None:
    assert lines_of(file_line(), PACK)[0] == IndexFile(
        b"base/1/2",
        10,
        0o600,
        1,
        crc32c(b"0123456789"),
        (Extent(0, 10, 0, 0, 0, crc32c(b"0123456789")),),
    )


def test_packs_may_come_in_any_order_with_numbers_left_out() -> None:
    places = [[88, 50]]
    later = [file_line(path="a", extents=[[*EXTENT[:2], 9, *EXTENT[3:]]]), {"pack": 9, "frames": places}]
    assert len(lines_of(*later, file_line(), PACK)) == 4
    with pytest.raises(MalformedValue, match="comes next"):
        lines_of(*later, file_line(), PACK, *later)


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "base/../../x", "base//x", "base/./x", "a/", "nul\0", "x" * 5000, "\ud800"],
)
@pytest.mark.parametrize("kind", ["path", "directory"])
def test_a_path_out_of_the_data_directory_is_refused(path: str, kind: str) -> None:
    line = file_line(path=path) if kind == "path" else {"directory": path, "mode": 0o700}
    with pytest.raises(MalformedValue):
        lines_of(line, PACK)


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([file_line(), {"pack": 0, "frames": []}], id="no frames"),
        pytest.param([file_line()], id="no line of the pack"),
        pytest.param(
            [file_line(extents=[[*EXTENT[:3], 1, *EXTENT[4:]]]), PACK], id="frame that is not there"
        ),
        pytest.param([file_line(extents=[[*EXTENT[:2], 1, *EXTENT[3:]]]), PACK], id="pack out of order"),
        pytest.param([file_line(extents=[[*EXTENT[:4], 1 << 20, EXTENT[5]]]), PACK], id="past the frame"),
        pytest.param([file_line(extents=[EXTENT, EXTENT], size=20), PACK], id="overlap"),
        pytest.param([file_line(size=9), PACK], id="longer than the file"),
        pytest.param([file_line(size=11), PACK], id="CRC of another size"),
        pytest.param([file_line(crc32c="00000000"), PACK], id="wrong CRC"),
        pytest.param([file_line(size=1 << 60), PACK], id="huge size"),
        pytest.param([file_line(size=-1), PACK], id="negative size"),
        pytest.param([file_line(size=10.0), PACK], id="float"),
        pytest.param([file_line(size=True), PACK], id="boolean"),
        pytest.param([file_line(mode=0o10000), PACK], id="mode"),
        pytest.param([file_line(parent_bytes=11), PACK], id="more of the parent than the file"),
        pytest.param([file_line(parent_bytes=-1), PACK], id="less than nothing of the parent"),
        pytest.param([file_line(parent_bytes=None), PACK], id="null of the parent"),
        pytest.param([file_line(parent_bytes=True), PACK], id="boolean of the parent"),
        pytest.param([file_line(parent_bytes=5), PACK], id="a sum of what nobody has read"),
        pytest.param([file_line(crc32c=None), PACK], id="whole without a sum"),
        pytest.param([file_line(extents=[[0, 0, 0, 0, 0, "00000000"]]), PACK], id="empty extent"),
        pytest.param([file_line(), PACK, PACK], id="pack twice"),
        pytest.param([file_line(), {"pack": 0, "frames": [[87, 50]]}], id="frame in the header"),
        pytest.param([file_line(), {"pack": 0, "frames": [[88, 50], [140, 50]]}], id="frames overlap"),
        pytest.param([file_line(), {"pack": 0, "frames": [[88, 1 << 30]]}], id="huge frame"),
        pytest.param([{"link": "pg_tblspc/../x", "to": 1}], id="link elsewhere"),
        pytest.param([{"link": "base", "to": 1}], id="link that is no tablespace"),
        pytest.param([{"path": "a", "more": True, "extents": [EXTENT]}, PACK], id="file not ended"),
        pytest.param(
            [
                {"path": "a", "more": True, "extents": [EXTENT]},
                PACK,
                {"path": "b", "more": True, "extents": []},
            ],
            id="two files open",
        ),
        pytest.param([[]], id="no object"),
        pytest.param([{"path_hex": "zz"}], id="no hex"),
    ],
)
def test_a_hostile_index_is_refused(lines: list[object]) -> None:
    with pytest.raises(MalformedValue):
        lines_of(*lines)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"{}", id="no line feed"),
        pytest.param(b"[" * 100_000 + b"\n", id="deep"),
        pytest.param(b'{"pack": ' + b"9" * 10_000 + b"}\n", id="number of many digits"),
        pytest.param(b'{"pack": NaN}\n', id="not a number"),
        pytest.param(b"\xff\xff\n", id="no text"),
        pytest.param(b" " * (2 << 20), id="long line"),
    ],
)
def test_bytes_that_are_no_index_are_refused(content: bytes) -> None:
    with pytest.raises(MalformedValue):
        list(iter_index([[content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]]))
