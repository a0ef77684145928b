"""The page of a report in a real browser: on a screen, and printed on both papers."""

from __future__ import annotations

import os
from pathlib import Path

import fix_reports as fix
import pytest
from fix_apt import AptProgram, apt_program
from fix_pages import Page, colours, hostile_draft, ink, read_pages, read_png

from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog
from verifiers.report_html import render_report
from verifiers.statement import SignedStatement

pytestmark = pytest.mark.needs_apt
_WIDTH, _HEIGHT = 1100, 1500
_PAPERS = {"A4": (595, 842), "letter": (612, 792)}
# Points; the lines at the foot of a page are lowest.
_MARGIN = 15.0
# It begins slowly on a busy machine.
_TIMEOUT_S = 240.0


class Browser:
    """Chromium without a window, with a profile of its own."""

    def __init__(self, program: AptProgram, folder: Path) -> None:
        self.program, self.folder = program, folder

    def _run(self, page: Path, *words: str) -> None:
        # Its own sandbox refuses root, which tests may be.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        profile = f"--user-data-dir={self.folder / 'profile'}"
        options = ["--headless", "--disable-gpu", *sandbox, profile, *words]
        self.program.must(*options, page.as_uri(), timeout_s=_TIMEOUT_S)

    def print(self, html: bytes, paper: str) -> list[Page]:
        """Return the pages that come out, on a paper that the page itself does not name."""
        page, pdf = self.folder / "page.html", self.folder / "page.pdf"
        size = f"<style>@page{{size:{paper}}}</style></head>"
        page.write_text(html.decode().replace("</head>", size, 1))
        self._run(page, "--no-pdf-header-footer", f"--print-to-pdf={pdf}")
        return read_pages(pdf.read_bytes())

    def shoot(self, html: bytes) -> Path:
        """Return a picture of its first screen."""
        page, picture = self.folder / "page.html", self.folder / "page.png"
        page.write_bytes(html)
        words = ["--hide-scrollbars", f"--window-size={_WIDTH},{_HEIGHT}", f"--screenshot={picture}"]
        self._run(page, *words)
        return picture


def title_height(page: Page) -> float:
    """Return how high the title's letters are: nothing on the page is larger."""
    return max(top - bottom for _, bottom, _, top in page.boxes)


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    return Browser(apt_program("chromium", "chromium"), tmp_path)


@pytest.fixture(scope="module")
def report() -> SignedStatement:
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    return [fix.run_week(log, number) for number in range(1, 21)][-1]


@pytest.mark.parametrize("paper", _PAPERS)
def test_it_prints_whole_with_the_verdict_and_the_trend_on_the_first_page(
    browser: Browser, report: SignedStatement, paper: str
) -> None:
    pages = browser.print(render_report(report, []), paper)
    assert 4 <= len(pages) <= 7
    assert {(round(page.width), round(page.height)) for page in pages} == {_PAPERS[paper]}
    order = ["PASSED", "every required check passed", "Objectives", "What was not tested, and why"]
    order += ["no Kafka is configured", "Trend", "objective 5 min"]
    places = [pages[0].text.index(one) for one in order]
    assert places == sorted(places)
    assert "How long it took" not in pages[0].text
    assert "How long it took" in pages[1].text
    for number, page in enumerate(pages, 1):
        assert page.outside(_MARGIN) == []
        assert f"page {number} of {len(pages)}" in page.text
    text = " ".join(page.text for page in pages)
    assert "How to check this by hand" in text
    # The embedded envelope is for programs.
    assert '"payloadType":"application' not in text.replace(" ", "")
    # No heading and no head of a table is left alone at the end of a page.
    for page in pages:
        lines = page.text.removesuffix(page.text[page.text.rfind("Restore verification report") :]).split()
        assert " ".join(lines[-6:]) != "id result check what was seen by, in"
    blue = (pages[1].picture[..., 2].astype(int) - pages[1].picture[..., 0] > 60).mean()
    assert 0.005 < blue < 0.3


def test_it_is_readable_on_a_screen(browser: Browser, report: SignedStatement) -> None:
    picture = read_png(browser.shoot(render_report(report, [])))
    assert picture.shape == (_HEIGHT, _WIDTH, 3)
    assert 0.02 < ink(picture) < 0.4
    # Dark text on white paper, and the verdict's green.
    assert (picture.min(axis=2) > 250).mean() > 0.6
    green = (picture[..., 1].astype(int) - picture[..., 0] > 40) & (picture[..., 1] < 120)
    assert green[: _HEIGHT // 6].mean() > 0.002
    assert not green[_HEIGHT // 2 :].mean() > 0.02
    trend = picture[_HEIGHT // 2 :]
    assert colours(trend) > 3
    assert ink(trend) > 0.005


def test_no_text_is_cut_however_long_its_words_are(browser: Browser, report: SignedStatement) -> None:
    predicate = fix.changed(report.predicate)
    hostile_draft(predicate, "x" * 300)
    pages = browser.print(render_report(SignedStatement(report.envelope, predicate), []), "A4")
    assert [box for page in pages for box in page.outside(_MARGIN)] == []
    # What does not fit a page's width is made smaller by the browser, with all that is on the page.
    whole = browser.print(render_report(report, []), "A4")
    assert title_height(pages[0]) == pytest.approx(title_height(whole[0]), rel=0.02)
