"""One check of a restored cluster, as a report states it, and the verdict that all checks make.  Pure.

A check that did not run is never one that passed: it is SKIPPED, says why, and keeps the whole from
being PASSED where it is required.  Reference: docs/audit.md, docs/schema/.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pitr.errors import MalformedValue

_ID = re.compile(r"[A-Z][A-Z0-9]{0,3}[0-9]{2,4}(\.[a-z0-9_-]{1,64})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Outcome(StrEnum):
    """What one check, or all of them, came to."""

    PASSED = "PASSED"
    WARNED = "WARNED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check that ran, or that did not and says why.

    ``id`` names the check and never changes its meaning (``C04``; ``C15.name`` for one of several of a
    kind).  ``command_sha256`` is the digest of the command or query, without secrets.  ``reason`` is set
    whenever the outcome is not PASSED.  Raises MalformedValue for values that no report may state.
    """

    id: str
    category: str
    title: str
    is_required: bool
    tool: str
    tool_version: str
    command_sha256: str
    started_at: datetime
    duration_ms: int
    outcome: Outcome
    expected: str
    observed: str
    reason: str | None = None
    evidence_sha256: str | None = None

    def __post_init__(self) -> None:
        if _ID.fullmatch(self.id) is None:
            raise MalformedValue(f"not the id of a check: {self.id[:80]!r}")
        for digest in (self.command_sha256, self.evidence_sha256):
            if digest is not None and _SHA256.fullmatch(digest) is None:
                raise MalformedValue(f"check {self.id}: not a SHA-256 in hexadecimal: {digest[:80]!r}")
        if self.started_at.utcoffset() is None:
            raise MalformedValue(f"check {self.id}: time without a zone")
        if self.duration_ms < 0:
            raise MalformedValue(f"check {self.id}: took {self.duration_ms} ms")
        if (self.outcome is Outcome.PASSED) == bool(self.reason):
            raise MalformedValue(
                f"check {self.id}: a reason belongs to each outcome but PASSED, and to no other"
            )


def overall(checks: Iterable[CheckResult]) -> Outcome:
    """Return FAILED if any check failed, WARNED if a required one did not pass, else PASSED.

    No required check at all proves nothing: WARNED.  A check that is not required and is WARNED or SKIPPED
    leaves the verdict as it is; the report says it in words.
    """
    return overall_of((check.is_required, check.outcome) for check in checks)


def overall_of(outcomes: Iterable[tuple[bool, Outcome]]) -> Outcome:
    """Return the verdict as ``overall`` does, from whether each check is required, and its outcome."""
    results = list(outcomes)
    if any(outcome is Outcome.FAILED for _, outcome in results):
        return Outcome.FAILED
    required = [outcome for is_required, outcome in results if is_required]
    if not required or any(outcome is not Outcome.PASSED for outcome in required):
        return Outcome.WARNED
    return Outcome.PASSED
