"""The regions' own copies, examined for ``pitr catalogue check`` and shown by region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.errors import ChecksFailed
from cli.output import format_bytes
from storage.copy_faults import FaultKind
from storage.store import StoreUnavailable
from verifiers.base import Finding, Severity

if TYPE_CHECKING:
    from cli.output import Output
    from cli.wiring import Reader
    from storage.copy_faults import FaultReport
    from verifiers.region_copies import CopiesReport, RegionCopies


def examine_regions(reader: Reader, output: Output, *, read_data: bool) -> tuple[CopiesReport, list[Finding]]:
    """Check each region's copies, and the regions' signed ends against each other.  Raises StoreError."""
    from cli.progress import ProgressReport
    from verifiers.copy_data import DataReader
    from verifiers.copy_findings import copy_findings
    from verifiers.forks import check_forks
    from verifiers.region_copies import check_copies
    from verifiers.verifier_copies import check_verifier_copies

    findings: list[Finding] = []
    for archive in reader.repository.archives():
        findings += check_forks(reader.repository, archive, reader.store.regions)
    with ProgressReport(output) as progress:
        data = DataReader(lambda region, done_bytes: progress.update(f"reading {region}", done_bytes))
        report = check_copies(
            reader.repository,
            reader.store.regions,
            # What the checks before have fallen back past is seen nowhere else without --read-data.
            known=reader.store.faults().faults,
            read_data=data.read_all if read_data else None,
            others=check_verifier_copies,
        )
    return report, [*findings, *copy_findings(report)]


def show_regions(output: Output, report: CopiesReport) -> None:
    """Write one line for each region: its verdict first."""
    output.table(
        ["region", "verdict", "copies", "read", "missing", "damaged", "other"],
        [
            [
                one.region,
                one.verdict.upper(),
                str(one.objects),
                format_bytes(one.read_bytes) if one.read_bytes else "-",
                str(report.faults.count(one.region, FaultKind.MISSING)),
                str(report.faults.count(one.region, FaultKind.DAMAGED)),
                str(report.faults.count(one.region, FaultKind.DIFFERS, FaultKind.CONFLICTS)),
            ]
            for one in report.regions
        ],
        empty="",
    )


def region_fields(one: RegionCopies, faults: FaultReport) -> dict[str, object]:
    """Return a region's verdict for JSON, with what is wrong as ``copy_faults``."""
    from cli.copy_faults import fault_fields

    return {
        "region": one.region,
        "verdict": str(one.verdict),
        "copies": one.objects,
        "read_bytes": one.read_bytes,
        "unasked": one.unasked,
        "copy_faults": [group for group in fault_fields(faults) if group["region"] == one.region],
    }


def raise_if_wrong(findings: Sequence[Finding], report: CopiesReport) -> None:
    """Raise ChecksFailed if something is wrong, else StoreUnavailable if a region could not be asked."""
    failed = [finding for finding in findings if finding.severity is Severity.FAIL]
    if failed:
        raise ChecksFailed(
            f"{len(failed)} checks found something wrong",
            detail="; ".join(f"{finding.subject}: {finding.message}" for finding in failed[:3]),
            hint=next((finding.hint for finding in failed if finding.hint is not None), None),
        )
    silent = [one for one in report.regions if one.unasked is not None]
    if silent:
        raise StoreUnavailable(
            "nothing wrong was found, but not every region could be asked: "
            + "; ".join(f"{one.region}: {one.unasked}" for one in silent)
        )
