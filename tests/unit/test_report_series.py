"""Reports read back from the store: only the very one that was logged counts, whoever signed another."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import fix_reports as fix
import pytest
from fix_audit import audit

from pitr.errors import NoGoodCopy, NotAuthentic, PitrError
from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog
from verifiers.log_entry import EntryKind
from verifiers.public_key import to_pem
from verifiers.report_export import export_reports
from verifiers.report_series import (
    LoggedReport,
    close_run,
    logged_reports,
    read_certifications,
    read_derived,
    read_report,
)


def test_a_run_that_was_given_up_gets_no_report_and_the_log_stays_good(tmp_path: Path) -> None:
    store = MemoryStore()
    log, other = (AuditLog(store, fix.REPOSITORY, fix.VERIFIER) for _ in range(2))
    at = fix.BEGIN + fix.WEEK
    intent = fix.intend(log, 1, at)
    close_run(other, intent.entry, "the run was killed", at + timedelta(minutes=1))
    with pytest.raises(PitrError, match="given up while it went on"):
        fix.issue_report(log, intent, fix.draft(1, at), at + timedelta(minutes=6))
    assert [one.kind for one in log.entries()][2:] == [EntryKind.VERIFICATION_ENDED]
    # It took no number, so the next run's is not the one after it.
    assert fix.run_week(other, 2).predicate["identity"]["series_seq"] == 1
    export_reports(store, fix.REPOSITORY, fix.VERIFIER.public, tmp_path / "reports")
    key = tmp_path / "key.pem"
    key.write_text(to_pem(fix.VERIFIER.public))
    judged = audit(tmp_path / "reports", key)
    assert judged.texts("error") == ""


Read = Callable[[MemoryStore, LoggedReport], object]


def swap(store: MemoryStore, one: LoggedReport, other: LoggedReport, name: str) -> None:
    """Put the other report's object, which its verifier signed as well, in the place of the one's."""
    keys = {
        report.number: sorted(info.key for info in store.list_objects(prefix(report)))
        for report in (one, other)
    }
    (mine,) = [key for key in keys[one.number] if name in key.rpartition("/")[2]]
    (theirs,) = [key for key in keys[other.number] if name in key.rpartition("/")[2]]
    body = store.get(theirs)
    store.delete(mine)
    store.put(mine, body)


def prefix(report: LoggedReport) -> str:
    return report.prefix(fix.VERIFIER.public.key_id)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("report", lambda store, report: read_report(store, fix.VERIFIER.public, report)),
        ("certification", lambda store, report: read_certifications(store, fix.VERIFIER.public, report)),
        (
            "test-result",
            lambda store, report: read_derived(store, fix.VERIFIER.public, report, is_html=False),
        ),
    ],
)
def test_what_the_verifier_signed_but_did_not_log_there_is_refused(name: str, read: Read) -> None:
    store = MemoryStore()
    log = AuditLog(store, fix.REPOSITORY, fix.VERIFIER)
    for number in (1, 2):
        fix.run_week(log, number)
        fix.certify(log, number)
    one, other = logged_reports(log.entries())
    read(store, one)
    swap(store, one, other, name)
    with pytest.raises((NotAuthentic, NoGoodCopy)):
        read(store, one)
