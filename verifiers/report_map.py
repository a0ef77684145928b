"""What can be restored, and what not: a band with a lane a region, and the spans in a table.  Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from verifiers.report_blocks import Block, Fields, Figure, Heading, Line, Paragraph, Table, Value, listed
from verifiers.report_charts import Lane, Shown, Span, band_chart

_ROWS_MAX: Final = 40
_REGIONS_MAX: Final = 12
# What fits beside a lane; the region is named by its place among the regions else.
_LABEL_CHARS_MAX: Final = 24
_LSN_OF_LOW: Final = 1 << 32


def recoverability(fields: Fields) -> list[Block]:
    """Return the section; nothing for reports of version 1, which do not know."""
    if not fields.has("recoverability"):
        return []
    heading = Heading("What can be restored")
    spans = fields.each("recoverability")
    if not spans:
        return [heading, Paragraph(("Not looked at in this run.",))]
    gaps = [path for path in spans if fields[f"{path}.state"] == "gap"]
    marks = {path: f"G{number}" for number, path in enumerate(gaps, 1)}
    caption = "From the oldest backup to the newest signed WAL; hatched: cannot be restored"
    svg = band_chart(_lanes(fields, spans, marks), _ends(fields, spans), caption)
    shown = [*gaps, *(path for path in spans if path not in marks)][:_ROWS_MAX]
    rows = [_row(fields, path, marks.get(path)) for path in shown]
    left_out = len(spans) - len(shown)
    columns = ["", "state", "from", "to", "timeline", "regions that suffice alone", "cause"]
    return [
        heading,
        Figure(caption, svg, "The same spans stand in the table below."),
        Table("Spans, gaps first", columns, rows, [2, 4, 7, 7, 4, 6, 5]),
        *([Paragraph((f"{left_out} more stand in the signed report.",))] if left_out else []),
    ]


def _row(fields: Fields, path: str, mark: str | None) -> list[Line]:
    regions = listed([Value(one) for one in fields.each(f"{path}.regions")], "–")
    return [
        (mark or "",),
        (Value(f"{path}.state", tone="strong"),),
        (Value(f"{path}.start_lsn"), ", ", Value(f"{path}.from_at", "time")),
        (Value(f"{path}.end_lsn"), ", ", Value(f"{path}.to_at", "time")),
        (Value(f"{path}.timeline"),),
        regions,
        (Value(f"{path}.cause"),),
    ]


def _lanes(fields: Fields, spans: list[str], marks: dict[str, str]) -> list[Lane]:
    """Return the lane of all regions together, and one for each that the report names."""
    places = _places(fields, spans)
    union = [
        Span(*places[path], is_gap=path in marks, mark=marks.get(path, "") if len(marks) <= 20 else "")
        for path in spans
    ]
    lanes = [Lane("any region", union)]
    for number, path in enumerate(fields.each("source.regions")[:_REGIONS_MAX], 1):
        name = fields[f"{path}.name"]
        label = Shown(name, f"{path}.name", "") if len(name) <= _LABEL_CHARS_MAX else f"region {number}"
        own = [Span(*places[one], is_gap=False) for one in spans if name in fields[f"{one}.regions"]]
        lanes.append(Lane(label, own))
    return lanes


def _places(fields: Fields, spans: list[str]) -> dict[str, tuple[float, float]]:
    """Return where each span is: by time where every one has its times, else by LSN."""
    times = {path: tuple(fields[f"{path}.{name}"] for name in ("from_at", "to_at")) for path in spans}
    if any(None in pair for pair in times.values()):
        return {
            path: (_offset(fields[f"{path}.start_lsn"]), _offset(fields[f"{path}.end_lsn"])) for path in spans
        }
    starts = {path: datetime.fromisoformat(pair[0]).timestamp() for path, pair in times.items()}
    last = datetime.fromisoformat(times[spans[-1]][1]).timestamp()
    # Where nothing was written between two spans, what was known before it still holds.
    ends = [*list(starts.values())[1:], max(last, starts[spans[-1]])]
    return {path: (start, max(start, end)) for (path, start), end in zip(starts.items(), ends, strict=True)}


def _offset(lsn: str) -> float:
    high, _, low = lsn.partition("/")
    return float(int(high, 16) * _LSN_OF_LOW + int(low, 16))


def _ends(fields: Fields, spans: list[str]) -> tuple[Shown, Shown]:
    first, last = spans[0], spans[-1]
    is_timed = all(fields[f"{path}.{name}"] is not None for path in spans for name in ("from_at", "to_at"))
    names = (("from_at", "time"), ("to_at", "time")) if is_timed else (("start_lsn", ""), ("end_lsn", ""))
    return (
        _shown(fields, f"{first}.{names[0][0]}", names[0][1]),
        _shown(fields, f"{last}.{names[1][0]}", names[1][1]),
    )


def _shown(fields: Fields, path: str, unit: str) -> Shown:
    return Shown(fields.text(Value(path, unit)), path, unit)
