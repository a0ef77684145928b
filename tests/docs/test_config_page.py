"""docs/config.md lists each table's settings, and no other: a strange one ends every command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from cli.config_schema import _Config
from cli.config_table import Table

PAGE = Path(__file__).parents[2] / "docs" / "config.md"
THE_TOP = "The top"
_HEADING = re.compile(r"^#{2,3} (?:\[{1,2}([a-z.]+)\]{1,2}|(The top))$")
_ROW = re.compile(r"^\| (`[a-z_0-9`, ]+) \|")


def tables_of(annotation: object) -> Iterator[type[Table]]:
    """Yield the tables that a field's type speaks of, in a list, or or-ed with None."""
    if isinstance(annotation, type) and issubclass(annotation, Table):
        yield annotation
    for part in get_args(annotation):
        yield from tables_of(part)


def settings_of(table: type[Table], name: str = THE_TOP) -> dict[str, set[str]]:
    """Return by table the names of its settings, but for tables in it."""
    found: dict[str, set[str]] = {name: set()}
    for key, field in table.model_fields.items():
        inner = next(tables_of(field.annotation), None)
        if inner is None:
            found[name].add(key)
        else:
            found |= settings_of(inner, key if name == THE_TOP else f"{name}.{key}")
    return found


def settings_on(page: str) -> dict[str, set[str]]:
    """Return by heading what the first column of the tables of settings below it names."""
    found: dict[str, set[str]] = {}
    heading, is_of_settings = None, False
    for line in page.splitlines():
        if line.startswith("#"):
            match = _HEADING.match(line)
            heading = None if match is None else match[1] or match[2]
        is_of_settings = line.startswith("| setting |") or (is_of_settings and line.startswith("|"))
        row = _ROW.match(line)
        if row is not None and heading is not None and is_of_settings:
            found.setdefault(heading, set()).update(re.findall(r"`([a-z_0-9]+)`", row[1]))
    return found


def test_every_setting_stands_in_the_table_in_which_it_is_read() -> None:
    listed, known = settings_on(PAGE.read_text()), settings_of(_Config)
    strange = {name: rows - known.get(name, set()) for name, rows in listed.items()}
    assert {name: rows for name, rows in strange.items() if rows} == {}
    missing = {name: keys - listed.get(name, set()) for name, keys in known.items()}
    assert {name: keys for name, keys in missing.items() if keys} == {}
