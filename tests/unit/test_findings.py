"""Findings: what opens one, what closes it, and where it stands after a series of reports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import fix_reports as fix

from verifiers.findings import Care, FindingState, Retest, finding_states, findings_of

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
CARE = Care("dba", NOW + timedelta(days=14))


def draft(number: int = 1, *, recovery_ms: int | None = 60_000, **results: str) -> dict[str, Any]:
    """Return a report as it is being made: objective 300 s; ``results`` are those of checks."""
    made: dict[str, Any] = fix.draft(number, NOW)
    made["identity"]["series_seq"] = number
    made["policy"] |= {"rto_ms": 300_000, "rpo_ms": 60_000}
    made["timings"]["recovery_time_ms"] = recovery_ms
    made["data_loss"]["data_loss_ms"] = 0
    for check in made["checks"]:
        check |= {"result": "PASSED", "reason": None}
        if check["id"] in results:
            check |= {"result": results[check["id"]], "reason": "because"}
    return made


def told(made: dict[str, Any], report_id: str = "r", **options: Any) -> dict[str, Any]:
    """Return the report with its findings, and those by id."""
    made["findings"] = findings_of(made, report_id, options.pop("care", CARE), **options)
    return {one["id"]: one for one in made["findings"]}


def first_check() -> str:
    return str(fix.draft(1, NOW)["checks"][0]["id"])


def opened(finding: str, **results: Any) -> FindingState:
    report = draft(3, **results)
    told(report)
    (state,) = [one for one in finding_states([report]) if one.id == finding]
    return state


def test_a_good_report_has_no_finding() -> None:
    assert told(draft()) == {}


def test_an_objective_missed_is_a_finding_with_owner_and_date() -> None:
    found = told(draft(recovery_ms=300_001))
    assert list(found) == ["F-RTO"]
    one = found["F-RTO"]
    assert (one["severity"], one["status"], one["owner"]) == ("high", "open", "dba")
    assert one["due_at"] == "2026-12-14T12:00:00.000000Z"
    assert (one["corrective_action"], one["retest_report_id"]) == (None, None)
    assert "300001 ms" in one["description"]


def test_what_was_not_measured_is_no_finding() -> None:
    assert told(draft(recovery_ms=None)) == {}


def test_a_check_that_failed_or_warned_is_a_finding_and_a_skipped_one_is_not() -> None:
    check = first_check()
    for result, severity in (("FAILED", "high"), ("WARNED", "medium")):
        assert told(draft(**{check: result}))[f"F-{check}"]["severity"] == severity
    assert told(draft(**{check: "SKIPPED"})) == {}


def test_a_passed_retest_closes_the_finding_in_its_own_report() -> None:
    state = opened("F-RTO", recovery_ms=400_000)
    assert (state.ref, state.status) == ("3/F-RTO", "open")
    found = told(draft(4), "second", retests=[Retest(state, "a faster disk", "a slow\x07 disk")])
    one = found["3/F-RTO"]
    assert one["root_cause"] == "a slow? disk"
    assert (one["status"], one["retest_report_id"], one["corrective_action"]) == (
        "closed",
        "second",
        "a faster disk",
    )
    assert one["description"] == state.description


def test_what_was_said_of_a_finding_stays_until_somebody_says_another_thing() -> None:
    before = opened("F-RTO", recovery_ms=400_000)
    first = draft(4, recovery_ms=500_000)
    told(first, "second", retests=[Retest(before, "a faster disk", "a slow disk")])
    (state,) = finding_states([first])
    again = told(draft(5), "third", retests=[Retest(state)])["3/F-RTO"]
    assert (again["corrective_action"], again["root_cause"]) == ("a faster disk", "a slow disk")


def test_a_retest_that_fails_keeps_the_finding_open_and_makes_no_second_one() -> None:
    state = opened("F-RTO", recovery_ms=400_000)
    found = told(draft(4, recovery_ms=500_000), "second", retests=[Retest(state)])
    assert list(found) == ["3/F-RTO"]
    assert (found["3/F-RTO"]["status"], found["3/F-RTO"]["retest_report_id"]) == ("open", "second")
    assert "500000 ms" in found["3/F-RTO"]["description"]


def test_a_retest_that_did_not_look_closes_nothing() -> None:
    check = first_check()
    for finding, report in (
        (opened("F-RTO", recovery_ms=400_000), draft(4, recovery_ms=None)),
        (opened(f"F-{check}", **{check: "FAILED"}), draft(4, **{check: "SKIPPED"})),
    ):
        found = told(report, "second", retests=[Retest(finding)])
        assert found[finding.ref]["status"] == "open"


def test_the_last_report_that_names_a_finding_says_where_it_stands() -> None:
    first, second, third = draft(3, recovery_ms=400_000), draft(4), draft(5, recovery_ms=400_000)
    told(first)
    (state,) = finding_states([first])
    told(second, "second", retests=[Retest(state)])
    told(third)
    states = finding_states([first, second, third])
    assert [(one.ref, one.status, one.opened_in, one.told_in) for one in states] == [
        ("3/F-RTO", "closed", 3, 4),
        ("5/F-RTO", "open", 5, 5),
    ]
    assert states[1].is_overdue(NOW + timedelta(days=15))
    assert not states[1].is_overdue(NOW)
    assert not states[0].is_overdue(NOW + timedelta(days=15))
