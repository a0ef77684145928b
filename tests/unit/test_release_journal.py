"""The journal of releases: what it says after a crash at any point, and that it does not grow for ever."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pitr.errors import MalformedValue
from pitr.release_journal import NOTES_MAX, Note, Release, ReleaseJournal, ReleaseStep, open_release

AT = datetime(2026, 11, 30, 12, tzinfo=UTC)
RELEASE = Release("10.0.0.1 5432 /data", 'ANY 1 ("pitr")', True, "")


def note(step: ReleaseStep, release: Release | None = RELEASE, at: datetime = AT) -> Note:
    return Note(at, step, "because", release)


def test_notes_are_read_as_they_were_written(tmp_path: Path) -> None:
    journal = ReleaseJournal(tmp_path / "releases.jsonl")
    assert journal.notes() == []
    written = [note(ReleaseStep.WARNED, None), note(ReleaseStep.RELEASING), note(ReleaseStep.RELEASED)]
    for one in written:
        journal.note(one)
    assert journal.notes() == written
    assert (tmp_path / "releases.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_line_cut_at_any_byte_costs_nothing_but_itself(tmp_path: Path) -> None:
    path = tmp_path / "releases.jsonl"
    line = f"{note(ReleaseStep.RELEASING)}\n".encode()
    for length in range(len(line)):
        path.write_bytes(line + line[:length])
        journal = ReleaseJournal(path)
        journal.note(note(ReleaseStep.HELD))
        steps = [one.step for one in journal.notes()]
        assert steps[0] is ReleaseStep.RELEASING
        assert steps[-1] is ReleaseStep.HELD
        assert open_release(journal.notes()) is None


@pytest.mark.parametrize(
    ("steps", "is_open"),
    [
        ([], False),
        ([ReleaseStep.WARNED], False),
        ([ReleaseStep.RELEASING], True),
        ([ReleaseStep.RELEASING, ReleaseStep.RELEASED], True),
        ([ReleaseStep.RELEASING, ReleaseStep.LEFT], False),
        ([ReleaseStep.RELEASED, ReleaseStep.HOLDING], True),
        ([ReleaseStep.RELEASED, ReleaseStep.HOLDING, ReleaseStep.FAILED], True),
        ([ReleaseStep.RELEASED, ReleaseStep.HOLDING, ReleaseStep.HELD], False),
    ],
)
def test_what_may_be_released_is_told_by_the_last_steps(steps: list[ReleaseStep], is_open: bool) -> None:
    assert open_release([note(step) for step in steps]) == (RELEASE if is_open else None)


def test_the_oldest_notes_make_room_but_not_the_one_that_is_open(tmp_path: Path) -> None:
    path = tmp_path / "releases.jsonl"
    notes = [note(ReleaseStep.RELEASED)] + [
        note(ReleaseStep.WARNED, None, AT + timedelta(seconds=at)) for at in range(NOTES_MAX - 1)
    ]
    path.write_text("".join(f"{one}\n" for one in notes))
    journal = ReleaseJournal(path)
    last = note(ReleaseStep.WARNED, None, AT + timedelta(days=1))
    journal.note(last)
    kept = journal.notes()
    assert len(kept) == NOTES_MAX // 2 + 1
    assert kept[-1] == last
    assert open_release(kept) == RELEASE


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "[]",
        "7",
        '{"at": "2026-11-30", "step": "released", "reason": ""}',
        '{"at": 7}',
        "[" * 99_999,
    ],
)
def test_what_is_no_note_is_refused(line: str) -> None:
    with pytest.raises(MalformedValue):
        Note.parse(line)
