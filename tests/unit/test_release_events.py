"""What the watchdog noted becomes signed events: each once, whatever was killed, and none too early."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import fix_archive as fix
import pytest
from fix_repository import RepositoryHouse

from cli.release_signer import ReleaseSigner
from pitr.catalogue.event_record import EventKind, Happening
from pitr.event_log import NOTES_MAX, EventLog, NotesFile
from pitr.event_reader import EventReader
from pitr.release_events import UNFINISHED_AFTER, identity_of, new_happenings
from pitr.release_journal import Note, Release, ReleaseJournal, ReleaseStep
from storage.memory import MemoryStore

Step = ReleaseStep
AT = datetime(2026, 11, 30, 12, tzinfo=UTC)
RELEASE = Release("10.0.0.1 5432 /data", "pitr", True, "")
DEADLINE_S = 20.0


def note(number: int, step: ReleaseStep) -> Note:
    release = None if step in (Step.WARNED, Step.FAILED) else RELEASE
    return Note(AT + timedelta(seconds=number), step, f"reason {number}", release)


def notes(*steps: ReleaseStep) -> list[Note]:
    return [note(number, step) for number, step in enumerate(steps)]


def told(found: Sequence[Note], position: str | None = None, *, after: timedelta = timedelta()) -> list[str]:
    happenings = new_happenings(found, position, found[-1].at + after)
    return [f"{happening.event}: {happening.message.partition(': ')[2]}" for happening, _ in happenings]


def test_each_outcome_is_an_event_and_what_was_intended_is_none() -> None:
    steps = (Step.RELEASING, Step.RELEASED, Step.HOLDING, Step.FAILED, Step.HOLDING, Step.HELD, Step.LEFT)
    assert told(notes(*steps, Step.WARNED)) == [
        "commits-released: reason 1",
        "commits-waited: reason 3",
        "commits-held-again: reason 5",
        "release-left: reason 6",
        "commits-waited: reason 7",
    ]
    happening, position = next(new_happenings(notes(*steps), None, AT))
    assert happening == Happening(
        AT + timedelta(seconds=1),
        "commits-released",
        "the watchdog released commits: reason 1",
        (
            ("before", "pitr"),
            ("by", "watchdog"),
            ("note", position),
            ("released", ""),
            ("server", "10.0.0.1 5432 /data"),
            ("step", "released"),
        ),
    )


def test_a_release_whose_outcome_nobody_noted_is_an_event_after_a_minute() -> None:
    found = notes(Step.WARNED, Step.RELEASING)
    assert told(found) == ["commits-waited: reason 0"]
    assert told(found, after=UNFINISHED_AFTER) == ["commits-waited: reason 0", "commits-released: reason 1"]
    assert told(notes(Step.RELEASED, Step.HOLDING), after=UNFINISHED_AFTER) == ["commits-released: reason 0"]
    found.append(note(2, Step.RELEASED))
    assert told(found, identity_of(found[1])) == ["commits-released: reason 2"]


def test_only_what_comes_after_the_position_is_new_and_all_of_it_where_that_made_room() -> None:
    found = notes(Step.RELEASED, Step.HELD, Step.RELEASED)
    assert told(found, identity_of(found[1])) == ["commits-released: reason 2"]
    assert told(found, identity_of(found[2])) == []
    assert len(told(found[1:], identity_of(found[0]))) == 2
    assert len({identity_of(one) for one in found}) == 3


class Host:
    """A state directory with a journal and notes, and the store that the daemon puts into."""

    def __init__(self, folder: Path) -> None:
        self.house = RepositoryHouse(MemoryStore())
        self.journal = ReleaseJournal(folder / "releases.jsonl")
        self.notes_path = folder / "events"
        self.said: list[str] = []

    def log(self) -> EventLog:
        return EventLog(
            self.house.repository,
            self.house.archive,
            self.house.host,
            NotesFile(self.notes_path),
            on_failure=self.said.append,
        )

    def look(self, log: EventLog) -> None:
        ReleaseSigner(self.journal, log, say=self.said.append, now=lambda: AT).look()

    def put(self, log: EventLog) -> None:
        log.start()
        assert log.stop(DEADLINE_S)

    def signed(self) -> list[str]:
        page = EventReader(self.house.repository).page(self.house.archive, limit=10_000)
        assert page.faults == ()
        return [one.record.happening.message for one in reversed(page.events)]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_the_next_run_signs_what_came_meanwhile_and_nothing_again(host: Host) -> None:
    log = host.log()
    host.look(log)
    host.journal.note(note(1, Step.RELEASED))
    host.look(log)
    host.look(log)
    host.put(log)
    host.journal.note(note(2, Step.HELD))
    for _ in range(2):
        log = host.log()
        host.look(log)
        host.put(log)
    assert host.signed() == [
        "the watchdog released commits: reason 1",
        "commits wait again as before: reason 2",
    ]


def test_a_journal_that_is_brought_from_another_host_is_signed_note_by_note(host: Host) -> None:
    elsewhere = ReleaseJournal(host.notes_path.with_name("elsewhere.jsonl"))
    brought = host.notes_path.with_name("releases.jsonl")
    log = host.log()
    for number, step in enumerate((Step.RELEASED, Step.HELD, Step.RELEASED), start=1):
        elsewhere.note(note(number, step))
        for _ in range(2):
            copy = brought.with_suffix(".new")
            copy.write_bytes(host.notes_path.with_name("elsewhere.jsonl").read_bytes())
            copy.rename(brought)
            host.look(log)
    host.put(log)
    assert [message.rpartition(" ")[2] for message in host.signed()] == ["1", "2", "3"]


def test_where_no_note_can_be_kept_it_is_said_once_and_done_later(host: Host) -> None:
    first = host.log()
    first.note(Happening.of(fix.BEGIN, EventKind.WAL_LOST, "a loss"))
    head, line = host.notes_path.read_bytes().splitlines(keepends=True)
    host.notes_path.write_bytes(head + line * (NOTES_MAX - 1))
    log = host.log()
    host.journal.note(note(1, Step.RELEASED))
    host.journal.note(note(2, Step.HELD))
    signer = ReleaseSigner(host.journal, log, say=host.said.append, now=lambda: AT)
    signer.look()
    signer.look()
    assert host.said == [
        f"what the watchdog did cannot be signed now: {NOTES_MAX} events wait to be put already"
    ]
    # All but the last of them were put meanwhile; how far the journal is noted stands in the first line.
    lines = host.notes_path.read_bytes().splitlines(keepends=True)
    host.notes_path.write_bytes(lines[0] + lines[-1])
    log = host.log()
    host.look(log)
    host.put(log)
    assert host.signed() == [
        "the watchdog released commits: reason 1",
        "commits wait again as before: reason 2",
    ]


CHILD = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from cli.release_signer import ReleaseSigner
from pitr.event_log import EventLog, NotesFile
from pitr.release_journal import ReleaseJournal

folder = Path(sys.argv[1])

class NoStore:
    notes = NotesFile(folder / "events")
    def note(self, happening, *, position):
        self.notes.add(happening, position=position)
    @property
    def position(self):
        return self.notes.position

journal = ReleaseJournal(folder / "releases.jsonl")
signer = ReleaseSigner(journal, NoStore(), say=print, now=lambda: datetime.now(UTC))
print("ready", flush=True)
while True:
    signer.look()
"""


def test_a_daemon_that_is_killed_at_any_moment_signs_each_note_once(host: Host, tmp_path: Path) -> None:
    random, count = Random(5), 0
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            until_s = time.monotonic() + random.uniform(0.05, 0.2)
            while time.monotonic() < until_s:
                count += 1
                host.journal.note(note(count, Step.HELD))
        finally:
            child.send_signal(signal.SIGKILL)
            child.communicate(timeout=10)
    log = host.log()
    host.look(log)
    assert NotesFile(host.notes_path).damaged == 0
    host.put(log)
    signed = [message.rpartition(" ")[2] for message in host.signed()]
    assert signed == [str(number) for number in range(1, count + 1)]
    assert count > 20
