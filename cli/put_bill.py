"""What the puts cost: a forecast for a month, from how many there were lately.  Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

MONTH_S: Final = 30 * 86_400.0
# Long enough for an hour's rhythm to show, short enough to follow a change of the load.
WINDOW_S: Final = 3600.0
_SAMPLE_EVERY_S: Final = 30.0
# With less than this a forecast would be a guess.
_LEAST_S: Final = 60.0


class PutBill:
    """Counts of puts over the last hour.  Not thread-safe."""

    def __init__(self, *, price_per_1000: float, regions: int) -> None:
        self._price: Final = price_per_1000
        self._regions: Final = regions
        self._samples: deque[tuple[float, int]] = deque(maxlen=int(WINDOW_S / _SAMPLE_EVERY_S) + 1)

    def note(self, at_s: float, puts: int) -> None:
        """Learn how many objects were put since the start, at a monotonic time."""
        if not self._samples or at_s - self._samples[-1][0] >= _SAMPLE_EVERY_S:
            self._samples.append((at_s, puts))

    def puts_per_s(self, at_s: float, puts: int) -> float | None:
        """Return the rate of objects over the last hour or since the start; None while that is too short."""
        if not self._samples or at_s - self._samples[0][0] < _LEAST_S:
            return None
        since_s, before = self._samples[0]
        return max(0, puts - before) / (at_s - since_s)

    def per_month(self, at_s: float, puts: int) -> float | None:
        """Return what a month costs at this rate, in all regions, in the price's currency."""
        rate = self.puts_per_s(at_s, puts)
        return None if rate is None else rate * MONTH_S * self._regions * self._price / 1000
