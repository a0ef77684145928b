"""The PDF of a report: the blocks of its page, set by typst, as PDF/A.  A function of the signed statements.

Nothing is read but our own template and the fonts that typst brings; no package and no network.  What the
report says goes in as JSON: no text in it can be markup.  A sign that those fonts lack is written by its
number.  The date is the report's, so that one report has one PDF.  It is a copy for people: evidence are the
signed report and the page that the log names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

from pitr.errors import PitrError
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
from verifiers.report_html import report_blocks, report_fields
from verifiers.statement import SignedStatement

Paper = Literal["a4", "us-letter"]
_TEMPLATE: Final = Path(__file__).with_name("report.typ")
_TITLE: Final = "Restore verification report"
# Signs that typst's own fonts have: Latin, Greek, Cyrillic, Hebrew, marks, arrows and mathematics.  PDF/A
# refuses a sign without a shape, and fonts of the host would make one report two files.  Not among them are
# those that turn or hide what stands beside them.
_SHAPED: Final = re.compile(
    "[\u00a0-\u02af\u02c6-\u02dd\u0300-\u034e\u0370-\u03ff\u0400-\u04ff\u05d0-\u05ea\u1e00-\u1fff"
    "\u2010-\u2027\u20a0-\u20bf\u2190-\u22ff\u2500-\u257f\u25a0-\u25ff]"
)


class PdfMissing(PitrError):
    """The library that sets a PDF is not installed."""


class PdfFailed(PitrError):
    """The PDF could not be set: a mistake of ours, or of a typst that is not the one we know."""


def render_pdf(
    report: SignedStatement, certifications: Sequence[SignedStatement], paper: Paper = "a4"
) -> bytes:
    """Return the PDF; the same bytes for the same statements.  Raises PdfMissing, PdfFailed."""
    try:
        import typst
    except ImportError as cause:
        raise PdfMissing(
            "a PDF needs the library typst, and it is not installed",
            detail="the signed report and its page need nothing more",
            hint="pip install 'pitr[pdf]'",
        ) from cause
    fields = report_fields(report, certifications)
    made = drawable(json.dumps(pdf_content(fields, paper), ensure_ascii=False))
    # PDF has no smaller part of time than a second.
    date = datetime.fromisoformat(fields["identity.created_at"]).replace(microsecond=0)
    try:
        compiler = typst.Compiler(
            _TEMPLATE.read_bytes(),
            font_paths=typst.Fonts(include_system_fonts=False),
            sys_inputs={"report": made},
        )
        # Archival, and readable by a screen reader.
        pdf = compiler.compile(format="pdf", pdf_standards=["a-2a", "ua-1"], timestamp=date)
    except typst.TypstError as cause:
        raise PdfFailed("the PDF could not be set", detail=str(cause)) from cause
    assert isinstance(pdf, bytes)
    return pdf


def drawable(text: str) -> str:
    """Return the text with its other signs by their number, as [U+6F22].  Pure."""
    return "".join(sign if sign < "\x7f" or _has_shape(sign) else f"[U+{ord(sign):04X}]" for sign in text)


def _has_shape(sign: str) -> bool:
    return _SHAPED.match(sign) is not None and (sign.isprintable() or sign == "\u00a0")


def pdf_content(fields: Fields, paper: Paper) -> dict[str, Any]:
    """Return what the template sets, as JSON has it.  Pure."""
    date = datetime.fromisoformat(fields["identity.created_at"])
    return {
        "title": _TITLE,
        "author": fields["people.executed_by.name"],
        "paper": paper,
        "date": {
            "year": date.year,
            "month": date.month,
            "day": date.day,
            "hour": date.hour,
            "minute": date.minute,
            "second": date.second,
        },
        "footer": f"{_TITLE} {fields['identity.report_id']}",
        "blocks": [_block(fields, block) for block in report_blocks(fields)],
    }


def _block(fields: Fields, block: Block) -> dict[str, Any]:
    match block:
        case Heading(text):
            return {"is": "heading", "text": text}
        case Banner(verdict, words):
            return {"is": "banner", "verdict": fields[verdict.path], "words": words}
        case Paragraph(line):
            return {"is": "paragraph", "line": _line(fields, line)}
        case Items(lines):
            return {"is": "items", "lines": [_line(fields, line) for line in lines]}
        case Pairs(caption, rows, abreast):
            told = [{"name": name, "line": _line(fields, line)} for name, line in rows]
            told += [{"name": "", "line": _line(fields, ("",))}] * (-len(told) % abreast)
            return {"is": "pairs", "caption": caption, "rows": told, "abreast": abreast}
        case Table(caption, columns, cells, widths):
            return {
                "is": "table",
                "caption": caption,
                "columns": list(columns),
                "rows": [[_line(fields, cell) for cell in row] for row in cells],
                "widths": list(widths),
            }
        case Figure(caption, svg, description):
            return {"is": "figure", "caption": caption, "svg": svg, "description": description}
        case Figures(figures):
            return {"is": "figures", "figures": [_block(fields, one) for one in figures]}
        case Commands(text):
            return {"is": "commands", "text": text}
        case PageBreak():
            return {"is": "page-break"}


def _line(fields: Fields, line: Line) -> list[dict[str, str]]:
    return [
        {"text": fields.text(one), "tone": one.tone} if isinstance(one, Value) else {"text": one, "tone": ""}
        for one in line
    ]
