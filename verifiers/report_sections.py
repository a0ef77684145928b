"""What follows the first page of a report, in its order; here: timings, earlier runs, the checks.  Pure."""

from __future__ import annotations

from typing import Final

from verifiers.report_blocks import (
    Block,
    Fields,
    Figure,
    Heading,
    Items,
    Line,
    PageBreak,
    Pairs,
    Paragraph,
    Table,
    Value,
)
from verifiers.report_charts import Bar, Shown, bar_chart
from verifiers.report_evidence import evidence
from verifiers.report_first_page import NOT_TESTED_MAX, not_tested
from verifiers.report_map import recoverability
from verifiers.report_places import places

_PHASES: Final = (
    ("detect", "Detected"),
    ("decide", "Decided"),
    ("provision", "Scratch place ready"),
    ("fetch_first_byte", "First byte fetched"),
    ("base_done", "Base backup in place"),
    ("consistent", "Consistent"),
    ("accept_reads", "Accepts reads"),
    ("wal_replay_done", "WAL replayed"),
    ("accept_writes", "Accepts writes"),
    ("checks_done", "Checks done"),
)
# What needs to be read first.
_ORDER: Final = {"FAILED": 0, "WARNED": 1, "SKIPPED": 2, "PASSED": 3}


def sections(fields: Fields) -> list[Block]:
    """Return the blocks after the first page."""
    rest = not_tested(fields)[NOT_TESTED_MAX:]
    more: list[Block] = [Heading("What else was not tested"), Items(rest)] if rest else []
    return [
        PageBreak(),
        *more,
        *_timings(fields),
        *_earlier(fields),
        *recoverability(fields),
        *_checks(fields),
        *places(fields),
        *evidence(fields),
    ]


def _timings(fields: Fields) -> list[Block]:
    marks = sorted(
        (
            (fields[f"timings.{name}.ms"], at, name, words)
            for at, (name, words) in enumerate(_PHASES)
            if fields[f"timings.{name}"] is not None
        ),
    )
    bars, before = [], 0
    for ms, _, name, words in marks:
        path = f"timings.{name}.ms"
        bars.append(Bar(words, before, ms, Shown(fields.text(Value(path, "took")), path, "took")))
        before = ms
    drawn: list[Block] = [Paragraph(("Recovery did not begin.",))]
    if bars:
        caption = (
            "Steps of this run, each from where the one before ended; the figure is the time since the start"
        )
        drawn = [Figure(caption, bar_chart(bars, caption), "The same times stand beside the bars in words.")]
    return [
        Heading("How long it took"),
        *drawn,
        Pairs(
            "What was moved",
            [
                ("Bytes restored", (Value("timings.bytes", "count"),)),
                ("Bytes of WAL", (Value("timings.wal_bytes", "count"),)),
                ("Bytes a second", (Value("timings.throughput_bytes_s", "count"),)),
                ("Started", (Value("trigger.started_at", "time"),)),
                ("Planned for", (Value("trigger.scheduled_at", "time"),)),
                ("Started by", (Value("trigger.started_by"), ": ", Value("trigger.reason"))),
            ],
            abreast=2,
        ),
    ]


def _earlier(fields: Fields) -> list[Block]:
    earlier = fields.each("trend") if fields.has("trend") else []
    if not earlier:
        return []
    rows: list[list[Line]] = [
        [
            (Value(f"{path}.series_seq"),),
            (Value(f"{path}.created_at", "day"),),
            (Value(f"{path}.report_type", "words"),),
            (Value(f"{path}.overall", tone="verdict"),),
            (Value(f"{path}.recovery_time_ms", "took"), " of ", Value(f"{path}.rto_ms", "took")),
            (Value(f"{path}.data_loss_ms", "took"), " of ", Value(f"{path}.rpo_ms", "took")),
            (Value(f"{path}.bytes", "count"),),
        ]
        for path in reversed(earlier)
    ]
    columns = ["no.", "day", "kind", "verdict", "recovery time", "data loss", "bytes restored"]
    caption = "Runs before this one, the newest first; what was measured, of what it may be at most"
    return [Heading("Earlier runs"), Table(caption, columns, rows, [2, 5, 8, 5, 10, 9, 7])]


def _checks(fields: Fields) -> list[Block]:
    ordered = sorted(fields.each("checks"), key=lambda path: _ORDER[fields[f"{path}.result"]])
    rows: list[list[Line]] = []
    for path in ordered:
        reason: Line = () if fields[f"{path}.reason"] is None else (" Why: ", Value(f"{path}.reason"), ".")
        needed = "required" if fields[f"{path}.required"] else "not required"
        rows.append(
            [
                (Value(f"{path}.id", tone="strong"),),
                (Value(f"{path}.result", tone="verdict"), f" ({needed})"),
                (Value(f"{path}.title"),),
                (
                    "Expected: ",
                    Value(f"{path}.expected"),
                    ". Seen: ",
                    Value(f"{path}.observed"),
                    ".",
                    *reason,
                ),
                (
                    Value(f"{path}.tool"),
                    " ",
                    Value(f"{path}.tool_version"),
                    ", ",
                    Value(f"{path}.ms", "took"),
                ),
            ]
        )
    columns = ["id", "result", "check", "what was seen", "by, in"]
    return [
        Heading("Checks"),
        Table("Each check, those that did not pass first", columns, rows, [3, 4, 7, 12, 5]),
    ]
