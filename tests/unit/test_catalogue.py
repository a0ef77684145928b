"""The catalogue: what it keeps, what it lets go, and how it says that it is of no use."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import fix_archive as fix
import pytest

from pitr.catalogue.records import EpochRecord, HistoryRecord
from pitr.catalogue.sqlite import SCHEMA_VERSION, Catalogue, RegionState
from pitr.catalogue.wal_records import PieceHeader, SegmentHeader
from pitr.catalogue_survey import newest_archive, survey_archive
from pitr.errors import MalformedValue, NotInitialised, TargetRefused
from pitr.layout import ArchiveId, PieceKey, SegmentKey
from pitr.quorum import Answers, WriteQuorum
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

SEG = fix.SEGMENT_BYTES
ARCHIVE = fix.archive_of(1)


def piece(start: int, end: int, sequence: int, second: float | None = None) -> tuple[PieceHeader, PieceKey]:
    times = None if second is None else fix.times(second)
    header = fix.piece_header(LSN(start), LSN(end), sequence, transactions=times)
    return header, PieceKey(ARCHIVE, header.segment, header.start, header.end, sequence, f"{sequence:08x}")


def segment(
    number: int, first: int, last: int, attempt: str = "0a0a0a0a"
) -> tuple[SegmentHeader, SegmentKey]:
    header = fix.segment_header(
        LSN(number * SEG), LSN((number + 1) * SEG), first, last, transactions=fix.times(number)
    )
    return header, SegmentKey(ARCHIVE, header.segment, attempt)


def test_wal_units_read_back_as_they_were_recorded() -> None:
    catalogue = Catalogue(":memory:")
    header, key = piece(SEG, SEG + 100, 1, 5)
    catalogue.record_wal(header, key, ["us", "eu"])
    (unit,) = catalogue.wal_units(ARCHIVE)
    assert (unit.key, unit.start, unit.end, unit.segment_bytes) == (key, header.start, header.end, SEG)
    assert unit.transactions == header.transactions
    assert unit.regions == ("eu", "us")


def test_the_greatest_lsn_fits() -> None:
    catalogue = Catalogue(":memory:")
    header, key = piece(2**64 - 200, 2**64 - 100, 1)
    catalogue.record_wal(header, key)
    assert catalogue.wal_units(ARCHIVE)[0].end == header.end


def test_a_whole_segment_takes_the_place_of_its_pieces_in_any_order() -> None:
    pieces = [piece(SEG + n * SEG // 4, SEG + (n + 1) * SEG // 4, n + 1, n) for n in range(4)]
    records = [*pieces, piece(2 * SEG, 2 * SEG + 50, 5), segment(1, 1, 4), segment(1, 1, 4, "0b0b0b0b")]
    dumps = set()
    for seed in range(10):
        shuffled = random.Random(seed).sample(records, len(records))
        catalogue = Catalogue(":memory:")
        for header, key in shuffled:
            catalogue.record_wal(header, key)
        dumps.add(catalogue.dump())
        assert len(catalogue.wal_units(ARCHIVE)) == 2, f"seed {seed}"
    assert len(dumps) == 1


def test_coverage_joins_what_touches_and_shows_holes() -> None:
    catalogue = Catalogue(":memory:")
    catalogue.record_wal(*segment(1, 1, 4), ["eu", "us"])
    catalogue.record_wal(*piece(2 * SEG, 2 * SEG + 100, 5, 1), ["eu"])
    catalogue.record_wal(*piece(3 * SEG, 3 * SEG + 100, 6), ["eu"])
    first, second = catalogue.coverage(ARCHIVE)
    assert (first.start, first.end) == (LSN(SEG), LSN(2 * SEG + 100))
    assert (first.min_at, first.max_at) == (fix.at_second(1), fix.at_second(1))
    assert first.regions == ("eu",)
    assert (second.start, second.min_at) == (LSN(3 * SEG), None)


def test_only_the_newest_head_is_kept() -> None:
    catalogue = Catalogue(":memory:")
    for sequence in (1, 3, 2):
        catalogue.record_head(fix.head_of(sequence=sequence), bytes([sequence]) * 32)
    found = catalogue.head(ARCHIVE)
    assert found is not None
    assert (found.head.sequence, found.payload_sha256) == (3, b"\3" * 32)
    assert catalogue.head(fix.archive_of(2)) is None


def test_backups_histories_and_epochs_read_back(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    catalogue = Catalogue(path)
    manifest = fix.backup_of(LSN(SEG + 40), LSN(SEG + 100), stopped_at=fix.at_second(3))
    epoch = EpochRecord(fix.REPOSITORY, ARCHIVE, fix.BEGIN, "ed25519:x")
    history = HistoryRecord(fix.REPOSITORY, ARCHIVE, TimelineId(2), b"1\t0/300000\tx\n")
    for _ in range(2):
        catalogue.record_backup(manifest, b"\7" * 32)
        catalogue.record_epoch(epoch)
        catalogue.record_history(history)
    dump = catalogue.dump()
    catalogue.close()
    again = Catalogue(path, create=False)
    assert again.dump() == dump
    assert [(b.manifest, b.object_sha256) for b in again.backups(ARCHIVE)] == [(manifest, b"\7" * 32)]
    assert again.epochs() == (epoch,)
    assert again.histories(ARCHIVE) == (history.history(),)
    assert again.archives() == [ARCHIVE]
    again.close()


def test_what_regions_hold_is_no_content() -> None:
    one, other = Catalogue(":memory:"), Catalogue(":memory:")
    one.record_wal(*piece(SEG, SEG + 100, 1), ["eu"])
    other.record_wal(*piece(SEG, SEG + 100, 1), [])
    other.record_region_state(RegionState("eu", False, 7, fix.BEGIN, "down"))
    assert one.dump() == other.dump() != ""
    assert other.regions() == [RegionState("eu", False, 7, fix.BEGIN, "down")]


def test_what_fails_inside_an_atomic_block_is_not_recorded() -> None:
    catalogue = Catalogue(":memory:")
    header, key = piece(SEG, SEG + 100, 1)
    _, wrong = piece(SEG, SEG + 200, 1)

    def record_both() -> None:
        with catalogue.atomic():
            catalogue.record_wal(header, key)
            catalogue.record_wal(header, wrong)

    with pytest.raises(MalformedValue):
        record_both()
    assert catalogue.dump() == ""


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "catalogue.sqlite"
    path.write_bytes(content)
    with pytest.raises((MalformedValue, NotInitialised)) as refused:
        Catalogue(path)
    assert "pitr catalogue rebuild" in str(refused.value.hint)
    assert path.read_bytes() == content


def test_a_torn_page_is_found_at_opening(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    catalogue = Catalogue(path)
    for sequence in range(1, 400):
        catalogue.record_wal(*piece(SEG + sequence * 100, SEG + sequence * 100 + 100, sequence))
    catalogue.close()
    body = bytearray(path.read_bytes())
    for at in range(8192, len(body), 4096):
        body[at : at + 64] = b"\xff" * 64
    path.write_bytes(body)
    with pytest.raises(MalformedValue, match="damaged") as refused:
        Catalogue(path)
    assert "pitr catalogue rebuild" in str(refused.value.hint)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0])
def test_another_version_or_another_programs_file_is_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / "catalogue.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    with pytest.raises(MalformedValue, match="version") as refused:
        Catalogue(path)
    assert "pitr catalogue rebuild" in str(refused.value.hint)


def test_a_catalogue_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotInitialised, match="there is no catalogue"):
        Catalogue(tmp_path / "none.sqlite", create=False)
    with pytest.raises(NotInitialised):
        Catalogue(tmp_path / "no" / "folder" / "catalogue.sqlite")


def test_an_edited_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    catalogue = Catalogue(path)
    catalogue.record_head(fix.head_of(), bytes(32))
    catalogue.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE heads SET payload = '{\"kind\":'")
    connection.commit()
    connection.close()
    catalogue = Catalogue(path)
    with pytest.raises(MalformedValue):
        catalogue.head(ARCHIVE)
    catalogue.close()


def test_the_newest_epoch_of_the_only_cluster_is_meant_and_of_several_none() -> None:
    catalogue = Catalogue(":memory:")
    with pytest.raises(NotInitialised):
        newest_archive(catalogue)
    for epoch in (1, 2):
        catalogue.record_epoch(EpochRecord(fix.REPOSITORY, fix.archive_of(epoch), fix.BEGIN, "ed25519:x"))
    assert newest_archive(catalogue) == fix.archive_of(2)
    catalogue.record_epoch(EpochRecord(fix.REPOSITORY, ArchiveId(5, 1), fix.BEGIN, "ed25519:x"))
    with pytest.raises(TargetRefused, match="several clusters"):
        newest_archive(catalogue)
    assert newest_archive(catalogue, system_identifier=5) == ArchiveId(5, 1)
    survey = survey_archive(catalogue, fix.archive_of(2), Answers(3, WriteQuorum(3, 2)))
    assert [record.archive.epoch for record in survey.epochs] == [1, 2]
