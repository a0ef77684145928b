"""When the disk of ``pg_wal`` will be full because the slot keeps WAL, and whether the slot must go.  Pure.

The figure that counts is how fast the WAL that the slot keeps grows: free space jumps with each
checkpoint, and with whatever else is written.  Growth is judged from where it began, as the median over
pairs of looks that are half of that time apart: a burst or a pause in between moves it little.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Final

from pitr.wal.lsn import LSN

# So much a slot always keeps: what is on its way, and whole segments.  Below it nothing grows.
LEVEL_BYTES: Final = 64 << 20
# Growth that is younger than this is a burst until it lasts.
_SPAN_MIN_S: Final = 50.0
_SAMPLES_MIN: Final = 6
_SAMPLES_MAX: Final = 120
# Beyond it, it is not "the disk will be full" but the weather.
_FORECAST_MAX_S: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class DiskSample:
    """One look; ``at_s`` is monotonic.  ``free_bytes`` None: the disk is not seen from here.

    ``kept_bytes``: WAL from the slot's restart LSN to the server's ``end``.
    ``droppable_bytes``: so much of it a crash of the server would not need, and so would go with the slot.
    ``spare_bytes``: how much more the slot may keep before the server gives it up; None without a bound.
    """

    at_s: float
    end: LSN
    kept_bytes: int
    droppable_bytes: int
    free_bytes: int | None = None
    spare_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """``growth_rate`` in bytes a second; None where nothing is foreseen."""

    growth_rate: float | None = None
    full_in_s: float | None = None
    slot_lost_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class DropPolicy:
    """Whether the slot is given up for the disk's sake, and when."""

    drops: bool = False
    before_s: float = 1_800.0
    below_bytes: int = 1 << 30


class DiskForecaster:
    """Keeps SAMPLES_MAX looks of the growth that goes on now.  Not thread-safe."""

    def __init__(self) -> None:
        self._samples: list[DiskSample] = []

    def add(self, sample: DiskSample) -> Forecast:
        """Take in a look, each later than the last; return what it means."""
        last = self._samples[-1] if self._samples else None
        # Less than before: the archive takes WAL again, or the slot is another.
        if last is not None and (sample.end < last.end or sample.kept_bytes < last.kept_bytes):
            self._samples.clear()
        if sample.kept_bytes < LEVEL_BYTES:
            # Where growth begins, if it does.
            self._samples.clear()
        self._samples.append(sample)
        if len(self._samples) > _SAMPLES_MAX:
            # Every second one of the older half: what was long ago needs no detail.
            half = _SAMPLES_MAX // 2
            self._samples = self._samples[:half:2] + self._samples[half:]
        return self._forecast(sample)

    def _forecast(self, now: DiskSample) -> Forecast:
        rate = self._growth_rate()
        if rate is None or rate <= 0:
            return Forecast()
        return Forecast(rate, _within(now.free_bytes, rate), _within(now.spare_bytes, rate))

    def _growth_rate(self) -> float | None:
        samples = self._samples
        if len(samples) < _SAMPLES_MIN or samples[-1].at_s - samples[0].at_s < _SPAN_MIN_S:
            return None
        half = len(samples) // 2
        return statistics.median(
            (later.kept_bytes - earlier.kept_bytes) / max(later.at_s - earlier.at_s, 0.001)
            for earlier, later in zip(samples, samples[half:], strict=False)
        )


def _within(room_bytes: int | None, rate: float) -> float | None:
    if room_bytes is None:
        return None
    seconds = max(0, room_bytes) / rate
    return seconds if seconds <= _FORECAST_MAX_S else None


def why_drop(policy: DropPolicy, sample: DiskSample, forecast: Forecast) -> str | None:
    """Return why the slot must be given up now; None if it need not, or it would not help."""
    if not policy.drops or sample.free_bytes is None or sample.droppable_bytes < LEVEL_BYTES:
        return None
    kept = f"{sample.kept_bytes >> 20} MiB kept by the slot"
    free = f"{sample.free_bytes >> 20} MiB free on the disk of pg_wal, {kept}"
    if sample.free_bytes < policy.below_bytes:
        return free
    if forecast.full_in_s is not None and forecast.full_in_s < policy.before_s:
        return f"{free}, full in {forecast.full_in_s / 60:.0f} min"
    return None
