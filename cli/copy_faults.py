"""What reads fell back past, told: a warning for each region, the first names, and a list for programs.

A copy that another region covered for changes no result, and so no exit code; but whoever is not told
loses the other copies as well, one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from storage.copy_faults import FaultKind, FaultReport

if TYPE_CHECKING:
    from cli.output import Output
    from storage.copy_faults import CopyFault
    from storage.replicated import ReplicatedStore

NAMES_SHOWN_MAX = 10
# In --json; what is wrong with a thousand more is the same.
NAMES_LISTED_MAX = 1000
NEXT_STEP = "pitr catalogue check; remove a damaged copy by hand, then: pitr repair"

_SENTENCES = {
    FaultKind.DAMAGED: ("{objects} had a damaged copy in region {region}", ", read from {others} instead"),
    FaultKind.CONFLICTS: ("{objects} had other bytes in region {region}", ", read from {others} instead"),
    FaultKind.DIFFERS: ("{objects} had another size in region {region} than elsewhere", ""),
    FaultKind.MISSING: ("{objects} had no copy in region {region}", ", read from {others} instead"),
    FaultKind.UNREACHABLE: (
        "region {region} did not answer for {objects}",
        ", read from {others} instead",
    ),
}


def fault_lines(report: FaultReport) -> list[str]:
    """Return one sentence for each region and kind of fault, the worst first."""
    return [_sentence(report, region, kind) for region, kind in _groups(report)]


def fault_fields(report: FaultReport) -> list[dict[str, object]]:
    """Return the faults for JSON, by region and kind; ``objects`` is exact unless ``is_exact`` is false."""
    return [
        {
            "region": region,
            "reason": str(kind),
            "objects": report.count(region, kind),
            "is_exact": report.is_exact,
            "named": [
                {"key": fault.key, "detail": fault.detail, "read_from": fault.read_from}
                for fault in report.named(region, kind)[:NAMES_LISTED_MAX]
            ],
        }
        for region, kind in _groups(report)
    ]


@contextmanager
def telling_faults(output: Output, store: ReplicatedStore, fields: dict[str, object]) -> Iterator[None]:
    """Warn at the end, however it ends, of what reads of ``store`` fell back past; add it to ``fields``.

    May be nested, for a command that reads through two stores.
    """
    try:
        yield
    finally:
        report = store.faults()
        told = fields.get("copy_faults")
        fields["copy_faults"] = [*(told if isinstance(told, list) else ()), *fault_fields(report)]
        for region, kind in _groups(report):
            output.warn(_sentence(report, region, kind))
            for fault in report.named(region, kind)[:NAMES_SHOWN_MAX]:
                output.note(f"         {fault.key}: {_why(fault)}")
        if report.counts:
            output.note(f"  next: {NEXT_STEP}")


def _groups(report: FaultReport) -> list[tuple[str, FaultKind]]:
    order = list(FaultKind)
    return sorted(report.counts, key=lambda group: (order.index(group[1]), group[0]))


def _sentence(report: FaultReport, region: str, kind: FaultKind) -> str:
    count = report.count(region, kind)
    objects = f"{'' if report.is_exact else 'at least '}{count} object{'s' if count != 1 else ''}"
    what, instead = _SENTENCES[kind]
    others = sorted({fault.read_from for fault in report.named(region, kind) if fault.read_from is not None})
    text = what.format(objects=objects, region=region)
    return text + instead.format(others=" and ".join(others)) if others else text


def _why(fault: CopyFault) -> str:
    """Return the reason without the key, which stands before it already."""
    return fault.detail.removeprefix(f"{fault.key}: ")
