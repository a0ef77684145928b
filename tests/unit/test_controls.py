"""Which controls a report is evidence for: it follows from the report, by one table."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import fix_reports as fix
import pytest

from cli.controls_page import render_page
from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog
from verifiers.check_table import CHECKS
from verifiers.controls import (
    CONTROLS,
    PERIOD_NEEDS,
    SECOND_REGION,
    Control,
    Held,
    Status,
    held,
    mapping_of,
    period_mapping,
    status_of,
)
from verifiers.report_shape import REPORT

PAGE = Path(__file__).parents[2] / "docs" / "controls.md"


def predicate(*passed: str, **groups: Any) -> dict[str, Any]:
    """Return a report in which some checks passed."""
    found = fix.draft(1, fix.BEGIN)
    template = found["checks"][0]
    found["checks"] = [{**template, "id": name, "result": "PASSED", "reason": None} for name in passed]
    found["identity"] |= {"series_seq": 1}
    found["trigger"] |= {"intent_log_index": 1}
    found["result"] |= {"overall": "PASSED", "rto_met": True, "rpo_met": True}
    found["log"] = {"checkpoint": "signed", "object_lock_copy": None}
    return {**found, **groups}


def with_result(found: dict[str, Any], check: str, result: str) -> dict[str, Any]:
    checks = [{**one, "result": result} if one["id"] == check else one for one in found["checks"]]
    return {**found, "checks": checks}


def test_the_page_is_made_from_the_table() -> None:
    assert PAGE.read_text() == render_page(), "python -m cli.controls_page > docs/controls.md"


def test_each_framework_that_was_asked_for_is_there() -> None:
    named = {(one.framework.partition(" ")[0], one.control) for one in CONTROLS}
    assert len(named) == len(CONTROLS)
    for framework, begins in (
        ("HIPAA", "164.308(a)(7)"),
        ("HIPAA", "164.310(d)"),
        ("HIPAA", "164.312"),
        ("SOC", "A1.2"),
        ("SOC", "A1.3"),
        ("SOC", "CC7.5"),
        ("ISO/IEC", "A.8.13"),
        ("ISO/IEC", "A.8.14"),
        ("NIST", "CP-4"),
        ("NIST", "CP-9"),
        ("NIST", "CP-10"),
        ("PCI", ""),
        ("GDPR", "32"),
        ("DORA", "11"),
        ("DORA", "12"),
    ):
        assert any(name == framework and control.startswith(begins) for name, control in named), begins
    assert "compliant" not in render_page().replace("never says that anybody is compliant", "")


def test_what_is_only_proposed_says_so_where_it_is_named() -> None:
    for control in CONTROLS:
        assert ("proposed" in control.framework) == (control.rule != "in force")


def exists(path: str) -> bool:
    shape: Any = REPORT
    for name in path.split("."):
        if name.isdigit():
            continue
        if not isinstance(shape, dict) or name not in shape:
            return False
        shape = shape[name][1]
    return True


@pytest.mark.parametrize("control", CONTROLS, ids=lambda one: f"{one.framework.split()[0]} {one.control}")
def test_the_table_names_checks_and_fields_that_there_are(control: Control) -> None:
    assert control.core
    assert set(control.over) <= set(PERIOD_NEEDS)
    for need in (*control.core, *control.more, *control.fields):
        path = need.partition("=")[0].rstrip("<>")
        assert path in CHECKS or exists(path), need
    assert all(one not in control.more for one in control.core)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda one: f"{one.framework.split()[0]} {one.control}")
def test_each_control_can_come_to_each_status(control: Control) -> None:
    """Nothing of it is not tested; all of it is satisfied; without any one of its needs it is partial."""
    everything = predicate(
        *(name for name in CHECKS if name != "C15"),
        "C15.orders",
        degradation={"service_degradation": {"window_ms": 1}},
    )
    everything["identity"]["report_type"] = "monthly_drill"
    everything["recoverability"][0]["regions"] = ["north", "south"]
    everything["target"]["segregation"]["account"] = {"is_distinct": True, "shown_by": "x"}
    everything["log"]["object_lock_copy"] = {"uri": "s3://x", "version": None}
    full = Status.PARTIAL if control.over else Status.SATISFIED
    assert status_of(control, everything) == full
    (found,) = (
        one
        for one in period_mapping([everything], dict.fromkeys(PERIOD_NEEDS, True))
        if one.control is control
    )
    assert (found.status, found.complete) == (Status.SATISFIED, 1)
    for need in control.over:
        lacking = {**dict.fromkeys(PERIOD_NEEDS, True), need: False}
        (short,) = (one for one in period_mapping([everything], lacking) if one.control is control)
        assert (short.status, short.missing) == (Status.PARTIAL, (need,))
    for need in (*control.core, *control.more):
        if need in CHECKS:
            name = "C15.orders" if need == "C15" else need
            for result in ("FAILED", "WARNED"):
                assert held(need, with_result(everything, name, result)) is Held.NO
                assert status_of(control, with_result(everything, name, result)) is Status.PARTIAL
            assert held(need, with_result(everything, name, "SKIPPED")) is Held.ABSENT
            assert held(need, {**everything, "checks": []}) is Held.ABSENT
    # Nothing at all: no check ran, and nothing was measured, configured or planned.
    nothing = predicate()
    nothing |= {"source": {**nothing["source"], "encryption": None, "regions": []}, "recoverability": []}
    nothing |= {"timings": {**nothing["timings"], "recovery_time_ms": None}}
    nothing |= {"trigger": {**nothing["trigger"], "scheduled_at": None}, "log": {"checkpoint": ""}}
    nothing |= {"policy": dict.fromkeys(nothing["policy"]), "scope": dict.fromkeys(nothing["scope"])}
    assert status_of(control, nothing) is Status.NOT_TESTED


@pytest.mark.parametrize(
    ("need", "path", "value", "told"),
    [
        ("result.rto_met", ("result", "rto_met"), False, Held.NO),
        ("result.rto_met", ("result", "rto_met"), None, Held.ABSENT),
        ("result.rto_met", ("result", "rto_met"), True, Held.YES),
        ("timings.recovery_time_ms", ("timings", "recovery_time_ms"), 0, Held.YES),
        ("timings.recovery_time_ms<=5", ("timings", "recovery_time_ms"), 5, Held.YES),
        ("timings.recovery_time_ms<=5", ("timings", "recovery_time_ms"), 6, Held.NO),
        ("timings.recovery_time_ms<=5", ("timings", "recovery_time_ms"), None, Held.ABSENT),
        ("source.regions.0", ("source", "regions"), [], Held.ABSENT),
        ("source.regions.0", ("source", "regions"), [{"name": "b"}], Held.YES),
        ("scope.asset_id", ("scope", "asset_id"), "", Held.ABSENT),
        ("identity.report_type=a|b", ("identity", "report_type"), "b", Held.YES),
        ("identity.report_type=a|b", ("identity", "report_type"), "c", Held.ABSENT),
    ],
)
def test_a_need_holds_fails_or_is_absent(need: str, path: tuple[str, str], value: object, told: Held) -> None:
    found = predicate()
    found[path[0]][path[1]] = value
    assert held(need, found) is told


def test_a_second_region_is_one_that_holds_what_was_restored_and_not_one_that_is_configured() -> None:
    redundancy = [one for one in CONTROLS if one.core == (SECOND_REGION,)]
    assert {one.control for one in redundancy} == {"A.8.14", "CP-9(5)"}

    def statuses(found: dict[str, Any]) -> set[Status]:
        return {status_of(control, found) for control in redundancy}

    found = predicate("C02")
    found["source"]["regions"] *= 2
    first = found["recoverability"][0]
    # The run restored to where the first span is, which the second region has nothing of.
    assert (first["regions"], first["state"]) == (["north"], "restorable")
    assert found["recoverability"][-1]["regions"] == ["north", "south"]
    assert held(SECOND_REGION, found) is Held.ABSENT
    assert statuses(found) == {Status.NOT_TESTED}
    first["regions"] = ["north", "south"]
    assert statuses(found) == {Status.SATISFIED}
    for name, value in (("timeline", "00000002"), ("state", "gap"), ("end_lsn", "0/3000147")):
        other = {**found, "recoverability": [{**first, name: value}]}
        assert held(SECOND_REGION, other) is Held.ABSENT
    # Reports of version 1 have no map.
    old = {name: value for name, value in found.items() if name != "recoverability"}
    assert held(SECOND_REGION, old) is Held.ABSENT
    cut_off = predicate("C02", "D11", recoverability=[])
    assert statuses(cut_off) == {Status.SATISFIED}
    assert held(SECOND_REGION, with_result(cut_off, "D11", "SKIPPED")) is Held.ABSENT


def test_a_failed_run_is_never_evidence_that_all_is_well() -> None:
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    good, bad = fix.run_week(log, 1).predicate, fix.run_week(log, 2, fails=True).predicate
    statuses = {
        (row["control"], number): row["status"]
        for number, said in enumerate((good, bad))
        for row in said["mapping"]
    }
    untouched = [one for one in CONTROLS if "C04" not in (*one.core, *one.more)]
    assert "satisfied" in {statuses[one.control, 0] for one in untouched}
    assert "satisfied" not in {statuses[one.control, 1] for one in CONTROLS}
    assert statuses["12(2)", 1] == "partial"
    for one in period_mapping([bad], dict.fromkeys(PERIOD_NEEDS, True)):
        assert one.status is not Status.SATISFIED, one.control.control


def test_an_rpo_that_was_met_by_a_moment_in_the_past_is_no_evidence() -> None:
    """Older reports have it so: a moment that is there tells nothing of what a failure would lose."""
    found = predicate("C02", "C09")
    assert held("result.rpo_met", found) is Held.YES
    found["request"] = {**found["request"], "kind": "time"}
    assert held("result.rpo_met", found) is Held.ABSENT
    (objectives,) = (one for one in CONTROLS if one.control == "12(6)")
    (told,) = (
        one for one in period_mapping([found], dict.fromkeys(PERIOD_NEEDS, True)) if one.control is objectives
    )
    assert told.status is Status.PARTIAL


def test_a_report_that_does_not_say_that_its_run_came_to_its_end_is_partial() -> None:
    named = [one.control for one in CONTROLS if "C21" in one.more]
    assert named == ["164.308(a)(7)(ii)(B)", "A1.3", "A.8.13", "CP-9(2)", "CP-10", "12(2)"]


def test_a_report_has_the_mapping_that_follows_from_it_and_no_other() -> None:
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    at = fix.BEGIN + fix.WEEK
    typed = fix.draft(1, at)
    typed["mapping"] = [{"framework": "ours", "control": "all", "status": "satisfied", "fields": []}]
    report = fix.issue_report(log, fix.intend(log, 1, at), typed, at + timedelta(minutes=6)).predicate
    assert report["mapping"] == mapping_of(report)
    assert len(report["mapping"]) == len(CONTROLS)
