"""The drills of a log: when each kind is due, what was missed or killed, and where the figures go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fix_audit
import fix_reports as fix
import pytest

from pitr.pipeline.sign import encode_time
from verifiers.audit_log import AuditLog
from verifiers.drill_series import drill_rows, metrics_of, planned_drills, trend
from verifiers.findings import Care, Retest, finding_states, findings_of
from verifiers.log_entry import ABANDONED, EntryKind, LogEntry
from verifiers.public_key import to_pem
from verifiers.report_export import export_reports
from verifiers.report_series import issue_report
from verifiers.statement import SignedStatement
from verifiers.verify_schedule import due, last_scheduled_at, next_cut

DAY = timedelta(days=1)
START = datetime(2026, 11, 2, 3, tzinfo=UTC)


def entry(sequence: int, kind: EntryKind, run: str, **facts: object) -> LogEntry:
    return LogEntry("pitr/x/y", sequence, START, kind, run, {"system_identifier": "7", **facts})


def held(sequence: int, run: str, drill: str, at: datetime | None, report: str | None) -> list[LogEntry]:
    scheduled = None if at is None else encode_time(at)
    return [
        entry(sequence, EntryKind.DRILL_INTENDED, run, drill=drill, scheduled_at=scheduled),
        entry(
            sequence + 1,
            EntryKind.DRILL_ENDED,
            run,
            report_id=report,
            outcome="PASSED" if report else ABANDONED,
        ),
    ]


def test_each_kind_of_drill_has_a_schedule_of_its_own() -> None:
    log = [
        *held(0, "a", "components", START, "r1"),
        *held(2, "b", "failover", START + DAY, "r2"),
        *held(4, "c", "components", START + DAY, None),
        entry(6, EntryKind.VERIFICATION_INTENDED, "d", scheduled_at=encode_time(START + 9 * DAY)),
        entry(7, EntryKind.VERIFICATION_ENDED, "d", report_id="r3"),
    ]
    # The abandoned one is still due, a verification is no drill, and another cluster's is none of ours.
    assert last_scheduled_at(log, 7, drill="components") == START
    assert last_scheduled_at(log, 7, drill="failover") == START + DAY
    assert last_scheduled_at(log, 7, drill="disaster") is None
    assert last_scheduled_at(log, 7) == START + 9 * DAY
    assert last_scheduled_at(log, 8, drill="failover") is None
    found = due(last_scheduled_at(log, 7, drill="components"), 86_400.0, START + 3 * DAY)
    assert found is not None
    assert (found.scheduled_at, found.missed) == (START + 3 * DAY, (START + DAY, START + 2 * DAY))


def test_the_region_that_was_lost_longest_ago_is_lost_next() -> None:
    log = [
        entry(0, EntryKind.DRILL_INTENDED, "a", without_region="eu"),
        entry(1, EntryKind.DRILL_INTENDED, "b", without_region="us"),
        entry(2, EntryKind.VERIFICATION_INTENDED, "c", without_region="ap"),
    ]
    assert next_cut([], ("eu", "us", "ap")) == "eu"
    assert next_cut(log, ("eu", "us", "ap")) == "ap"
    assert next_cut(log, ("eu", "us")) == "eu"


def test_a_drill_that_was_killed_missed_or_still_runs_stands_in_the_list() -> None:
    log = [
        *held(0, "a", "failover", None, None),
        entry(2, EntryKind.DRILL_MISSED, "missed", drill="failover", scheduled_at=encode_time(START)),
        entry(3, EntryKind.DRILL_INTENDED, "b", drill="full"),
    ]
    assert [(one.drill, one.outcome) for one in drill_rows(log, ())] == [
        ("failover", ABANDONED),
        ("failover", "MISSED"),
        ("full", "RUNNING"),
    ]


def test_what_is_due_follows_the_schedule_and_never_lies_in_the_past() -> None:
    log = held(0, "a", "components", START, "r1")
    now = START + timedelta(hours=1)
    every = {"components": 86_400.0, "failover": 30 * 86_400.0, "full": None}
    planned = {one.drill: one for one in planned_drills(log, every, now, 7)}
    assert planned["components"].next_at == START + DAY
    assert planned["components"].last_at == START
    assert (planned["failover"].next_at, planned["failover"].last_at) == (now, None)
    assert planned["full"].next_at is None
    late = {one.drill: one for one in planned_drills(log, every, START + 5 * DAY, 7)}
    assert late["components"].next_at == START + 5 * DAY
    # What the daemon goes by: an abandoned one is due still, and another cluster's is none of ours.
    log += held(2, "b", "components", START + DAY, None)
    (again,) = [one for one in planned_drills(log, every, now, 7) if one.drill == "components"]
    assert (again.next_at, again.last_at) == (START + DAY, START)
    (other,) = [one for one in planned_drills(log, every, now, 8) if one.drill == "components"]
    assert (other.next_at, other.last_at, other.missed) == (now, None, 0)
    (both,) = [one for one in planned_drills(log, every, now, None) if one.drill == "components"]
    assert (both.next_at, both.last_at) == (START + DAY, START)


@pytest.mark.parametrize(
    ("values", "word"),
    [((100, 102, 98, 101), "steady"), ((100, 200, 210, 220), "worse"), ((900, 1, 2, 3), "better")],
)
def test_the_last_three_drills_are_compared_with_those_before(values: tuple[int, ...], word: str) -> None:
    reports, log = [], []
    for number, value in enumerate(values):
        made = predicate(number + 1, recovery_ms=value)
        reports.append(made)
        log += held(2 * number, f"run-{number}", "full", None, made["identity"]["report_id"])
    rows = drill_rows(log, reports)
    assert [one.metrics["recovery_time_ms"] for one in rows] == list(values)
    assert trend(rows)["recovery_time_ms"].startswith(f"full: {word}")
    assert "recovery_time_ms" not in trend(rows[:3])


def predicate(number: int, *, recovery_ms: int = 60_000) -> dict[str, Any]:
    made = fix.draft(number, fix.BEGIN + fix.WEEK * number)
    made["identity"] |= {"report_type": "monthly_drill", "series_seq": number}
    made["timings"]["recovery_time_ms"] = recovery_ms
    made["degradation"] = {
        "service_degradation": {
            "window_ms": 61_000,
            "throughput_permille": 12,
            "read_only_ms": None,
            "latency_us_before": None,
            "latency_us_during": None,
            "latency_us_after": {"p50": 900, "p95": 1200, "p99": 4000},
        },
        "error_rate": {"requests": 4000, "clients": 4, "errors": [{"class": "no service", "count": 100}]},
    }
    return made


def test_the_four_metrics_are_read_from_the_report() -> None:
    assert metrics_of(predicate(1)) == {
        "recovery_time_ms": 60_000,
        "data_loss_ms": 900,
        "degradation_ms": 61_000,
        "errors_permille": 25,
    }
    assert metrics_of(fix.draft(1, fix.BEGIN))["errors_permille"] is None


def issue_drill(log: AuditLog, number: int, **options: Any) -> SignedStatement:
    """Hold drill ``number`` in all that the record sees of it; ``options`` as for ``predicate``."""
    at = fix.BEGIN + fix.WEEK * number
    retests = options.pop("retests", ())
    facts = {
        "report_type": "monthly_drill",
        "system_identifier": str(fix.SYSTEM),
        "scheduled_at": encode_time(at),
        "drill": "full",
        "without_region": "north",
    }
    intent = log.intend(EntryKind.DRILL_INTENDED, f"run-{number}", facts, at - timedelta(seconds=1))
    made = predicate(number, **options)
    made["findings"] = findings_of(made, made["identity"]["report_id"], Care("dba", at), retests)
    return issue_report(log, intent, made, at + timedelta(minutes=6))


def test_an_auditor_accepts_drills_in_the_same_series_as_verifications(tmp_path: Path) -> None:
    store = fix.MemoryStore()
    log = AuditLog(store, fix.REPOSITORY, fix.VERIFIER)
    fix.run_week(log, 1)
    first = issue_drill(log, 2, recovery_ms=400_000)
    (state,) = finding_states([first.predicate])
    second = issue_drill(log, 3, retests=[Retest(state, "a faster disk")])
    assert [one["status"] for one in second.predicate["findings"]] == ["closed"]
    log.append(
        EntryKind.DRILL_MISSED,
        "missed-full-x",
        {"system_identifier": str(fix.SYSTEM), "drill": "full", "reason": "nobody drilled when it was due"},
        fix.BEGIN + fix.WEEK * 3 + DAY,
    )
    folder, key = tmp_path / "reports", tmp_path / "verifier.pub.pem"
    key.write_text(to_pem(fix.VERIFIER.public))
    export_reports(store, fix.REPOSITORY, fix.VERIFIER.public, folder)
    said = fix_audit.audit(folder, key, now=encode_time(fix.BEGIN + fix.WEEK * 3 + 2 * DAY))
    assert said.texts("error") == ""
    assert said.result["reports"] == 3
    # A test that was missed is the one thing that it finds, and the weekly one that is late by now.
    assert "a run was missed: nobody drilled" in said.texts("warning")
