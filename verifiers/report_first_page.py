"""The first page of a report: the verdict, its scope, the objectives, what was not tested, the trend.  Pure.

Whoever reads no further knows what was proved, and what was not.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from verifiers.report_blocks import (
    Banner,
    Block,
    Fields,
    Figure,
    Figures,
    Heading,
    Items,
    Line,
    Pairs,
    Paragraph,
    Table,
    Value,
    listed,
)
from verifiers.report_charts import Point, Shown, trend_chart

_MEANING: Final = {
    "PASSED": "What was backed up was restored, recovered to its target and started;"
    " every required check passed.",
    "WARNED": "No check failed, but not every required check passed:"
    " what this report proves is less than was asked for.",
    "FAILED": "At least one check failed: that this backup restores what was backed up is not proved.",
}
_METHODS: Final = {
    "latest": "the newest moment",
    "given": "a moment that was named",
    "random": "a moment drawn at random, its seed committed to before",
}
NOT_TESTED_MAX: Final = 8
_DATABASES_MAX: Final = 8
_FAILED_MAX: Final = 5
_MARKS: Final = (
    "Dot: passed. Triangle: with warnings. Cross: failed. Ring: not measured. Broken line: the objective."
)


def first_page(fields: Fields) -> list[Block]:
    """Return the blocks of the first page."""
    return [
        Banner(Value("result.overall", tone="verdict"), _MEANING[fields["result.overall"]]),
        *_failed(fields),
        Pairs("What was verified", _scope(fields), abreast=2),
        Heading("Objectives"),
        _objectives(),
        Heading("What was not tested, and why"),
        Items(not_tested(fields)[:NOT_TESTED_MAX] or [("Nothing that was planned was left out.",)]),
        *_rest_told(fields),
        Heading("Trend"),
        *_trend(fields),
    ]


def _failed(fields: Fields) -> list[Block]:
    """Return what did not pass: whoever reads the verdict asks for it next."""
    bad = [path for path in fields.each("checks") if fields[f"{path}.result"] in ("FAILED", "WARNED")]
    lines: list[Line] = [
        (
            Value(f"{path}.result", tone="verdict"),
            ": ",
            Value(f"{path}.title", tone="strong"),
            ": ",
            Value(f"{path}.reason"),
        )
        for path in bad[:_FAILED_MAX]
    ]
    if len(bad) > _FAILED_MAX:
        lines.append((f"And {len(bad) - _FAILED_MAX} more, under “Checks”.",))
    return [Items(lines)] if lines else []


def _scope(fields: Fields) -> list[tuple[str, Line]]:
    databases = [Value(path) for path in fields.each("scope.databases")]
    more = len(databases) - _DATABASES_MAX
    names = listed(databases[:_DATABASES_MAX]) + ((f", and {more} more",) if more > 0 else ())
    whose = (" of ", Value("scope.org", tone="strong")) if fields["scope.org"] else ()
    certified = [
        (Value(f"{path}.certified_by.name"), ", ", Value(f"{path}.certified_by.role"))
        for path in fields.each("certifications")
    ]
    return [
        ("System", (Value("scope.system_name", tone="strong"), *whose)),
        ("Report", ("number ", Value("identity.series_seq"), ", ", Value("identity.report_type", "words"))),
        ("Cluster", ("system identifier ", Value("scope.system_identifier"))),
        ("Made", (Value("identity.created_at", "time"),)),
        ("PostgreSQL", (Value("scope.pg_version"),)),
        ("Backup taken", (Value("source.taken_at", "time"),)),
        ("Databases", names),
        ("Recovered to", _request(fields)),
        ("Data", listed([Value(path) for path in fields.each("scope.data_classes")], "no class is stated")),
        ("Certified by", certified[0] if certified else ("nobody yet",)),
    ]


def _request(fields: Fields) -> Line:
    words = _METHODS.get(fields["trigger.sampling.method"], "")
    if fields["request.value"] is None:
        return (words,)
    return (f"{words}: ", Value("request.kind"), " ", Value("request.value"))


def _objectives() -> Table:
    rows: list[list[Line]] = [
        [
            ("Recovery time: from the start of recovery to an open server",),
            (Value("policy.rto_ms", "took"),),
            (Value("timings.recovery_time_ms", "took", "strong"),),
            (Value("result.rto_met", tone="strong"),),
        ],
        [
            ("Data loss: what was committed and is not there",),
            (Value("policy.rpo_ms", "took"),),
            (Value("data_loss.data_loss_ms", "took", "strong"),),
            (Value("result.rpo_met", tone="strong"),),
        ],
    ]
    return Table("Objectives, and what was measured", ["", "at most", "measured", "met"], rows, [8, 3, 3, 2])


def not_tested(fields: Fields) -> list[Line]:
    """Return a line for each thing that the verdict does not rest on."""
    skipped = [path for path in fields.each("checks") if fields[f"{path}.result"] == "SKIPPED"]
    # The run says the same of checks among its limits.
    told = tuple(f"{fields[f'{path}.id']} " for path in skipped)
    limits = [path for path in fields.each("result.limits") if not (told and fields[path].startswith(told))]
    return [
        *((Value(f"{p}.title", tone="strong"), ": ", Value(f"{p}.reason")) for p in skipped),
        *((Value(path),) for path in limits),
        *(
            (Value(f"{path}.item", tone="strong"), ": ", Value(f"{path}.reason"))
            for path in fields.each("scope.excluded")
        ),
    ]


def _rest_told(fields: Fields) -> list[Block]:
    more = len(not_tested(fields)) - NOT_TESTED_MAX
    if more <= 0:
        return []
    return [Paragraph((f"And {more} more, under “What else was not tested”.",))]


def _trend(fields: Fields) -> list[Block]:
    earlier = fields.each("trend") if fields.has("trend") else []
    if not earlier:
        return [Paragraph(("There is no earlier run on record: a trend begins with the next one.",))]
    drawn = [
        Figure(
            words,
            trend_chart(
                _points(fields, earlier, measured, objective),
                _objective(fields, f"policy.{objective}"),
                words,
            ),
            "One mark a run, over time. The figures stand in the table of earlier runs.",
        )
        for words, measured, objective in (
            ("Recovery time of this run and those before it", "recovery_time_ms", "rto_ms"),
            ("Data loss of this run and those before it", "data_loss_ms", "rpo_ms"),
        )
    ]
    return [Figures(drawn), Paragraph((_MARKS,))]


def _objective(fields: Fields, path: str) -> Shown | None:
    return None if fields[path] is None else shown(fields, path, "took")


_CURRENT: Final = {
    "recovery_time_ms": "timings.recovery_time_ms",
    "data_loss_ms": "data_loss.data_loss_ms",
}


def _points(fields: Fields, earlier: list[str], measured: str, objective: str) -> list[Point]:
    places = [
        (f"{path}.created_at", f"{path}.{measured}", f"{path}.{objective}", f"{path}.overall")
        for path in earlier
    ]
    places.append(("identity.created_at", _CURRENT[measured], f"policy.{objective}", "result.overall"))
    return [
        Point(
            datetime.fromisoformat(fields[at]).timestamp(),
            fields[value],
            fields[aim],
            fields[overall],
            shown(fields, value, "took"),
            shown(fields, at, "day"),
        )
        for at, value, aim, overall in places
    ]


def shown(fields: Fields, path: str, unit: str = "") -> Shown:
    """Return a field as a chart shows it."""
    return Shown(fields.text(Value(path, unit)), path, unit)
