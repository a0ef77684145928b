"""A verifier's reports of one cluster: numbered without a gap, each naming the one before, each in the log.

A report takes its number by being put under it, create-only; then what is derived from it is put; then the
log says its digests.  A crash between any two is settled by whoever comes next, from the report itself.
Reference: docs/format.md §10; docs/audit.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from pitr.errors import MalformedValue, NoGoodCopy, NotAuthentic, PitrError
from pitr.layout import checkpoint_key, report_prefix
from pitr.pipeline.sign import Signer, Verifier, encode_time
from pitr.verified import get_verified
from storage.locks import lock_of
from storage.store import ObjectConflict, ObjectMissing, ObjectStore, StoreError
from verifiers.audit_log import AuditLog, Logged
from verifiers.controls import mapping_of
from verifiers.log_entry import INTENTS, EntryKind, LogEntry
from verifiers.report_html import render_report
from verifiers.report_shape import SCHEMA_VERSION, TREND_MAX
from verifiers.statement import (
    Predicate,
    SignedStatement,
    open_certification,
    open_report,
    sign_certification,
    sign_report,
    sign_test_result,
    verdicts,
)
from verifiers.trend import trend_row

_TRIES_MAX: Final = 8
_ENDS: Final = frozenset(INTENTS.values())


@dataclass(frozen=True, slots=True)
class Certified:
    """A certification as the log has it."""

    sha256: str
    key: Verifier
    name: str
    role: str
    at: datetime


@dataclass(frozen=True, slots=True)
class LoggedReport:
    """A report as the log has it; ``html_sha256`` is of the page that was made last."""

    number: int
    system_identifier: int
    report_id: str
    run_id: str
    outcome: str
    at: datetime
    report_sha256: str
    test_result_sha256: str
    html_sha256: str
    certified: tuple[Certified, ...] = ()

    def prefix(self, key_id: str) -> str:
        """Return where its objects are."""
        return report_prefix(key_id, self.system_identifier, self.number)


def logged_reports(entries: Iterable[LogEntry]) -> list[LoggedReport]:
    """Return the reports that a log tells of, in its order.  Pure.  Raises MalformedValue."""
    reports: dict[str, LoggedReport] = {}
    for entry in entries:
        if entry.kind in _ENDS and entry.text("report_id") is not None:
            report = _logged(entry)
            reports[report.report_id] = report
        elif entry.kind == EntryKind.REPORT_CERTIFIED:
            certified = Certified(
                _text(entry, "certification_sha256"),
                Verifier.parse(_text(entry, "key")),
                _text(entry, "name"),
                _text(entry, "role"),
                entry.at,
            )
            report = reports[_text(entry, "report_id")]
            reports[report.report_id] = replace(
                report, html_sha256=_text(entry, "html_sha256"), certified=(*report.certified, certified)
            )
    return list(reports.values())


def _logged(entry: LogEntry) -> LoggedReport:
    number = entry.facts.get("series_seq")
    if not isinstance(number, int):
        raise MalformedValue(f"log entry {entry.sequence} tells of a report without a number")
    return LoggedReport(
        number,
        int(_text(entry, "system_identifier")),
        _text(entry, "report_id"),
        entry.run_id,
        _text(entry, "outcome"),
        entry.at,
        _text(entry, "report_sha256"),
        _text(entry, "test_result_sha256"),
        _text(entry, "html_sha256"),
    )


def _text(entry: LogEntry, fact: str) -> str:
    text = entry.text(fact)
    if text is None:
        raise MalformedValue(f"log entry {entry.sequence} ({entry.kind}) has no {fact}")
    return text


def issue_report(log: AuditLog, intent: Logged, draft: Predicate, at: datetime) -> SignedStatement:
    """Sign, number, put and log the report of the run that ``intent`` announced; return it.

    ``draft`` has every group of the schema but ``log``, ``trend``, and ``mapping``, which follows from
    the others; of ``identity`` it has what is not numbered here, ``result`` needs ``limits`` alone.  May be
    repeated for one run: the first report stands.
    Raises MalformedValue for a draft that breaks the schema; PitrError for a run that the log says came to
    nothing; StoreError, and a repetition settles it.
    """
    system = int(draft["scope"]["system_identifier"])
    # The run took hours: another writer may have gone on with the log, or have given the run up.
    log.refresh()
    for _ in range(_TRIES_MAX):
        settle_report(log, system, at)
        mine = [report for report in logged_reports(log.entries()) if report.run_id == intent.entry.run_id]
        if mine:
            return read_report(log.store, log.signer.public, mine[0])
        log.refuse_ended(intent.entry)
        report = sign_report(_filled(log, intent, draft, system), log.signer)
        number = report.predicate["identity"]["series_seq"]
        try:
            log.store.put(report_prefix(log.key_id, system, number) + "report", report.envelope)
        except ObjectConflict:
            log.refresh()
            continue
        _finish(log, report, intent.entry, at)
        return report
    raise PitrError("another verifier with the same key always takes the report's number first")


def settle_report(log: AuditLog, system_identifier: int, at: datetime) -> LoggedReport | None:
    """Log the report that a killed run put and could not log any more; None if there is none such."""
    number = len(_series(log, system_identifier)) + 1
    prefix = report_prefix(log.key_id, system_identifier, number)
    key = f"{prefix}report"
    # By a listing: that an object is nowhere can be read only while every region answers.
    if all(info.key != key for info in log.store.list_objects(prefix)):
        return None
    report = get_verified(log.store, key, lambda body: open_report(body, log.signer.public))
    run_id = report.predicate["identity"]["run_id"]
    intent = next((one for one in log.entries() if one.kind in INTENTS and one.run_id == run_id), None)
    if intent is None:
        raise NotAuthentic(
            f"report {number} of cluster {system_identifier} is of a run that was never intended"
        )
    _finish(log, report, intent, at)
    return _series(log, system_identifier)[-1]


def close_run(log: AuditLog, intent: LogEntry, reason: str, at: datetime) -> None:
    """Log how a run ended that was cut short: with the report that it had put, else with none, and why.

    May be repeated.  Raises as ``issue_report``; the run is open then, and whoever comes next closes it.
    """
    log.refresh()
    system = intent.text("system_identifier")
    if system is not None:
        settle_report(log, int(system), at)
    if any(one.run_id == intent.run_id for one in log.open_intents()):
        log.abandon(intent, reason, at)


def read_report(store: ObjectStore, verifier: Verifier, report: LoggedReport) -> SignedStatement:
    """Return a report, which must be the very one that was logged.  Raises NoGoodCopy, StoreError."""

    def check(body: bytes) -> SignedStatement:
        found = open_report(body, verifier)
        if found.payload_sha256 != report.report_sha256:
            raise NotAuthentic(f"report {report.report_id} is not the one that was logged")
        return found

    return get_verified(store, report.prefix(verifier.key_id) + "report", check)


def read_certifications(
    store: ObjectStore, verifier: Verifier, report: LoggedReport
) -> list[SignedStatement]:
    """Return the certifications of a report, in the log's order.  Raises as ``read_report``."""

    def read(certified: Certified) -> SignedStatement:
        def check(body: bytes) -> SignedStatement:
            found = open_certification(body, certified.key)
            if found.payload_sha256 != certified.sha256:
                raise NotAuthentic(f"certification of {report.report_id} is not the one that was logged")
            return found

        return get_verified(store, _certification_key(report, verifier.key_id, certified.sha256), check)

    return [read(certified) for certified in report.certified]


def read_derived(store: ObjectStore, verifier: Verifier, report: LoggedReport, *, is_html: bool) -> bytes:
    """Return the report's page or its test-result statement, as logged.  Raises as ``read_report``."""
    digest = report.html_sha256 if is_html else report.test_result_sha256
    name = f"html-{digest[:16]}" if is_html else "test-result"

    def check(body: bytes) -> bytes:
        if hashlib.sha256(body).hexdigest() != digest:
            raise NotAuthentic(f"{name} of {report.report_id} is not what was logged")
        return body

    return get_verified(store, report.prefix(verifier.key_id) + name, check)


def certify_report(
    log: AuditLog, report: LoggedReport, person: Signer, words: Mapping[str, object], at: datetime
) -> SignedStatement:
    """Sign a person's certification of a report, make its page again with it, and log both.

    ``words`` has name, role, statement, reviewed_by and corrective_actions.  One person certifies a report
    once: a repetition returns what was signed first.  Raises MalformedValue, StoreError.
    """
    for at_index, made in enumerate(report.certified):
        if made.key == person.public:
            return read_certifications(log.store, log.signer.public, report)[at_index]
    if person.public == log.signer.public:
        raise MalformedValue(
            "the verifier cannot certify its own report", hint="a person certifies, with a key of their own"
        )
    statement = read_report(log.store, log.signer.public, report)
    certification = sign_certification(
        {
            "report_id": report.report_id,
            "report_sha256": report.report_sha256,
            "series_seq": report.number,
            "certified_at": encode_time(at),
            "certified_by": {"name": words["name"], "role": words["role"], "key": str(person.public)},
            "reviewed_by": words["reviewed_by"],
            "statement": words["statement"],
            "corrective_actions": words["corrective_actions"],
        },
        person,
    )
    digest = certification.payload_sha256
    log.store.put(_certification_key(report, log.key_id, digest), certification.envelope)
    html = _put_html(
        log, report, statement, [*read_certifications(log.store, log.signer.public, report), certification]
    )
    facts = {
        "report_id": report.report_id,
        "report_sha256": report.report_sha256,
        "certification_sha256": digest,
        "html_sha256": html,
        "key": str(person.public),
        "name": words["name"],
        "role": words["role"],
    }
    log.append(EntryKind.REPORT_CERTIFIED, report.run_id, facts, at)
    return certification


def _series(log: AuditLog, system_identifier: int) -> list[LoggedReport]:
    reports = logged_reports(log.entries())
    return [report for report in reports if report.system_identifier == system_identifier]


def _filled(log: AuditLog, intent: Logged, draft: Predicate, system: int) -> dict[str, Any]:
    """Return the draft with what only the log and the series know."""
    series = _series(log, system)
    checkpoint, entry = intent.checkpoint, intent.entry
    filled: dict[str, Any] = {**draft}
    filled["identity"] = {
        **draft["identity"],
        "schema_version": SCHEMA_VERSION,
        "repository": log.repository_id,
        "run_id": entry.run_id,
        "series_seq": len(series) + 1,
        "previous_report_sha256": series[-1].report_sha256 if series else None,
    }
    filled["trigger"] = {**draft["trigger"], "intent_log_index": entry.sequence}
    filled["people"] = {
        **draft["people"],
        "executed_by": {**draft["people"]["executed_by"], "key_id": log.key_id},
    }
    filled["log"] = {
        "log_origin": log.origin,
        "leaf_index": entry.sequence,
        "tree_size": checkpoint.checkpoint.size,
        "root_hash": checkpoint.checkpoint.root.hex(),
        "inclusion_proof": [node.hex() for node in log.proof(intent)],
        "checkpoint": checkpoint.note,
        "prev_checkpoint": None if intent.before is None else intent.before.note,
        "rfc3161_token": None,
        "object_lock_copy": _locked_copy(log, checkpoint.checkpoint.size),
    }
    found = verdicts(filled)
    filled["trend"], lost = _trend(log, series)
    filled["result"] = {
        "overall": str(found.overall),
        "rto_met": found.rto_met,
        "rpo_met": found.rpo_met,
        "limits": [*draft["result"]["limits"], *lost],
    }
    filled["mapping"] = mapping_of(filled)
    return filled


def _trend(log: AuditLog, series: Sequence[LoggedReport]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for each of the last runs, the oldest first; and what is to be said of lost reports.

    One read as a rule: the newest report knows of those before it.  Where it cannot be read in any region,
    or does not know of all, the next older one is read as well.
    """
    rows: list[dict[str, Any]] = []
    lost = []
    for report in reversed(series[-TREND_MAX:]):
        try:
            read = read_report(log.store, log.signer.public, report)
        except (NoGoodCopy, ObjectMissing) as cause:
            lost.append(f"report {report.number} cannot be read, and is not in the trend: {cause}")
            continue
        rows.insert(0, trend_row(read))
        told = read.predicate.get("trend", [])
        if [row["series_seq"] for row in told] == [*range(max(1, report.number - TREND_MAX), report.number)]:
            rows[:0] = told
            break
    return rows[-TREND_MAX:], lost


def _locked_copy(log: AuditLog, size: int) -> dict[str, str | None] | None:
    """Return where the report's checkpoint lies that nobody can delete; None if no region tells of one."""
    try:
        lock = lock_of(log.store, checkpoint_key(log.key_id, size))
    except StoreError:
        return None
    return None if lock is None else {"uri": lock.uri, "version": lock.version}


def _finish(log: AuditLog, report: SignedStatement, intent: LogEntry, at: datetime) -> None:
    """Put what is derived from a report, and log it."""
    identity, scope = report.predicate["identity"], report.predicate["scope"]
    test_result = sign_test_result(report, log.signer)
    logged = LoggedReport(
        identity["series_seq"],
        int(scope["system_identifier"]),
        identity["report_id"],
        intent.run_id,
        report.predicate["result"]["overall"],
        at,
        report.payload_sha256,
        hashlib.sha256(test_result).hexdigest(),
        "",
    )
    log.store.put(logged.prefix(log.key_id) + "test-result", test_result)
    html_sha256 = _put_html(log, logged, report, [])
    facts = {
        "outcome": logged.outcome,
        "report_id": logged.report_id,
        "report_sha256": logged.report_sha256,
        "test_result_sha256": logged.test_result_sha256,
        "html_sha256": html_sha256,
        "series_seq": logged.number,
        "system_identifier": scope["system_identifier"],
    }
    log.append(INTENTS[EntryKind(intent.kind)], intent.run_id, facts, at)


def _put_html(
    log: AuditLog,
    logged: LoggedReport,
    report: SignedStatement,
    certifications: Sequence[SignedStatement],
) -> str:
    html = render_report(report, certifications)
    digest = hashlib.sha256(html).hexdigest()
    log.store.put(f"{logged.prefix(log.key_id)}html-{digest[:16]}", html)
    return digest


def _certification_key(report: LoggedReport, key_id: str, digest: str) -> str:
    return f"{report.prefix(key_id)}certification-{digest[:16]}"
