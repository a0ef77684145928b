"""The feeder and the shell script that PostgreSQL runs: what is delivered, and how each failure ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fix_wal_path import (
    SEGMENT_BYTES,
    WalKey,
    WalShelf,
    lsn_in,
    segment_content,
    segment_name,
    span,
    write_test_plan,
)

from pitr.errors import NotAuthentic
from pitr.fetch_desk import Desk, Note, fetch_script
from pitr.prefetch import Prefetcher
from pitr.wal.timeline import TimelineId
from pitr.wal_fetch import WalFetchRequest, fetch_wal
from pitr.wal_path import HistoryFile
from storage.store import StoreUnavailable

FIRST, LAST = 3, 14
HISTORY = HistoryFile(TimelineId(2), b"1\t0/300000\treason\n")


@pytest.fixture
def shelf() -> WalShelf:
    shelf = WalShelf()
    for number in range(FIRST, LAST):
        shelf.add_whole(segment_name(number, 2))
    shelf.add_piece(segment_name(LAST, 2), 0, 900)
    return shelf


@pytest.fixture
def plan(tmp_path: Path, shelf: WalShelf) -> Path:
    # Blanks, quotes and a percent sign: the folder is the user's choice.
    folder = tmp_path / "it's 100% mine.pitr"
    folder.mkdir()
    (tmp_path / "data" / "pg_wal").mkdir(parents=True)
    file = write_test_plan(folder, shelf, [span(lsn_in(FIRST), lsn_in(LAST, 900), timeline=2)], [HISTORY])
    write_script(file, [])
    return file


def write_script(plan: Path, command: list[str]) -> None:
    desk = Desk(plan.parent)
    desk.script.write_text(fetch_script(desk, plan, command))


def feeder(plan: Path, shelf: WalShelf, **options: float) -> Prefetcher:
    data_dir = plan.parents[1] / "data"
    return Prefetcher(plan, shelf.read, data_dir=data_dir, user=None, patience_s=0.05, **options)  # type: ignore[arg-type]


def ask(plan: Path, name: str) -> int:
    """Run the script as the server does: in the data directory, with a relative destination."""
    data = plan.parents[1] / "data"
    (data / "pg_wal" / "RECOVERYXLOG").unlink(missing_ok=True)
    script = str(Desk(plan.parent).script)
    return subprocess.run(["/bin/sh", script, name, "pg_wal/RECOVERYXLOG"], cwd=data, check=False).returncode


def delivered(plan: Path) -> bytes:
    return (plan.parents[1] / "data" / "pg_wal" / "RECOVERYXLOG").read_bytes()


def content(number: int) -> bytes:
    if number == LAST:
        return segment_content(segment_name(LAST, 2))[:900] + bytes(SEGMENT_BYTES - 900)
    return segment_content(segment_name(number, 2))


def test_all_segments_are_delivered_in_order_within_the_bound(plan: Path, shelf: WalShelf) -> None:
    spool = Desk(plan.parent).spool
    with feeder(plan, shelf, ahead_bytes_max=4 * SEGMENT_BYTES) as feeding:
        for number in range(FIRST, LAST + 1):
            assert ask(plan, str(segment_name(number, 2))) == 0
            assert delivered(plan) == content(number)
            assert len([entry for entry in spool.iterdir() if entry.suffix == ""]) <= 4
        assert feeding.fetched_bytes == (LAST - FIRST) * SEGMENT_BYTES + 900
    assert len(shelf.reads) == LAST - FIRST + 1


def test_several_segments_are_fetched_at_once(plan: Path, shelf: WalShelf) -> None:
    """Two reads that wait for each other: one after the other neither would come back."""
    meeting, met = threading.Barrier(2), threading.Semaphore(2)

    def read(key: WalKey) -> bytes:
        if met.acquire(blocking=False):
            meeting.wait(20)
        return shelf.read(key)

    data_dir = plan.parents[1] / "data"
    with Prefetcher(plan, read, data_dir=data_dir, user=None, patience_s=0.05) as feeding:
        for number in (FIRST, FIRST + 1):
            assert ask(plan, str(segment_name(number, 2))) == 0
            assert delivered(plan) == content(number)
        assert feeding.doubts == ()


def test_a_segment_is_delivered_as_often_as_it_is_asked_for_and_after_any_jump(
    plan: Path, shelf: WalShelf
) -> None:
    with feeder(plan, shelf, ahead_bytes_max=3 * SEGMENT_BYTES):
        for number in (FIRST + 1, FIRST, FIRST + 1, FIRST + 1, LAST, FIRST, LAST - 1, LAST):
            assert ask(plan, str(segment_name(number, 2))) == 0, number
            assert delivered(plan) == content(number)


def test_history_files_come_from_the_plan_as_often_as_they_are_asked_for(plan: Path, shelf: WalShelf) -> None:
    with feeder(plan, shelf):
        for _ in range(2):
            assert ask(plan, "00000002.history") == 0
            assert delivered(plan) == HISTORY.content


def test_names_outside_the_plan_end_with_one_and_odd_ones_with_doubt(plan: Path, shelf: WalShelf) -> None:
    with feeder(plan, shelf):
        for name in ("00000003.history", str(segment_name(LAST + 1, 2)), str(segment_name(5, 1))):
            assert ask(plan, name) == 1, name
        for name in ("RECOVERYXLOG", "../ask", "", "a b", "$(id)", str(segment_name(0xB, 2)).lower()):
            assert ask(plan, name) == 200, name


def test_a_hole_is_doubt_however_often_it_is_asked_for(plan: Path, shelf: WalShelf) -> None:
    hole = segment_name(FIRST + 2, 2)
    (key,) = [key for key in shelf.objects if key.segment == hole]
    shelf.fail(key, NotAuthentic("wrong tag"))
    with feeder(plan, shelf) as feeding:
        for number in (FIRST, FIRST + 1):
            assert ask(plan, str(segment_name(number, 2))) == 0
        assert ask(plan, str(hole)) == 200
        assert ask(plan, str(hole)) == 200
        assert "wrong tag" in feeding.doubts[0]
        shelf.faults.clear()
        assert ask(plan, str(hole)) == 0
        assert not feeding.doubts


def test_a_mistake_of_ours_is_doubt_at_once_and_the_feeder_goes_on(plan: Path, shelf: WalShelf) -> None:
    wrong = segment_name(FIRST + 1, 2)

    def read(key: WalKey) -> bytes:
        if key.segment == wrong:
            raise KeyError("nobody foresaw this")
        return shelf.read(key)

    data_dir = plan.parents[1] / "data"
    with Prefetcher(plan, read, data_dir=data_dir, user=None, patience_s=0.05) as feeding:
        assert ask(plan, str(segment_name(FIRST, 2))) == 0
        begun_s = time.monotonic()
        for _ in range(5):  # more often than there are threads to lose
            assert ask(plan, str(wrong)) == 200
        assert time.monotonic() - begun_s < 60
        assert "nobody foresaw this" in feeding.doubts[0]
        assert ask(plan, str(segment_name(FIRST + 2, 2))) == 0


def test_a_short_outage_only_delays(plan: Path, shelf: WalShelf) -> None:
    class Flaky:
        calls = 0

        def read(self, key: WalKey) -> bytes:
            self.calls += 1
            if self.calls <= 2:
                raise StoreUnavailable("for a moment")
            return shelf.read(key)

    with Prefetcher(plan, Flaky().read, data_dir=plan.parent, user=None, patience_s=30):
        assert ask(plan, str(segment_name(FIRST, 2))) == 0


def test_without_a_feeder_and_a_command_everything_is_doubt(plan: Path, shelf: WalShelf) -> None:
    for name in (str(segment_name(FIRST, 2)), "00000003.history", str(segment_name(LAST + 1, 2))):
        assert ask(plan, name) == 200


def test_without_a_feeder_the_command_decides(plan: Path) -> None:
    program = f"import sys; sys.exit(0 if sys.argv[3:] == ['--plan', {str(plan)!r}] else 99)"
    write_script(plan, [sys.executable, "-c", program])
    assert ask(plan, str(segment_name(FIRST, 2))) == 0
    write_script(plan, [sys.executable, "-c", "import sys; sys.exit(1)"])
    assert ask(plan, "00000003.history") == 1
    write_script(plan, ["/no/such/program"])
    assert ask(plan, "00000003.history") > 125


def test_a_feeder_that_was_killed_is_nobody(plan: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    Desk(plan.parent).feeder.write_text(f"{child.pid}\n")
    assert ask(plan, str(segment_name(FIRST, 2))) == 200


def test_a_destination_that_cannot_be_written_is_doubt_at_once(plan: Path, shelf: WalShelf) -> None:
    with feeder(plan, shelf):
        folder = plan.parents[1] / "data" / "pg_wal"
        folder.rmdir()
        assert ask(plan, str(segment_name(FIRST, 2))) == 200


def test_the_server_ends_a_waiting_fetch_by_sigterm_and_sees_that(plan: Path, shelf: WalShelf) -> None:
    desk = Desk(plan.parent)
    for folder in (desk.ask, desk.answers):
        folder.mkdir()
    desk.feeder.write_text(f"{os.getpid()}\n")  # somebody who never answers
    words = ["/bin/sh", str(desk.script), str(segment_name(FIRST, 2)), "pg_wal/RECOVERYXLOG"]
    waiting = subprocess.Popen(words, cwd=plan.parents[1] / "data", start_new_session=True)
    deadline = time.monotonic() + 20
    while not list(desk.ask.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(waiting.pid, signal.SIGTERM)
    assert waiting.wait(timeout=20) == -signal.SIGTERM


def test_the_program_asks_the_feeder_as_well(plan: Path, shelf: WalShelf) -> None:
    def refuse(header: object) -> object:
        raise AssertionError("the feeder has it")

    def fetch(name: str) -> int:
        place = plan.parents[1] / "got"
        return fetch_wal(WalFetchRequest(name, place, plan, False, refuse)).exit_code  # type: ignore[arg-type]

    with feeder(plan, shelf):
        assert fetch(str(segment_name(LAST, 2))) == 0
        assert (plan.parents[1] / "got").read_bytes() == content(LAST)
        for key in list(shelf.objects):
            shelf.fail(key, NotAuthentic("wrong tag"))
        assert fetch(str(segment_name(FIRST, 2))) in (0, 200)
        assert fetch("00000009.history") == 1
    for spooled in Desk(plan.parent).spool.iterdir():
        spooled.unlink()
    assert fetch(str(segment_name(FIRST + 5, 2))) == 200


def test_a_note_is_one_line_and_what_cannot_be_read_is_doubt() -> None:
    note = Note(1, "two\nlines  here")
    assert note.encode() == b"1 two lines here\n"
    assert Note.decode(note.encode()) == Note(1, "two lines here")
    for damaged in (b"", b"\n", b"0 fine\n", b"11 x\n", b"\xff\n"):
        assert Note.decode(damaged).exit_code == 200
