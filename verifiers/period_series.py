"""Period reports: gathered from the log and the store, signed, put, logged, and read back.

A report that was put and could not be logged any more counts for nothing: it is made anew.
Reference: docs/format.md §10.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pitr.errors import MalformedValue, NotAuthentic
from pitr.event_reader import EventReader
from pitr.expiry_reader import ListedExpiry
from pitr.layout import period_report_prefix
from pitr.pipeline.sign import Verifier, encode_time
from pitr.repository import Repository
from pitr.verified import get_verified
from storage.store import ObjectStore
from verifiers.audit_log import AuditLog
from verifiers.log_entry import INTENTS, EntryKind, LogEntry
from verifiers.period_html import render_period
from verifiers.period_report import draft_period
from verifiers.period_values import HostRecord, KeyEvent, Period, PeriodFacts, Run, Wanted
from verifiers.report_series import logged_reports, read_report
from verifiers.statement import SignedStatement, open_period, sign_period

_READS_AT_ONCE: Final = 8
# More than one a minute for a week; an auditor reads the rest with `pitr log`.
_EVENTS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class LoggedPeriod:
    """A period report as the log has it."""

    report_id: str
    system_identifier: int
    at: datetime
    report_sha256: str
    html_sha256: str

    def prefix(self, key_id: str) -> str:
        """Return where its objects are."""
        return period_report_prefix(key_id, self.system_identifier, self.report_id)


def logged_periods(entries: Iterable[LogEntry]) -> list[LoggedPeriod]:
    """Return the period reports that a log tells of, in its order.  Pure.  Raises MalformedValue."""
    found = []
    for entry in entries:
        if entry.kind == EntryKind.PERIOD_REPORT:
            names = ("report_id", "system_identifier", "report_sha256", "html_sha256")
            report_id, system, digest, html = (entry.text(name) for name in names)
            if not (report_id and system and digest and html):
                raise MalformedValue(f"log entry {entry.sequence} tells of a period report without a digest")
            found.append(LoggedPeriod(report_id, int(system), entry.at, digest, html))
    return found


def read_runs(log: AuditLog, entries: Sequence[LogEntry], system_identifier: int) -> list[Run]:
    """Return the reports that the log tells of one cluster, in its order, each verified.

    Raises NotAuthentic, NoGoodCopy, StoreError.
    """
    ends = {
        entry.text("report_id"): entry
        for entry in entries
        if entry.kind in INTENTS.values() and entry.text("report_id") is not None
    }
    logged = [one for one in logged_reports(entries) if one.system_identifier == system_identifier]

    with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="reports") as pool:
        statements = pool.map(lambda one: read_report(log.store, log.signer.public, one), logged)
        return [
            Run(one, statement.predicate, ends[one.report_id])
            for one, statement in zip(logged, statements, strict=True)
        ]


def read_host(repository: Repository, root: Verifier, system_identifier: int) -> HostRecord:
    """Return what the host and the root signed of a cluster.  Raises NotAuthentic, StoreError."""
    archives = [one for one in repository.archives() if one.system_identifier == system_identifier]
    listings = [repository.manifests(archive) for archive in archives]
    pages = [EventReader(repository).page(archive, limit=_EVENTS_MAX) for archive in archives]
    expired: list[tuple[ListedExpiry, ListedExpiry | None]] = []
    for archive in archives:
        records = list(repository.expiry.all(archive))
        expired += zip(records, [*records[1:], None][: len(records)], strict=True)
    epochs = [repository.epoch(archive) for archive in archives]
    return HostRecord(
        backups=sorted(
            (one for listing in listings for one in listing.backups), key=lambda one: one.manifest.stopped_at
        ),
        refused=sum(len(listing.refused) for listing in listings),
        expired=expired,
        events=sorted(
            (one.record for page in pages for one in page.events), key=lambda one: one.happening.at
        ),
        keys=[
            KeyEvent(one.created_at, "writer-let-in", f"archive {one.archive}, signer {one.signer}")
            for one in epochs
        ],
        root_key_id=root.key_id,
        faults=[fault for page in pages for fault in page.faults]
        + [
            f"of archive {archive} the newest {_EVENTS_MAX} events were looked at, and no older ones"
            for archive, page in zip(archives, pages, strict=True)
            if len(page.events) >= _EVENTS_MAX
        ]
        + [
            f"manifest {one.key} was refused: {one.reason}" for listing in listings for one in listing.refused
        ],
    )


def issue_period(
    log: AuditLog,
    repository: Repository,
    root: Verifier,
    period: Period,
    wanted: Wanted,
    *,
    report_id: str,
    at: datetime,
) -> SignedStatement:
    """Make, sign, put and log the report of a period.

    Raises MalformedValue if the log is empty; NotAuthentic, NoGoodCopy, StoreError.
    """
    entries, checkpoint = log.entries(), log.newest_checkpoint()
    if checkpoint is None:
        raise MalformedValue("the log is empty: nothing was ever verified", hint="pitr verify")
    facts = PeriodFacts(
        report_id=report_id,
        repository=log.repository_id,
        origin=log.origin,
        key_id=log.key_id,
        created_at=max(at, entries[-1].at),
        period=period,
        entries=entries[: checkpoint.checkpoint.size],
        checkpoint=checkpoint,
        runs=read_runs(log, entries, period.system_identifier),
        host=read_host(repository, root, period.system_identifier),
        wanted=wanted,
    )
    report = sign_period(draft_period(facts), log.signer)
    html = render_period(report)
    logged = LoggedPeriod(
        report_id, period.system_identifier, at, report.payload_sha256, hashlib.sha256(html).hexdigest()
    )
    prefix = logged.prefix(log.key_id)
    log.store.put(f"{prefix}report", report.envelope)
    log.store.put(f"{prefix}html", html)
    told = {
        "report_id": report_id,
        "system_identifier": str(period.system_identifier),
        "period_start": encode_time(period.start),
        "period_end": encode_time(period.end),
        "report_sha256": logged.report_sha256,
        "html_sha256": logged.html_sha256,
    }
    log.append(EntryKind.PERIOD_REPORT, f"period-{report_id}", told, facts.created_at)
    return report


def read_period(store: ObjectStore, verifier: Verifier, logged: LoggedPeriod) -> SignedStatement:
    """Return a period report, which must be the very one that was logged.  Raises NoGoodCopy, StoreError."""

    def check(body: bytes) -> SignedStatement:
        found = open_period(body, verifier)
        if found.payload_sha256 != logged.report_sha256:
            raise NotAuthentic(f"period report {logged.report_id} is not the one that was logged")
        return found

    return get_verified(store, f"{logged.prefix(verifier.key_id)}report", check)


def read_period_page(store: ObjectStore, verifier: Verifier, logged: LoggedPeriod) -> bytes:
    """Return a period report's page, as logged.  Raises NoGoodCopy, StoreError."""

    def check(body: bytes) -> bytes:
        if hashlib.sha256(body).hexdigest() != logged.html_sha256:
            raise NotAuthentic(f"the page of period report {logged.report_id} is not what was logged")
        return body

    return get_verified(store, f"{logged.prefix(verifier.key_id)}html", check)
