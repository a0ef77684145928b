"""The report of a period: planned and actual runs, their figures, what is open, and what was deleted.  Pure.

What is in a period is decided by the log's own times, so that whoever has the log can count again.
Reference: docs/audit.md, "A period".
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from pitr.pipeline.sign import encode_time
from verifiers.check_maker import clean
from verifiers.controls import period_mapping
from verifiers.findings import finding_states
from verifiers.log_entry import INTENTS, LogEntry
from verifiers.period_host import (
    cut_limits,
    deletions_of,
    host_events_of,
    is_broken,
    key_events_of,
    subject_of,
    taken_backups,
)
from verifiers.period_shape import PERIOD_SCHEMA_VERSION
from verifiers.period_values import PeriodFacts, Run
from verifiers.report_shape import LIST_MAX
from verifiers.statement import Predicate

# As in the auditor's tool: a test is late from its frequency and this part of it on.
LATE_PART: Final = 7
SAMPLE_RULE: Final = (
    "the reports in the order of SHA-256(seed, ':', report_sha256), all in hexadecimal digits; the first"
    " ones, a tenth of all and at least five; seed = SHA-256('pitr/v1/period-sample', 0x00, root_hash)"
)
_BACKUPS_LIMIT: Final = (
    "backups are those whose manifests the store still has; an expire record names those that are gone, and"
    " of a backup that failed before its manifest the store knows nothing"
)
_VERIFICATION: Final = "weekly_verification"
_SAMPLE_MIN: Final = 5
_SAMPLE_PART: Final = 10
_ENDS: Final = frozenset(INTENTS.values())
_MS: Final = timedelta(milliseconds=1)


def draft_period(facts: PeriodFacts) -> dict[str, Any]:
    """Return the predicate."""
    runs = [run for run in facts.runs if facts.period.holds(run.ended.at)]
    policy, not_run, unfinished = _policy(facts, runs), _not_run(facts), _unfinished(facts)
    gaps = _gaps(facts)
    counts = _counts(facts, runs, not_run, unfinished, policy)
    findings = _findings(facts, runs)
    backups = taken_backups(facts)
    holds = {
        "schedule": not not_run and not unfinished and not gaps,
        "certified": bool(runs) and all(run.logged.certified for run in runs),
        "findings": all(_is_in_hand(finding) for finding in findings),
        "backups": backups["full"] + backups["incr"] > 0 and not backups["refused"],
        "deletions": not is_broken(facts.host),
    }
    draft: dict[str, Any] = {
        "subject": subject_of(facts),
        "identity": _identity(facts),
        "scope": _scope(facts, runs),
        "policy": policy,
        "result": {
            "overall": _overall(counts, gaps),
            "open_findings": sum(one["status"] == "open" for one in findings),
            "limits": _limits(facts),
        },
        "runs": counts,
        "recovery_time": _spread(runs, lambda said: said["timings"]["recovery_time_ms"], "rto_met"),
        "data_loss": _spread(runs, _data_loss_ms, "rpo_met"),
        "reports": [_listed(run) for run in runs],
        "not_run": not_run,
        "unfinished": unfinished,
        "gaps": gaps,
        "findings": findings,
        "backups": backups,
        "deletions": deletions_of(facts),
        "key_events": key_events_of(facts),
        "host_events": host_events_of(facts),
        "mapping": _mapping(runs, holds),
        "sample": _sample(runs, facts.checkpoint.checkpoint.root.hex()),
        "people": {"executed_by": {"key_id": facts.key_id, "name": facts.wanted.verifier_name}},
        "tool": {"product_version": facts.wanted.product_version},
        "log": _log(facts),
    }
    draft["result"]["limits"] += cut_limits(draft)
    return draft


def sample_of(reports: Sequence[tuple[str, str]], root_hash: str) -> tuple[str, list[str]]:
    """Return the seed and the ids that it picks of ``reports``, which are pairs of id and digest."""
    seed = hashlib.sha256(b"pitr/v1/period-sample\x00" + root_hash.encode("ascii")).hexdigest()
    size = min(len(reports), max(_SAMPLE_MIN, -(-len(reports) // _SAMPLE_PART)))
    drawn = sorted(reports, key=lambda one: hashlib.sha256(f"{seed}:{one[1]}".encode("ascii")).digest())
    return seed, [report_id for report_id, _ in drawn[:size]]


def _sample(runs: Sequence[Run], root_hash: str) -> dict[str, Any]:
    seed, picked = sample_of([(run.logged.report_id, run.logged.report_sha256) for run in runs], root_hash)
    numbers = {run.logged.report_id: run.logged.number for run in runs}
    return {
        "seed": seed,
        "rule": SAMPLE_RULE,
        "picked": [{"series_seq": numbers[report_id], "report_id": report_id} for report_id in picked],
    }


def _identity(facts: PeriodFacts) -> dict[str, Any]:
    return {
        "report_id": facts.report_id,
        "schema_version": PERIOD_SCHEMA_VERSION,
        "repository": facts.repository,
        "created_at": encode_time(facts.created_at),
        "period_start": encode_time(facts.period.start),
        "period_end": encode_time(facts.period.end),
    }


def _log(facts: PeriodFacts) -> dict[str, Any]:
    checkpoint = facts.checkpoint.checkpoint
    return {
        "log_origin": facts.origin,
        "tree_size": checkpoint.size,
        "root_hash": checkpoint.root.hex(),
        "checkpoint": facts.checkpoint.note,
    }


def _mapping(runs: Sequence[Run], holds: dict[str, bool]) -> list[dict[str, Any]]:
    return [
        {
            "framework": one.control.framework,
            "control": one.control.control,
            "title": one.control.title,
            "rule": one.control.rule,
            "status": str(one.status),
            "complete": one.complete,
            "partial": one.partial,
            "not_tested": one.not_tested,
            "missing": list(one.missing),
        }
        for one in period_mapping([run.predicate for run in runs], holds)
    ]


def _is_in_hand(finding: dict[str, Any]) -> bool:
    """Tell whether a finding is closed, or somebody is to do something about it by a day."""
    named = finding["owner"] and finding["due_at"] and finding["corrective_action"]
    return finding["status"] != "open" or bool(named)


def _scope(facts: PeriodFacts, runs: Sequence[Run]) -> dict[str, Any]:
    newest = runs[-1].predicate["scope"] if runs else None
    return {
        "org": newest["org"] if newest else facts.wanted.organisation,
        "system_name": newest["system_name"] if newest else facts.wanted.system_name,
        "system_identifier": str(facts.period.system_identifier),
    }


def _policy(facts: PeriodFacts, runs: Sequence[Run]) -> dict[str, Any]:
    """Return what was wanted: as the newest verification signed it, else as the configuration has it.

    A drill's policy says how often that drill is held, and nothing of how often restores are verified.
    """
    verified = [run for run in runs if run.predicate["identity"]["report_type"] == _VERIFICATION]
    for source, found in (("verification", verified), ("report, there is no verification", runs)):
        if found:
            policy = found[-1].predicate["policy"]
            names = ("policy_id", "sha256", "required_frequency_ms", "rto_ms", "rpo_ms")
            return {name: policy[name] for name in names} | {"source": f"the period's newest {source}"}
    wanted = facts.wanted
    return {
        "policy_id": wanted.policy_id,
        "sha256": wanted.policy_sha256,
        "required_frequency_ms": wanted.every_ms,
        "rto_ms": wanted.rto_ms,
        "rpo_ms": wanted.rpo_ms,
        "source": "the configuration: the period has no report",
    }


def _listed(run: Run) -> dict[str, Any]:
    said, logged = run.predicate, run.logged
    return {
        "series_seq": logged.number,
        "report_id": logged.report_id,
        "run_id": logged.run_id,
        "report_type": said["identity"]["report_type"],
        "scheduled_at": said["trigger"]["scheduled_at"],
        "started_at": said["trigger"]["started_at"],
        "logged_at": encode_time(run.ended.at),
        "outcome": said["result"]["overall"],
        "recovery_time_ms": said["timings"]["recovery_time_ms"],
        "data_loss_ms": said["data_loss"]["data_loss_ms"],
        "rto_met": said["result"]["rto_met"],
        "rpo_met": said["result"]["rpo_met"],
        "report_sha256": logged.report_sha256,
        "certified_by": [one.name for one in logged.certified],
        "log_entry": run.ended.sequence,
    }


def _not_run(facts: PeriodFacts) -> list[dict[str, Any]]:
    """Return what was planned and did not begin, and what began and came to no report."""
    scheduled = {entry.run_id: entry.text("scheduled_at") for entry in facts.entries if entry.kind in INTENTS}
    found = []
    for entry in _entries_of(facts):
        is_abandoned = entry.kind in _ENDS and entry.text("report_id") is None
        if is_abandoned or entry.kind.endswith("-missed"):
            found.append(
                {
                    "state": "abandoned" if is_abandoned else "missed",
                    "run_id": entry.run_id,
                    "at": encode_time(entry.at),
                    "scheduled_at": entry.text("scheduled_at") or scheduled.get(entry.run_id),
                    "reason": entry.text("reason"),
                    "log_entry": entry.sequence,
                }
            )
    return found


def _unfinished(facts: PeriodFacts) -> list[dict[str, Any]]:
    """Return the intents that nothing was said of since: killed runs, or runs that still go on."""
    ended = {entry.run_id for entry in facts.entries if entry.kind in _ENDS}
    return [
        {
            "run_id": entry.run_id,
            "at": encode_time(entry.at),
            "scheduled_at": entry.text("scheduled_at"),
            "log_entry": entry.sequence,
        }
        for entry in _entries_of(facts)
        if entry.kind in INTENTS and entry.run_id not in ended
    ]


def _entries_of(facts: PeriodFacts) -> list[LogEntry]:
    """Return the period's entries of the cluster; one that names none may be of any."""
    system = str(facts.period.system_identifier)
    return [
        entry
        for entry in facts.entries
        if facts.period.holds(entry.at) and entry.text("system_identifier") in (None, system)
    ]


def _gaps(facts: PeriodFacts) -> list[dict[str, Any]]:
    """Return the stretches between two runs of one policy that were longer than it allows.

    The first may begin before the period; the last ends with the period, or now.  Not by the kind of report:
    drills of two policies are of one kind, and the one does not stand for the other.
    """
    last: dict[str, tuple[datetime, int | None, str]] = {}
    found: list[dict[str, Any]] = []

    def look(policy_id: str, at: datetime) -> None:
        since, every_ms, kind = last.get(policy_id, (at, None, ""))
        allowed_ms = 0 if every_ms is None else every_ms + every_ms // LATE_PART
        if allowed_ms and (at - since) // _MS > allowed_ms and at >= facts.period.start:
            found.append(
                {
                    "report_type": kind,
                    "since": encode_time(since),
                    "until": encode_time(at),
                    "allowed_ms": allowed_ms,
                }
            )

    for run in facts.runs:
        started_at = datetime.fromisoformat(run.predicate["trigger"]["started_at"])
        if started_at >= facts.period.end:
            continue
        policy, kind = run.predicate["policy"], run.predicate["identity"]["report_type"]
        look(policy["policy_id"], started_at)
        last[policy["policy_id"]] = (started_at, policy["required_frequency_ms"], kind)
    until = min(facts.period.end, facts.created_at)
    for policy_id in list(last):
        look(policy_id, until)
    return found


def _counts(
    facts: PeriodFacts,
    runs: Sequence[Run],
    not_run: Sequence[dict[str, Any]],
    unfinished: Sequence[dict[str, Any]],
    policy: dict[str, Any],
) -> dict[str, Any]:
    planned = {one["scheduled_at"] for one in (*not_run, *unfinished)}
    planned |= {run.predicate["trigger"]["scheduled_at"] for run in runs}
    outcomes = [run.predicate["result"]["overall"] for run in runs]
    states = [one["state"] for one in not_run]
    tried = len(runs) + len(not_run)
    return {
        "planned": len(planned - {None}),
        "reported": len(runs),
        "passed": outcomes.count("PASSED"),
        "warned": outcomes.count("WARNED"),
        "failed": outcomes.count("FAILED"),
        "missed": states.count("missed"),
        "abandoned": states.count("abandoned"),
        "unfinished": len(unfinished),
        "expected": _expected(facts, runs, policy),
        "pass_permille": outcomes.count("PASSED") * 1000 // tried if tried else None,
    }


def _expected(facts: PeriodFacts, runs: Sequence[Run], policy: dict[str, Any]) -> int | None:
    """Return how many runs the frequencies come to, each policy's by its newest report; None without any."""
    frequencies = {policy["policy_id"]: policy["required_frequency_ms"]}
    for run in runs:
        wanted = run.predicate["policy"]
        frequencies[wanted["policy_id"]] = wanted["required_frequency_ms"]
    lasted_ms = max(0, (min(facts.period.end, facts.created_at) - facts.period.start) // _MS)
    counts = [lasted_ms // every_ms for every_ms in frequencies.values() if every_ms is not None]
    return sum(counts) if counts else None


def _overall(counts: dict[str, Any], gaps: Sequence[object]) -> str:
    if counts["failed"]:
        return "FAILED"
    is_short = counts["missed"] or counts["abandoned"] or counts["unfinished"] or counts["warned"] or gaps
    return "WARNED" if is_short or not counts["reported"] else "PASSED"


def _data_loss_ms(said: Predicate) -> int | None:
    """Return what was lost, if it was measured: once a past moment that was there counted as nothing lost."""
    return said["data_loss"]["data_loss_ms"] if said["request"]["kind"] == "latest" else None


def _spread(runs: Sequence[Run], figure: Callable[[Predicate], int | None], met: str) -> dict[str, Any]:
    figures = [(figure(run.predicate), run.logged.report_id) for run in runs]
    measured = [(value, report_id) for value, report_id in figures if value is not None]
    missed = sum(run.predicate["result"][met] is False for run in runs)
    return {"objective_missed": missed, **spread_of(measured)}


def spread_of(measured: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """Return how figures, each with its report's id, are distributed: by nearest rank, as measured."""
    ranked = sorted(measured)
    values = [value for value, _ in ranked]
    return {
        "measured": len(values),
        "min_ms": values[0] if values else None,
        "median_ms": statistics.median_low(values) if values else None,
        "p95_ms": values[-(-len(values) * 95 // 100) - 1] if values else None,
        "max_ms": values[-1] if values else None,
        "worst_report_id": ranked[-1][1] if ranked else None,
    }


def _findings(facts: PeriodFacts, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return what the period's reports name, a row a finding: as it stands now, however often it is named."""
    reports = {run.logged.number: run.logged.report_id for run in facts.runs}
    named = {state.ref for state in finding_states(run.predicate for run in runs)}
    return [
        {
            "report_id": reports.get(state.opened_in, reports[state.told_in]),
            "id": state.ref,
            "severity": state.severity,
            "status": state.status,
            "description": state.description,
            "root_cause": state.root_cause,
            "owner": state.owner,
            "corrective_action": state.corrective_action,
            "due_at": None if state.due_at is None else encode_time(state.due_at),
            "retest_report_id": state.retest_report_id,
        }
        for state in finding_states(run.predicate for run in facts.runs)
        if state.ref in named
    ][:LIST_MAX]


def _limits(facts: PeriodFacts) -> list[str]:
    """Say in words what the report does not rest on."""
    said = [
        "what is in the period is decided by the times of the log's entries, which the verifier's clock gave",
        _BACKUPS_LIMIT,
    ]
    if facts.created_at < facts.period.end:
        said.append(f"the period was not over: it is told up to {encode_time(facts.created_at)}")
    begun = facts.entries[0].at if facts.entries else facts.created_at
    if begun > facts.period.start:
        said.append(f"the log begins within the period or after it, at {encode_time(begun)}")
    return [*said, *(clean(fault) for fault in facts.host.faults[:100])]
