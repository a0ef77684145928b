"""docs/metrics.md and the rules file of the examples name the same alerts, of metrics that there are."""

from __future__ import annotations

import re
from pathlib import Path

from cli.metrics import metric_names

ROOT = Path(__file__).resolve().parents[2]
_RULES = (ROOT / "examples" / "prometheus" / "pitr-rules.yml").read_text(encoding="utf-8")
_PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
EXPRESSIONS = re.findall(r"^ +expr: (.*)$", _RULES, re.MULTILINE)


def test_the_alerts_of_the_page_are_those_of_the_rules_file() -> None:
    block = _PAGE.partition("Alerts that are worth a page")[2]
    lines = re.findall(r"^ {4}(\S.*)$", block, re.MULTILINE)
    assert [re.split(r" {2,}", line)[0] for line in lines] == EXPRESSIONS


def test_the_rules_ask_for_metrics_that_there_are() -> None:
    asked = set(re.findall(r"pitr_[a-z_]+", " ".join(EXPRESSIONS)))
    assert asked
    assert asked <= {name for name, _ in metric_names()}
