"""Findings for people and for programs: a line per check, and a *next* line where something is to be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cli.output import Output
from verifiers.base import Finding, Severity

_COLOURS = {Severity.OK: "32", Severity.WARN: "33", Severity.FAIL: "1;31"}


def show_findings(output: Output, findings: Sequence[Finding]) -> None:
    """Write the findings in the order in which they were found."""
    width = max((len(finding.id) for finding in findings), default=0)
    for finding in findings:
        output.line(
            f"  {finding.id.ljust(width)}  {finding.subject}: {finding.message}",
            head=finding.severity.name.ljust(4),
            color=_COLOURS[finding.severity],
        )
        if finding.hint is not None:
            output.line(f"      next: {finding.hint}")


def finding_fields(finding: Finding) -> Mapping[str, object]:
    """Return a finding for JSON."""
    return {
        "id": finding.id,
        "severity": finding.severity.value,
        "subject": finding.subject,
        "message": finding.message,
        "next": finding.hint,
    }
