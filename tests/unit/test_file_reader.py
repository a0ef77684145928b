"""Reading files that change under the reader: which bad page is excused, mended or found."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fix_control import control_file

from pitr.errors import BackupFailed, MalformedValue
from pitr.postgres.basebackup import (
    READ_BYTES,
    REREADS_MAX,
    FileReader,
    PageRules,
    parse_backup_label,
    read_control_file,
)
from pitr.postgres.datadir import DataFile, RelationFile, parse_relation_path
from pitr.postgres.page import PAGE_BYTES, blocks_from, page_checksums
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

START, INSERT = LSN(0x1_0000_0000), LSN(0x1_4000_0000)
RELATION = RelationFile(1663, 5, 16384, "main", 0)


def pages(count: int, lsn: int, first_block: int = 0) -> bytearray:
    content = bytearray(random.Random(count).randbytes(count * PAGE_BYTES))
    for index in range(count):
        head = (lsn >> 32, lsn & 0xFFFFFFFF, 0, 0, 24, 8000, 8192, 0x2004)
        struct.pack_into("<IIHHHHHH", content, index * PAGE_BYTES, *head)
    for index in range(count):
        page = memoryview(content)[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
        (checksum,) = page_checksums(page, blocks_from(first_block + index, 1)).tolist()
        struct.pack_into("<H", page, 8, checksum)
    return content


class Place:
    """A data directory of one file, and a reader whose waits are ours."""

    def __init__(self, root: Path, content: bytes, name: str = "16384") -> None:
        self.path = root / "base/5" / name
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(content)
        relation = parse_relation_path(b"base/5/" + name.encode())
        self.file = DataFile(b"base/5/" + name.encode(), len(content), relation)
        self.root = root
        self.waits = 0
        self.notes: list[str] = []
        self.on_wait: Callable[[], None] = lambda: None

    def wait(self, _seconds: float) -> None:
        self.waits += 1
        self.on_wait()

    def read(self, *, checksums: bool = True, direct: bool = True) -> tuple[bytes, list[tuple[int, str]]]:
        rules = PageRules(checksums, 131072, START, lambda: INSERT)
        reader = FileReader(
            os.fsencode(self.root), rules, wait=self.wait, use_direct_io=direct, note=self.notes.append
        )
        with reader.open(self.file) as opened:
            assert opened is not None
            content = b"".join(bytes(piece.content) for piece in opened.pieces())
            assert opened.size_bytes == len(content)
        return content, [(page.block, page.reason) for page in opened.found]


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("count", [1, 511, 512, 513, 1300])
def test_a_file_is_read_as_it_is(tmp_path: Path, count: int, direct: bool) -> None:
    content = bytes(pages(count, 0x5000))
    assert Place(tmp_path, content).read(direct=direct) == (content, [])


@pytest.mark.parametrize("refused", ["open", "preadv"])
def test_a_file_system_without_direct_reads_is_read_all_the_same_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    content = bytes(pages(1300, 0x5000))
    place = Place(tmp_path, content)
    asked: list[bool] = []
    open_file, read_file = os.open, os.preadv

    def open_or_refuse(path: bytes, flags: int) -> int:
        asked.append(bool(flags & os.O_DIRECT))
        if asked[-1] and refused == "open":
            raise OSError(errno.EINVAL, "no direct reads")
        return open_file(path, flags)

    def read_or_refuse(descriptor: int, views: list[memoryview], offset: int) -> int:
        is_direct = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
        # Only now and in the middle, as a device of larger sectors does.
        if is_direct and refused == "preadv" and offset:
            raise OSError(errno.EINVAL, "no direct reads")
        return read_file(descriptor, views, offset)

    monkeypatch.setattr(os, "open", open_or_refuse)
    monkeypatch.setattr(os, "preadv", read_or_refuse)
    assert place.read() == (content, [])
    assert asked == ([True, False] if refused == "open" else [True])
    assert place.notes == ["no O_DIRECT here: reading through the page cache"]


def test_a_later_segments_blocks_count_from_the_first(tmp_path: Path) -> None:
    content = pages(300, 0x5000, 3 * 131072)
    content[7 * PAGE_BYTES + 999] ^= 1
    _, found = Place(tmp_path, bytes(content), "16384.3").read()
    assert [block for block, _ in found] == [3 * 131072 + 7]


def test_a_torn_page_is_read_again_and_its_whole_self_is_kept(tmp_path: Path) -> None:
    whole = bytes(pages(600, 0x5000))
    torn = bytearray(whole)
    torn[520 * PAGE_BYTES + 4096 :: PAGE_BYTES] = b"\0" * len(torn[520 * PAGE_BYTES + 4096 :: PAGE_BYTES])
    place = Place(tmp_path, bytes(torn))
    place.on_wait = lambda: (place.path.write_bytes(whole), None)[1]
    assert place.read() == (whole, [])
    assert place.waits == 1


def test_a_page_that_stays_bad_is_found_and_stored_as_it_is(tmp_path: Path) -> None:
    content = pages(600, 0x5000)
    content[550 * PAGE_BYTES + 100] ^= 1
    place = Place(tmp_path, bytes(content))
    stored, found = place.read()
    assert stored == content
    assert [block for block, _ in found] == [550]
    assert place.waits == REREADS_MAX


@pytest.mark.parametrize(
    ("lsn", "is_found"),
    [
        pytest.param(START.offset - 1, True, id="before the start"),
        pytest.param(START.offset, False, id="at the start"),
        pytest.param(INSERT.offset, False, id="at the insert position"),
        pytest.param(INSERT.offset + 1, True, id="in the future"),
        pytest.param(0, True, id="none"),
    ],
)
@pytest.mark.parametrize("checksums", [True, False])
def test_only_a_page_written_during_the_backup_is_excused(
    tmp_path: Path, lsn: int, is_found: bool, checksums: bool
) -> None:
    content = pages(3, lsn)
    content[PAGE_BYTES + 16] ^= 1  # pd_special
    _, found = Place(tmp_path, bytes(content)).read(checksums=checksums)
    assert [block for block, _ in found] == ([1] if is_found else [])


def test_a_file_that_shrinks_is_as_long_as_what_could_be_read(tmp_path: Path) -> None:
    content = bytes(pages(1500, 0x5000))
    place = Place(tmp_path, content)
    rules = PageRules(True, 131072, START, lambda: INSERT)
    with FileReader(os.fsencode(tmp_path), rules, wait=place.wait).open(place.file) as opened:
        assert opened is not None
        pieces = opened.pieces()
        first = bytes(next(pieces).content)
        os.truncate(place.path, READ_BYTES + 3 * PAGE_BYTES)
        rest = [bytes(piece.content) for piece in pieces]
    assert b"".join([first, *rest]) == content[: READ_BYTES + 3 * PAGE_BYTES]
    assert opened.size_bytes == READ_BYTES + 3 * PAGE_BYTES


def test_a_file_that_grows_is_read_to_the_size_it_had(tmp_path: Path) -> None:
    content = bytes(pages(1500, 0x5000))
    place = Place(tmp_path, content)
    rules = PageRules(True, 131072, START, lambda: INSERT)
    with FileReader(os.fsencode(tmp_path), rules, wait=place.wait).open(place.file) as opened:
        assert opened is not None
        with place.path.open("ab") as file:
            file.write(b"garbage" * 10_000)
        assert b"".join(bytes(piece.content) for piece in opened.pieces()) == content
    assert opened.found == []


def test_a_file_that_ends_inside_a_page_is_waited_for_and_then_found(tmp_path: Path) -> None:
    content = bytes(pages(3, 0x5000))
    place = Place(tmp_path, content[:-100])
    stored, found = place.read()
    assert stored == content[:-100]
    assert [block for block, _ in found] == [2]
    place.on_wait = lambda: (place.path.write_bytes(content), None)[1]
    assert place.read() == (content, [])


def test_a_direct_read_that_is_cut_short_is_not_taken_for_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(pages(1500, 0x5000))
    place = Place(tmp_path, content)
    cut: list[int] = []
    read_file = os.preadv

    def preadv(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
        if not cut:
            cut.append(offset)
            views = [views[0][: 4096 * 5 + 512]]
        return read_file(descriptor, views, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    rules = PageRules(True, 131072, START, lambda: INSERT)
    reader = FileReader(os.fsencode(tmp_path), rules, wait=place.wait)
    with reader.open(place.file) as opened:
        assert opened is not None
        assert b"".join(bytes(piece.content) for piece in opened.pieces()) == content
    assert cut == [0]
    assert opened.size_bytes == len(content)


def test_files_that_hold_no_pages_are_not_judged(tmp_path: Path) -> None:
    content = random.Random(7).randbytes(READ_BYTES + 777)
    assert Place(tmp_path, content, "pg_filenode.map").read() == (content, [])


def test_a_dropped_file_is_no_error_and_a_link_is_not_followed(tmp_path: Path) -> None:
    place = Place(tmp_path, bytes(pages(1, 0x5000)))
    rules = PageRules(True, 131072, START, lambda: INSERT)
    reader = FileReader(os.fsencode(tmp_path), rules, wait=place.wait)
    place.path.unlink()
    with reader.open(place.file) as opened:
        assert opened is None
    place.path.symlink_to("/etc/hostname")
    with pytest.raises(BackupFailed, match="open"), reader.open(place.file):
        pass


def test_garbage_does_not_cost_a_wait_for_each_read(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(16 * PAGE_BYTES)
    place = Place(tmp_path, content)
    rules = PageRules(True, 131072, START, lambda: INSERT)
    reader = FileReader(os.fsencode(tmp_path), rules, wait=place.wait)
    for _ in range(300):
        with reader.open(place.file) as opened:
            assert opened is not None
            for _ in opened.pieces():
                pass
        assert len(opened.found) == 16
    assert place.waits == 600


def test_a_torn_control_file_is_read_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "global/pg_control"
    path.parent.mkdir()
    path.write_bytes(bytes(8192))
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            path.write_bytes(control_file(288))

    assert read_control_file(os.fsencode(tmp_path), wait).content == control_file(288)
    path.write_bytes(bytes(8192))
    with pytest.raises(BackupFailed, match="torn"):
        read_control_file(os.fsencode(tmp_path), lambda _seconds: None)
    path.unlink()
    with pytest.raises(BackupFailed, match="could not read"):
        read_control_file(os.fsencode(tmp_path), lambda _seconds: None)


def test_a_backup_label_says_where_replay_starts() -> None:
    label = parse_backup_label(
        b"START WAL LOCATION: 0/6000028 (file 000000030000000000000006)\n"
        b"CHECKPOINT LOCATION: 0/6000080\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n"
        b"START TIME: 2026-11-23 23:00:00 UTC\nLABEL: x\nSTART TIMELINE: 3\n"
    )
    assert label.start_lsn == LSN.parse("0/6000028")
    assert label.timeline == TimelineId(3)
    for damaged in (b"", b"START WAL LOCATION: 0/6000028\n", b"LABEL: x\nSTART TIMELINE: 3\n"):
        with pytest.raises(MalformedValue):
            parse_backup_label(damaged)
