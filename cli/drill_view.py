"""What people and programs read of drills: one that has just ended, the series with its trend, findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cli.context import App
from cli.output import format_seconds
from cli.reading import Source, open_source
from cli.report_log import choose_report, find_verifier
from cli.verdict_view import finish_verdict, show_checks
from pitr.pipeline.sign import encode_time
from verifiers.drill_series import DrillRow, Planned, drill_rows, metrics_of, planned_drills, trend
from verifiers.findings import FindingState, finding_states
from verifiers.log_entry import EntryKind, LogEntry
from verifiers.log_reader import read_log
from verifiers.report_series import logged_reports, read_report
from verifiers.statement import Predicate, SignedStatement

if TYPE_CHECKING:
    # A list must not wait for all that a restore needs.
    from cli.drill_flow import DrillDone

_UNITS: Final = {
    "recovery_time_ms": "ms",
    "data_loss_ms": "ms",
    "degradation_ms": "ms",
    "errors_permille": "‰",
}


@dataclass(frozen=True, slots=True)
class Record:
    """The log, and the reports that it tells of, in its order; ``system_identifier``: the only cluster's."""

    key_id: str
    system_identifier: int | None
    entries: Sequence[LogEntry]
    reports: Sequence[Predicate]


def read_record(app: App, region: str | None, verifier: Path | None) -> Record:
    """Read the log and every report.  Raises NotAuthentic, NoGoodCopy, StoreError."""
    with open_source(app, Source(region=region)) as reader:
        systems = {archive.system_identifier for archive in reader.repository.archives()}
        system = systems.pop() if len(systems) == 1 else None
        key = find_verifier(app, reader, verifier)
        state = read_log(reader.store, reader.repository.repository_id, key)
        reports = [read_report(reader.store, key, one).predicate for one in logged_reports(state.covered)]
    return Record(key.key_id, system, state.covered, reports)


def read_drill(app: App, wanted: str, region: str | None, verifier: Path | None) -> SignedStatement:
    """Return the report of a drill; ``newest`` is the newest drill's, whatever was verified since.

    Raises UsageRefused, and as ``read_record``.
    """
    with open_source(app, Source(region=region)) as reader:
        key = find_verifier(app, reader, verifier)
        state = read_log(reader.store, reader.repository.repository_id, key)
        drills = {one.run_id for one in state.covered if one.kind == EntryKind.DRILL_INTENDED}
        logged = [one for one in logged_reports(state.covered) if one.run_id in drills]
        return read_report(reader.store, key, choose_report(logged, wanted))


# -- one drill


def drill_fields(done: DrillDone) -> dict[str, object]:
    """Return what a program reads of a drill that has ended."""
    predicate = done.report.predicate
    return {
        "run": done.run_id,
        "drill": str(done.kind),
        "report": predicate["identity"]["report_id"],
        "report_type": predicate["identity"]["report_type"],
        "number": predicate["identity"]["series_seq"],
        "report_sha256": done.report.payload_sha256,
        "verdict": predicate["result"]["overall"],
        "rto_met": predicate["result"]["rto_met"],
        "rpo_met": predicate["result"]["rpo_met"],
        "limits": predicate["result"]["limits"],
        "region": done.region,
        "without_region": done.without_region,
        "metrics": metrics_of(predicate),
        "recovery_time_ms": predicate["timings"]["recovery_time_ms"],
        "data_loss": predicate["data_loss"],
        "degradation": predicate["degradation"],
        "ransomware": predicate["ransomware"],
        "checks": predicate["checks"],
        "findings": predicate["findings"],
        "reports_dir": None if done.reports_dir is None else str(done.reports_dir),
        "lagging_regions": list(done.lagging),
    }


def tell_done(app: App, done: DrillDone) -> None:
    """Show a drill that has ended.  Raises ChecksFailed if a check failed."""
    fields, predicate = drill_fields(done), done.report.predicate
    _tell_predicate(app, predicate)
    finish_verdict(
        app,
        predicate,
        fields,
        reports_dir=done.reports_dir,
        lagging=done.lagging,
        failed="the drill did not go as it must",
        hint="read the checks above, then try again: pitr drill start … --retests FINDING",
    )


def tell_report(app: App, statement: SignedStatement) -> None:
    """Show a drill's report from the record."""
    _tell_predicate(app, statement.predicate)
    app.output.finish({"report_sha256": statement.payload_sha256, "predicate": statement.predicate})


def _tell_predicate(app: App, predicate: Predicate) -> None:
    output, number = app.output, predicate["identity"]["series_seq"]
    show_checks(output, predicate)
    output.line(
        f"{predicate['result']['overall']}: report {number}, {predicate['identity']['report_id']}"
        f" ({predicate['trigger']['reason']})"
    )
    for line in _metric_lines(predicate):
        output.line(line)
    for finding in predicate["findings"]:
        ref = finding["id"] if "/" in finding["id"] else f"{number}/{finding['id']}"
        owner = finding["owner"] or "nobody yet"
        due = f", due {finding['due_at'][:10]}" if finding["due_at"] else ""
        output.line(f"finding {ref} ({finding['status']}, {owner}{due}): {finding['description']}")
    for limit in predicate["result"]["limits"]:
        output.line(f"limit: {limit}")


def _metric_lines(predicate: Predicate) -> list[str]:
    policy, result = predicate["policy"], predicate["result"]
    lines = []
    for name, value, objective, met in (
        ("recovery time", predicate["timings"]["recovery_time_ms"], policy["rto_ms"], result["rto_met"]),
        ("data loss", predicate["data_loss"]["data_loss_ms"], policy["rpo_ms"], result["rpo_met"]),
    ):
        if value is not None:
            aim = "" if objective is None else f"; the objective is {format_seconds(objective / 1000)}"
            lines.append(
                f"{name}: {format_seconds(value / 1000)}{aim}{'' if met is not False else ', MISSED'}"
            )
    degradation = predicate["degradation"]
    if degradation is not None:
        service, errors = degradation["service_degradation"], degradation["error_rate"]
        lines.append(
            f"clients had no service for {format_seconds(service['window_ms'] / 1000)}"
            + (
                ""
                if service["read_only_ms"] is None
                else f", the last {format_seconds(service['read_only_ms'] / 1000)} of it read-only"
            )
        )
        after = service["latency_us_after"]
        if after is not None:
            lines.append(
                f"latency after it: p50 {after['p50'] / 1000:.1f} ms, p95 {after['p95'] / 1000:.1f} ms,"
                f" p99 {after['p99'] / 1000:.1f} ms"
            )
        said = ", ".join(f"{one['count']} {one['class']}" for one in errors["errors"]) or "none"
        lines.append(f"{errors['requests']} requests of {errors['clients']} clients; errors: {said}")
    return lines


# -- the series


def tell_series(app: App, record: Record) -> None:
    """Show what is due, what was missed, and each drill with its metrics; then their trend."""
    config = app.settings().verify_or_default
    now = datetime.now(UTC)
    planned = planned_drills(record.entries, config.drills.every_s, now, record.system_identifier)
    rows = drill_rows(record.entries, record.reports)
    app.output.table(
        ["drill", "every", "last", "next", "missed"],
        [_planned_cells(one) for one in planned],
        empty="no drill is planned",
    )
    app.output.line()
    app.output.table(
        ["number", "drill", "at", "outcome", "recovery", "loss", "degraded", "errors"],
        [_row_cells(one) for one in rows],
        empty="no drill was held yet: pitr drill start KIND",
    )
    trends = trend(rows)
    for name, text in trends.items():
        app.output.line(f"trend of {name.removesuffix('_ms').replace('_', ' ')}: {text}")
    app.output.finish(
        {
            "key_id": record.key_id,
            "planned": [
                {
                    "drill": one.drill,
                    "every_s": one.every_s,
                    "last_at": _time(one.last_at),
                    "next_at": _time(one.next_at),
                    "missed": one.missed,
                }
                for one in planned
            ],
            "drills": [_row_fields(one) for one in rows],
            "trend": trends,
        }
    )


def _planned_cells(one: Planned) -> list[str]:
    every = "when asked" if one.every_s is None else format_seconds(one.every_s)
    shown = [_time(at) or "-" for at in (one.last_at, one.next_at)]
    return [one.drill, every, *shown, str(one.missed)]


def _row_cells(one: DrillRow) -> list[str]:
    metrics = [
        "-" if (value := one.metrics.get(name)) is None else f"{value} {unit}"
        for name, unit in _UNITS.items()
    ]
    return [
        "-" if one.number is None else str(one.number),
        one.drill,
        encode_time(one.at),
        one.outcome,
        *metrics,
    ]


def _row_fields(one: DrillRow) -> Mapping[str, object]:
    return {
        "number": one.number,
        "drill": one.drill,
        "scenario": one.scenario,
        "at": encode_time(one.at),
        "outcome": one.outcome,
        "report_id": one.report_id,
        "reason": one.reason,
        "without_region": one.without_region,
        "metrics": dict(one.metrics),
    }


# -- findings


def tell_findings(app: App, record: Record, *, is_all: bool) -> None:
    """Show where each finding stands, the open ones alone unless ``is_all``."""
    now = datetime.now(UTC)
    clusters: dict[str, list[Predicate]] = {}
    for one in record.reports:
        clusters.setdefault(one["scope"]["system_identifier"], []).append(one)
    found = [
        (system, state)
        for system, reports in clusters.items()
        for state in finding_states(reports)
        if is_all or state.status == "open"
    ]
    app.output.table(
        ["finding", "severity", "status", "owner", "due", "what"],
        [_finding_cells(one, now) for _, one in found],
        empty="no finding is open" if not is_all else "there was no finding",
    )
    app.output.finish({"findings": [_finding_fields(system, one, now) for system, one in found]})


def _finding_cells(one: FindingState, now: datetime) -> list[str]:
    due = (
        "-" if one.due_at is None else f"{one.due_at:%Y-%m-%d}" + (" OVERDUE" if one.is_overdue(now) else "")
    )
    return [one.ref, one.severity, one.status, one.owner or "-", due, one.description.splitlines()[0]]


def _finding_fields(system: str, one: FindingState, now: datetime) -> dict[str, Any]:
    return {
        "finding": one.ref,
        "system_identifier": system,
        "severity": one.severity,
        "status": one.status,
        "description": one.description,
        "owner": one.owner,
        "due_at": _time(one.due_at),
        "is_overdue": one.is_overdue(now),
        "root_cause": one.root_cause,
        "corrective_action": one.corrective_action,
        "opened_in": one.opened_in,
        "told_in": one.told_in,
        "retest_report_id": one.retest_report_id,
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else encode_time(at)
