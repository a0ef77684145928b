"""The page of a report: a pure function of the signed statement and of its certifications.

One file without script.  Each value that it shows stands in an element with ``data-f``, the path of the
field in the predicate (``data-u`` says how it is written), so that the auditor's tool compares what a
person reads with what was signed.  Everything else is text of this module.  Reference: docs/audit.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Final

from verifiers.statement import Predicate, SignedStatement

_STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;color:#1a1a1a;max-width:60em;margin:2em auto;padding:0 1em}
h1{font-size:1.5em;margin:0}h2{font-size:1.1em;border-bottom:1px solid #bbb;margin:1.6em 0 .5em}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.2em .8em .2em 0}
th{font-weight:600;color:#444}tbody tr{border-top:1px solid #e4e4e4}
.verdict{font-size:1.3em;font-weight:700;padding:.4em .6em;margin:.6em 0;border:2px solid}
.PASSED{color:#0a5c2b}.WARNED,.SKIPPED{color:#7a4b00}.FAILED{color:#a00016}
pre{white-space:pre-wrap;word-break:break-all;font-size:.75em;background:#f5f5f5;padding:.6em}
.digest{font-family:ui-monospace,monospace;font-size:.85em;word-break:break-all}
@media print{body{margin:0;max-width:none;font-size:10pt}h2{break-after:avoid}tr{break-inside:avoid}}
"""
_HEAD: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Restore verification report</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{style}</style></head><body>
<h1>Restore verification report</h1>
"""
_PHASES: Final = (
    ("detect", "Detected"),
    ("decide", "Decided"),
    ("provision", "Scratch place ready"),
    ("fetch_first_byte", "First byte fetched"),
    ("base_done", "Base backup in place"),
    ("wal_replay_done", "WAL replayed"),
    ("consistent", "Consistent"),
    ("accept_reads", "Accepts reads"),
    ("accept_writes", "Accepts writes"),
    ("checks_done", "Checks done"),
)


def render_report(report: SignedStatement, certifications: Sequence[SignedStatement]) -> bytes:
    """Return the page; the same bytes for the same statements."""
    predicate = report.predicate
    shown = _Shown({**predicate, "certifications": [one.predicate for one in certifications]})
    parts = [
        _HEAD.format(style=_STYLE),
        _verdict(shown, predicate),
        _objectives(shown),
        _not_tested(shown, predicate),
        _checks(shown, predicate),
        _findings(shown, predicate),
        _measured(shown, predicate),
        _certified(shown, len(certifications)),
        _evidence(shown, predicate),
        _embedded("envelope", "The signed report, as it is stored", report.envelope),
        *(
            _embedded(f"certification-{number}", "The signed certification, as it is stored", one.envelope)
            for number, one in enumerate(certifications)
        ),
        "</body></html>\n",
    ]
    return "".join(parts).encode("utf-8")


def shown_text(value: object, unit: str = "") -> str:
    """Return how a value is written: of a time to the second, milliseconds as hours:minutes:seconds."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "time" and isinstance(value, str):
        return f"{value[:10]} {value[11:19]} UTC"
    if unit == "ms" and isinstance(value, int):
        return f"{value // 3_600_000}:{value // 60_000 % 60:02d}:{value // 1000 % 60:02d}.{value % 1000:03d}"
    return str(value)


class _Shown:
    """Values by their path, each in an element that names it."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def value(self, path: str) -> Any:
        found: Any = self._fields
        for name in path.split("."):
            found = found[int(name)] if isinstance(found, (list, tuple)) else found[name]
        return found

    def __call__(self, path: str, unit: str = "", *, css: str = "") -> str:
        written = escape(shown_text(self.value(path), unit))
        attributes = f' data-u="{unit}"' if unit else ""
        if css:
            attributes += f' class="{escape(css)}"'
        return f'<span data-f="{path}"{attributes}>{written}</span>'

    def each(self, path: str) -> str:
        """Return a list of texts, with commas between."""
        count = len(self.value(path))
        return ", ".join(self(f"{path}.{at}") for at in range(count)) or "none"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>\n"


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th>{name}</th><td>{cell}</td></tr>\n" for name, cell in rows)
    return f"<table><tbody>\n{body}</tbody></table>\n"


def _verdict(shown: _Shown, predicate: Predicate) -> str:
    overall = predicate["result"]["overall"]
    return f'<p class="verdict {overall}">{shown("result.overall")}</p>\n' + _pairs(
        [
            ("System", f"{shown('scope.system_name')} of {shown('scope.org')}"),
            ("Cluster", f"system identifier {shown('scope.system_identifier')}"),
            ("PostgreSQL", shown("scope.pg_version")),
            ("Databases", shown.each("scope.databases")),
            ("Kind of test", shown("identity.report_type")),
            ("Report", f"number {shown('identity.series_seq')}, {shown('identity.report_id')}"),
            ("Started", shown("trigger.started_at", "time")),
            ("Planned for", shown("trigger.scheduled_at", "time")),
            ("Recovery target", f"{shown('request.kind')} {shown('request.value')}"),
            ("Backup", f"{shown('source.backup_id')} ({shown('source.kind')})"),
            ("Restored in", f"{shown('target.environment_id')}, from region {shown('source.region')}"),
        ]
    )


def _objectives(shown: _Shown) -> str:
    return "<h2>Objectives</h2>\n" + _table(
        ["", "objective (h:m:s)", "measured (h:m:s)", "met"],
        [
            [
                "Recovery time",
                shown("policy.rto_ms", "ms"),
                shown("timings.recovery_time_ms", "ms"),
                shown("result.rto_met"),
            ],
            [
                "Data loss",
                shown("policy.rpo_ms", "ms"),
                shown("data_loss.data_loss_ms", "ms"),
                shown("result.rpo_met"),
            ],
        ],
    )


def _not_tested(shown: _Shown, predicate: Predicate) -> str:
    skipped = [at for at, check in enumerate(predicate["checks"]) if check["result"] == "SKIPPED"]
    lines = [
        *(shown(f"result.limits.{at}") for at in range(len(predicate["result"]["limits"]))),
        *(
            f"{shown(f'scope.excluded.{at}.item')}: {shown(f'scope.excluded.{at}.reason')}"
            for at in range(len(predicate["scope"]["excluded"]))
        ),
        *(
            f"{shown(f'checks.{at}.id')} {shown(f'checks.{at}.title')}: {shown(f'checks.{at}.reason')}"
            for at in skipped
        ),
    ]
    items = "".join(f"<li>{line}</li>\n" for line in lines) or "<li>nothing was left out</li>\n"
    return f"<h2>What was not tested</h2>\n<ul>\n{items}</ul>\n"


def _checks(shown: _Shown, predicate: Predicate) -> str:
    rows = [
        [
            shown(f"checks.{at}.id"),
            shown(f"checks.{at}.title"),
            shown(f"checks.{at}.result", css=check["result"]),
            shown(f"checks.{at}.required"),
            f"{shown(f'checks.{at}.expected')} / {shown(f'checks.{at}.observed')}"
            + (f"<br>{shown(f'checks.{at}.reason')}" if check["reason"] else ""),
            f"{shown(f'checks.{at}.tool')} {shown(f'checks.{at}.tool_version')}",
        ]
        for at, check in enumerate(predicate["checks"])
    ]
    return "<h2>Checks</h2>\n" + _table(
        ["id", "check", "result", "required", "expected / observed", "tool"], rows
    )


def _findings(shown: _Shown, predicate: Predicate) -> str:
    rows = [
        [shown(f"findings.{at}.{name}", "time" if name == "due_at" else "") for name in _FINDING]
        for at in range(len(predicate["findings"]))
    ]
    if not rows:
        return ""
    return "<h2>Findings</h2>\n" + _table([name.replace("_", " ") for name in _FINDING], rows)


_FINDING: Final = ("id", "severity", "description", "owner", "due_at", "status", "corrective_action")


def _measured(shown: _Shown, predicate: Predicate) -> str:
    timings = predicate["timings"]
    rows = [
        [words, shown(f"timings.{name}.at", "time"), shown(f"timings.{name}.ms", "ms")]
        for name, words in _PHASES
        if timings[name] is not None
    ]
    return (
        "<h2>Timings and data loss</h2>\n"
        + _table(["", "at", "after the start (h:m:s)"], rows)
        + _pairs(
            [
                ("Bytes restored", shown("timings.bytes")),
                ("Bytes of WAL", shown("timings.wal_bytes")),
                ("How data loss was measured", shown("data_loss.method")),
                ("Transactions lost", shown("data_loss.data_loss_tx")),
                ("Wiped afterwards", f"{shown('target.wiped_after')}: {shown('target.wiped_proof')}"),
            ]
        )
    )


def _certified(shown: _Shown, count: int) -> str:
    if not count:
        return "<h2>Certification</h2>\n<p>No person has certified this report yet.</p>\n"
    fields = ("certified_by.name", "certified_by.role", "certified_at", "statement")
    rows = [
        [shown(f"certifications.{at}.{name}", "time" if name == "certified_at" else "") for name in fields]
        for at in range(count)
    ]
    return "<h2>Certification</h2>\n" + _table(["by", "role", "at", "statement"], rows)


def _evidence(shown: _Shown, predicate: Predicate) -> str:
    backups = range(len(predicate["subject"]["backups"]))
    return "<h2>Evidence</h2>\n" + _pairs(
        [
            ("Verifier's key", shown("people.executed_by.key_id", css="digest")),
            ("Log", shown("log.log_origin", css="digest")),
            ("Intent", f"entry {shown('log.leaf_index')} in a tree of {shown('log.tree_size')}"),
            ("Root of the tree", shown("log.root_hash", css="digest")),
            ("Report before this one", shown("identity.previous_report_sha256", css="digest")),
            ("Policy", f"{shown('policy.policy_id')} {shown('policy.sha256', css='digest')}"),
            ("Program", shown("tool.product_version")),
            *(
                (
                    "Backup's manifest",
                    f"{shown(f'subject.backups.{at}.name')} "
                    + shown(f"subject.backups.{at}.manifest_sha256", css="digest"),
                )
                for at in backups
            ),
        ]
    )


def _embedded(name: str, title: str, envelope: bytes) -> str:
    text = escape(envelope.decode("ascii"))
    return f'<details><summary>{title}</summary><pre id="{name}">{text}</pre></details>\n'
