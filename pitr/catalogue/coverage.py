"""Coverage: what is stored of each archive and timeline, joined where nothing is missing between.  Pure.

It speaks of one timeline of one archive; the way to a target across them is ``pitr.wal_runs``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from pitr.catalogue.wal_records import CoverageInterval, WalUnit
from pitr.wal.lsn import LSN


@dataclass(slots=True)
class _Growing:
    """An interval while units are added to it."""

    first: WalUnit
    end: LSN
    regions: set[str]
    is_exact: bool = True
    times: list[datetime] = field(default_factory=list)

    def add(self, unit: WalUnit) -> None:
        self.end = max(self.end, unit.end)
        self.regions &= set(unit.regions)
        if unit.transactions is not None:
            self.is_exact = self.is_exact and unit.transactions.is_exact
            seen = (*self.times, unit.transactions.min_at, unit.transactions.max_at)
            self.times = [min(seen), max(seen)]

    def interval(self) -> CoverageInterval:
        return CoverageInterval(
            archive=self.first.archive,
            timeline=self.first.timeline,
            start=self.first.start,
            end=self.end,
            min_at=self.times[0] if self.times else None,
            max_at=self.times[-1] if self.times else None,
            is_exact=self.is_exact,
            regions=tuple(sorted(self.regions)),
        )


def coverage_intervals(units: Iterable[WalUnit]) -> list[CoverageInterval]:
    """Return the intervals by archive, timeline and start; ``regions`` hold every unit of theirs."""
    intervals: list[CoverageInterval] = []
    growing: _Growing | None = None
    for unit in sorted(units, key=lambda unit: (unit.archive, unit.timeline, unit.start, unit.end)):
        place = (unit.archive, unit.timeline)
        if (
            growing is None
            or place != (growing.first.archive, growing.first.timeline)
            or unit.start > growing.end
        ):
            if growing is not None:
                intervals.append(growing.interval())
            growing = _Growing(unit, unit.end, set(unit.regions))
        growing.add(unit)
    if growing is not None:
        intervals.append(growing.interval())
    return intervals
