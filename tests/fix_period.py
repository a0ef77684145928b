"""A verifier's busy eight weeks, and reports of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import fix_reports as fix

from pitr.pipeline.sign import encode_time
from pitr.repository import Repository
from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog
from verifiers.log_entry import EntryKind
from verifiers.period_report import draft_period
from verifiers.period_series import issue_period, read_runs
from verifiers.period_shape import PERIOD
from verifiers.period_values import HostRecord, Period, PeriodFacts, Wanted
from verifiers.report_shape import check_shape
from verifiers.statement import Predicate, SignedStatement

ROOT = fix.signer("root")
ID = "0198c0de-0000-7000-8000-00000000900{}"
WANTED = Wanted(
    "Example Hospital", "patients", "verify/main", fix.digest("policy"), None, None, None, "v", "0"
)
WEEKS = 8
PERIOD_ALL = Period(fix.BEGIN, fix.BEGIN + fix.WEEK * (WEEKS + 1), fix.SYSTEM)


def system_facts(**more: object) -> dict[str, object]:
    return {"system_identifier": str(fix.SYSTEM), **more}


def a_busy_log() -> AuditLog:
    """Eight weeks: 3 failed, 4 was missed, 5 was abandoned, 8 still runs, 1 is certified."""
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    for number in (1, 2, 3):
        fix.run_week(log, number, fails=number == 3)
    fix.certify(log, 1)
    at = fix.BEGIN + fix.WEEK * 4 + timedelta(days=2)
    missed = system_facts(scheduled_at=encode_time(fix.BEGIN + fix.WEEK * 4), reason="nobody verified")
    log.append(EntryKind.VERIFICATION_MISSED, "missed-4", missed, at)
    begun = fix.intend(log, 5, fix.BEGIN + fix.WEEK * 5)
    log.abandon(begun.entry, "the run was killed", fix.BEGIN + fix.WEEK * 5 + timedelta(hours=1))
    for number in (6, 7):
        fix.run_week(log, number)
    fix.intend(log, 8, fix.BEGIN + fix.WEEK * 8)
    return log


def facts_of(
    log: AuditLog,
    period: Period = PERIOD_ALL,
    host: HostRecord | None = None,
    *,
    after: timedelta = timedelta(),
) -> PeriodFacts:
    checkpoint = log.newest_checkpoint()
    assert checkpoint is not None
    return PeriodFacts(
        report_id=ID.format(1),
        repository=fix.REPOSITORY,
        origin=log.origin,
        key_id=log.key_id,
        created_at=PERIOD_ALL.end + after,
        period=period,
        entries=log.entries(),
        checkpoint=checkpoint,
        runs=read_runs(log, log.entries(), period.system_identifier),
        host=host or HostRecord([], 0, [], [], [], ROOT.public.key_id),
        wanted=WANTED,
    )


def drawn(log: AuditLog, *arguments: Any, **options: Any) -> Predicate:
    found = draft_period(facts_of(log, *arguments, **options))
    check_shape(found, PERIOD)
    return found


def issued(log: AuditLog, period: Period = PERIOD_ALL, number: int = 1) -> SignedStatement:
    repository = Repository(log.store, fix.REPOSITORY, ROOT.public)
    return issue_period(
        log, repository, ROOT.public, period, WANTED, report_id=ID.format(number), at=PERIOD_ALL.end
    )
