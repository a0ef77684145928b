"""What clients saw of a service that was lost and came back: counts and latencies, in bounded space.  Pure.

Two phases: from the failure until the first durable write, and after it.  Latencies are kept in a histogram
of 5 % steps, so a load of any length takes the same memory.  Reference: docs/drills.md, "The four metrics".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

WRITTEN: Final = "written"
READ_ONLY: Final = "read-only"
"""The read was answered, and the write could not be tried: the server was still in recovery."""
CLASSES_MAX: Final = 50
_STEP: Final = math.log(1.05)


@dataclass(slots=True)
class Histogram:
    """Latencies in microseconds; a percentile is right to 5 %."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, latency_us: int) -> None:
        """Count one."""
        self.counts[math.ceil(math.log(max(1, latency_us)) / _STEP)] += 1

    def percentile(self, share: float) -> int:
        """Return what ``share`` of the latencies are not above; 0 if there is none."""
        left = math.ceil(self.counts.total() * share)
        for step in sorted(self.counts):
            left -= self.counts[step]
            if left <= 0:
                return round(math.exp(step * _STEP))
        return 0

    def fields(self) -> dict[str, int] | None:
        """Return p50, p95 and p99 as a report has them; None without a latency."""
        if not self.counts:
            return None
        return {f"p{percent}": self.percentile(percent / 100) for percent in (50, 95, 99)}


def histogram_of(latencies_us: Iterable[int]) -> Histogram:
    """Return the histogram of a few latencies."""
    found = Histogram()
    for one in latencies_us:
        found.add(one)
    return found


@dataclass(slots=True)
class LoadTally:
    """Counts of one load; times are seconds since the failure.  Not thread-safe."""

    clients: int
    requests: int = 0
    window_requests: int = 0
    window_answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    during: Histogram = field(default_factory=Histogram)
    after: Histogram = field(default_factory=Histogram)
    first_read_s: float | None = None
    first_write_s: float | None = None
    last_s: float = 0.0

    def add(self, outcome: str, begun_s: float, ended_s: float) -> None:
        """Count one request: WRITTEN, READ_ONLY, or the class of what went wrong."""
        latency_us = max(0, round((ended_s - begun_s) * 1_000_000))
        is_answered = outcome in (WRITTEN, READ_ONLY)
        self.requests += 1
        self.last_s = max(self.last_s, ended_s)
        if is_answered and self.first_read_s is None:
            self.first_read_s = ended_s
        if self.first_write_s is None:
            self.window_requests += 1
            self.window_answered += is_answered
        if is_answered:
            (self.during if self.first_write_s is None else self.after).add(latency_us)
        if outcome != WRITTEN:
            is_known = outcome in self.errors or len(self.errors) < CLASSES_MAX
            self.errors[outcome if is_known else "other"] += 1
        elif self.first_write_s is None:
            self.first_write_s = ended_s

    def fields(self, before: Histogram | None = None) -> dict[str, Any]:
        """Return the report's group ``degradation``; what was not seen is null."""
        first_read, first_write = self.first_read_s, self.first_write_s
        window_s = self.last_s if first_write is None else first_write
        read_only = None
        if first_read is not None:
            read_only = _ms(window_s - first_read)
        return {
            "service_degradation": {
                "window_ms": _ms(window_s),
                "throughput_permille": self.window_answered * 1000 // self.window_requests
                if self.window_requests
                else None,
                "read_only_ms": read_only,
                "latency_us_before": None if before is None else before.fields(),
                "latency_us_during": self.during.fields(),
                "latency_us_after": self.after.fields(),
            },
            "error_rate": {
                "requests": self.requests,
                "clients": self.clients,
                "errors": [{"class": name, "count": count} for name, count in sorted(self.errors.items())],
            },
        }


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a load did in a stretch of its time."""

    requests: int
    errors: int

    @property
    def errors_permille(self) -> int:
        """How many of a thousand requests failed; all of them, if none was made."""
        return self.errors * 1000 // self.requests if self.requests else 1000


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
