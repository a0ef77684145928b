"""Reports of a made-up verifier: weekly runs and certifications, exported as an auditor gets them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pitr.pipeline.sign import Signer, encode_time
from pitr.recovery import instant_text
from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog, Logged
from verifiers.check import CheckResult, Outcome
from verifiers.log_entry import EntryKind
from verifiers.public_key import to_pem
from verifiers.report_export import export_reports
from verifiers.report_series import certify_report, issue_report, logged_reports
from verifiers.statement import SignedStatement, check_fields
from verifiers.verify_target import STRETCHES_MAX, Stretch, random_moment, stretches_text

REPOSITORY = "0123456789abcdef" * 2
SYSTEM = 7400000000000000001
BEGIN = datetime(2026, 1, 4, 3, 0, tzinfo=UTC)
WEEK = timedelta(days=7)
WEEK_MS = 7 * 86_400_000


def signer(name: str) -> Signer:
    return Signer(hashlib.sha256(name.encode()).digest())


VERIFIER, MANAGER, SECOND, STRANGER = map(signer, ("verifier", "manager", "second manager", "stranger"))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def checks(at: datetime, *, fails: bool = False) -> list[dict[str, object]]:
    """Three checks: one that may fail, one that was skipped, one that is not required."""
    outcomes = [
        ("C04", Outcome.FAILED if fails else Outcome.PASSED, True, "a page differs" if fails else None),
        ("C16", Outcome.SKIPPED, False, "no Kafka is configured"),
        ("C15.orders", Outcome.PASSED, True, None),
    ]
    return [
        check_fields(
            CheckResult(
                id=name,
                category="integrity",
                title=f"what {name} looks at <&>",
                is_required=required,
                tool="pg_verifybackup",
                tool_version="18.6",
                command_sha256=digest(name),
                started_at=at,
                duration_ms=1234,
                outcome=outcome,
                expected="no difference",
                observed="a difference" if fails else 'none, "really"',
                reason=reason,
                evidence_sha256=digest(f"evidence {name}"),
            )
        )
        for name, outcome, required, reason in outcomes
    ]


def stretches(at: datetime) -> tuple[Stretch, ...]:
    """Return as many stretches as an intent may name, of one hour each, a gap of one between them."""
    hour = timedelta(hours=1)
    begins = [at - 2 * hour * number for number in range(STRETCHES_MAX, 0, -1)]
    return tuple(Stretch(begin, begin + hour) for begin in begins)


def draft(
    number: int, started_at: datetime, *, fails: bool = False, is_random: bool = False
) -> dict[str, Any]:
    """All that a run says of itself; what only log and series know is left to ``issue_report``."""
    phase = {"at": encode_time(started_at + timedelta(minutes=2)), "ms": 120_000}
    commit = {
        "lsn": "0/3000148",
        "time": encode_time(started_at),
        "xid": 731,
        "marker": f"heartbeat {number}",
    }
    apart = {"is_distinct": True, "shown_by": "another user and a namespace without network"}
    seed = hashlib.sha256(f"seed {number}".encode()).hexdigest() if is_random else None
    drawn = None if seed is None else instant_text(random_moment(seed, stretches(started_at)))
    return {
        "subject": {
            "backups": [
                {
                    "name": f"7400000000000000001/00000001/backup-{number}",
                    "manifest_sha256": digest(f"m{number}"),
                }
            ],
            "wal": [
                {
                    "timeline": "00000001",
                    "start_lsn": "0/2000028",
                    "end_lsn": "0/3000148",
                    "index_sha256": None,
                }
            ],
        },
        "identity": {
            "report_id": f"0198c0de-0000-7000-8000-{number:012d}",
            "report_type": "weekly_verification",
            "created_at": encode_time(started_at + timedelta(minutes=5)),
            "period_start": None,
            "period_end": None,
        },
        "scope": {
            "org": "Example Hospital",
            "system_name": "patients",
            "system_identifier": str(SYSTEM),
            "pg_version": "18.6",
            "databases": ["postgres", "patients"],
            "asset_id": "CMDB-17",
            "criticality_tier": "1",
            "data_classes": ["ePHI"],
            "excluded": [{"item": "pictures", "reason": "they are in another store"}],
        },
        "policy": {
            "policy_id": "backup-policy",
            "sha256": digest("policy"),
            "required_frequency_ms": WEEK_MS,
            "rto_ms": 300_000,
            "rpo_ms": 60_000,
            "retention_ms": None,
            "plan_document": {"id": "DRP", "version": "3", "sha256": digest("plan")},
        },
        "trigger": {
            "scheduled_at": encode_time(started_at),
            "started_at": encode_time(started_at),
            "started_by": "daemon",
            "reason": "the weekly timetable",
            "sampling": {
                "method": "random" if is_random else "latest",
                "seed": seed,
                "seed_sha256": None if seed is None else hashlib.sha256(bytes.fromhex(seed)).hexdigest(),
            },
        },
        "source": {
            "backup_id": f"backup-{number}",
            "kind": "incr",
            "chain": [f"backup-{number}", "backup-full"],
            "taken_at": encode_time(started_at - timedelta(days=1)),
            "taken_by": "host",
            "region": "north",
            "regions": [
                {
                    "name": "north",
                    "is_used": True,
                    "object_lock_mode": "COMPLIANCE",
                    "min_lock_until": encode_time(started_at + WEEK),
                }
            ],
            "store_checksum": "sha256",
            "encryption": {"suite": "AES-256-GCM", "key_ids": ["00" * 16], "commitment_ok": True},
            "manifest_signature": {"key_id": "ab" * 8, "is_valid": True},
        },
        "target": {
            "environment_id": "scratch-1",
            "host": "verifier-host",
            "region": None,
            "pg_binary_version": "18.6",
            "wiped_proof": "the directory is gone",
            "wiped_after": True,
            "segregation": {
                "account": apart,
                "network": apart,
                "credentials": {**apart, "is_distinct": None},
            },
        },
        "request": {
            "kind": "time" if is_random else "latest",
            "value": drawn,
            "timezone": "UTC",
            "inclusive": True,
            "timeline": None,
        },
        "timings": {
            **dict.fromkeys(
                [
                    "detect",
                    "decide",
                    "provision",
                    "fetch_first_byte",
                    "base_done",
                    "wal_replay_done",
                    "consistent",
                ],
                phase,
            ),
            "accept_reads": phase,
            "accept_writes": None,
            "checks_done": phase,
            "recovery_time_ms": 245_000 + number,
            "bytes": 4_000_000_000,
            "wal_bytes": 160_000_000,
            "throughput_bytes_s": 20_000_000,
        },
        "data_loss": {
            "last_source_commit": commit,
            "last_recovered": commit,
            "data_loss_ms": None if is_random else 900,
            "data_loss_tx": 0,
            "lsn_gap_bytes": 0,
            "method": "heartbeat row",
            "clock_skew_ms": -3,
        },
        "degradation": None,
        "checks": checks(started_at + timedelta(minutes=3), fails=fails),
        "kafka": None,
        "ransomware": None,
        "result": {"limits": ["Kafka offsets were not compared."]},
        "findings": [],
        "people": {
            "executed_by": {"name": "weekly verification"},
            "participants": [],
            "notified": ["on-call"],
        },
        "tool": {
            "product_version": "0.1.0",
            "wheel_sha256": None,
            "sbom_sha256": None,
            "pg_binaries_sha256": digest("binaries"),
            "config_sha256": digest("configuration"),
        },
        "mapping": [
            {"framework": "SOC 2", "control": "A1.3", "status": "satisfied", "fields": ["checks", "timings"]}
        ],
        "recoverability": recoverability(started_at),
    }


def recoverability(at: datetime) -> list[dict[str, object]]:
    """Two weeks in two regions: one of them begins later, and an hour is lost in both."""

    def span(lsns: str, hours: tuple[int, int], regions: list[str], cause: str | None) -> dict[str, object]:
        start, _, end = lsns.partition("-")
        return {
            "start_lsn": start,
            "end_lsn": end,
            "timeline": "00000001",
            "state": "restorable" if cause is None else "gap",
            "cause": cause,
            "regions": regions,
            "from_at": encode_time(at - timedelta(hours=hours[0])),
            "to_at": encode_time(at - timedelta(hours=hours[1])),
        }

    return [
        span("0/2000028-0/5000000", (336, 200), ["north"], None),
        span("0/5000000-0/6000000", (200, 199), [], "wal-missing"),
        span("0/6000000-0/9000148", (199, 0), ["north", "south"], None),
    ]


def intend(log: AuditLog, number: int, at: datetime, *, is_random: bool = False) -> Logged:
    """Log the intent of run ``number``, a second before it begins."""
    seed = hashlib.sha256(f"seed {number}".encode()).digest()
    facts: dict[str, object] = {
        "report_type": "weekly_verification",
        "system_identifier": str(SYSTEM),
        "scheduled_at": encode_time(at),
    }
    facts["target"] = "random" if is_random else "latest"
    if is_random:
        facts["seed_sha256"] = hashlib.sha256(seed).hexdigest()
        facts["stretches"] = stretches_text(stretches(at))
    return log.intend(EntryKind.VERIFICATION_INTENDED, f"run-{number}", facts, at - timedelta(seconds=1))


def run_week(log: AuditLog, number: int, *, fails: bool = False, is_random: bool = False) -> SignedStatement:
    """Carry out weekly run ``number`` (from 1) in all that the record sees of it."""
    at = BEGIN + WEEK * number
    intent = intend(log, number, at, is_random=is_random)
    said = draft(number, at, fails=fails, is_random=is_random)
    return issue_report(log, intent, said, at + timedelta(minutes=6))


WORDS: Mapping[str, object] = {
    "name": "A. Manager",
    "role": "head of IT",
    "statement": "I have read this report and certify it.",
    "reviewed_by": {"name": "B. Reviewer", "role": "DBA"},
    "corrective_actions": ["none"],
}


def certify(log: AuditLog, number: int, person: Signer = MANAGER) -> SignedStatement:
    """Let a person certify report ``number`` a day after it was made."""
    report = logged_reports(log.entries())[number - 1]
    return certify_report(
        log, report, person, WORDS, max(report.at, log.entries()[-1].at) + timedelta(days=1)
    )


def observe(log: AuditLog, number: int) -> None:
    """Anchor the host's own chains as they are after week ``number``."""
    facts: dict[str, str | int] = {
        "archive": f"{SYSTEM}/00000001",
        "head_sequence": number * 10,
        "head_sha256": digest(f"head {number}"),
    }
    log.append(EntryKind.OBSERVED, f"run-{number}", facts, BEGIN + WEEK * number + timedelta(minutes=7))


class ReportHouse:
    """A log with some weekly reports, and the folder that an auditor got."""

    def __init__(self, folder: Path, *, weeks: int = 3, certified: tuple[int, ...] = (1,)) -> None:
        self.store = MemoryStore()
        self.log = AuditLog(self.store, REPOSITORY, VERIFIER)
        for number in range(1, weeks + 1):
            run_week(self.log, number, is_random=number == 2)
            observe(self.log, number)
            if number in certified:
                certify(self.log, number)
        self.folder = folder
        self.key = folder.parent / "verifier.pub.pem"
        self.now = BEGIN + WEEK * weeks + timedelta(days=2)
        self.key.write_text(to_pem(VERIFIER.public))
        self.export()

    def export(self) -> None:
        export_reports(self.store, REPOSITORY, VERIFIER.public, self.folder)


def changed(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy to change."""
    return copy.deepcopy(dict(predicate))
