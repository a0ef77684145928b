"""The PDF of a report, looked at as a reader does: its text where it stands, its pages as pictures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import fix_reports as fix
import pytest
from fix_pages import Page, colours, hostile_draft, ink, read_pages

from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog
from verifiers.report_pdf import Paper, drawable, render_pdf
from verifiers.statement import SignedStatement

# Typst's markup, code and a reference; and an end of its string.
MARKUP = '#panic("x") $x^2$ *bold* _it_ @key <label> \\u{41} ") #read("/etc/passwd") `raw` = head // end'
# Points: the footer stands lowest.
_MARGIN = 24.0


def reports(weeks: int, **fails: bool) -> tuple[AuditLog, SignedStatement]:
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    for number in range(1, weeks + 1):
        report = fix.run_week(log, number, **fails)
    return log, report


def changed(report: SignedStatement, text: str) -> SignedStatement:
    """Return the report with another text in every field that may hold any."""
    predicate = fix.changed(report.predicate)
    hostile_draft(predicate, text)
    return SignedStatement(report.envelope, predicate)


@pytest.fixture(scope="module")
def year() -> tuple[SignedStatement, bytes, list[Page]]:
    """The certified report of a year's last week."""
    log, report = reports(53)
    pdf = render_pdf(report, [fix.certify(log, 53)])
    return report, pdf, read_pages(pdf)


def test_the_first_page_says_what_a_person_needs(year: tuple[SignedStatement, bytes, list[Page]]) -> None:
    _, _, pages = year
    order = ["Restore verification report", "PASSED", "every required check passed", "patients"]
    order += [
        "A. Manager, head of IT",
        "Objectives",
        "5 min",
        "4 min 5.053 s",
        "What was not tested, and why",
    ]
    order += ["no Kafka is configured", "Trend", "objective 5 min"]
    places = [pages[0].text.index(one) for one in order]
    assert places == sorted(places)


def test_a_years_report_has_its_pages_and_no_text_is_cut(
    year: tuple[SignedStatement, bytes, list[Page]],
) -> None:
    _, _, pages = year
    assert 4 <= len(pages) <= 7
    assert {(round(page.width), round(page.height)) for page in pages} == {(595, 842)}
    for number, page in enumerate(pages, 1):
        assert f"page {number} of {len(pages)}" in page.text
        assert page.outside(_MARGIN) == []
        assert len(page.boxes) > 200
    text = " ".join(page.text for page in pages)
    for section in ("How long it took", "What can be restored", "Checks", "Data loss", "by hand"):
        assert section in text


def test_its_charts_are_drawn(year: tuple[SignedStatement, bytes, list[Page]]) -> None:
    _, _, pages = year
    # The left trend: paper, with lines, dots and text on it, in several colours.
    trend = pages[0].part(0.08, 0.5, 0.48, 0.75)
    assert 0.005 < ink(trend) < 0.3
    assert colours(trend) > 3
    bars = pages[1].part(0.08, 0.07, 0.92, 0.3)
    blue = (bars[..., 2].astype(int) - bars[..., 0] > 60).mean()
    assert 0.01 < blue < 0.4


def test_one_report_has_one_pdf_archival_and_tagged(year: tuple[SignedStatement, bytes, list[Page]]) -> None:
    report, pdf, _ = year
    assert render_pdf(report, []) == render_pdf(report, []) != pdf
    assert re.search(rb"<pdfaid:part>2</pdfaid:part>", pdf)
    assert re.search(rb"<pdfaid:conformance>A</pdfaid:conformance>", pdf)
    assert re.search(rb"<pdfuaid:part>1</pdfuaid:part>", pdf)
    assert b"2027-01-10T03:05:00" in pdf
    assert not re.search(rb"/URI|/JavaScript|/Launch|/EmbeddedFile", pdf)


def test_a_sign_without_a_shape_is_told_by_its_number_and_all_others_are_set() -> None:
    _, report = reports(1)
    signs = "".join(chr(at) for at in range(0x20, 0x3000) if drawable(chr(at)) == chr(at))
    assert len(signs) > 2000
    predicate = fix.changed(report.predicate)
    predicate["people"]["notified"] = [signs]
    predicate["source"]["encryption"]["key_ids"] = [signs]
    predicate["scope"]["org"] = signs
    assert render_pdf(SignedStatement(report.envelope, predicate), []).startswith(b"%PDF-")
    assert drawable("a漢\u202e\u00ad\u200b🙂ü") == "a[U+6F22][U+202E][U+00AD][U+200B][U+1F642]ü"


@pytest.mark.parametrize("paper", ["a4", pytest.param("us-letter", marks=pytest.mark.slow)])
def test_markup_is_text_and_endless_words_are_broken(paper: Paper) -> None:
    _, report = reports(2)
    pages = read_pages(render_pdf(changed(report, MARKUP), [], paper))
    text = " ".join(page.text for page in pages)
    assert text.replace("\u200b", "").count('#panic("x") $x^2$ *bold* _it_') > 10
    assert "root:" not in text
    for words in ("x" * 300, "ü漢🙂é" * 70, "W" * 120 + " " + "w" * 8):
        pages = read_pages(render_pdf(changed(report, words), [], paper))
        assert [box for page in pages for box in page.outside(_MARGIN)] == []


def test_a_report_of_any_part_of_a_second_is_set() -> None:
    _, report = reports(1)
    predicate = fix.changed(report.predicate)
    predicate["identity"]["created_at"] = "2026-11-30T09:08:07.654321Z"
    assert b"2026-11-30T09:08:07" in render_pdf(SignedStatement(report.envelope, predicate), [])


def test_what_failed_stands_on_the_first_page() -> None:
    _, report = reports(1, fails=True)
    first = read_pages(render_pdf(report, []))[0].text
    assert first.index("FAILED") < first.index("a page differs") < first.index("Objectives")
    assert "There is no earlier run on record" in first


def test_without_the_library_it_says_what_to_do() -> None:
    script = """
import sys
sys.modules["typst"] = None
from verifiers.report_pdf import PdfMissing, render_pdf
try:
    render_pdf(None, [])
except PdfMissing as error:
    print(error.message, error.detail, error.hint, sep="\\n")
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [
        "a PDF needs the library typst, and it is not installed",
        "the signed report and its page need nothing more",
        "pip install 'pitr[pdf]'",
    ]
