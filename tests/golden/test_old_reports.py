"""Reports that earlier versions wrote are read, checked and gone on from as ever.

``reports-v1`` is an exported folder as the program wrote it on 2026-11-30, before version 2 of the schema.
"""

from __future__ import annotations

import json
from pathlib import Path

import fix_reports as fix
from fix_audit import audit

from pitr.layout import checkpoint_key, log_entry_key, report_prefix
from pitr.pipeline.sign import encode_time, payload_of, sign_typed
from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog
from verifiers.log_entry import ENTRY_TYPE, LogEntry
from verifiers.report_export import export_reports
from verifiers.report_html import render_report
from verifiers.report_series import logged_reports, read_report
from verifiers.report_shape import VERIFICATION_TYPE, VERIFICATION_TYPE_1
from verifiers.statement import open_report

V1 = Path(__file__).parent / "reports-v1"
KEY = V1 / "verifier.pub.pem"
NOW = encode_time(fix.BEGIN + fix.WEEK * 4)


def store_of(folder: Path) -> MemoryStore:
    """Return a store that holds what was exported, under the verifier's log and reports."""
    store, key_id = MemoryStore(), fix.VERIFIER.public.key_id
    for line in (folder / "log.jsonl").read_bytes().splitlines():
        entry = LogEntry.parse(line)
        envelope = sign_typed(line, ENTRY_TYPE, fix.VERIFIER)
        store.put(log_entry_key(key_id, entry.sequence), envelope)
        report_id = entry.facts.get("report_id")
        if entry.kind == "verification-ended":
            prefix = report_prefix(key_id, fix.SYSTEM, int(str(entry.facts["series_seq"])))
            stem = f"{int(str(entry.facts['series_seq'])):08d}-{report_id}"
            store.put(prefix + "report", (folder / f"{stem}.json").read_bytes())
            store.put(prefix + "test-result", (folder / f"{stem}.test-result.json").read_bytes())
        elif entry.kind == "report-certified":
            digest = str(entry.facts["certification_sha256"])[:16]
            body = (folder / f"{stem}.certification.json").read_bytes()
            store.put(f"{prefix}certification-{digest}", body)
        if report_id is not None:
            html = str(entry.facts["html_sha256"])[:16]
            store.put(f"{prefix}html-{html}", (folder / f"{stem}.html").read_bytes())
    for line in (folder / "checkpoints.jsonl").read_text().splitlines():
        note = json.loads(line)
        store.put(checkpoint_key(key_id, int(note.splitlines()[1])), note.encode())
    return store


def test_a_folder_of_version_1_is_good_and_each_report_is_read() -> None:
    found = audit(V1 / "reports", KEY, now=NOW)
    assert (found.code, found.texts("error", "warning")) == (0, "")
    assert (found.result["reports"], found.result["certifications"]) == (3, 1)
    for path in (V1 / "reports").glob("*-[0-9a-f]*[0-9a-f].json"):
        report = open_report(path.read_bytes(), fix.VERIFIER.public)
        assert report.predicate["identity"]["schema_version"] == 1
        # Certifying one makes its page anew, by today's program.
        assert b"There is no earlier run on record" in render_report(report, [])


def test_a_series_that_began_with_version_1_goes_on_with_version_2(tmp_path: Path) -> None:
    store = store_of(V1 / "reports")
    log = AuditLog(store, fix.REPOSITORY, fix.VERIFIER)
    made = fix.run_week(log, 4)
    types = [
        json.loads(payload_of(read_report(store, fix.VERIFIER.public, one).envelope))["predicateType"]
        for one in logged_reports(log.entries())
    ]
    assert types == [VERIFICATION_TYPE_1] * 3 + [VERIFICATION_TYPE]
    assert [row["series_seq"] for row in made.predicate["trend"]] == [1, 2, 3]
    assert [row["recovery_time_ms"] for row in made.predicate["trend"]] == [245_001, 245_002, 245_003]
    fix.certify(log, 2)
    export_reports(store, fix.REPOSITORY, fix.VERIFIER.public, tmp_path / "reports")
    found = audit(tmp_path / "reports", KEY, now=encode_time(fix.BEGIN + fix.WEEK * 5))
    assert (found.code, found.texts("error", "warning")) == (0, "")
    assert (found.result["reports"], found.result["certifications"]) == (4, 2)
