"""The journal's lines and its file: what is written comes back, up to the first line that does not hold."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pitr.backup_journal import JournalReader, JournalWriter, journal_paths, next_journal_path
from pitr.backup_journal_line import (
    JournaledPack,
    JournalHead,
    decode_head,
    decode_pack,
    encode_head,
    encode_pack,
)
from pitr.catalogue.backup_record import StoredObject
from pitr.errors import MalformedValue
from pitr.layout import ArchiveId
from pitr.pipeline.pack_contents import PackContents, PackedFile, PackedFrame
from pitr.pipeline.packs import Extent, FramePlace

KEY = b"\x07" * 32
AT = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
BACKUP = "20261125T120000Z-full-0123abcd"
HEAD = JournalHead("ab" * 16, ArchiveId(7, 1), BACKUP, "full", None, b"\x01" * 16, AT)
FRAME = PackedFrame((Extent(0, 10, 3, 0, 5, 77), Extent(40, 20, 3, 0, 15, 78)), b"\x02" * 32, 0)
PACK = JournaledPack(
    StoredObject(f"backups/7/00000001/{BACKUP}/pack-0001-000003-0123abcd", 1000, b"\x03" * 32, 2),
    1,
    3,
    PackContents(
        (FramePlace(88, 100), FramePlace(192, 50)),
        (
            PackedFile(b"base/5/\xff odd", (FRAME,)),
            PackedFile(
                b"base/5/16384", (replace(FRAME, extents=(Extent(0, 8, 3, 1, 0, 9),), stored_bytes=44),)
            ),
        ),
    ),
    AT,
)


def written(folder: Path, *packs: JournaledPack, bytes_max: int = 1 << 20) -> Path:
    path = next_journal_path(folder, BACKUP)
    notes: list[str] = []
    journal = JournalWriter(path, HEAD, KEY, note=notes.append, bytes_max=bytes_max)
    for pack in packs:
        journal.add(pack)
    journal.close()
    assert notes == []
    return path


def read(path: Path, key: bytes = KEY) -> list[JournaledPack]:
    reader = JournalReader(path, key)
    try:
        assert reader.head == HEAD
        return list(reader.packs())
    finally:
        reader.close()


@pytest.mark.parametrize("head", [HEAD, replace(HEAD, type="incr", parent=BACKUP)])
def test_a_head_comes_back(head: JournalHead) -> None:
    assert decode_head(encode_head(head)) == head


def test_a_pack_comes_back() -> None:
    assert decode_pack(encode_pack(PACK)) == PACK


def test_a_line_holds_no_more_than_what_it_must() -> None:
    # What a large file costs: docs/backups.md says 130 bytes for each MiB, with its place in the pack.
    frame = PackedFrame((Extent(1 << 29, 1 << 20, 3, 31, 0, 1 << 31),), b"\xff" * 32, 1 << 20)
    some = replace(PACK, contents=replace(PACK.contents, files=(PackedFile(b"base/5/16384", (frame,) * 40),)))
    more = replace(PACK, contents=replace(PACK.contents, files=(PackedFile(b"base/5/16384", (frame,) * 80),)))
    assert (len(encode_pack(more)) - len(encode_pack(some))) / 40 < 120


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b"null", b"\xff", b"{" * 100_000, b'{"version":2}', b'{"version":1,"parent":7}'],
)
def test_a_line_that_makes_no_sense_is_refused(line: bytes) -> None:
    for decode in (decode_head, decode_pack):
        with pytest.raises(MalformedValue):
            decode(line)


def test_what_is_written_is_read_and_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    other = replace(PACK, number=4)
    path = written(tmp_path / "notes", PACK, other)
    assert [pack.number for pack in read(path)] == [3, 4]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert journal_paths(tmp_path / "notes") == {BACKUP: [path]}
    assert next_journal_path(tmp_path / "notes", BACKUP).name == f"{BACKUP}.resume-02"


def test_another_key_reads_nothing(tmp_path: Path) -> None:
    with pytest.raises(MalformedValue, match="not of this host"):
        read(written(tmp_path, PACK), b"\x08" * 32)


@pytest.mark.parametrize("end", range(1, 60, 7))
def test_a_journal_that_was_cut_is_read_up_to_there(tmp_path: Path, end: int) -> None:
    path = written(tmp_path, PACK, PACK)
    path.write_bytes(path.read_bytes()[:-end])
    reader = JournalReader(path, KEY)
    assert len(list(reader.packs())) == 1
    assert not reader.is_damaged
    reader.close()


def test_a_flipped_bit_anywhere_ends_what_is_believed(tmp_path: Path) -> None:
    path = written(tmp_path, PACK, PACK, PACK)
    whole = path.read_bytes()
    begin = whole.index(b"\n") + 1
    for at in range(begin, len(whole), 61):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        packs = read(path)
        assert len(packs) == whole[:at].count(b"\n") - 1
        assert all(pack == PACK for pack in packs)


def test_a_journal_ends_at_its_limit_and_counts_up_to_there(tmp_path: Path) -> None:
    path = written(tmp_path, *[PACK] * 20, bytes_max=3000)
    assert path.stat().st_size < 3100
    assert 0 < len(read(path)) < 6


def test_a_journal_that_names_no_pack_is_removed(tmp_path: Path) -> None:
    assert not written(tmp_path).exists()


_LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path[:0] = [str(Path("tests").absolute()), str(Path("tests/unit").absolute())]
from test_backup_journal import BACKUP, HEAD, KEY, PACK
from pitr.backup_journal import JournalWriter, next_journal_path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
path = next_journal_path(Path(sys.argv[1]), BACKUP)
journal = JournalWriter(path, HEAD, KEY, note=print)
for _ in range(10):
    journal.add(PACK)
journal.close()
assert not path.exists()
"""


def test_a_disk_that_takes_no_more_ends_the_journal_and_not_the_backup(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", _LIMITED, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("could not be resumed") == 1
