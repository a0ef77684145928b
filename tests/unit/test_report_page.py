"""The page of a report: what stands where, that text stays text, and that its charts show its figures."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import fix_reports as fix
import pytest
from fix_audit import Forgery, audit
from fix_pages import HOSTILE, hostile_draft
from hypothesis import given
from hypothesis import strategies as st

from pitr.pipeline.sign import encode_time
from storage.memory import MemoryStore
from verifiers import pitr_audit
from verifiers.audit_log import AuditLog
from verifiers.report_blocks import shown_text
from verifiers.report_charts import Bar, Lane, Point, Shown, Span, band_chart, bar_chart, trend_chart
from verifiers.report_html import render_report
from verifiers.statement import SignedStatement

_VOID = {"meta", "col", "br"}


class Seen(HTMLParser):
    """The elements of a page, each closed as it was opened."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.shown: list[tuple[str, str]] = []
        self.words = ""
        self._path: str | None = None
        self.feed(page.decode())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._path = dict(attrs).get("data-f")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._path is not None:
            self.shown.append((self._path, data))
            self._path = None
        if "style" not in self.open:
            self.words += data


def page_of(weeks: int = 3, *, fails: bool = False, certified: bool = False) -> tuple[SignedStatement, bytes]:
    """Return the newest of some weekly reports, and its page."""
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    for number in range(1, weeks + 1):
        report = fix.run_week(log, number, fails=fails and number == weeks)
    certifications = [fix.certify(log, weeks)] if certified else []
    return report, render_report(report, certifications)


def test_markup_in_every_text_stays_text_and_the_auditors_tool_agrees(tmp_path: Path) -> None:
    key = Forgery(draft=hostile_draft, intent={"target": HOSTILE}).write(tmp_path / "folder")
    (path,) = (tmp_path / "folder").glob("*.html")
    seen = Seen(path.read_bytes())
    assert not seen.tags & {"script", "img", "iframe", "a", "link"}
    assert not {name for name in seen.attributes if name.startswith("on")} | seen.attributes & {"src", "href"}
    assert seen.words.count("<script>alert(1)</script>") > 40
    found = audit(tmp_path / "folder", key, now=encode_time(fix.BEGIN + fix.WEEK))
    assert (found.code, found.texts("error", "warning")) == (0, "")


def test_the_first_page_has_the_verdict_the_objectives_what_was_not_tested_and_the_trend() -> None:
    _, page = page_of(certified=True)
    words = Seen(page).words
    order = ["PASSED", "every required check passed", "patients", "Certified by", "Objectives", "5 min"]
    order += ["What was not tested, and why", "no Kafka is configured", "Trend", "How long it took"]
    places = [words.index(one) for one in order]
    assert places == sorted(places)
    sections = re.findall(r"<h2[^>]*>([^<]*)</h2>", page.decode())
    assert sections[3:] == [
        "How long it took",
        "Earlier runs",
        "What can be restored",
        "Checks",
        "Source and encryption",
        "Where it was restored, and kept apart",
        "Data loss",
        "Service during recovery",
        "Findings",
        "People and certification",
        "Controls",
        "Policy, log and program",
        "How to check this by hand",
    ]


def checks_of(page: bytes) -> list[str]:
    """Return the ids of the checks in the order in which the page has them."""
    return [shown for path, shown in Seen(page).shown if re.fullmatch(r"checks\.\d\.id", path)]


def test_what_failed_is_told_below_the_verdict_and_is_the_first_of_the_checks() -> None:
    _, page = page_of(fails=True)
    text = page.decode()
    banner = text.index('class="banner FAILED"')
    assert banner < text.index("a page differs") < text.index("Objectives")
    assert checks_of(page) == ["C04", "C16", "C15.orders"]
    report, page = page_of()
    assert checks_of(page) == ["C16", "C04", "C15.orders"]
    predicate = fix.changed(report.predicate)
    predicate["checks"][2] |= {"result": "FAILED", "reason": "a row"}
    assert checks_of(render_report(SignedStatement(report.envelope, predicate), [])) == [
        "C15.orders",
        "C16",
        "C04",
    ]


def test_what_was_not_tested_is_told_once_and_all_of_it() -> None:
    report, _ = page_of()
    predicate = fix.changed(report.predicate)
    predicate["result"]["limits"] = [
        "C16 what C16 looks at: not tested: no",
        *(f"limit {n}" for n in range(12)),
    ]
    words = Seen(render_report(SignedStatement(report.envelope, predicate), [])).words
    assert "C16 what C16 looks at: not tested" not in words
    assert all(words.count(f"limit {number}") == 1 for number in range(2, 12))
    assert words.index("And 6 more") < words.index("Trend") < words.rindex("What else was not tested")


def test_it_is_accessible_and_prints_without_the_embedded_envelope() -> None:
    _, page = page_of()
    text = page.decode()
    assert text.count("<table>") == text.count("<caption>")
    assert text.count("<svg") == text.count('role="img"') == 4
    assert text.count("<figure aria-label=") == text.count("<figcaption>") == 4
    assert '<html lang="en">' in text
    assert text.count("<h1>") == 1
    assert "@media print" in text
    assert "details{display:none}" in text.replace("\n", "")
    assert (
        re.search(r"https?://(?!www\.w3\.org/2000/svg)", re.sub(r"<pre.*?</pre>", "", text, flags=re.S))
        is None
    )


def test_a_page_is_a_pure_function_of_its_report() -> None:
    report, page = page_of()
    assert render_report(report, []) == page


@given(st.integers(0, 10**12))
def test_the_tool_writes_durations_and_counts_as_the_page_does(value: int) -> None:
    for unit in ("took", "ms", "count", ""):
        assert pitr_audit.Audit.shown_text(None, value, unit) == shown_text(value, unit)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "took", "0 s"),
        (900, "took", "0.900 s"),
        (60_000, "took", "1 min"),
        (3_600_000, "took", "1 h 0 min"),
        (3_605_001, "took", "1 h 0 min 5.001 s"),
        (630_000, "took", "10 min 30 s"),
        (4_000_000, "count", "4,000,000"),
        ("weekly_verification", "words", "weekly verification"),
        ("2026-11-30T09:08:07.654321Z", "day", "2026-11-30"),
        (None, "took", "–"),
    ],
)
def test_values_are_written_for_people(value: object, unit: str, text: str) -> None:
    assert shown_text(value, unit) == pitr_audit.Audit.shown_text(None, value, unit) == text


# --- charts ---


def point(
    at: float, value_ms: int | None, overall: str = "PASSED", objective_ms: int | None = 300_000
) -> Point:
    shown = Shown(shown_text(value_ms, "took"), f"trend.{at:.0f}.recovery_time_ms", "took")
    day = Shown("2026-01-01", f"trend.{at:.0f}.created_at", "day")
    return Point(at, value_ms, objective_ms, overall, shown, day)


AIM = Shown("5 min", "policy.rto_ms", "took")


def line_of(svg: str) -> list[tuple[float, float]]:
    (points,) = re.findall(r'<polyline points="([^"]*)" fill="none" stroke="#1f4e79"', svg)
    return [(float(x), float(y)) for x, y in (one.split(",") for one in points.split())]


def test_a_trend_is_drawn_to_scale() -> None:
    svg = trend_chart([point(0, 100_000), point(1, 200_000), point(3, 50_000)], AIM, "Recovery time")
    (x0, y0), (x1, y1), (x2, y2) = line_of(svg)
    assert (x2 - x0) / (x1 - x0) == pytest.approx(3, abs=0.02)
    assert (y0 - y1) / (y2 - y0) == pytest.approx(2, abs=0.05)
    (dashed,) = re.findall(r'<polyline points="([^"]*)" fill="none" stroke="#a00016"', svg)
    objective_y = float(dashed.split()[0].split(",")[1])
    assert (y0 - objective_y) / (y0 - y1) == pytest.approx(2, abs=0.05)
    assert 'data-f="policy.rto_ms" data-u="took">5 min</tspan>' in svg
    assert svg.count("<title data-f=") == 3


def test_how_a_run_ended_is_told_by_shape() -> None:
    points = [point(0, 1000), point(1, 1000, "WARNED"), point(2, 1000, "FAILED"), point(3, None)]
    svg = trend_chart(points, None, "x")
    marks = re.findall(r"<(circle|path)[^>]*>(?=<title)", svg)
    assert marks == ["circle", "path", "path", "circle"]
    # Nothing measured is no point of the line.
    assert len(line_of(svg)) == 3
    assert ">–</title>" in svg


def test_an_objective_that_changed_is_a_step() -> None:
    svg = trend_chart([point(0, 1, objective_ms=100), point(1, 1, objective_ms=200)], AIM, "x")
    (dashed,) = re.findall(r'<polyline points="([^"]*)" fill="none" stroke="#a00016"', svg)
    assert len({one.split(",")[1] for one in dashed.split()}) == 2


@pytest.mark.parametrize("most", [0, 1, 7, 999, 45_000, 61_000, 5_400_000, 10**9, 2**62])
def test_any_figures_fit_an_axis_of_few_lines(most: int) -> None:
    svg = trend_chart([point(0, most, objective_ms=None), point(1, 0, objective_ms=None)], None, "x")
    assert 2 <= svg.count("<line") <= 6
    assert all(34 <= y <= 200 for _, y in line_of(svg))
    bars = bar_chart([Bar("all", 0, most, AIM)], "x")
    assert 2 <= bars.count("<line") <= 6
    assert all(float(x) <= 720 for x in re.findall(r'<rect x="([\d.]+)"', bars))


def test_a_gap_of_a_second_in_a_month_is_seen_over_what_is_beside_it() -> None:
    gap = Span(1000.0, 1001.0, is_gap=True, mark="G1")
    spans = [Span(0.0, 1000.0, is_gap=False), gap, Span(1001.0, 2_600_000.0, is_gap=False)]
    svg = band_chart([Lane("any region", spans)], None, "x")
    rects = re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="([\d.]+)" height="[\d.]+" fill="([^"]*)"', svg)
    assert ("5", "url(#gap)") in rects[-2:]
    assert ">G1</text>" in svg


def test_bars_follow_each_other_to_scale() -> None:
    svg = bar_chart([Bar("one", 0, 1000, AIM), Bar("two", 1000, 4000, AIM)], "x")
    (x1, w1), (x2, w2) = [
        (float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    ]
    assert x2 == pytest.approx(x1 + w1, abs=0.2)
    assert w2 / w1 == pytest.approx(3, abs=0.05)


def test_text_in_a_chart_is_escaped() -> None:
    shown = Shown(HOSTILE, "source.regions.0.name", "")
    svg = band_chart([Lane(shown, [])], (shown, shown), HOSTILE) + bar_chart(
        [Bar(HOSTILE, 0, 1, shown)], HOSTILE
    )
    assert "<script" not in svg
    assert "<img" not in svg
