"""One check's result, and the verdict that all of them make."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

import pytest

from pitr.errors import MalformedValue
from verifiers.check import CheckResult, Outcome, overall

GOOD = CheckResult(
    id="C04",
    category="integrity",
    title="the files are as the manifest says",
    is_required=True,
    tool="pg_verifybackup",
    tool_version="18.6",
    command_sha256="0" * 64,
    started_at=datetime(2026, 11, 30, tzinfo=UTC),
    duration_ms=12,
    outcome=Outcome.PASSED,
    expected="backup successfully verified",
    observed="backup successfully verified",
)


def of(outcome: Outcome, *, is_required: bool = True) -> CheckResult:
    reason = None if outcome is Outcome.PASSED else "why"
    return replace(GOOD, outcome=outcome, is_required=is_required, reason=reason)


def test_the_verdict_of_all_pairs_of_checks() -> None:
    for (one, first), (two, second) in product(product(Outcome, (True, False)), repeat=2):
        found = overall([of(one, is_required=first), of(two, is_required=second)])
        required = [outcome for outcome, needed in ((one, first), (two, second)) if needed]
        if Outcome.FAILED in (one, two):
            assert found is Outcome.FAILED
        elif required and set(required) == {Outcome.PASSED}:
            assert found is Outcome.PASSED
        else:
            assert found is Outcome.WARNED


def test_nothing_checked_is_nothing_proved() -> None:
    assert overall([]) is Outcome.WARNED


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "c04"},
        {"id": "C04 x"},
        {"command_sha256": "0" * 63},
        {"evidence_sha256": "A" * 64},
        {"started_at": datetime(2026, 11, 30)},  # noqa: DTZ001
        {"duration_ms": -1},
        {"reason": "it passed"},
        {"outcome": Outcome.SKIPPED},
        {"outcome": Outcome.WARNED, "reason": ""},
    ],
)
def test_a_check_states_nothing_that_a_report_must_not(wrong: dict[str, object]) -> None:
    with pytest.raises(MalformedValue):
        replace(GOOD, **wrong)  # type: ignore[arg-type]
