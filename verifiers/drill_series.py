"""The drills of a log as a series: what was held, what came of it, what is due, and the trend.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Final

from verifiers.log_entry import EntryKind, LogEntry
from verifiers.statement import Predicate
from verifiers.verify_schedule import last_scheduled_at

METRICS: Final = ("recovery_time_ms", "data_loss_ms", "degradation_ms", "errors_permille")
RUNS: Final = "RUNNING"
# A trend of fewer says nothing; that many at the end are compared with those before.
_TREND_MIN: Final = 4
_TREND_LAST: Final = 3
# What differs less is the same: the machine's mood.
_SAME_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True)
class DrillRow:
    """One drill that was intended, or missed; ``outcome`` is its verdict, ABANDONED, MISSED or RUNNING."""

    drill: str
    scenario: str | None
    at: datetime
    outcome: str
    number: int | None
    report_id: str | None
    reason: str | None
    without_region: str | None
    metrics: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Planned:
    """When a kind of drill was last held, by a schedule or by somebody, and when it is due."""

    drill: str
    every_s: float | None
    last_at: datetime | None
    next_at: datetime | None
    missed: int


def metrics_of(predicate: Predicate) -> dict[str, int | None]:
    """Return the four metrics of a report; None is: not measured."""
    degradation = predicate["degradation"]
    window, permille = None, None
    if degradation is not None:
        window = degradation["service_degradation"]["window_ms"]
        requests = degradation["error_rate"]["requests"]
        errors = sum(one["count"] for one in degradation["error_rate"]["errors"])
        permille = errors * 1000 // requests if requests else None
    return {
        "recovery_time_ms": predicate["timings"]["recovery_time_ms"],
        "data_loss_ms": predicate["data_loss"]["data_loss_ms"],
        "degradation_ms": window,
        "errors_permille": permille,
    }


def drill_rows(entries: Iterable[LogEntry], reports: Iterable[Predicate]) -> list[DrillRow]:
    """Return every drill that the log tells of, in its order; one that was killed or missed as well."""
    log = list(entries)
    ended = {one.run_id: one for one in log if one.kind == EntryKind.DRILL_ENDED}
    by_id = {one["identity"]["report_id"]: one for one in reports}
    rows = []
    for entry in log:
        if entry.kind == EntryKind.DRILL_INTENDED:
            rows.append(_row(entry, ended.get(entry.run_id), by_id))
        elif entry.kind == EntryKind.DRILL_MISSED:
            at = entry.text("scheduled_at")
            rows.append(
                DrillRow(
                    entry.text("drill") or "-",
                    None,
                    entry.at if at is None else datetime.fromisoformat(at),
                    "MISSED",
                    None,
                    None,
                    entry.text("reason"),
                    None,
                    {},
                )
            )
    return rows


def _row(intent: LogEntry, end: LogEntry | None, by_id: Mapping[str, Predicate]) -> DrillRow:
    report_id = None if end is None else end.text("report_id")
    predicate = None if report_id is None else by_id.get(report_id)
    return DrillRow(
        intent.text("drill") or "-",
        intent.text("scenario"),
        intent.at,
        RUNS if end is None else end.text("outcome") or "-",
        None if predicate is None else predicate["identity"]["series_seq"],
        report_id,
        None if end is None else end.text("reason"),
        intent.text("without_region"),
        {} if predicate is None else metrics_of(predicate),
    )


def planned_drills(
    entries: Sequence[LogEntry],
    every_s: Mapping[str, float | None],
    now: datetime,
    system_identifier: int | None,
) -> list[Planned]:
    """Return a cluster's schedule; ``next_at`` is not before now, None where a kind is held when asked alone.

    It goes by what the daemon goes by: a drill that was abandoned is due still.  ``system_identifier`` None:
    of all clusters, where the newest drill of any counts.
    """
    named = {entry.text("system_identifier") for entry in entries} - {None}
    systems = named if system_identifier is None else {str(system_identifier)}
    mine = [one for one in entries if one.text("system_identifier") in systems]
    rows = drill_rows([*mine, *(one for one in entries if one.kind == EntryKind.DRILL_ENDED)], ())
    found = []
    for drill, every in every_s.items():
        held = [one.at for one in rows if one.drill == drill and one.report_id is not None]
        next_at = None
        if every is not None:
            lasts = [last_scheduled_at(entries, int(str(one)), drill) for one in systems]
            last = max((one for one in lasts if one is not None), default=None)
            next_at = now if last is None else max(now, last + timedelta(seconds=every))
        missed = sum(one.drill == drill and one.outcome == "MISSED" for one in rows)
        found.append(Planned(drill, every, max(held, default=None), next_at, missed))
    return found


def trend(rows: Sequence[DrillRow]) -> dict[str, str]:
    """Return for each metric where the last three drills stand against those before, in words.

    Only drills of the newest kind that has enough are compared: a failover is no component check.
    """
    found = {}
    for name in METRICS:
        for drill in dict.fromkeys(one.drill for one in reversed(rows)):
            values = [
                value for one in rows if one.drill == drill and (value := one.metrics.get(name)) is not None
            ]
            if len(values) >= _TREND_MIN:
                found[name] = f"{drill}: {_compared(values)}"
                break
    return found


def _compared(values: Sequence[int]) -> str:
    before, last = median(values[:-_TREND_LAST]), median(values[-_TREND_LAST:])
    text = f"{last:g}, and {before:g} before"
    if abs(last - before) <= _SAME_SHARE * max(before, 1):
        return f"steady ({text})"
    return f"{'worse' if last > before else 'better'} ({text})"
