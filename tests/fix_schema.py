"""JSON Schemas, published by us and by others, applied by a library that none of us wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import regex
from jsonschema import Draft7Validator, Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

ROOT = Path(__file__).parents[1]
REPORT_SCHEMA = ROOT / "docs" / "schema" / "restore-verification-v2.schema.json"
PERIOD_SCHEMA = ROOT / "docs" / "schema" / "period-report-v1.schema.json"
OSCAL_SCHEMA = ROOT / "tests" / "golden" / "oscal" / "oscal_assessment-results_schema.json"


def _pattern(_validator: Any, pattern: str, instance: object, _schema: object) -> Iterator[ValidationError]:
    """Apply a pattern as ECMA-262 means it, which the library leaves to Python.

    There ``\\p{L}`` is a letter, and ``$`` is the end of the text, and not also before a last line feed.
    """
    if isinstance(instance, str) and not regex.search(regex.sub(r"\$(?=$|\))", r"\\Z", pattern), instance):
        yield ValidationError(f"{instance[:80]!r} does not match {pattern!r}")


@cache
def _validator(path: Path) -> Any:
    schema = json.loads(path.read_text())
    base = Draft7Validator if "draft-07" in schema["$schema"] else Draft202012Validator
    # Its check of patterns is of those that Python knows.
    base.check_schema(schema, format_checker=None)
    return extend(base, {"pattern": _pattern})(schema)


def schema_errors(path: Path, value: object) -> list[str]:
    """Return what the schema of a file finds wrong with a value, the first few."""
    found = []
    for error in _validator(path).iter_errors(value):
        found.append(f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}")
        if len(found) == 10:
            break
    return found
