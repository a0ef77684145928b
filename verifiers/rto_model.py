"""How long a recovery will take: a model learned from the ones that were measured.  Pure.

Time is taken to be a fixed part, and a part for each byte restored, each file, and each byte of WAL replayed;
none of them is negative.  The parts are fitted by least squares of the relative errors.  A prior keeps
them sensible while there are few runs: usual proportions, scaled to what was measured, so that one run tells
how fast this machine and these regions are.  A run that fits none of the others counts less.

The error is what the model makes when it has to forecast each run from the others: the median of that.  It is
that of work like theirs: for work so many times the largest that was measured, it is so many times as large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Final

# Seconds: to plan, start and promote; per byte of files, 100 MB/s; per file; per byte of WAL, 60 MB/s.
_USUAL: Final = (3.0, 1 / 100e6, 2e-4, 1 / 60e6)
# How much the prior weighs against one run: each coefficient is held to it as if by so much of a run.
_PRIOR_WEIGHT: Final = 0.02
_ROUNDS: Final = 4
# A run that took so much less than the usual proportions say is no measurement of anything.
_RATIO_MAX: Final = 1000.0
# A relative error beyond so many times the median one counts less, as the inverse of it (Huber).
_HUBER: Final = 2.0
_LEAST_ERROR: Final = 0.02
# Older runs tell less of today's hardware; the newest so many are used.
RUNS_MAX: Final = 40
_SECONDS_MIN: Final = 0.001


@dataclass(frozen=True, slots=True)
class Work:
    """What a recovery has to do: bytes of the restored files, how many these are, bytes of WAL to replay."""

    size_bytes: int
    files: int
    wal_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """A recovery that was measured, from its planning until the server took writes."""

    work: Work
    seconds: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """How long a recovery will take.  ``error`` is the median relative one, None after a single run."""

    seconds: float
    error: float | None
    runs: int

    @property
    def longest_s(self) -> float:
        """Return the time with the error added."""
        return self.seconds * (1 + (self.error or 0.0))


@dataclass(frozen=True, slots=True)
class RtoModel:
    """The fitted parts; ``error`` as of a forecast of work no larger than ``largest``, part by part."""

    fixed_s: float
    byte_s: float
    file_s: float
    wal_byte_s: float
    error: float | None
    runs: int
    largest: Work

    def forecast(self, work: Work) -> Forecast:
        """Return how long this work will take."""
        parts = (self.fixed_s, self.byte_s, self.file_s, self.wal_byte_s)
        error = None if self.error is None else self.error * self._stretch(work)
        return Forecast(_dot(parts, _features(work)), error, self.runs)

    def _stretch(self, work: Work) -> float:
        """Return how many times the largest measured work this is, in its largest part; at least 1."""
        pairs = zip(_features(work), _features(self.largest), strict=True)
        return max(asked / max(1.0, measured) for asked, measured in pairs)


def learn(runs: Sequence[Run]) -> RtoModel | None:
    """Return the model of these runs, the newest first; None without any."""
    used = [run for run in runs if run.seconds >= _SECONDS_MIN][:RUNS_MAX]
    if not used:
        return None
    works = [run.work for run in used]
    largest = Work(
        max(work.size_bytes for work in works),
        max(work.files for work in works),
        max(work.wal_bytes for work in works),
    )
    return RtoModel(*_fit(used), held_out_error(used), len(used), largest)


def held_out_error(runs: Sequence[Run]) -> float | None:
    """Return the median relative error of forecasts of each run from the others; None with fewer than two."""
    if len(runs) < 2:
        return None
    return median(forecast_errors(runs))


def forecast_errors(runs: Sequence[Run]) -> list[float]:
    """Return the relative error of the forecast of each run from the others."""
    errors = []
    for number, run in enumerate(runs):
        parts = _fit([*runs[:number], *runs[number + 1 :]])
        errors.append(abs(_dot(parts, _features(run.work)) - run.seconds) / run.seconds)
    return errors


def _features(work: Work) -> tuple[float, ...]:
    return (1.0, float(work.size_bytes), float(work.files), float(work.wal_bytes))


def _fit(runs: Sequence[Run]) -> tuple[float, float, float, float]:
    """Return the parts that fit best, none below zero."""
    # In units of the prior and of each run's time, so that all figures are near one.
    rows = [
        [usual * value / run.seconds for usual, value in zip(_USUAL, _features(run.work), strict=True)]
        for run in runs
    ]
    scale = 1 / median(sum(row) for row in rows)
    rows = [[min(scale * value, _RATIO_MAX) for value in row] for row in rows]
    weights = [1.0] * len(rows)
    found = _solve(rows, weights)
    for _ in range(_ROUNDS):
        errors = [abs(_dot(found, row) - 1) for row in rows]
        bound = max(_LEAST_ERROR, _HUBER * median(errors))
        weights = [1.0 if error <= bound else bound / error for error in errors]
        found = _solve(rows, weights)
    fixed, byte, file, wal = (part * usual * scale for part, usual in zip(found, _USUAL, strict=True))
    return fixed, byte, file, wal


def _solve(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Return the least squares solution without negative parts: the best of those with some parts at zero."""
    count = len(_USUAL)
    # The prior is one more row for each part: it is to be one.
    square = [
        [
            sum(w * row[i] * row[j] for w, row in zip(weights, rows, strict=True))
            + (_PRIOR_WEIGHT if i == j else 0.0)
            for j in range(count)
        ]
        for i in range(count)
    ]
    right = [
        sum(w * row[i] for w, row in zip(weights, rows, strict=True)) + _PRIOR_WEIGHT for i in range(count)
    ]
    best, least = [0.0] * count, 0.0
    for kept in range(count, 0, -1):
        for chosen in combinations(range(count), kept):
            parts = _eliminate(square, right, chosen)
            # What is left of the squares' sum, up to what all have in common.
            cost = -sum(right[i] * parts[i] for i in chosen)
            if min(parts) >= 0 and cost < least:
                best, least = parts, cost
        if kept == count and least < 0:
            break
    return best


def _eliminate(
    square: Sequence[Sequence[float]], right: Sequence[float], chosen: Sequence[int]
) -> list[float]:
    """Solve for the chosen parts, the others being zero.  The prior makes the matrix positive definite."""
    rows = [[*(square[i][j] for j in chosen), right[i]] for i in chosen]
    size = len(rows)
    for at in range(size):
        for below in range(at + 1, size):
            factor = rows[below][at] / rows[at][at]
            rows[below] = [low - factor * high for low, high in zip(rows[below], rows[at], strict=True)]
    found = [0.0] * len(right)
    for at in reversed(range(size)):
        known = sum(rows[at][later] * found[chosen[later]] for later in range(at + 1, size))
        found[chosen[at]] = (rows[at][size] - known) / rows[at][at]
    return found


def _dot(parts: Sequence[float], values: Sequence[float]) -> float:
    return sum(part * value for part, value in zip(parts, values, strict=True))
