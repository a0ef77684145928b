"""The folder that an auditor gets: every report with what belongs to it, the whole log, all checkpoints.

Written from the store through the same verification that any reader does; a name that is there already
keeps a report that is the same, and a log or page that grew replaces the older one whole.
Reference: docs/audit.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pitr.errors import PitrError
from pitr.pipeline.sign import Verifier
from storage.store import ObjectStore
from storage.synced_file import replace_synced
from verifiers.checkpoint import log_origin
from verifiers.log_reader import checkpoint_sizes, read_checkpoint, read_log
from verifiers.period_series import logged_periods, read_period, read_period_page
from verifiers.report_pdf import Paper, render_pdf
from verifiers.report_series import (
    LoggedReport,
    logged_reports,
    read_certifications,
    read_derived,
    read_report,
)

LOG_NAME = "log.jsonl"
CHECKPOINTS_NAME = "checkpoints.jsonl"


class ExportRefused(PitrError):
    """The folder holds something else under a name that the export needs; it was left as it was."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: how many reports, entries and checkpoints; entries that no checkpoint covers yet."""

    reports: int
    periods: int
    entries: int
    checkpoints: int
    uncovered: int


def export_reports(store: ObjectStore, repository_id: str, verifier: Verifier, folder: Path) -> Exported:
    """Write the folder, which may be there.  May be repeated: what is new is added.

    Raises ExportRefused, OSError, and as ``read_log`` and ``read_report``.
    """
    state = read_log(store, repository_id, verifier)
    folder.mkdir(parents=True, exist_ok=True)
    reports = logged_reports(state.covered)
    for report in reports:
        for name, body, may_change in _files_of(store, verifier, report):
            _write(folder / name, body, may_change=may_change)
    periods = logged_periods(state.covered)
    for period in periods:
        stem = f"period-{period.report_id}"
        _write(folder / f"{stem}.json", read_period(store, verifier, period).envelope, may_change=False)
        _write(folder / f"{stem}.html", read_period_page(store, verifier, period), may_change=False)
    notes = list(_notes(store, repository_id, verifier, len(state.covered)))
    lines = b"".join(entry.content() + b"\n" for entry in state.covered)
    _write(
        folder / CHECKPOINTS_NAME,
        "".join(json.dumps(note) + "\n" for note in notes).encode(),
        may_change=True,
    )
    _write(folder / LOG_NAME, lines, may_change=True)
    uncovered = len(state.entries) - len(state.covered)
    return Exported(len(reports), len(periods), len(state.covered), len(notes), uncovered)


def export_pdfs(
    store: ObjectStore, repository_id: str, verifier: Verifier, folder: Path, paper: Paper = "a4"
) -> int:
    """Write a PDF of each report into ``folder``, where none is yet; return how many are there.

    One that was certified since gets another.  PDFs are copies for people: the auditor's tool does not look
    at them.  Raises PdfMissing, PdfFailed, OSError, and as ``read_report``.
    """
    reports = logged_reports(read_log(store, repository_id, verifier).covered)
    folder.mkdir(parents=True, exist_ok=True)
    for report in reports:
        times = len(report.certified)
        ending = "" if times == 0 else "-certified" if times == 1 else f"-certified-{times}"
        path = folder / f"{report_stem(report)}{ending}.pdf"
        if not path.exists():
            certifications = read_certifications(store, verifier, report)
            pdf = render_pdf(read_report(store, verifier, report), certifications, paper)
            _write(path, pdf, may_change=True)
    return len(reports)


def report_stem(report: LoggedReport) -> str:
    """Return how the names of a report's files begin."""
    return f"{report.number:08d}-{report.report_id}"


def _files_of(
    store: ObjectStore, verifier: Verifier, report: LoggedReport
) -> Iterator[tuple[str, bytes, bool]]:
    stem = report_stem(report)
    yield f"{stem}.json", read_report(store, verifier, report).envelope, False
    yield f"{stem}.test-result.json", read_derived(store, verifier, report, is_html=False), False
    yield f"{stem}.html", read_derived(store, verifier, report, is_html=True), True
    for number, certification in enumerate(read_certifications(store, verifier, report), 1):
        ending = "certification" if number == 1 else f"certification-{number}"
        yield f"{stem}.{ending}.json", certification.envelope, False


def _notes(store: ObjectStore, repository_id: str, verifier: Verifier, size_max: int) -> Iterator[str]:
    origin = log_origin(repository_id, verifier)
    for size in checkpoint_sizes(store, verifier):
        if size <= size_max:
            yield read_checkpoint(store, verifier, origin, size).note


def _write(path: Path, body: bytes, *, may_change: bool) -> None:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ExportRefused(f"{path} is not a file", hint="export into another folder")
    if path.exists():
        if path.read_bytes() == body:
            return
        if not may_change:
            raise ExportRefused(
                f"{path} is there and is another report",
                detail="a signed report never changes; this one may have been made with another key",
                hint="export into another folder, and compare the two",
            )
    replace_synced(path, body)
