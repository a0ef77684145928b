"""The report's draft: what was asked for, found and not tested, as the schema has it.  Pure.

The log and the series add their part: ``verifiers.report_series``.  Nothing is stated that was not seen:
what is not known is null, and its text says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from pitr.pipeline.sign import Verifier, encode_time
from pitr.restore_plan import RestorePlan
from pitr.wal.transactions import TransactionEnd
from verifiers.check import Outcome
from verifiers.check_maker import clean, clean_name
from verifiers.findings import Care, Retest, findings_of
from verifiers.source_locks import LeastLock
from verifiers.statement import check_fields
from verifiers.verify_values import Mark, Verified

SUITE: Final = "AES-256-GCM, key by HKDF-SHA-512 with commitment"
_CLOSED_MAX: Final = 100
_ALWAYS_EXCLUDED: Final = (
    ("unlogged tables", "PostgreSQL empties them at the end of every recovery"),
    ("clients, their passwords and TLS", "the scratch server lets in nobody but the verifier"),
    ("configuration files", "the scratch server has a configuration of its own"),
)


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose cluster it is, as the configuration says."""

    organisation: str
    system_name: str
    asset_id: str | None = None
    criticality_tier: str | None = None
    data_classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """What is wanted: how often, and the objectives; None is none."""

    policy_id: str
    sha256: str
    every_ms: int | None
    rto_ms: int | None
    rpo_ms: int | None
    retention_ms: int | None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the target was chosen."""

    method: str
    seed: str | None = None
    seed_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What the report says beside what the run found."""

    report_id: str
    report_type: str
    created_at: datetime
    started_at: datetime
    scheduled_at: datetime | None
    started_by: str
    reason: str
    scope: Scope
    policy: Policy
    sampling: Sampling
    plan: RestorePlan
    zone: str
    region: str
    regions: Sequence[str]
    host: str
    environment_id: str
    writer: Verifier
    product_version: str
    config_sha256: str
    pg_binaries_sha256: str | None
    verifier_name: str
    # What can be restored, as the report has it.
    recoverability: Sequence[Mapping[str, Any]]
    # How old the newest signed head was when the plan was made.
    archive_age_ms: int | None
    # By region: the weakest lock of all that the restore needs; a region that is not here has none on all.
    locks: Mapping[str, LeastLock] = field(default_factory=dict)
    notes: Sequence[str] = field(default_factory=tuple)
    care: Care = field(default_factory=Care)
    retests: Sequence[Retest] = ()
    # Name and role of each who took part, and who was told, as somebody says it.
    participants: Sequence[tuple[str, str]] = ()
    notified: Sequence[str] = ()


def draft_report(facts: ReportFacts, found: Verified) -> dict[str, Any]:
    """Return the predicate without what the log and the series add (``report_series``)."""
    plan = facts.plan
    draft = {
        "subject": _subject(plan, found),
        "identity": {
            "report_id": facts.report_id,
            "report_type": facts.report_type,
            "created_at": encode_time(facts.created_at),
            "period_start": None,
            "period_end": None,
        },
        "scope": _scope(facts, found),
        "policy": _policy(facts.policy),
        "trigger": _trigger(facts),
        "source": _source(facts, found),
        "target": _target(facts, found),
        "request": {
            "kind": plan.target.kind,
            "value": None if plan.target.kind in ("latest", "immediate") else str(plan.target),
            "timezone": facts.zone,
            "inclusive": plan.target.is_inclusive,
            "timeline": str(plan.timeline),
        },
        "timings": _timings(found),
        "data_loss": data_loss(plan, found, facts.archive_age_ms),
        "degradation": None,
        "checks": [check_fields(check) for check in found.checks],
        "kafka": found.kafka,
        "ransomware": found.ransomware,
        "result": {"limits": _limits(facts, found)},
        "findings": [],
        "people": {
            "executed_by": {"name": facts.verifier_name},
            "participants": [
                {"name": clean_name(name), "role": clean_name(role)} for name, role in facts.participants
            ],
            "notified": [clean(who) for who in facts.notified],
        },
        "tool": {
            "product_version": facts.product_version,
            "wheel_sha256": None,
            "sbom_sha256": None,
            "config_sha256": facts.config_sha256,
            "pg_binaries_sha256": facts.pg_binaries_sha256,
        },
        "recoverability": list(facts.recoverability),
    }
    draft["findings"] = findings_of(draft, facts.report_id, facts.care, facts.retests)
    return draft


def _policy(policy: Policy) -> dict[str, Any]:
    return {
        "policy_id": policy.policy_id,
        "sha256": policy.sha256,
        "required_frequency_ms": policy.every_ms,
        "rto_ms": policy.rto_ms,
        "rpo_ms": policy.rpo_ms,
        "retention_ms": policy.retention_ms,
        "plan_document": None,
    }


def _trigger(facts: ReportFacts) -> dict[str, Any]:
    return {
        "scheduled_at": None if facts.scheduled_at is None else encode_time(facts.scheduled_at),
        "started_at": encode_time(facts.started_at),
        "started_by": facts.started_by,
        "reason": facts.reason,
        "sampling": {
            "method": facts.sampling.method,
            "seed": facts.sampling.seed,
            "seed_sha256": facts.sampling.seed_sha256,
        },
    }


def _subject(plan: RestorePlan, found: Verified) -> dict[str, Any]:
    end = plan.wal_end if plan.stop is None else plan.stop.read_end
    return {
        "backups": [
            {"name": one.manifest.backup, "manifest_sha256": one.object_sha256.hex()} for one in found.listed
        ],
        "wal": [
            {
                "timeline": str(span.timeline),
                "start_lsn": str(max(span.start, plan.backup.wal_start)),
                "end_lsn": str(end if span.end is None else min(span.end, end)),
                "index_sha256": None,
            }
            for span in plan.spans
        ],
    }


def _scope(facts: ReportFacts, found: Verified) -> dict[str, Any]:
    scope, plan = facts.scope, facts.plan
    version = plan.backup.server_version
    excluded = [*_ALWAYS_EXCLUDED, *_closed(found)]
    return {
        "org": scope.organisation,
        "system_name": scope.system_name,
        "system_identifier": str(plan.archive.system_identifier),
        "pg_version": f"{version // 10_000}.{version % 10_000}",
        "databases": [clean_name(name) for name in found.databases],
        "asset_id": scope.asset_id,
        "criticality_tier": scope.criticality_tier,
        "data_classes": list(scope.data_classes),
        "excluded": [{"item": item, "reason": reason} for item, reason in excluded],
    }


def _closed(found: Verified) -> list[tuple[str, str]]:
    """Name the databases whose inside was not looked at; as many as a person reads."""
    named = [
        (f"the inside of database {clean_name(name)}", f"C11, C13, C14 and C18 leave it out: {reason}")
        for name, reason in found.closed[:_CLOSED_MAX]
    ]
    more = len(found.closed) - len(named)
    return [*named, (f"{more} more databases", "as those above")] if more else named


def _source(facts: ReportFacts, found: Verified) -> dict[str, Any]:
    plan = facts.plan
    backup = plan.backup
    keys = sorted({key.hex() for one in (backup, *plan.parents) for key in one.key_ids})
    return {
        "backup_id": backup.backup,
        "kind": backup.type,
        "chain": [one.backup for one in plan.parents],
        "taken_at": encode_time(backup.stopped_at),
        "taken_by": f"writer {facts.writer.key_id} of archive {backup.archive}",
        "region": facts.region,
        "regions": [
            {"name": name, "is_used": name == facts.region, **_lock(facts.locks.get(name))}
            for name in facts.regions
        ],
        "store_checksum": "SHA-256",
        "encryption": {"suite": SUITE, "key_ids": keys, "commitment_ok": found.commitment_ok},
        "manifest_signature": (
            None
            if found.manifests_ok is None
            else {"key_id": facts.writer.key_id, "is_valid": found.manifests_ok}
        ),
    }


def _lock(least: LeastLock | None) -> dict[str, object]:
    return {
        "object_lock_mode": None if least is None else least.mode,
        "min_lock_until": None if least is None else encode_time(least.until),
    }


def _target(facts: ReportFacts, found: Verified) -> dict[str, Any]:
    isolation = found.isolation
    network = isolation.shown_by if isolation is not None else "the server did not come so far"
    wiped = next((check for check in found.checks if check.id == "C20"), None)
    result = found.result
    version = None
    if result is not None and result.instance is not None:
        version = result.instance.installation.version
    return {
        "environment_id": facts.environment_id,
        "region": None,
        "host": facts.host,
        "pg_binary_version": version,
        "segregation": {
            "account": {
                "is_distinct": None,
                "shown_by": "not looked at: whose the source's host is, is not known to the verifier",
            },
            "network": {
                "is_distinct": None if isolation is None else isolation.is_cut_off,
                "shown_by": clean(network),
            },
            "credentials": {
                "is_distinct": None,
                "shown_by": "not looked at: which credentials the source's host has is not known here",
            },
        },
        "wiped_after": None if wiped is None else wiped.outcome is Outcome.PASSED,
        "wiped_proof": None if wiped is None else wiped.observed,
    }


def _timings(found: Verified) -> dict[str, Any]:
    names = (
        "detect", "decide", "provision", "fetch_first_byte", "base_done", "wal_replay_done", "consistent",
        "accept_reads", "accept_writes", "checks_done",
    )  # fmt: skip
    result, took_ms = found.result, found.recovery_time_ms
    size_bytes = None if result is None else result.size_bytes
    wal_bytes = None if result is None else result.wal_bytes
    throughput = None
    if size_bytes is not None and wal_bytes is not None and took_ms:
        throughput = (size_bytes + wal_bytes) * 1000 // took_ms
    return {
        **{name: _mark(found.marks.get(name)) for name in names},
        "recovery_time_ms": took_ms,
        "bytes": size_bytes,
        "wal_bytes": wal_bytes,
        "throughput_bytes_s": throughput,
    }


def _mark(mark: Mark | None) -> dict[str, object] | None:
    return None if mark is None else {"at": encode_time(mark.at), "ms": mark.ms}


def data_loss(plan: RestorePlan, found: Verified, archive_age_ms: int | None) -> dict[str, Any]:
    """State what was lost; for a target in the past nothing was measured of that, and null says so.

    A past moment that is there whole would be as whole if archiving had stopped the hour after.
    """
    before = None if plan.commits is None else plan.commits.before
    # What was there at the target and never opened is not recovered.
    is_there = all(_is_passed(found, check) for check in ("C09", "C10", "C21"))
    is_measured = is_there and plan.target.kind == "latest"
    stop = plan.stop
    replayed = None if found.reached is None else found.reached.replay_lsn
    gap = None
    if stop is not None and replayed is not None:
        gap = max(0, stop.replay_end.offset - replayed.offset)
    method = "the last commit in the WAL before the target, looked for in the restored server"
    if plan.target.kind == "latest":
        method += "; to that comes the age of the newest signed end of the archive when the plan was made"
        method += "; transactions are counted in the archived WAL alone"
    else:
        method += "; what a failure would have lost is not measured by a target in the past"
    return {
        "last_source_commit": _commit(before),
        "last_recovered": _commit(before, found.marker_at) if is_there else None,
        "data_loss_ms": archive_age_ms if is_measured else None,
        "data_loss_tx": 0 if is_measured else None,
        "lsn_gap_bytes": gap,
        "method": method,
        "clock_skew_ms": None,
    }


def loss_limits(plan: RestorePlan, archive_age_ms: int | None) -> list[str]:
    """Say what the run does not tell of data loss, and how old the end was that it did not restore to."""
    if plan.target.kind == "latest":
        return []
    age = "not known" if archive_age_ms is None else f"{archive_age_ms} ms"
    said = f"the age of the newest signed end of the archive, which was not restored to: {age}"
    return [f"data loss was not measured, for the target is in the past; {said}"]


def _commit(end: TransactionEnd | None, marker_at: datetime | None = None) -> dict[str, object] | None:
    if end is None:
        return None
    marker = None if marker_at is None else encode_time(marker_at)
    return {"lsn": str(end.end), "time": encode_time(end.at), "xid": end.xid, "marker": marker}


def _limits(facts: ReportFacts, found: Verified) -> list[str]:
    """Say in words what the verdict does not rest on."""
    said = [
        clean(f"{check.id} {check.title}: not tested: {check.reason}")
        for check in found.checks
        if check.outcome is Outcome.SKIPPED
    ]
    here = f"region {facts.region}"
    said.append(f"data was read from {here}, what it lacks from others; C01 to C03 read {here} alone")
    if found.failure is not None:
        said.append(clean(f"the run did not come to its end: {found.failure}"))
    loss = loss_limits(facts.plan, facts.archive_age_ms)
    return [*said, *map(clean, found.limits), *loss, *map(clean, facts.notes)]


def _is_passed(found: Verified, check: str) -> bool | None:
    """Return whether a check passed; None if it did not run."""
    result = next((one for one in found.checks if one.id == check), None)
    if result is None or result.outcome is Outcome.SKIPPED:
        return None
    return result.outcome is Outcome.PASSED
