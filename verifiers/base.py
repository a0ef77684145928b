"""Findings: what every verification returns.

A verifier changes nothing and raises nothing about what it examines: it goes on, collects
all findings, and its caller decides what they mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check on one subject.

    ``id`` names the check and never changes its meaning (``server.wal_level``); ``subject`` is what was
    looked at; ``message`` what was seen; ``hint`` what to do, None where nothing is to be done.
    """

    id: str
    severity: Severity
    subject: str
    message: str
    hint: str | None = None


def worst(findings: Iterable[Finding]) -> Severity:
    """Return the worst severity; OK if there is no finding."""
    order = [Severity.OK, Severity.WARN, Severity.FAIL]
    return max((finding.severity for finding in findings), key=order.index, default=Severity.OK)
