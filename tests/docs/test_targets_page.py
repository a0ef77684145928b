"""docs/targets.md promises what each text means; here each of its lines is typed."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pitr.errors import TargetRefused
from pitr.targets import parse_target

_PAGE = (Path(__file__).parents[2] / "docs" / "targets.md").read_text("utf-8")
_NOW = datetime(2026, 11, 23, 14, 30, tzinfo=UTC)


def _rows(heading: str) -> list[tuple[str, str]]:
    section = _PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]*)` \| `?([^|`]*?)`? \|$", section, re.MULTILINE)


def test_the_page_says_when_and_where_its_examples_were_typed() -> None:
    assert "at `2026-11-23T14:30:00Z` on a machine whose zone is `Europe/Berlin`" in _PAGE
    assert len(_rows("Accepted")) >= 15
    assert len(_rows("Refused")) >= 25


@pytest.mark.parametrize(("typed", "meant"), _rows("Accepted"))
def test_an_accepted_example_means_what_the_page_says(typed: str, meant: str) -> None:
    assert str(parse_target(typed, now=_NOW, local_zone="Europe/Berlin")) == meant


@pytest.mark.parametrize(("typed", "because"), _rows("Refused"))
def test_a_refused_example_is_refused_for_the_reason_on_the_page(typed: str, because: str) -> None:
    with pytest.raises(TargetRefused) as refused:
        parse_target(typed, now=_NOW, local_zone="Europe/Berlin")
    assert because in f"{refused.value.message}\n{refused.value.detail}"
