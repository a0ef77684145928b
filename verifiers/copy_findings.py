"""What a check of the regions' copies found, as findings by region.  Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from storage.copy_faults import FaultKind
from verifiers.base import Finding, Severity
from verifiers.region_copies import CopiesReport, RegionCopies, Verdict

# Of one kind in one region: enough to see what they have in common.
NAMES_MAX: Final = 20
_REMOVE = "keep it aside if you want to know why, remove it from the region by hand, then: pitr repair"
_HINTS: Final = {
    FaultKind.DAMAGED: _REMOVE,
    FaultKind.DIFFERS: "pitr catalogue check --read-data tells which copy is right; " + _REMOVE,
    FaultKind.CONFLICTS: "find out who else has the signing key, or which region was rolled back",
    FaultKind.MISSING: "pitr repair; pitr status shows what waits already",
    FaultKind.UNREACHABLE: "pitr status",
}


def copy_findings(report: CopiesReport) -> list[Finding]:
    """Return the findings, region by region, each beginning with its verdict."""
    findings: list[Finding] = []
    for region in report.regions:
        findings.append(_verdict(region, report))
        for kind in FaultKind:
            count = report.faults.count(region.region, kind)
            named = report.faults.named(region.region, kind)[:NAMES_MAX]
            findings += [
                Finding(f"copies.{kind}", Severity.FAIL, f"{region.region}: {fault.key}", fault.detail)
                for fault in named
            ]
            if count > len(named):
                more = f"{count - len(named)} more copies are {kind}"
                findings.append(Finding(f"copies.{kind}", Severity.FAIL, region.region, more))
            if count:
                findings[-1] = replace(findings[-1], hint=_HINTS[kind])
    return findings


def _verdict(region: RegionCopies, report: CopiesReport) -> Finding:
    wrong = [
        f"{report.faults.count(region.region, kind)} {kind}"
        for kind in FaultKind
        if report.faults.count(region.region, kind)
    ]
    text = ", ".join([f"{region.objects} copies compared", *wrong])
    if region.unasked is not None:
        hint = "the check may be repeated; pitr doctor"
        text = f"not asked, or not to the end: {region.unasked}; {text}"
        severity = Severity.FAIL if region.verdict is Verdict.FAIL else Severity.WARN
        return Finding("copies.region", severity, region.region, text, hint)
    severity = Severity.FAIL if region.verdict is Verdict.FAIL else Severity.OK
    return Finding("copies.region", severity, region.region, text)
