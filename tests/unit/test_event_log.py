"""Signed events: noted before anything else, put in order once, chained, and read by whoever doubts."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import fix_archive as fix
import pytest
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore

from pitr.catalogue.event_record import EventKind, EventRecord, Happening
from pitr.errors import MalformedValue, NotAuthentic
from pitr.event_log import NOTES_MAX, EventLog, NotesFailed, NotesFile, Tally
from pitr.event_reader import EventReader
from pitr.layout import event_key, event_sequence
from pitr.pipeline.sign import sign_record
from pitr.repository import Repository
from pitr.timeline_events import event_causes
from pitr.verified import BAD_MAX
from storage.memory import MemoryStore

DEADLINE_S = 20.0


def happening(number: int = 1) -> Happening:
    at = fix.BEGIN + timedelta(seconds=number)
    return Happening.of(at, EventKind.WAL_LOST, f"loss {number}", start="0/3000000", end=f"0/{number}000000")


class Host:
    """A host with its notes and a store that can be taken away."""

    def __init__(self, path: Path) -> None:
        self.store = MemoryStore()
        self.faulty = FaultyStore(self.store)
        self.house = RepositoryHouse(self.store)
        self.path = path
        self.said: list[str] = []

    def log(self) -> EventLog:
        repository = Repository(self.faulty, self.house.repository.repository_id, self.house.root.public)
        return EventLog(
            repository,
            self.house.archive,
            self.house.host,
            NotesFile(self.path),
            on_failure=self.said.append,
        )

    def messages(self) -> list[str]:
        page = EventReader(self.house.repository).page(self.house.archive, limit=10_000)
        assert page.faults == ()
        return [one.record.happening.message for one in page.events]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "events")


def until(log: EventLog, waiting: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while log.waiting != waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_events_are_put_in_order_and_chained(host: Host) -> None:
    log = host.log()
    log.start()
    for number in range(1, 6):
        log.note(happening(number))
    until(log, 0)
    assert log.stop(DEADLINE_S)
    assert host.messages() == [f"loss {number}" for number in (5, 4, 3, 2, 1)]
    again = host.log()
    again.start()
    again.note(happening(6))
    assert again.stop(DEADLINE_S)
    page = EventReader(host.house.repository).page(host.house.archive, limit=2)
    assert [one.record.sequence for one in page.events] == [6, 5]
    assert page.events[0].record.previous == page.events[1].payload_sha256
    assert page.events[0].record.happening.fact("end") == "0/6000000"


def test_a_conflict_that_each_restart_finds_again_is_signed_once(host: Host) -> None:
    for number in range(4):
        log = host.log()
        log.start()
        at = fix.BEGIN + timedelta(seconds=number)
        log.note(Happening.of(at, EventKind.WRITERS_CONFLICT, "it left at 0/3000000"))
        assert log.stop(DEADLINE_S)
        # Each was found, and an alert asks whether more were.
        assert log.tally(EventKind.WRITERS_CONFLICT) == Tally(number + 1, at)
    assert host.messages() == ["it left at 0/3000000"]
    log = host.log()
    log.start()
    for number, text in enumerate(("another", "another", "it left at 0/3000000"), start=4):
        log.note(Happening.of(fix.BEGIN + timedelta(seconds=number), EventKind.WRITERS_CONFLICT, text))
    log.note(happening(8))
    log.note(happening(9))
    assert log.stop(DEADLINE_S)
    assert host.messages() == [
        "loss 9", "loss 8", "it left at 0/3000000", "another", "it left at 0/3000000"
    ]  # fmt: skip


def test_what_is_noted_while_the_store_is_away_is_put_by_the_next_run(host: Host) -> None:
    host.faulty.go_down()
    log = host.log()
    log.start()
    log.note(happening(1))
    log.note(happening(2))
    assert not log.stop(DEADLINE_S)
    assert host.said
    host.faulty.heal()
    log = host.log()
    assert log.waiting == 2
    log.start()
    assert log.stop(DEADLINE_S)
    assert host.messages() == ["loss 2", "loss 1"]
    assert NotesFile(host.path).count == 0


def test_a_crash_between_put_and_forgetting_puts_nothing_twice(host: Host) -> None:
    log = host.log()
    log.note(happening(1))
    left = host.path.read_bytes()
    log.start()
    assert log.stop(DEADLINE_S)
    host.path.write_bytes(left)
    log = host.log()
    log.note(happening(2))
    log.start()
    assert log.stop(DEADLINE_S)
    assert host.messages() == ["loss 2", "loss 1"]


def test_a_note_that_cannot_be_forgotten_is_not_put_again_and_again(host: Host) -> None:
    """On a full disk the store would be filled with one event, every half minute one more."""
    log = host.log()
    log.note(happening(1))
    in_the_way = host.path.with_name(f"{host.path.name}.new")
    in_the_way.mkdir()
    log.start()
    deadline = time.monotonic() + DEADLINE_S
    while sum(operation == "put" for operation, _ in host.faulty.calls) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    in_the_way.rmdir()
    assert log.stop(DEADLINE_S) or log.waiting == 1
    assert host.messages() == ["loss 1"]


def test_notes_have_a_limit_and_damaged_ones_are_counted(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "some"
    notes = NotesFile(path)
    for number in range(3):
        notes.add(happening(number))
    lines = path.read_bytes().splitlines(keepends=True)[1:]
    path.write_bytes(lines[0] + b"{}\n\xff\n[1]\n" + lines[1][:-9] + b"\n" + lines[2])
    again = NotesFile(path)
    assert (again.count, again.damaged) == (2, 4)
    path.write_bytes(lines[0] * NOTES_MAX)
    with pytest.raises(NotesFailed):
        NotesFile(path).add(happening())
    with pytest.raises(NotesFailed):
        NotesFile(tmp_path / "no" / "such" / "folder").add(happening())


def test_how_often_an_event_was_noted_outlives_the_notes_and_the_run(tmp_path: Path) -> None:
    path = tmp_path / "some"
    notes = NotesFile(path)
    assert notes.tally(EventKind.WAL_LOST) is None
    for number in (2, 1):
        notes.add(happening(number), position=f"at {number}")
        notes.remove_first()
    again = NotesFile(path)
    assert (again.count, again.damaged, again.position) == (0, 0, "at 1")
    tally = again.tally(EventKind.WAL_LOST)
    assert tally == Tally(2, fix.BEGIN + timedelta(seconds=2)), "the last one is the latest, however noted"
    assert again.tally(EventKind.SLOT_DROPPED) is None
    # A file of an older version has no counts, and a damaged count does not take the position along.
    for tallies in (b"", b', "tallies": {"wal-lost": 1}'):
        path.write_bytes(b'{"position": "at 1"' + tallies + b"}\n")
        older = NotesFile(path)
        assert (older.position, older.tally(EventKind.WAL_LOST)) == ("at 1", None)


def test_a_missing_or_foreign_event_is_told_and_hides_no_other(host: Host) -> None:
    log = host.log()
    log.start()
    for number in range(1, 5):
        log.note(happening(number))
    assert log.stop(DEADLINE_S)
    archive, reader = host.house.archive, EventReader(host.house.repository)
    host.store.delete(event_key(archive, 3))
    page = reader.page(archive, limit=10)
    assert [one.record.sequence for one in page.events] == [4, 2, 1]
    assert page.faults == ("events 3 to 3 are missing",)
    other = EventRecord(fix.REPOSITORY, archive, 3, bytes(32), happening(9))
    host.store.put(event_key(archive, 3), sign_record(other.to_payload(), host.house.host))
    assert len(reader.page(archive, limit=10).faults) == 2
    host.store.delete(event_key(archive, 3))
    host.store.put(event_key(archive, 3), sign_record(other.to_payload(), host.house.root))
    page = reader.page(archive, limit=10)
    assert [one.record.sequence for one in page.events] == [4, 2, 1]
    assert "event 3 cannot be used" in page.faults[0]
    body = host.store.get(event_key(archive, 1))
    for number in range(5, 5 + BAD_MAX):
        host.store.put(event_key(archive, number), body)
    with pytest.raises(NotAuthentic):
        reader.page(archive, limit=10)


def test_an_event_is_refused_that_says_too_much_or_nothing() -> None:
    at = fix.BEGIN
    for event, message, facts in (
        ("", "x", ()),
        ("Wal-lost", "x", ()),
        ("wal-lost", "", ()),
        ("wal-lost", "x" * 2001, ()),
        ("wal-lost", "x", (("b", ""), ("a", ""))),
        ("wal-lost", "x", (("a", ""), ("a", ""))),
        ("wal-lost", "x", (("A", ""),)),
        ("wal-lost", "x", (("a", "x" * 501),)),
        ("wal-lost", "x", tuple((f"a{number:02}", "") for number in range(33))),
    ):
        with pytest.raises(MalformedValue):
            Happening(at, event, message, facts)
    assert len(Happening.of(at, EventKind.WRITERS_CONFLICT, "x" * 9999, a="y" * 999).message) == 2000
    record = EventRecord(fix.REPOSITORY, fix.archive_of(1), 2, bytes(32), happening())
    assert EventRecord.from_payload(record.to_payload()) == record
    key = event_key(fix.archive_of(1), 2)
    assert event_sequence(key) == 2
    for bad in ("events/1/1/0", key + "0", key.upper()):
        with pytest.raises(MalformedValue):
            event_sequence(bad)


def test_a_kind_of_a_later_version_is_shown_as_the_text_that_it_is(host: Host) -> None:
    log = host.log()
    log.note(Happening(fix.BEGIN, "of-a-later-version", "whatever it means", (("who", "a program"),)))
    log.note(
        Happening.of(
            fix.BEGIN, EventKind.WAL_LOST, "loss 2", timeline="00000001", start="0/3000000", end="0/4000000"
        )
    )
    log.start()
    assert log.stop(DEADLINE_S)
    page = EventReader(host.house.repository).page(host.house.archive, limit=10)
    assert page.faults == ()
    assert [one.record.happening.event for one in page.events] == ["wal-lost", "of-a-later-version"]
    assert [cause.detail.partition(": ")[2] for cause in event_causes(one.record for one in page.events)] == [
        "loss 2"
    ]
