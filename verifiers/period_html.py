"""The page of a period report: a pure function of the signed statement.

As the page of a run's report it is one file without script, and each value that it shows names its field
(``data-f``), so that the auditor's tool compares the two.  Reference: docs/audit.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from verifiers.report_blocks import shown_text
from verifiers.statement import Predicate, SignedStatement

_STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;color:#1a1a1a;max-width:64em;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin:0}h2{font-size:1.1em;border-bottom:1px solid #bbb;margin:1.6em 0 .5em}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.2em .8em .2em 0}
th{font-weight:600;color:#444}tbody tr{border-top:1px solid #e4e4e4}
.verdict{font-size:1.3em;font-weight:700;padding:.4em .6em;margin:.6em 0;border:2px solid}
.PASSED,.satisfied{color:#0a5c2b}.WARNED,.partial{color:#7a4b00}.FAILED{color:#a00016}
pre{white-space:pre-wrap;word-break:break-all;font-size:.75em;background:#f5f5f5;padding:.6em}
.digest{font-family:ui-monospace,monospace;font-size:.85em;word-break:break-all}
td{overflow-wrap:anywhere}
@media print{body{margin:0;max-width:none;font-size:10pt}h2{break-after:avoid}tr{break-inside:avoid}}
"""
_HEAD: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Restore verification: report of a period</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{style}</style></head><body>
<h1>Restore verification: report of a period</h1>
"""
_EMBEDDED: Final = "The signed report, as it is stored"
_TIMES: Final = {"at", "scheduled_at", "started_at", "logged_at", "since", "until", "due_at", "stopped_at"}


def render_period(report: SignedStatement) -> bytes:
    """Return the page; the same bytes for the same statement."""
    said = report.predicate
    shown = _Shown(said)
    envelope = escape(report.envelope.decode("ascii"))
    parts = [
        _HEAD.format(style=_STYLE),
        _verdict(shown, said),
        _figures(shown),
        _limits(shown, said),
        _listing(
            shown, said, "Runs that came to no report", "not_run", "state at scheduled_at run_id reason"
        ),
        _listing(shown, said, "Runs without an end yet", "unfinished", "at scheduled_at run_id"),
        _listing(shown, said, "Gaps longer than allowed", "gaps", "report_type since until allowed_ms"),
        _listing(
            shown,
            said,
            "Findings",
            "findings",
            "id severity status description owner due_at corrective_action retest_report_id",
        ),
        _picked(shown, said),
        _listing(
            shown,
            said,
            "Reports of the period",
            "reports",
            "series_seq started_at report_type outcome recovery_time_ms data_loss_ms certified_by report_id",
        ),
        _backups(shown),
        _listing(
            shown,
            said,
            "Deletions, each by a signed expire record",
            "deletions",
            "at archive sequence approved_by backups wal_ranges envelopes",
        ),
        _listing(shown, said, "Keys", "key_events", "at event detail"),
        _listing(shown, said, "What the host signed as events", "host_events", "at event message"),
        _listing(
            shown,
            said,
            "Evidence for controls (it is for an auditor to say whether one is met)",
            "mapping",
            "framework control title rule status complete partial not_tested missing",
        ),
        _evidence(shown),
        f'<details><summary>{_EMBEDDED}</summary><pre id="envelope">{envelope}</pre></details>\n',
        "</body></html>\n",
    ]
    return "".join(parts).encode("utf-8")


class _Shown:
    """Values by their path, each in an element that names it."""

    def __init__(self, fields: Predicate) -> None:
        self._fields = fields

    def value(self, path: str) -> Any:
        found: Any = self._fields
        for name in path.split("."):
            found = found[int(name)] if isinstance(found, (list, tuple)) else found[name]
        return found

    def __call__(self, path: str, *, css: str = "") -> str:
        """Return the element; a list is its members, with commas between."""
        value, last = self.value(path), path.rpartition(".")[2]
        if isinstance(value, (list, tuple)):
            return ", ".join(self(f"{path}.{at}") for at in range(len(value))) or "none"
        unit = "time" if last in _TIMES else "ms" if last.endswith("_ms") else ""
        attributes = (f' data-u="{unit}"' if unit else "") + (f' class="{escape(css)}"' if css else "")
        return f'<span data-f="{path}"{attributes}>{escape(shown_text(value, unit))}</span>'

    def time(self, path: str) -> str:
        written = escape(shown_text(self.value(path), "time"))
        return f'<span data-f="{path}" data-u="time">{written}</span>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>\n"


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th>{name}</th><td>{cell}</td></tr>\n" for name, cell in rows)
    return f"<table><tbody>\n{body}</tbody></table>\n"


def _verdict(shown: _Shown, said: Predicate) -> str:
    overall = said["result"]["overall"]
    period = f"{shown.time('identity.period_start')} until before {shown.time('identity.period_end')}"
    came = (
        f"{shown('runs.reported')}: {shown('runs.passed')} PASSED, {shown('runs.warned')} WARNED,"
        f" {shown('runs.failed')} FAILED"
    )
    none = (
        f"{shown('runs.missed')} missed, {shown('runs.abandoned')} abandoned,"
        f" {shown('runs.unfinished')} unfinished"
    )
    whose = f" of {shown('scope.org')}" if said["scope"]["org"] else ""
    return f'<p class="verdict {overall}">{shown("result.overall")}</p>\n' + _pairs(
        [
            ("System", f"{shown('scope.system_name')}{whose}"),
            ("Cluster", f"system identifier {shown('scope.system_identifier')}"),
            ("Period", period),
            ("Planned", f"{shown('runs.planned')} by timetable; {shown('runs.expected')} by the frequency"),
            ("Came to a report", came),
            ("Came to none", none),
            ("Passed, of 1000 runs", shown("runs.pass_permille")),
            ("Open findings", shown("result.open_findings")),
        ]
    )


def _figures(shown: _Shown) -> str:
    names = ("measured", "min_ms", "median_ms", "p95_ms", "max_ms", "objective_missed", "worst_report_id")
    rows = [
        [words, shown(f"policy.{objective}"), *(shown(f"{group}.{name}") for name in names)]
        for words, group, objective in (
            ("Recovery time", "recovery_time", "rto_ms"),
            ("Data loss", "data_loss", "rpo_ms"),
        )
    ]
    columns = [
        "",
        "objective",
        "measured",
        "least",
        "median",
        "95 %",
        "most",
        "objective missed",
        "worst run",
    ]
    return f"<h2>Recovery time and data loss (h:m:s)</h2>\n{_table(columns, rows)}"


def _limits(shown: _Shown, said: Predicate) -> str:
    items = "".join(
        f"<li>{shown(f'result.limits.{at}')}</li>\n" for at in range(len(said["result"]["limits"]))
    )
    return f"<h2>What this does not rest on</h2>\n<ul>\n{items}</ul>\n"


def _listing(shown: _Shown, said: Predicate, title: str, group: str, fields: str) -> str:
    names = fields.split()
    rows = [
        [
            shown(f"{group}.{at}.{name}", css=str(row[name]) if name in ("status", "outcome") else "")
            for name in names
        ]
        for at, row in enumerate(said[group])
    ]
    columns = [name.removesuffix("_ms").replace("_", " ") for name in names]
    return f"<h2>{title}</h2>\n" + (_table(columns, rows) if rows else "<p>none</p>\n")


def _picked(shown: _Shown, said: Predicate) -> str:
    rows = [
        [shown(f"sample.picked.{at}.series_seq"), shown(f"sample.picked.{at}.report_id")]
        for at in range(len(said["sample"]["picked"]))
    ]
    return (
        "<h2>A sample that nobody chose</h2>\n"
        f"<p>Seed {shown('sample.seed', css='digest')}: {shown('sample.rule')}.</p>\n"
        + (_table(["number", "report"], rows) if rows else "<p>none</p>\n")
    )


def _backups(shown: _Shown) -> str:
    newest = shown.time("backups.newest_stopped_at")
    return "<h2>Backups taken</h2>\n" + _pairs(
        [
            ("Full", shown("backups.full")),
            ("Incremental", shown("backups.incr")),
            ("Bytes", shown("backups.bytes")),
            ("Newest ended", newest),
            ("Manifests that cannot be used", shown("backups.refused")),
        ]
    )


def _evidence(shown: _Shown) -> str:
    return "<h2>Evidence</h2>\n" + _pairs(
        [
            ("Report", shown("identity.report_id")),
            ("Made", shown.time("identity.created_at")),
            ("Verifier's key", shown("people.executed_by.key_id", css="digest")),
            ("Log", shown("log.log_origin", css="digest")),
            ("Entries of the log", shown("log.tree_size")),
            ("Root of the tree", shown("log.root_hash", css="digest")),
            ("Objectives from", shown("policy.source")),
            ("Program", shown("tool.product_version")),
        ]
    )
