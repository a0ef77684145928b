"""The charts of a report, drawn as SVG: bars, a trend with its objective, and a band of spans.  Pure.

No script, no style sheet and no reference outside: the same text stands in the page and in the PDF.  Numbers
that are values of the report are in elements that name their field, as everywhere on the page; those of the
axes are not.  Nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

# The first is in every PDF; the browser has one of the others.
_FONT: Final = "'Libertinus Sans','Helvetica Neue',Arial,'Liberation Sans',sans-serif"
_INK, _SOFT, _GRID = "#1a1a1a", "#4a4a4a", "#d5d5d5"
_BLUE, _RED, _AMBER = "#1f4e79", "#a00016", "#7a4b00"
_PALE: Final = "#e9eef3"
# What a round axis may be divided by, in milliseconds.
_STEPS_MS: Final = (
    *(digit * 10**power for power in range(4) for digit in (1, 2, 5)),
    *(1000 * seconds for seconds in (10, 15, 30, 60, 120, 300, 600, 900, 1800)),
    *(3_600_000 * hours for hours in (1, 2, 3, 6, 12, 24, 48, 120, 240, 720, 2400, 8760, 87_600)),
)
_GRID_LINES_MAX: Final = 4
_HATCHED: Final = (
    '<defs><pattern id="gap" width="6" height="6" patternUnits="userSpaceOnUse">'
    f'<path d="M0 0h6v6h-6z" fill="#fff"/><path d="M0 6L6 0" stroke="{_RED}" stroke-width="1.6"/>'
    "</pattern></defs>"
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A number as it is written, and the field that it is."""

    text: str
    path: str
    unit: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One step from its begin to its end, in milliseconds."""

    words: str
    start_ms: int
    end_ms: int
    end: Shown


@dataclass(frozen=True, slots=True)
class Point:
    """One run: when, what was measured (None: nothing), the objective then, and how it ended."""

    at_s: float
    value_ms: int | None
    objective_ms: int | None
    overall: str
    value: Shown
    day: Shown


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one lane; ``mark`` is written over a gap."""

    start: float
    end: float
    is_gap: bool
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Lane:
    """A row of the band, and what it is called."""

    words: str | Shown
    spans: Sequence[Span]


def bar_chart(bars: Sequence[Bar], title: str) -> str:
    """Draw steps that follow each other, each from where the one before ended."""
    left, right, row = 178, 120, 24
    width, height = 720, row * len(bars) + 34
    step = _step(max((bar.end_ms for bar in bars), default=1))
    top_ms = max([step, *(-(-bar.end_ms // step) * step for bar in bars)])
    scale = (width - left - right) / top_ms
    drawn = []
    for tick in range(0, top_ms + 1, step):
        x = left + tick * scale
        drawn.append(_line(x, 6, x, height - 24, _GRID))
        drawn.append(_text(x, height - 8, _span_text(tick), anchor="middle", fill=_SOFT, size=11))
    for at, bar in enumerate(bars):
        y = 8 + at * row
        x, end = left + bar.start_ms * scale, left + bar.end_ms * scale
        drawn.append(_text(left - 8, y + 14, bar.words, anchor="end"))
        # A step that took no time is seen as a line.
        drawn.append(_rect(x, y + 3, max(end - x, 1.5), row - 9, _BLUE))
        drawn.append(_shown(end + 6, y + 14, bar.end))
    return _svg(width, height, title, drawn)


def trend_chart(points: Sequence[Point], objective: Shown | None, title: str) -> str:
    """Draw what each run measured over time, with the objective of its day as a broken line."""
    width, height, left, right, top, bottom = 350, 200, 48, 16, 34, 28
    measured = [point.value_ms for point in points if point.value_ms is not None]
    objectives = [point.objective_ms for point in points if point.objective_ms is not None]
    most = max([1, *measured, *objectives])
    step = _step(most)
    top_ms = (most // step + 1) * step
    first, last = points[0].at_s, points[-1].at_s

    def x_of(point: Point) -> float:
        part = 0.5 if last == first else (point.at_s - first) / (last - first)
        return left + 8 + part * (width - left - right - 16)

    def y_of(value_ms: int) -> float:
        return height - bottom - value_ms * (height - top - bottom) / top_ms

    drawn = []
    for tick in range(0, top_ms + 1, step):
        y = y_of(tick)
        drawn.append(_line(left, y, width - right, y, _GRID))
        drawn.append(_text(left - 6, y + 4, _span_text(tick), anchor="end", fill=_SOFT, size=11))
    drawn += _objective(points, x_of, y_of, width - right)
    line = " ".join(
        f"{_number(x_of(point))},{_number(y_of(point.value_ms))}"
        for point in points
        if point.value_ms is not None
    )
    drawn.append(f'<polyline points="{line}" fill="none" stroke="{_BLUE}" stroke-width="1.5"/>')
    drawn += [
        _mark(point, x_of(point), y_of(point.value_ms or 0), is_last=point is points[-1]) for point in points
    ]
    ends = [(points[0], "start", float(left)), (points[-1], "end", float(width - right))]
    for point, anchor, x in ends[len(points) == 1 :]:
        drawn.append(_shown(x, height - 6, point.day, anchor=anchor, size=11, fill=_SOFT))
    # Above what is drawn: nothing hides a mark, and no line goes through the words.
    if objective is not None:
        drawn.append(_named(left, 15, "objective", objective, "start", _RED))
    drawn.append(_named(width - right, 15, "this run", points[-1].value, "end", _INK))
    return _svg(width, height, title, drawn)


def band_chart(lanes: Sequence[Lane], ends: tuple[Shown, Shown] | None, title: str) -> str:
    """Draw one lane a region: what can be restored is filled, a gap is hatched, the rest is empty."""
    left, right, row = 178, 16, 26
    width, height = 720, row * len(lanes) + 30
    spans = [span for lane in lanes for span in lane.spans]
    first = min((span.start for span in spans), default=0.0)
    last = max((span.end for span in spans), default=1.0)
    scale = (width - left - right) / ((last - first) or 1.0)
    drawn = [_HATCHED]
    for at, lane in enumerate(lanes):
        y = 6 + at * row
        if isinstance(lane.words, Shown):
            drawn.append(_shown(left - 8, y + 15, lane.words, anchor="end"))
        else:
            drawn.append(_text(left - 8, y + 15, lane.words, anchor="end"))
        drawn.append(_rect(left, y, width - left - right, row - 6, _PALE))
        # Gaps last, so that one too short to be seen is drawn over what is beside it.
        for span in sorted(lane.spans, key=lambda one: one.is_gap):
            x, end = left + (span.start - first) * scale, left + (span.end - first) * scale
            x = min(x, width - right - 5.0)
            if not span.is_gap:
                drawn.append(_rect(x, y, max(end - x, 1.0), row - 6, _BLUE))
                continue
            across = max(end - x, 5.0)
            drawn.append(_rect(x, y, across, row - 6, "url(#gap)", stroke=_RED))
            if span.mark:
                drawn.append(_backing(x + across / 2, y + 14, span.mark, "middle", 12))
                drawn.append(_text(x + across / 2, y + 14, span.mark, anchor="middle", weight=700))
    if ends is not None:
        for shown, anchor, x in ((ends[0], "start", left), (ends[1], "end", width - right)):
            drawn.append(_shown(x, height - 6, shown, anchor=anchor, size=11, fill=_SOFT))
    return _svg(width, height, title, drawn)


def _objective(
    points: Sequence[Point], x_of: Callable[[Point], float], y_of: Callable[[int], float], right: float
) -> list[str]:
    corners: list[str] = []
    for point in points:
        if point.objective_ms is not None:
            y = _number(y_of(point.objective_ms))
            previous = corners[-1].partition(",")[2] if corners else y
            corners += [f"{_number(x_of(point))},{previous}", f"{_number(x_of(point))},{y}"]
    if not corners:
        return []
    height = corners[-1].partition(",")[2]
    path = f'<polyline points="{" ".join([*corners, f"{_number(right)},{height}"])}" fill="none"'
    return [f'{path} stroke="{_RED}" stroke-width="1.3" stroke-dasharray="5 3"/>']


def _named(x: float, y: float, words: str, shown: Shown, anchor: str, fill: str) -> str:
    return f"<text {_placed(x, y, anchor, fill, 12, 700)}>{words} {_element('tspan', shown)}</text>"


def _mark(point: Point, x: float, y: float, *, is_last: bool) -> str:
    """Draw a run: a dot that passed, a triangle that warned, a cross that failed, a ring: not measured."""
    size = 4.5 if is_last else 3.2
    left, right, up, down = (_number(one) for one in (x - size, x + size, y - size, y + size))
    middle = f'cx="{_number(x)}" cy="{_number(y)}" r="{size}"'
    if point.value_ms is None:
        shape = f'<circle {middle} fill="#fff" stroke="{_RED}" stroke-width="1.4">'
    elif point.overall == "FAILED":
        path = f"M{left} {up}L{right} {down}M{left} {down}L{right} {up}"
        shape = f'<path d="{path}" stroke="{_RED}" stroke-width="2.2">'
    elif point.overall == "WARNED":
        path = f"M{_number(x)} {up}L{right} {down}L{left} {down}Z"
        shape = f'<path d="{path}" fill="#fff" stroke="{_AMBER}" stroke-width="1.6">'
    else:
        shape = f'<circle {middle} fill="{_BLUE}">'
    element = shape[1:].partition(" ")[0]
    return f"{shape}{_element('title', point.value)}</{element}>"


def _step(most_ms: int) -> int:
    """Return the round part of an axis up to ``most_ms``, of which a few lines are drawn."""
    return next(
        (step for step in _STEPS_MS if most_ms // step < _GRID_LINES_MAX),
        -(-most_ms // _GRID_LINES_MAX),
    )


def _span_text(value_ms: int) -> str:
    if value_ms > 60_000 and value_ms % 60_000 == 30_000:
        return f"{value_ms // 60_000}.5 min"
    for unit_ms, unit in ((3_600_000, "h"), (60_000, "min"), (1000, "s")):
        if value_ms and value_ms % unit_ms == 0:
            return f"{value_ms // unit_ms} {unit}"
    return f"{value_ms} ms" if value_ms else "0"


def _svg(width: int, height: int, title: str, drawn: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" font-family="{_FONT}" font-size="12" role="img">'
        f"<title>{escape(title)}</title>{''.join(drawn)}</svg>"
    )


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _line(x1: float, y1: float, x2: float, y2: float, stroke: str) -> str:
    places = f'x1="{_number(x1)}" y1="{_number(y1)}" x2="{_number(x2)}" y2="{_number(y2)}"'
    return f'<line {places} stroke="{stroke}"/>'


def _rect(x: float, y: float, width: float, height: float, fill: str, *, stroke: str = "none") -> str:
    places = f'x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" height="{_number(height)}"'
    return f'<rect {places} fill="{fill}" stroke="{stroke}"/>'


def _backing(x: float, y: float, words: str, anchor: str, size: int) -> str:
    """Draw paper behind a text that may stand on a line; as wide as most fonts make it."""
    width = 0.54 * size * len(words) + 4
    left = {"start": x - 2, "end": x + 2 - width, "middle": x - width / 2}[anchor]
    return _rect(left, y - 0.8 * size - 1, width, size + 2, "#fff")


def _placed(x: float, y: float, anchor: str, fill: str, size: int, weight: int) -> str:
    shape = f'x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}" fill="{fill}" font-size="{size}"'
    return shape + (f' font-weight="{weight}"' if weight != 400 else "")


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    fill: str = _INK,
    size: int = 12,
    weight: int = 400,
) -> str:
    return f"<text {_placed(x, y, anchor, fill, size, weight)}>{escape(words)}</text>"


def _shown(
    x: float,
    y: float,
    shown: Shown,
    *,
    anchor: str = "start",
    fill: str = _INK,
    size: int = 12,
    weight: int = 400,
) -> str:
    return _element("text", shown, " " + _placed(x, y, anchor, fill, size, weight))


def _element(name: str, shown: Shown, attributes: str = "") -> str:
    unit = f' data-u="{shown.unit}"' if shown.unit else ""
    return f'<{name} data-f="{shown.path}"{unit}{attributes}>{escape(shown.text)}</{name}>'
