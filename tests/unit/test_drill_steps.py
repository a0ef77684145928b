"""A scenario carried out: each step is a check with its time, those that were not reached as well."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import fix_archive as fix
import pytest

from cli.drill_failure import AtFailure
from cli.planning import Looked
from pitr.catalogue_rebuild import RebuildResult
from pitr.restore_plan import RestorableMoment
from pitr.survey import ArchiveEnd, ArchiveSurvey
from pitr.wal.lsn import LSN
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker
from verifiers.drill_report import Lost, check_cut, check_lost, degradation_limits
from verifiers.drill_scenario import Action, DrillKind, Scenario, Step
from verifiers.drill_steps import DrillCancelled, DrillSteps
from verifiers.verify_values import Mark, Verified

START = datetime(2026, 11, 30, 12, tzinfo=UTC)


@dataclass(slots=True)
class Clock:
    """Time that goes on only when it is told to."""

    seconds: float = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds - 1000.0)


class Pauses(threading.Event):
    """A cancellation that nobody asks for: what waits for it makes the clock go on."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self._clock.seconds += timeout or 0.0
        return self.is_set()


def scenario(*more: Step, restore_deadline_s: float | None = None) -> Scenario:
    steps = (
        *more,
        Step("declare", Action.MARK_FAILURE),
        Step("notice", Action.WAIT, duration_s=7.0, deadline_s=5.0),
        Step("cut", Action.CUT_REGION, region="eu"),
        Step("restore", Action.RESTORE, deadline_s=restore_deadline_s),
        Step("promote", Action.START_SERVICE),
        Step("checks", Action.CHECKS),
        Step("end", Action.NOTE, text="it is over"),
    )
    return Scenario("test", DrillKind.FULL, steps)


def run(of: Scenario, found: Verified) -> tuple[DrillSteps, dict[str, CheckResult]]:
    clock = Clock()
    maker = CheckMaker("test", now=clock.now, monotonic=clock.monotonic)
    steps = DrillSteps(of, maker, None, Pauses(clock), cut="eu", monotonic=clock.monotonic, now=clock.now)
    steps.before()
    return steps, {one.id.partition(".")[2]: one for one in steps.results(found)}


def marks(**ms: int) -> dict[str, Mark]:
    return {name: Mark(START + timedelta(milliseconds=value), value) for name, value in ms.items()}


def test_every_step_has_its_time_and_a_late_one_fails() -> None:
    found = Verified(marks=marks(wal_replay_done=47_000, accept_writes=50_000, checks_done=90_000))
    steps, results = run(scenario(restore_deadline_s=30.0), found)
    assert steps.failure is not None
    assert steps.failure.at == START
    # It was decided to act seven seconds after the failure.
    assert found.marks["detect"].ms == 7000
    assert {name: (str(one.outcome), one.duration_ms) for name, one in results.items()} == {
        "declare": ("PASSED", 0),
        "notice": ("FAILED", 7000),
        "cut": ("PASSED", 0),
        "restore": ("FAILED", 40_000),
        "promote": ("PASSED", 3000),
        "checks": ("PASSED", 40_000),
        "end": ("SKIPPED", 0),
    }
    assert results["restore"].reason == "it took 40000 ms; the deadline is 30 s"


def test_a_note_is_told_and_proves_nothing() -> None:
    """Whatever people did meanwhile, a check of it would have passed."""
    note = Step("freeze", Action.NOTE, text="no credential of the old host is used")
    found = Verified(marks=marks(wal_replay_done=8_000, accept_writes=9_000, checks_done=10_000))
    _, results = run(scenario(note), found)
    freeze = results["freeze"]
    assert (freeze.outcome, freeze.is_required, freeze.title) == (Outcome.SKIPPED, False, "step freeze: note")
    assert freeze.reason == "a note, which nothing here checks: no credential of the old host is used"


def test_what_the_regions_had_is_looked_at_at_the_failure_and_not_before_what_comes_in_front_of_it() -> None:
    """Production goes on while a drill waits, and after the failure it goes on as well."""
    clock, seen = Clock(), []
    wait = Step("business-hours", Action.WAIT, duration_s=3600.0)

    def look() -> None:
        seen.append(clock.now())
        # It takes its time, and none of it is time of recovery.
        clock.seconds += 5.0

    steps = DrillSteps(
        scenario(wait),
        CheckMaker("test", now=clock.now, monotonic=clock.monotonic),
        None,
        Pauses(clock),
        at_failure=look,
        monotonic=clock.monotonic,
        now=clock.now,
    )
    failure = steps.before()
    assert seen == [START + timedelta(seconds=3600)]
    assert failure.at == START + timedelta(seconds=3605)


def test_a_region_that_is_cut_off_before_the_failure_is_not_looked_at_after_the_cut() -> None:
    clock, seen = Clock(), []
    first = (Step("cut", Action.CUT_REGION, region="eu"), Step("notice", Action.WAIT, duration_s=60.0))
    rest = [step for step in scenario().steps if step.name not in ("cut", "notice")]
    steps = DrillSteps(
        replace(scenario(), steps=(*first, *rest)),
        CheckMaker("test", now=clock.now, monotonic=clock.monotonic),
        None,
        Pauses(clock),
        at_failure=lambda: seen.append(clock.now()),
        monotonic=clock.monotonic,
        now=clock.now,
    )
    assert steps.before().at == START + timedelta(seconds=60)
    assert seen == [START]


def looked(said: str) -> Looked:
    end = ArchiveEnd(None, True, said)
    survey = ArchiveSurvey(fix.archive_of(1), (), {}, (), (), end)
    return Looked(fix.archive_of(1), (), survey, {}, RebuildResult((), 0, 0, ()))


def test_a_restore_is_planned_from_what_was_there_at_the_failure() -> None:
    seen = AtFailure(Lost(None, None), looked("before"), None)
    anew = looked("after")
    bound = seen.bound(anew)
    assert bound.survey.end.detail == "before"
    assert bound.read is anew.read


def test_a_head_that_is_signed_after_the_failure_is_not_what_was_there_at_it() -> None:
    """What was seen at the failure counts, whatever is archived before the restore is planned."""
    seen = AtFailure(Lost(moment("0/3000", 10), moment("0/2000", 4)), looked("before"), START)
    failure_at = START + timedelta(seconds=12)
    assert seen.age_ms(failure_at) == 12_000
    assert seen.lost.lost_ms == 6_000
    assert AtFailure(seen.lost, seen.left, None).age_ms(failure_at) is None


def test_the_step_where_it_broke_fails_and_what_comes_after_was_not_reached() -> None:
    found = Verified(failure="WAL is missing\nmore", marks=marks(decide=1))
    _, results = run(scenario(), found)
    assert results["restore"].outcome is Outcome.FAILED
    assert "WAL is missing" in (results["restore"].reason or "")
    assert results["promote"].outcome is results["checks"].outcome is Outcome.SKIPPED


def test_a_cancelled_drill_ends_before_the_restore() -> None:
    cancel = threading.Event()
    cancel.set()
    steps = DrillSteps(scenario(), CheckMaker("test"), None, cancel)
    with pytest.raises(DrillCancelled):
        steps.before()


def moment(lsn: str, seconds: float | None) -> RestorableMoment:
    return RestorableMoment(LSN.parse(lsn), None if seconds is None else START + timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (moment("0/3000", 10), moment("0/3000", 10), Outcome.PASSED),
        (moment("0/3000", 10), moment("0/4000", 20), Outcome.PASSED),
        (moment("0/3000", 10), moment("0/2000", 9.5), Outcome.PASSED),
        (moment("0/3000", 10), moment("0/2000", 8.9), Outcome.FAILED),
        (moment("0/3000", None), moment("0/2000", 9.9), Outcome.FAILED),
        (moment("0/3000", 10), None, Outcome.FAILED),
        (None, moment("0/3000", 10), Outcome.PASSED),
    ],
)
def test_what_the_lost_region_alone_had_is_lost(
    before: RestorableMoment | None, after: RestorableMoment | None, outcome: Outcome
) -> None:
    found = check_lost(Lost(before, after), True, 1000, CheckMaker("test"))
    assert found.outcome is outcome


def test_a_target_before_the_failure_gives_up_what_came_after_it() -> None:
    lost = Lost(moment("0/3000", 10), moment("0/2000", 1))
    found = check_lost(lost, False, 0, CheckMaker("test"))
    assert (found.outcome, found.is_required) == (Outcome.SKIPPED, False)


@pytest.mark.parametrize(
    ("asked", "outcome"),
    [
        ({"us": 120, "ap": 0}, Outcome.PASSED),
        ({"us": 120, "ap": 0, "eu": 0}, Outcome.PASSED),
        ({"us": 120, "eu": 1}, Outcome.FAILED),
        # What counts nothing shows nothing.
        ({"us": 0}, Outcome.FAILED),
        ({}, Outcome.FAILED),
    ],
)
def test_a_region_that_was_sent_a_request_was_not_cut_off(asked: dict[str, int], outcome: Outcome) -> None:
    assert check_cut("eu", asked, CheckMaker("test")).outcome is outcome


def test_what_clients_saw_of_the_checks_at_the_target_is_told() -> None:
    seen = {"service_degradation": {"latency_us_before": None}}
    assert "include 1234 ms" in degradation_limits(seen, 1234)[0]
    assert "latency before the failure was not measured" in degradation_limits(seen, 1234)[1]
    assert len(degradation_limits(seen, 0)) == 1
    assert degradation_limits(None, 1234) == [
        "no client ran: service degradation and errors were not measured"
    ]
