"""What a report's page is made of: text, values of the report by their path, tables and figures.  Pure.

One list of blocks is shown as HTML and as PDF, so that both say the same in the same order.  A value is named
by its path and never copied, so that whoever shows it can say which field it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Tone: TypeAlias = Literal["", "verdict", "code", "strong"]


@dataclass(frozen=True, slots=True)
class Value:
    """One field of the report.  ``unit``: how it is written (``shown_text``); ``tone``: how it looks."""

    path: str
    unit: str = ""
    tone: Tone = ""


Line: TypeAlias = tuple["str | Value", ...]
"""Words and values, one after the other."""


@dataclass(frozen=True, slots=True)
class Heading:
    """Begins a section."""

    text: str


@dataclass(frozen=True, slots=True)
class Banner:
    """The verdict, and what it means."""

    verdict: Value
    words: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """One paragraph."""

    line: Line


@dataclass(frozen=True, slots=True)
class Items:
    """A list without order."""

    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Names and what they are; ``abreast``: how many of them stand in one row."""

    caption: str
    rows: Sequence[tuple[str, Line]]
    abreast: int = 1


@dataclass(frozen=True, slots=True)
class Table:
    """A table; ``widths`` are parts of its width, one for each column."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Line]]
    widths: Sequence[int]


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing, and what it shows in words, for those who do not see it."""

    caption: str
    svg: str
    description: str


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures side by side."""

    figures: Sequence[Figure]


@dataclass(frozen=True, slots=True)
class Commands:
    """Lines to type."""

    text: str


@dataclass(frozen=True, slots=True)
class PageBreak:
    """What follows begins on a new page, where there are pages."""


Block: TypeAlias = (
    Heading | Banner | Paragraph | Items | Pairs | Table | Figure | Figures | Commands | PageBreak
)


class Fields:
    """The report's fields, and what is shown beside them: certifications and the payload's digest."""

    def __init__(
        self, predicate: Mapping[str, Any], certifications: Sequence[Mapping[str, Any]], payload_sha256: str
    ) -> None:
        self._fields = {
            **predicate,
            "certifications": list(certifications),
            "payload_sha256": payload_sha256,
        }

    def __getitem__(self, path: str) -> Any:
        """Return a field by its path; below a field that is null, null."""
        found: Any = self._fields
        for name in path.split("."):
            if found is None:
                return None
            found = found[int(name)] if isinstance(found, (list, tuple)) else found[name]
        return found

    def has(self, group: str) -> bool:
        """Tell whether the report has the group: version 1 lacks some."""
        return group in self._fields

    def text(self, value: Value) -> str:
        """Return a value as it is shown."""
        return shown_text(self[value.path], value.unit)

    def each(self, path: str, *names: str) -> list[str]:
        """Return the paths of a list's members, or of a field in each."""
        return [".".join((f"{path}.{at}", *names)) for at in range(len(self[path]))]


def shown_text(value: object, unit: str = "") -> str:
    """Return how a value is written.  ``pitr_audit`` does it in the same way, and compares.

    ``time``: to the second; ``day``; ``took``: milliseconds in words; ``ms``: as hours:minutes:seconds, on
    pages of version 1; ``count``: with commas; ``words``: a name, with spaces.
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        if unit == "words":
            return value.replace("_", " ")
        return {"time": f"{value[:10]} {value[11:19]} UTC", "day": value[:10]}.get(unit, value)
    if isinstance(value, int) and unit in ("took", "ms"):
        hours, minutes, seconds = value // 3_600_000, value // 60_000 % 60, value // 1000 % 60
        if unit == "ms":
            return f"{hours}:{minutes:02d}:{seconds:02d}.{value % 1000:03d}"
        parts = [f"{hours} h"] if hours else []
        parts += [f"{minutes} min"] if value >= 60_000 else []
        rest = value % 60_000
        if rest or not parts:
            parts.append(f"{seconds} s" if rest % 1000 == 0 else f"{seconds}.{value % 1000:03d} s")
        return " ".join(parts)
    return f"{value:,}" if isinstance(value, int) and unit == "count" else str(value)


def listed(values: Sequence[Value], none: str = "none") -> Line:
    """Return values with commas between them."""
    line: list[str | Value] = []
    for value in values:
        line += [", ", value] if line else [value]
    return tuple(line) or (none,)
