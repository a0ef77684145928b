"""From a judgement to a check's result: timed, with the digests of what was asked and of what was seen."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pitr.errors import PitrError
from storage.store import StoreError
from verifiers.check import CheckResult, Outcome
from verifiers.check_table import CHECKS, DRILL_CHECKS, CheckSpec
from verifiers.plain_text import REPLACED_BY, plain_line, plain_text

TEXT_CHARS_MAX: Final = 2000
NAME_CHARS_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a check came to.  ``evidence``: the bytes that it saw, of which the report has the digest.

    ``digest`` is that of evidence too large to keep.
    ``command``: what ran, without secrets, where that is known only now.
    """

    outcome: Outcome
    expected: str
    observed: str
    reason: str | None = None
    evidence: bytes | None = None
    digest: bytes | None = None
    command: str | None = None
    tool_version: str | None = None


def passed(
    expected: str, observed: str, evidence: bytes | None = None, *, digest: bytes | None = None
) -> Judgement:
    """Return the judgement of what is as expected."""
    return Judgement(Outcome.PASSED, expected, observed, None, evidence, digest)


def failed(
    expected: str, observed: str, reason: str, evidence: bytes | None = None, *, digest: bytes | None = None
) -> Judgement:
    """Return the judgement of what is not."""
    return Judgement(Outcome.FAILED, expected, observed, reason, evidence, digest)


@dataclass(frozen=True, slots=True)
class CheckMaker:
    """Makes results.  ``product_version`` is what "pitr" as a tool stands for."""

    product_version: str
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], float] = time.monotonic

    def run(
        self,
        check: str,
        command: str,
        judge: Callable[[], Judgement],
        *,
        version: str | None = None,
        is_required: bool | None = None,
        title: str | None = None,
    ) -> CheckResult:
        """Judge, and return the result.  What could not be carried out FAILED: nothing was proved by it."""
        spec = _spec(check)
        started_at, begun = self.now(), self.monotonic()
        try:
            made = judge()
        except (PitrError, StoreError, OSError) as cause:
            detail = cause.detail if isinstance(cause, PitrError) and cause.detail else None
            text = f"{cause}: {detail}" if detail and detail != str(cause) else str(cause)
            made = Judgement(Outcome.FAILED, spec.title, "it could not be carried out to its end", text)
        return CheckResult(
            id=check,
            category=spec.category,
            title=title or spec.title,
            is_required=spec.is_required if is_required is None else is_required,
            tool=spec.tool,
            tool_version=made.tool_version or version or self.product_version,
            command_sha256=sha256_text(made.command or command),
            started_at=started_at,
            duration_ms=max(0, round((self.monotonic() - begun) * 1000)),
            outcome=made.outcome,
            expected=clean(made.expected),
            observed=clean(made.observed),
            reason=None if made.outcome is Outcome.PASSED else clean(made.reason or made.observed),
            evidence_sha256=_digest(made),
        )

    def skipped(self, check: str, reason: str, *, is_required: bool | None = None) -> CheckResult:
        """Return the result of a check that did not run."""
        return self.run(
            check,
            "",
            lambda: Judgement(Outcome.SKIPPED, _spec(check).title, "not looked at", reason),
            is_required=is_required,
        )


def _digest(made: Judgement) -> str | None:
    if made.digest is not None:
        return made.digest.hex()
    return None if made.evidence is None else hashlib.sha256(made.evidence).hexdigest()


def _spec(check: str) -> CheckSpec:
    check = check.partition(".")[0]
    return CHECKS.get(check) or DRILL_CHECKS[check]


def sha256_text(text: str) -> str:
    """Return the digest of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def clean(text: str) -> str:
    """Return text as a report may have it: without control characters, and bounded."""
    return _bounded(plain_text(text), TEXT_CHARS_MAX)


def clean_name(text: str) -> str:
    """Return a name that somebody gave as a report may have it: in one line, without tabs, and bounded."""
    return _bounded(plain_line(text), NAME_CHARS_MAX) or REPLACED_BY


def _bounded(text: str, chars_max: int) -> str:
    kept = text.encode("utf-8", "replace").decode("utf-8")
    return kept if len(kept) <= chars_max else kept[: chars_max - 1] + "…"
