"""The shape of a report: one text, and the published JSON Schema that is made from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pitr.errors import MalformedValue
from verifiers.report_shape import (
    CERTIFICATION,
    REPORT,
    REPORT_1,
    REPORTS,
    TYPES,
    check_shape,
    parse_shape,
    render_schema,
)

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "docs" / "schema"


@pytest.mark.parametrize("report_type", REPORTS)
def test_the_published_schemas_are_made_from_the_shape(report_type: str) -> None:
    version = report_type.rpartition("/")[2]
    published = (SCHEMAS / f"restore-verification-{version}.schema.json").read_text()
    assert published == render_schema(report_type), "python -m cli.schema_page > docs/schema/…"


def test_the_report_has_the_groups_that_were_agreed() -> None:
    agreed = """subject identity scope policy trigger source target request timings data_loss degradation
        checks kafka ransomware result findings people tool log mapping"""
    assert list(REPORT_1) == agreed.split()
    assert list(REPORT) == [*REPORT_1, "trend", "recoverability"]
    assert set(CERTIFICATION) > {"certified_by", "reviewed_by", "report_sha256"}


@pytest.mark.parametrize("kind", TYPES)
def test_the_patterns_of_types_are_plain_enough_for_every_dialect(kind: str) -> None:
    pattern, _ = TYPES[kind]
    assert re.search(r"\(\?[^:]|\\[^xn./]", pattern) is None


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"a": 1, "b": None, "c": [], "d": {"e": "x"}}, None),
        ({"a": 1, "b": "0" * 64, "c": [True, False], "d": {"e": "y"}}, None),
        ({"b": None, "c": [], "d": {"e": "x"}}, "a is missing"),
        ({"a": 1, "b": None, "c": [], "d": {"e": "x", "f": 1}}, "d.f is unknown"),
        ({"a": True, "b": None, "c": [], "d": {"e": "x"}}, "a must be number"),
        ({"a": 0, "b": None, "c": [], "d": {"e": "x"}}, "a must be number"),
        ({"a": 1.0, "b": None, "c": [], "d": {"e": "x"}}, "a must be number"),
        ({"a": 1, "b": "0" * 63, "c": [], "d": {"e": "x"}}, "b must be sha256"),
        ({"a": 1, "b": "0" * 64 + "\n", "c": [], "d": {"e": "x"}}, "b must be sha256"),
        ({"a": 1, "b": None, "c": [1], "d": {"e": "x"}}, "c.0 must be bool"),
        ({"a": 1, "b": None, "c": [True] * 10_001, "d": {"e": "x"}}, "c must be a list"),
        ({"a": 1, "b": None, "c": None, "d": {"e": "x"}}, "c must be a list"),
        ({"a": 1, "b": None, "c": [], "d": {"e": "z"}}, "d.e must be x|y"),
        ({"a": 1, "b": None, "c": [], "d": None}, "d. must be an object"),
        ([], "it must be an object"),
    ],
)
def test_a_value_has_exactly_the_fields_of_its_shape(value: object, told: str | None) -> None:
    shape = parse_shape("a:number b?:sha256 c[]:bool d{ e:x|y }")
    if told is None:
        check_shape(value, shape)
        return
    with pytest.raises(MalformedValue, match=re.escape(told)):
        check_shape(value, shape)
