"""Timelines beside the way to a restored one: their numbers are the way's again, and so say nothing alone."""

from __future__ import annotations

import fix_archive as fix
import pytest

from cli.events_fences import beside_branches
from pitr.catalogue.records import EpochParent, EpochRecord
from pitr.errors import TargetRefused
from pitr.events.classify import EventClass, Lineage, classify
from pitr.events.event_facts import EventFacts
from pitr.events.fence import Mark
from pitr.events.forks import narrow_beside
from pitr.events.history import FIRST_LSN, Branch, XactStatus
from pitr.survey import ArchiveEnd, ArchiveSurvey
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, TimelineSwitch
from pitr.wal_runs import Histories

ONE, TWO, THREE = TimelineId(1), TimelineId(2), TimelineId(3)
FIRST, SECOND = fix.archive_of(1), fix.archive_of(2)
SYSTEM = 1


def history(timeline: TimelineId, *switches: tuple[TimelineId, int]) -> TimelineHistory:
    return TimelineHistory(timeline, tuple(TimelineSwitch(one, LSN(lsn)) for one, lsn in switches))


def survey_of(histories: Histories, *, archive: int = 1, second_at: int | None = None) -> ArchiveSurvey:
    epochs = [EpochRecord(fix.REPOSITORY, FIRST, fix.BEGIN, "ed25519:x")]
    if second_at is not None:
        parent = EpochParent(1, ONE, LSN(second_at))
        epochs.append(EpochRecord(fix.REPOSITORY, SECOND, fix.BEGIN, "ed25519:x", parent))
    end = ArchiveEnd(None, True, "")
    return ArchiveSurvey(fix.archive_of(archive), tuple(epochs), histories, (), (), end)


def found(
    survey: ArchiveSurvey, timeline: TimelineId, later: tuple[Branch, ...] = ()
) -> list[tuple[int, int]]:
    return sorted(
        (one.timeline.number, one.fork_lsn.offset) for one in beside_branches(survey, timeline, later)
    )


def test_a_failover_lies_beside_the_old_timeline_and_not_beside_its_own() -> None:
    survey = survey_of({FIRST: [history(TWO, (ONE, 500))]})
    assert found(survey, ONE) == [(2, 500)]
    assert found(survey, TWO) == []
    assert found(survey, ONE, later=(Branch(TWO, LSN(500), 0),)) == []


def test_what_left_a_timeline_after_the_way_did_lies_beside_it_from_where_the_way_left() -> None:
    four = history(TimelineId(4), (ONE, 500), (TWO, 900))
    survey = survey_of({FIRST: [history(TWO, (ONE, 500)), history(THREE, (ONE, 700)), four]})
    assert found(survey, TWO) == [(3, 500), (4, 900)]
    assert found(survey, THREE) == [(2, 500), (4, 500)]


def test_another_writers_timeline_of_the_same_number_lies_beside() -> None:
    histories = {FIRST: [history(TWO, (ONE, 500))], SECOND: [history(TWO, (ONE, 500))]}
    survey = survey_of(histories, archive=2, second_at=500)
    assert found(survey, TWO) == [(2, 500)]


def test_a_writer_that_goes_on_with_a_timeline_does_not_lie_beside() -> None:
    histories = {FIRST: [], SECOND: [history(TWO, (ONE, 900))]}
    assert found(survey_of(histories, second_at=500), ONE) == [(2, 500)]
    assert found(survey_of(histories, archive=2, second_at=500), TWO) == []


def test_a_way_that_is_not_known_is_refused() -> None:
    with pytest.raises(TargetRefused, match=r"history file of timeline 0*3 "):
        found(survey_of({FIRST: [history(TWO, (ONE, 500))]}), THREE)


def lineage(beside: tuple[Branch, ...]) -> Lineage:
    return Lineage((Branch(ONE, FIRST_LSN, 0),), LSN(900), 60, beside=beside)


def test_a_number_that_a_timeline_beside_may_have_used_is_unknown() -> None:
    statuses = dict.fromkeys(range(60), XactStatus.COMMITTED)
    way = lineage(narrow_beside([Branch(TWO, LSN(500), 0)], (Branch(ONE, FIRST_LSN, 0),), [mark(400, 40)]))
    assert classify(EventFacts(xid=39), way, statuses) is EventClass.IN_DATABASE
    assert classify(EventFacts(xid=40), way, statuses) is EventClass.UNKNOWN
    assert classify(EventFacts(xid=40, commit_lsn=LSN(499)), way, statuses) is EventClass.IN_DATABASE
    assert classify(EventFacts(xid=40, commit_lsn=LSN(500)), way, statuses) is EventClass.UNKNOWN
    assert classify(EventFacts(xid=40, timeline=ONE), way, statuses) is EventClass.IN_DATABASE
    assert classify(EventFacts(xid=40, timeline=TWO), way, statuses) is EventClass.NOT_IN_DATABASE
    # Not in the database, whichever of the two it is.
    assert classify(EventFacts(xid=60), way, statuses) is EventClass.NOT_IN_DATABASE


def test_a_named_timeline_is_unknown_where_two_writers_have_one_of_that_number() -> None:
    statuses = dict.fromkeys(range(60), XactStatus.COMMITTED)
    way = lineage((Branch(ONE, LSN(500), 40),))
    assert classify(EventFacts(xid=39, timeline=ONE), way, statuses) is EventClass.IN_DATABASE
    assert classify(EventFacts(xid=41, timeline=ONE), way, statuses) is EventClass.UNKNOWN


def mark(lsn: int, xid: int, timeline: TimelineId = ONE) -> Mark:
    return Mark(1, SYSTEM, timeline, LSN(lsn), xid - 1, 3, xid, fix.BEGIN)


def test_only_marks_on_the_way_and_before_the_fork_tell_which_ids_are_older() -> None:
    way = (Branch(ONE, FIRST_LSN, 0), Branch(THREE, LSN(700), 0))
    marks = [mark(400, 40), mark(500, 50), mark(600, 60), mark(750, 44), mark(499, 70, TWO)]
    assert narrow_beside([Branch(TWO, LSN(500), 0)], way, marks) == (Branch(TWO, LSN(500), 40),)
    assert narrow_beside([Branch(TWO, LSN(100), 0)], way, marks) == (Branch(TWO, LSN(100), 0),)
