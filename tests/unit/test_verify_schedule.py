"""When a verification is due, what was missed, and whose turn it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pitr.pipeline.sign import encode_time
from verifiers.log_entry import EntryKind, LogEntry
from verifiers.run_ids import uuid7
from verifiers.verify_schedule import MISSED_MAX, Due, due, due_run, last_scheduled_at, next_region

WEEK_S = 7 * 86_400.0
START = datetime(2026, 11, 2, 3, tzinfo=UTC)
WEEK = timedelta(weeks=1)


def entry(sequence: int, kind: EntryKind, run: str, **facts: object) -> LogEntry:
    return LogEntry("pitr/x/y", sequence, START, kind, run, {"system_identifier": "7", **facts})


def run_of(sequence: int, run: str, at: datetime | None, region: str, report: str | None) -> list[LogEntry]:
    scheduled = None if at is None else encode_time(at)
    return [
        entry(sequence, EntryKind.VERIFICATION_INTENDED, run, scheduled_at=scheduled, region=region),
        entry(sequence + 1, EntryKind.VERIFICATION_ENDED, run, report_id=report),
    ]


def test_the_first_is_due_at_once_and_the_next_a_week_later() -> None:
    first = due(None, WEEK_S, START)
    assert first is not None
    assert (first.scheduled_at, first.missed) == (START, ())
    assert due(START, WEEK_S, START + WEEK - timedelta(seconds=1)) is None
    second = due(START, WEEK_S, START + WEEK)
    assert second is not None
    assert (second.scheduled_at, second.missed) == (START + WEEK, ())


def test_one_run_catches_up_for_all_that_were_missed_and_they_are_named() -> None:
    found = due(START, WEEK_S, START + 3 * WEEK + timedelta(hours=5))
    assert found is not None
    assert found.scheduled_at == START + 3 * WEEK
    assert found.missed == (START + WEEK, START + 2 * WEEK)


def test_a_long_silence_is_bounded() -> None:
    found = due(START, 60.0, START + timedelta(days=365))
    assert found is not None
    assert len(found.missed) == MISSED_MAX
    assert found.missed[-1] == found.scheduled_at - timedelta(seconds=60)


def test_only_what_came_to_a_report_counts_and_of_this_cluster_alone() -> None:
    entries = [
        *run_of(0, "a", START, "eu", "r1"),
        *run_of(2, "b", START + WEEK, "us", None),
        *run_of(4, "c", None, "us", "r2"),
    ]
    assert last_scheduled_at(entries, 7) == START
    assert last_scheduled_at(entries, 8) is None
    assert last_scheduled_at([], 7) is None


def test_a_run_that_was_killed_is_due_still_and_the_next_says_which_it_repeats() -> None:
    entries = [*run_of(0, "a", START, "eu", "r1"), *run_of(2, "b", START + WEEK, "us", None)]
    later = START + WEEK + timedelta(hours=2)
    assert due_run(entries[:3], 7, WEEK_S, later) == Due(START + WEEK)
    assert due_run(entries, 7, WEEK_S, later) == Due(START + WEEK, (), "b")
    entries += run_of(4, "c", START + WEEK, "ap", None)
    assert due_run(entries, 7, WEEK_S, later) == Due(START + WEEK, (), "c")
    entries += run_of(6, "d", START + WEEK, "eu", "r2")
    assert due_run(entries, 7, WEEK_S, later) is None
    assert due_run(entries, 7, WEEK_S, later, drill="full") == Due(later)


def test_a_time_that_was_tried_is_not_one_that_nobody_ran_for() -> None:
    entries = [*run_of(0, "a", START, "eu", "r1"), *run_of(2, "b", START + WEEK, "us", None)]
    now = START + 3 * WEEK
    assert due_run(entries, 7, WEEK_S, now) == Due(now, (START + 2 * WEEK,))
    assert due_run(entries[:2], 7, WEEK_S, now) == Due(now, (START + WEEK, START + 2 * WEEK))
    # Where none has come to a report, the first that was begun says since when.
    first = run_of(0, "a", START, "eu", None)
    assert due_run(first, 7, WEEK_S, START + timedelta(hours=1)) == Due(START, (), "a")
    assert due_run(first, 7, WEEK_S, START + 2 * WEEK) == Due(START + 2 * WEEK, (START + WEEK,))


def test_regions_take_turns() -> None:
    regions = ["eu", "us", "ap"]
    entries: list[LogEntry] = []
    turns = []
    for number in range(6):
        region = next_region(entries, regions)
        turns.append(region)
        entries += run_of(2 * number, f"run{number}", None, region, None)
    assert turns == ["eu", "us", "ap", "eu", "us", "ap"]
    assert next_region(entries, ["us", "ap"]) == "us"


def test_run_ids_are_uuids_of_version_seven_and_sort_by_time() -> None:
    early, late = uuid7(START, bytes(10)), uuid7(START + timedelta(seconds=1), bytes(10))
    assert early < late
    assert (early[14], early[19]) == ("7", "8")
    assert uuid7(START, b"\xff" * 10)[14:20:5] == "7b"
