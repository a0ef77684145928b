"""A scenario carried out, step by step, around one restore; each step is a check of the report.

``before`` does what comes before the restore; the restore then calls ``reached`` and ``opened``; ``results``
says at the end what every step came to, those that were not reached as well.  Reference: docs/drills.md.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from pitr.errors import PitrError
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker, Judgement, failed, passed
from verifiers.client_load import ClientLoad
from verifiers.drill_scenario import Action, Scenario, Step
from verifiers.scratch_server import ScratchServer
from verifiers.verify_values import Mark, Verified

_SQL_TIMEOUT_S: Final = 300.0
_ROWS_MAX: Final = 1000
# Those of the restore itself, by the marks that bound them.
_MARKED: Final = {
    Action.RESTORE: ("detect", "wal_replay_done"),
    Action.START_SERVICE: ("wal_replay_done", "accept_writes"),
    Action.CHECKS: ("accept_writes", "checks_done"),
}


class DrillCancelled(PitrError):
    """Somebody has cancelled the drill."""


@dataclass(frozen=True, slots=True)
class Failure:
    """When the failure was declared, by both clocks."""

    at: datetime
    monotonic_s: float


class DrillSteps:
    """One scenario, once.  ``load`` runs from the failure on; None where the scenario has none.

    ``at_failure`` is called once, right before the failure is declared, or the region cut off if that comes
    first; what it raises ends the drill.
    """

    def __init__(
        self,
        scenario: Scenario,
        maker: CheckMaker,
        load: ClientLoad | None,
        cancel: threading.Event,
        *,
        cut: str | None = None,
        at_failure: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._scenario = scenario
        self._maker = maker
        self._load = load
        self._cancel = cancel
        self._cut = cut
        self._at_failure = at_failure
        self._has_looked = False
        self._monotonic = monotonic
        self._now = now
        self._results: dict[str, CheckResult] = {}
        self._live_s = 0.0
        self._detected: Mark | None = None
        self.failure: Failure | None = None

    def before(self) -> Failure:
        """Do the steps before the restore, and return the failure.  Raises DrillCancelled."""
        for step in self._between(None, Action.RESTORE):
            self._do(step, None)
        assert self.failure is not None, "the scenario was checked"
        self._detected = Mark(self._now(), round((self._monotonic() - self.failure.monotonic_s) * 1000))
        return self.failure

    def reached(self, dsn: str) -> None:
        """Let clients in: the server answers at the target, though it may take no writes yet."""
        if self._load is not None:
            self._load.serve_at(dsn)

    def opened(self, server: ScratchServer) -> None:
        """Do the steps while the restored server is in service."""
        self.reached(server.dsn)
        begun = self._monotonic()
        try:
            for step in self._between(Action.START_SERVICE, Action.CHECKS):
                self._do(step, server)
        finally:
            self.stop()
            self._live_s = self._monotonic() - begun

    def stop(self) -> None:
        """End the load.  May be repeated."""
        if self._load is not None:
            self._load.stop()

    def results(self, found: Verified) -> list[CheckResult]:
        """Return what each step came to, in the scenario's order; ``found`` gets when it was decided."""
        if self._detected is not None:
            found.marks["detect"] = self._detected
        for step in self._scenario.steps:
            if step.action in _MARKED:
                self._results[step.name] = self._marked(step, found)
        last = next((at for at, one in enumerate(self._scenario.steps) if one.action is Action.CHECKS), 0)
        for step in self._scenario.steps[last + 1 :]:
            self._do(step, None)
        why = "the drill did not come so far"
        if found.failure is not None:
            why = f"{why}: {found.failure.splitlines()[0]}"
        return [
            self._results.get(step.name) or replace(self._maker.skipped(_id(step), why), title=_title(step))
            for step in self._scenario.steps
        ]

    # -- one step

    def _between(self, after: Action | None, before: Action) -> Sequence[Step]:
        actions = [one.action for one in self._scenario.steps]
        start = 0 if after is None else actions.index(after) + 1
        return self._scenario.steps[start : actions.index(before)]

    def _do(self, step: Step, server: ScratchServer | None) -> None:
        if step.action is Action.NOTE:
            self._results[step.name] = self._noted(step)
            return
        if step.action in (Action.MARK_FAILURE, Action.CUT_REGION) and not self._has_looked:
            # After the cut nothing is asked of the region that is lost.
            self._at_failure()
            self._has_looked = True
        begun = self._monotonic()
        result = self._maker.run(
            _id(step), _command(step), lambda: self._judge(step, server), title=_title(step)
        )
        self._results[step.name] = _in_time(step, result, round((self._monotonic() - begun) * 1000))
        if self._cancel.is_set():
            raise DrillCancelled("the drill was cancelled")

    def _noted(self, step: Step) -> CheckResult:
        """Say what a note says, as what nobody has checked: a check of it would pass whatever was done."""
        result = self._maker.skipped(
            _id(step), f"a note, which nothing here checks: {step.text}", is_required=False
        )
        return replace(result, title=_title(step))

    def _judge(self, step: Step, server: ScratchServer | None) -> Judgement:
        if step.action is Action.WAIT:
            assert step.duration_s is not None
            self._wait(step.duration_s)
            return passed(_expected(step), f"waited {step.duration_s:g} s")
        if step.action is Action.MARK_FAILURE:
            self.failure = Failure(self._now(), self._monotonic())
            if self._load is not None:
                self._load.start(self.failure.monotonic_s)
            return passed(_expected(step), f"the failure is declared at {self.failure.at.isoformat()}")
        if step.action is Action.CUT_REGION:
            return passed(_expected(step), f"region {self._cut} is left out of the regions that are read")
        if step.action is Action.LOAD:
            return self._judge_load(step)
        if step.action is Action.SQL:
            assert server is not None
            return _judge_sql(step, server)
        raise AssertionError(f"{step.action} is done elsewhere")

    def _judge_load(self, step: Step) -> Judgement:
        assert self._load is not None, "a scenario with such a step has a load"
        assert step.duration_s is not None
        bound = step.errors_permille_max or 0
        did = self._load.run_for(step.duration_s, self._wait)
        observed = f"{did.requests} requests in {step.duration_s:g} s, {did.errors} failed"
        expected = f"{_expected(step)}, at most {bound} of 1000 requests fail"
        if did.errors_permille > bound:
            return failed(expected, observed, f"{did.errors_permille} of 1000 requests failed")
        return passed(expected, observed)

    def _wait(self, duration_s: float) -> None:
        self._cancel.wait(duration_s)

    def _marked(self, step: Step, found: Verified) -> CheckResult:
        """Judge a part of the restore by when its marks were reached."""
        first, last = (found.marks.get(name) for name in _MARKED[step.action])
        if first is None or last is None or (found.failure is not None and step.action is Action.RESTORE):
            if found.failure is not None and step.action is Action.RESTORE:
                made = failed(_expected(step), "it did not come to its end", found.failure)
            else:
                made = Judgement(
                    Outcome.SKIPPED, _expected(step), "not reached", "the drill did not come so far"
                )
            return self._maker.run(_id(step), _command(step), lambda: made, title=_title(step))
        took_ms = last.ms - first.ms
        if step.action is Action.CHECKS:
            took_ms = max(0, took_ms - round(self._live_s * 1000))
        made = passed(_expected(step), f"done in {took_ms} ms")
        result = self._maker.run(_id(step), _command(step), lambda: made, title=_title(step))
        started_at = last.at - timedelta(milliseconds=took_ms)
        return _in_time(step, replace(result, started_at=started_at), took_ms)


def _in_time(step: Step, result: CheckResult, took_ms: int) -> CheckResult:
    """Return the step's result with its time; FAILED if that is past its deadline."""
    result = replace(result, duration_ms=took_ms)
    if step.deadline_s is None or took_ms <= step.deadline_s * 1000 or result.outcome is not Outcome.PASSED:
        return result
    reason = f"it took {took_ms} ms; the deadline is {step.deadline_s:g} s"
    return replace(result, outcome=Outcome.FAILED, reason=reason)


def _judge_sql(step: Step, server: ScratchServer) -> Judgement:
    assert step.query is not None
    with server.session(
        step.database or "postgres", timeout_s=_SQL_TIMEOUT_S, search_path="public"
    ) as session:
        # By a cursor, as the owner's own queries: one query, and nothing that is none.
        rows = list(itertools.islice(session.each_row(step.query), _ROWS_MAX))
    evidence = "\n".join(map(str, rows)).encode("utf-8", "replace")
    expected = "the query returns no row"
    if rows:
        more = " or more" if len(rows) == _ROWS_MAX else ""
        return failed(expected, f"{len(rows)}{more} rows", "the query returned rows", evidence)
    return passed(expected, "no row", evidence)


def _id(step: Step) -> str:
    return f"D10.{step.name}"


def _title(step: Step) -> str:
    return f"step {step.name}: {step.action}"


def _expected(step: Step) -> str:
    deadline = "" if step.deadline_s is None else f" within {step.deadline_s:g} s"
    return f"{step.action}{deadline}"


def _command(step: Step) -> str:
    return step.query or str(step)
