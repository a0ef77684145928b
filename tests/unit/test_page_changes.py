"""What changed by the LSN of each page, where there are no WAL summaries; and how files are read for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fix_archive as fix
import pytest
from fix_chain import PAGE_BYTES, real_page
from fix_summaries import relation

from pitr.backup_changes import FilePlan, LeftEmpty, PageLsnFinder, PagesSince, SummaryFinder
from pitr.backup_checks import check_checksums_stayed, check_instance, check_timeline, switched_checksums
from pitr.backup_frames import runs_of
from pitr.backup_parent import NoteWriter, ParentNote, read_note
from pitr.errors import BackupFailed, ServerRefused
from pitr.pipeline.pack_writer import Run
from pitr.postgres.basebackup import ChangedPages, FileReader, OpenedFile, PageRules
from pitr.postgres.control import ControlFile
from pitr.postgres.datadir import DataFile
from pitr.postgres.page import blocks_from, changed_pages
from pitr.postgres.server import ServerFacts, have_checksums
from pitr.postgres.summaries import ChangedPart, Changes
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

SINCE = LSN(0x5000)
WHOLE = None
BACKUP = "20261123T130500Z-full-0a0b0c0d"


@pytest.fixture
def note(tmp_path: Path) -> ParentNote:
    writer = NoteWriter()
    for path in (
        "base/5/16384",
        "base/5/16384_fsm",
        "base/5/16384_vm",
        "base/6/1",
        "global/1260",
        "base/7/1",
    ):
        writer.add(path.encode())
    writer.write(tmp_path, BACKUP, {5: "730", 6: "731"})
    found = read_note(tmp_path, BACKUP)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        pytest.param(relation("base/5/16384", 3), PagesSince(SINCE), id="of a database as it was"),
        pytest.param(relation("global/1260", 3), PagesSince(SINCE), id="a shared catalogue"),
        pytest.param(relation("base/5/16385", 3), WHOLE, id="not in the parent"),
        pytest.param(relation("base/6/1", 3), WHOLE, id="of a database whose row is another"),
        pytest.param(relation("base/7/1", 3), WHOLE, id="of a database that the parent did not know"),
        pytest.param(relation("base/5/16384_fsm", 3), WHOLE, id="a free space map"),
        pytest.param(relation("base/5/16384_vm", 3), WHOLE, id="a visibility map"),
        pytest.param(relation("base/5/16384", 0), WHOLE, id="empty"),
        pytest.param(relation("base/5/16384", 3, rest_bytes=5), WHOLE, id="a part of a page"),
        pytest.param(DataFile(b"pg_xact/0000", 8192, None), WHOLE, id="no relation"),
    ],
)
def test_pages_are_compared_only_where_their_lsn_tells_all(
    note: ParentNote, file: DataFile, expected: FilePlan
) -> None:
    finder = PageLsnFinder(SINCE, note, {1: "3", 5: "730", 6: "999", 7: "740"}, has_checksums=True)
    assert finder.plan(file) == expected


def test_a_database_that_is_being_made_is_whole(note: ParentNote) -> None:
    """Its row is not visible yet."""
    finder = PageLsnFinder(SINCE, note, {6: "731"}, has_checksums=True)
    assert finder.plan(relation("base/5/16384", 3)) is WHOLE


@pytest.mark.parametrize("path", ["base/5/16384_vm", "base/5/99999_vm", "global/1260_vm"])
def test_without_checksums_no_visibility_map_is_kept(note: ParentNote, path: str) -> None:
    finder = PageLsnFinder(SINCE, note, {5: "730"}, has_checksums=False)
    assert finder.plan(relation(path, 3)) == LeftEmpty()
    assert finder.plan(relation("base/5/16384", 3)) == PagesSince(SINCE)


def test_summaries_are_asked_only_of_what_the_parent_has(note: ParentNote) -> None:
    changes = Changes()
    changes.finish()
    finder = SummaryFinder(changes, note, 1000)
    part = finder.plan(relation("base/5/16384", 3))
    assert isinstance(part, ChangedPart)
    assert (part.blocks.tolist(), part.parent_blocks) == ([], 3)
    assert finder.plan(relation("base/5/16385", 3)) is WHOLE


def test_a_page_of_the_parents_start_or_later_has_changed_and_so_has_a_new_one() -> None:
    pages = [real_page(0, 0x4FFF), real_page(1, 0x5000), real_page(2, 0x5001), bytes(PAGE_BYTES)]
    pages += [real_page(4, 1 << 32 | 1), real_page(5, 1)]
    assert changed_pages(memoryview(b"".join(pages)), SINCE).tolist() == [1, 2, 3, 4]


def facts_of(data_checksums: str) -> ServerFacts:
    return ServerFacts(
        version_num=190000,
        system_identifier=7,
        segment_bytes=16 << 20,
        relation_segment_blocks=131072,
        data_directory=Path("/nowhere"),
        has_checksums=have_checksums(data_checksums),
        wal_level="replica",
        max_wal_senders=10,
        is_in_recovery=False,
        started_at=datetime(2026, 11, 30, 7, 0, tzinfo=UTC),
        timeline=TimelineId(1),
        tablespaces=(),
        settings=(),
    )


@pytest.mark.parametrize(
    ("is_standby", "state", "later_s", "is_own"),
    [
        *((False, 6, 0.0, True), (True, 5, 1.2, True), (False, 4, 119.0, True), (True, 5, -4.0, True)),
        # A primary's answer over a standby's files, and the other way.
        *((False, 5, 0.0, False), (True, 6, 0.0, False)),
        # Another standby, that was started earlier or later; no server at all.
        *((True, 5, 3600.0, False), (True, 5, -3600.0, False), (True, 5, None, False)),
    ],
)
def test_the_files_are_those_of_the_server_that_is_asked(
    tmp_path: Path, is_standby: bool, state: int, later_s: float | None, is_own: bool
) -> None:
    facts = replace(facts_of("on"), is_in_recovery=is_standby)
    if later_s is not None:
        began = facts.started_at - timedelta(seconds=later_s)
        (tmp_path / "postmaster.pid").write_text(f"77\n{tmp_path}\n{int(began.timestamp())}\n5432\n/tmp\n")
    control = ControlFile(facts.system_identifier, 1300, 202406281, state)
    if is_own:
        check_instance(facts, os.fsencode(tmp_path), control)
    else:
        with pytest.raises(ServerRefused, match="not the server's own data directory"):
            check_instance(facts, os.fsencode(tmp_path), control)


def test_a_promotion_between_the_question_and_the_start_fails_the_backup() -> None:
    check_timeline(TimelineId(2), TimelineId(2))
    with pytest.raises(BackupFailed, match="promoted"):
        check_timeline(TimelineId(1), TimelineId(2))


@pytest.mark.parametrize(
    ("before", "now", "is_good"),
    [
        ("on", "on", True),
        ("on", "inprogress-off", False),
        ("on", "off", False),
        # Judged as pages without: nothing that was read looks bad for it.
        ("off", "inprogress-on", True),
        ("inprogress-on", "on", True),
        ("inprogress-off", "off", True),
    ],
)
def test_checksums_that_are_switched_off_while_files_are_read_fail_the_backup(
    before: str, now: str, is_good: bool
) -> None:
    facts = facts_of(before)
    assert facts.has_checksums == (before == "on")
    if is_good:
        check_checksums_stayed(facts, now)
    else:
        with pytest.raises(BackupFailed, match="switched while the files were read"):
            check_checksums_stayed(facts, now)


@pytest.mark.parametrize("now", ["on", "off", "inprogress-on", "inprogress-off"])
def test_nothing_is_built_on_a_backup_of_before_checksums_were_switched(now: str) -> None:
    parent = fix.backup_of(LSN(1), LSN(2), stopped_at=fix.at_second(1), number=1)
    for had in (True, False):
        reason = switched_checksums(replace(parent, page_checksums=had), facts_of(now))
        assert (reason is None) == (had == (now == "on"))


def test_blocks_side_by_side_are_one_run() -> None:
    def runs(*blocks: int) -> list[tuple[int, int]]:
        found = runs_of(
            blocks_from(0, 1)[:0] if not blocks else blocks_from(0, max(blocks) + 1)[list(blocks)]
        )
        assert all(isinstance(run, Run) for run in found)
        return [(run.offset // PAGE_BYTES, run.size_bytes // PAGE_BYTES) for run in found]

    assert runs() == []
    assert runs(0) == [(0, 1)]
    assert runs(0, 1, 2, 5, 7, 8) == [(0, 3), (5, 1), (7, 2)]


# --- files that are cut or grow while they are read --------------------------------------------------------


@pytest.fixture
def reader(tmp_path: Path) -> FileReader:
    rules = PageRules(True, 1000, LSN(0x9000), lambda: LSN(0xA000))
    return FileReader(bytes(tmp_path), rules, wait=threading.Event().wait, use_direct_io=False)


def make(tmp_path: Path, blocks: int, lsn: int = 0x6000) -> DataFile:
    (tmp_path / "base/5").mkdir(parents=True, exist_ok=True)
    (tmp_path / "base/5/16384").write_bytes(b"".join(real_page(block, lsn) for block in range(blocks)))
    return relation("base/5/16384", blocks)


def taken(found: Iterator[ChangedPages]) -> dict[int, bytes]:
    return {
        int(block): bytes(pages.content[at * PAGE_BYTES : (at + 1) * PAGE_BYTES])
        for pages in found
        for at, block in enumerate(pages.blocks)
    }


def opened_file(opened: OpenedFile | None) -> OpenedFile:
    assert opened is not None
    return opened


def test_changed_blocks_are_read_here_and_there(tmp_path: Path, reader: FileReader) -> None:
    file = make(tmp_path, 700)
    wanted = blocks_from(0, 700)[[0, 1, 5, 600, 699]]
    with reader.open(file) as opened:
        found = taken(opened_file(opened).changed(wanted))
    assert found == {block: real_page(block, 0x6000) for block in (0, 1, 5, 600, 699)}


def test_a_file_that_was_cut_since_gives_what_is_left_and_its_new_size(
    tmp_path: Path, reader: FileReader
) -> None:
    file = make(tmp_path, 10)
    with reader.open(file) as opened:
        found = opened_file(opened)
        os.truncate(tmp_path / "base/5/16384", 4 * PAGE_BYTES)
        assert list(taken(found.changed(blocks_from(0, 10)[[1, 3, 4, 9]]))) == [1, 3]
        assert found.size_bytes == 4 * PAGE_BYTES
        assert not found.found


def test_a_file_that_grew_since_is_read_to_where_it_was(tmp_path: Path, reader: FileReader) -> None:
    file = make(tmp_path, 3)
    with reader.open(file) as opened:
        found = opened_file(opened)
        with (tmp_path / "base/5/16384").open("ab") as more:
            more.write(real_page(3, 0x9500))
        assert list(taken(found.changed_since(SINCE))) == [0, 1, 2]
        assert found.size_bytes == 3 * PAGE_BYTES


def test_only_pages_of_later_lsns_are_taken_and_in_their_places(tmp_path: Path, reader: FileReader) -> None:
    make(tmp_path, 1200, lsn=0x4000)
    with (tmp_path / "base/5/16384").open("r+b") as file:
        for block in (3, 511, 512, 1199):
            file.seek(block * PAGE_BYTES)
            file.write(real_page(block, 0x5000 + block))
    with reader.open(relation("base/5/16384", 1200)) as opened:
        found = taken(opened_file(opened).changed_since(SINCE))
    assert found == {block: real_page(block, 0x5000 + block) for block in (3, 511, 512, 1199)}


def test_a_bad_page_among_the_changed_ones_is_found_by_its_number_in_the_relation(
    tmp_path: Path, reader: FileReader
) -> None:
    make(tmp_path, 0)
    place = tmp_path / "base/5/16384.1"
    place.write_bytes(b"".join(real_page(1000 + block, 0x6000) for block in range(3)) + b"\1" * PAGE_BYTES)
    with reader.open(relation("base/5/16384.1", 4)) as opened:
        found = opened_file(opened)
        assert list(taken(found.changed(blocks_from(0, 4)[[1, 3]]))) == [1, 3]
        assert [page.block for page in found.found] == [1003]
