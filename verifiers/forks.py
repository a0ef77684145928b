"""Forks: whether the regions tell one story of an archive's end.

Reads signed heads only.  A fork means two writers with one key, or a region that was rolled back and written
anew; which side is right only a person can say.  Reference: docs/format.md §6.4.
"""

from __future__ import annotations

from collections.abc import Sequence

from pitr.errors import PitrError
from pitr.layout import ArchiveId
from pitr.region_heads import HEADS_COMPARED_MAX, NamedStore, RegionHeads, compare_heads
from pitr.repository import Repository
from storage.store import StoreError
from verifiers.base import Finding, Severity

# Heads come every 30 s; one or two that a region lacks may be on their way.
LAG_HEADS_MIN = 3
FORK_HINT = (
    "find out who else has the signing key, or which region was rolled back; "
    "pitr wal list --region NAME shows each side"
)


def check_forks(
    repository: Repository,
    archive: ArchiveId,
    regions: Sequence[NamedStore],
    *,
    heads_max: int = HEADS_COMPARED_MAX,
) -> list[Finding]:
    """Compare the regions' signed ends; ``heads_max`` 1 is cheap and sees every fork all the same."""
    try:
        found = compare_heads(repository, archive, regions, heads_max=heads_max)
    except (PitrError, StoreError) as error:
        hint = error.hint if isinstance(error, PitrError) else "the check may be repeated"
        return [Finding("heads.read", Severity.FAIL, str(archive), str(error), hint)]
    return fork_findings(archive, found)


def fork_findings(archive: ArchiveId, found: RegionHeads) -> list[Finding]:
    """Return what a comparison found: forks, heads that cannot be used, regions that lag.  Pure."""
    subject = str(archive)
    findings = [
        Finding(
            "heads.fork",
            Severity.FAIL,
            subject,
            f"regions {fork.regions[0]} and {fork.regions[1]} have different heads {fork.sequence},"
            " both signed by the host",
            FORK_HINT,
        )
        for fork in found.first_forks()
    ]
    for one in found.heads:
        findings += [
            Finding(
                "heads.copy",
                Severity.FAIL,
                f"{one.region}: {refused.key}",
                refused.reason,
                "remove this copy by hand, then: pitr repair",
            )
            for refused in one.refused
        ]
    newest = max((one.head.sequence for one in found.heads if one.head is not None), default=0)
    for name in found.lagging(LAG_HEADS_MIN):
        text = f"region {name} has no head of the last {LAG_HEADS_MIN}, up to {newest}"
        findings.append(Finding("heads.lag", Severity.WARN, subject, text, "pitr status"))
    silent = [one.region for one in found.heads if one.error is not None]
    for name in silent:
        text = f"region {name} does not answer, so its heads are not compared"
        findings.append(Finding("heads.unasked", Severity.WARN, subject, text, "pitr status"))
    if not any(finding.severity is Severity.FAIL for finding in findings):
        answered = len(found.heads) - len(silent)
        text = f"the signed ends of {answered} of {len(found.heads)} regions agree"
        findings.append(Finding("heads.fork", Severity.OK, subject, text))
    return findings
