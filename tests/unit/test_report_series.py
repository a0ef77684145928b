"""Reports read back from the store: only the very one that was logged counts, whoever signed another."""

from __future__ import annotations

from collections.abc import Callable

import fix_reports as fix
import pytest

from pitr.errors import NoGoodCopy, NotAuthentic
from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog
from verifiers.report_series import (
    LoggedReport,
    logged_reports,
    read_certifications,
    read_derived,
    read_report,
)

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
