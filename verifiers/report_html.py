"""The page of a report: a pure function of the signed statement and of its certifications.

One file without script.  Each value that it shows stands in an element with ``data-f``, the path of the
field in the predicate (``data-u`` says how it is written), so that the auditor's tool compares what a
person reads with what was signed.  Everything else is text of our modules.  Reference: docs/audit.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from verifiers.report_blocks import (
    Banner,
    Block,
    Commands,
    Fields,
    Figure,
    Figures,
    Heading,
    Items,
    Line,
    PageBreak,
    Pairs,
    Paragraph,
    Table,
    Value,
)
from verifiers.report_first_page import first_page
from verifiers.report_sections import sections
from verifiers.statement import SignedStatement

# No size of paper: that is whoever prints it to say.
_STYLE: Final = """
@page{margin:14mm 14mm 16mm;@bottom-left{content:"Restore verification report";font:8pt sans-serif;color:#444}
@bottom-right{content:"page " counter(page) " of " counter(pages);font:8pt sans-serif;color:#444}}
*{box-sizing:border-box}
body{font:15px/1.4 "Helvetica Neue",Arial,"Liberation Sans",sans-serif;color:#1a1a1a;background:#fff;
max-width:62rem;margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.6em;margin:0 0 .5em}h2{font-size:1.12em;color:#1f4e79;border-bottom:1.5px solid #1f4e79;
margin:1.7em 0 .5em;padding-bottom:.15em}
p{margin:.4em 0}ul{margin:.3em 0 .7em;padding-left:1.3em}li{margin:.15em 0;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;table-layout:fixed;margin:.3em 0 .9em}
caption{text-align:left;color:#444;font-size:.88em;padding-bottom:.2em}
th,td{text-align:left;vertical-align:top;padding:.28em .7em .28em 0;overflow-wrap:anywhere;
border-bottom:1px solid #d5d5d5;font-size:.92em}
thead th{border-bottom:1.5px solid #1a1a1a;font-weight:600}tbody th{font-weight:400;color:#444}
.banner{border:2px solid;border-left-width:12px;padding:.5em .8em;margin:.4em 0 1em}
.banner .verdict{font-size:1.5em;letter-spacing:.03em}.banner p{color:#1a1a1a;margin:.1em 0 0}
.verdict,.strong{font-weight:700}.PASSED{color:#0a5c2b}.WARNED,.SKIPPED{color:#7a4b00}.FAILED{color:#a00016}
.code,pre{font-family:ui-monospace,"DejaVu Sans Mono",monospace}.code{font-size:.86em;overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.75em;background:#f4f4f4;padding:.7em;margin:.4em 0}
figure{margin:.4em 0 .8em}figcaption{color:#444;font-size:.88em;margin-bottom:.2em}svg{width:100%;height:auto}
[data-f]{unicode-bidi:isolate}.abreast{display:grid;grid-template-columns:1fr 1fr;gap:1.2em}
@media print{body{margin:0;max-width:none;padding:0;font-size:9.2pt}h1{font-size:1.5em}
h2{break-after:avoid;margin-top:1em}tr,li,figure,.banner,pre.type{break-inside:avoid}thead{display:table-header-group}
caption,figcaption,thead{break-after:avoid}tbody tr:first-child{break-before:avoid}
.new-page{break-before:page}details{display:none}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
_HEAD: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Restore verification report</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{style}</style></head><body><main>
<h1>Restore verification report</h1>
"""


def render_report(report: SignedStatement, certifications: Sequence[SignedStatement]) -> bytes:
    """Return the page; the same bytes for the same statements."""
    fields = report_fields(report, certifications)
    page = _Page(fields)
    parts = [
        _HEAD.format(style=_STYLE),
        *(page.block(block) for block in report_blocks(fields)),
        "</main>\n",
        _embedded("envelope", "The signed report, as it is stored", report.envelope),
        *(
            _embedded(f"certification-{number}", "The signed certification, as it is stored", one.envelope)
            for number, one in enumerate(certifications)
        ),
        "</body></html>\n",
    ]
    return "".join(parts).encode("utf-8")


def report_fields(report: SignedStatement, certifications: Sequence[SignedStatement]) -> Fields:
    """Return what is shown of a report and its certifications."""
    return Fields(report.predicate, [one.predicate for one in certifications], report.payload_sha256)


def report_blocks(fields: Fields) -> list[Block]:
    """Return all that is shown, in its order."""
    return [*first_page(fields), *sections(fields)]


class _Page:
    """Blocks as elements."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._is_new_page = False

    def block(self, block: Block) -> str:
        match block:
            case Heading(text):
                css, self._is_new_page = (' class="new-page"' if self._is_new_page else ""), False
                return f"<h2{css}>{escape(text)}</h2>\n"
            case Banner(verdict, words):
                overall = self._fields[verdict.path]
                return f'<div class="banner {overall}">{self._value(verdict)}\n<p>{escape(words)}</p></div>\n'
            case Paragraph(line):
                return f"<p>{self._line(line)}</p>\n"
            case Items(lines):
                items = "".join(f"<li>{self._line(line)}</li>\n" for line in lines)
                return f"<ul>\n{items}</ul>\n"
            case Pairs():
                return self._pairs(block)
            case Table():
                return self._table(block)
            case Figure(caption, svg, description):
                about = f' aria-label="{escape(f"{caption}. {description}")}"'
                return f"<figure{about}><figcaption>{escape(caption)}</figcaption>{svg}</figure>\n"
            case Figures(figures):
                return f'<div class="abreast">{"".join(map(self.block, figures))}</div>\n'
            case Commands(text):
                return f'<pre class="type">{escape(text)}</pre>\n'
            case PageBreak():
                self._is_new_page = True
                return ""

    def _pairs(self, block: Pairs) -> str:
        cells = [
            f'<th scope="row">{escape(name)}</th><td>{self._line(line)}</td>' for name, line in block.rows
        ]
        if len(cells) % block.abreast:
            cells.append("<td></td><td></td>" * (block.abreast - len(cells) % block.abreast))
        rows = ["".join(cells[at : at + block.abreast]) for at in range(0, len(block.rows), block.abreast)]
        widths = [1, 2] * block.abreast if block.abreast > 1 else [2, 7]
        body = "".join(f"<tr>{row}</tr>\n" for row in rows)
        return _table_of(block.caption, widths, "", body)

    def _table(self, block: Table) -> str:
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in block.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{self._line(cell)}</td>" for cell in row) + "</tr>\n" for row in block.rows
        )
        return _table_of(block.caption, block.widths, f"<thead><tr>{head}</tr></thead>", body)

    def _line(self, line: Line) -> str:
        return "".join(escape(piece) if isinstance(piece, str) else self._value(piece) for piece in line)

    def _value(self, value: Value) -> str:
        attributes = f' data-u="{value.unit}"' if value.unit else ""
        css: str = value.tone
        if css == "verdict":
            css = f"verdict {self._fields[value.path]}"
        attributes += f' class="{escape(css)}"' if css else ""
        return f'<span data-f="{value.path}"{attributes}>{escape(self._fields.text(value))}</span>'


def _table_of(caption: str, widths: Sequence[int], head: str, body: str) -> str:
    whole = sum(widths)
    columns = "".join(f'<col style="width:{100 * width / whole:.1f}%">' for width in widths)
    return (
        f"<table><caption>{escape(caption)}</caption><colgroup>{columns}</colgroup>"
        f"{head}<tbody>\n{body}</tbody></table>\n"
    )


def _embedded(name: str, title: str, envelope: bytes) -> str:
    text = escape(envelope.decode("ascii"))
    return f'<details><summary>{title}</summary><pre id="{name}">{text}</pre></details>\n'
