"""Where to look next for the transaction that made data bad: a weighted bisection.  Pure.

Between a good state and a bad one lie candidates, each a transaction.  State *j* is the one right before
candidate *j*, state *n* the one after the last.  State 0 is good and state *n* bad; the search ends with a
candidate whose state is good while the next state is bad.  Where health came and went several times, it
ends at one of the changes from good to bad.

Candidates that changed or removed much are tried first, within a bound: all extra weight together is at
most that of all candidates, so the search takes at most ``probes_max`` probes, whatever the weights are.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Bisection:
    """The state of one search.  ``suspicion`` has one figure per candidate, 0 or more; only ratios count."""

    def __init__(self, suspicion: Sequence[float]) -> None:
        if not suspicion:
            raise ValueError("a search needs a candidate")
        total = sum(suspicion)
        share = len(suspicion) / total if total > 0 else 0.0
        self._sums = [0.0, *accumulate(1.0 + one * share for one in suspicion)]
        self._good = 0
        self._bad = len(suspicion)

    @property
    def found(self) -> int | None:
        """Return the candidate that made the data bad; None while several may have."""
        return self._good if self._bad - self._good == 1 else None

    @property
    def open(self) -> range:
        """Return the candidates that may have."""
        return range(self._good, self._bad)

    def next(self) -> int:
        """Return the state to look at: the one that parts the weight of what is open most evenly."""
        good, bad, sums = self._good, self._bad, self._sums
        middle = (sums[good] + sums[bad]) / 2
        after = bisect_left(sums, middle, good + 1, bad)
        choices = [state for state in (after - 1, after) if good < state < bad]
        return min(choices, key=lambda state: abs(sums[state] - middle))

    def note(self, state: int, *, is_good: bool) -> None:
        """Take the answer for a state that is open."""
        if not self._good < state < self._bad:
            raise ValueError(f"state {state} is not in question")
        if is_good:
            self._good = state
        else:
            self._bad = state


def probes_max(candidates: int) -> int:
    """Return how many probes a search among so many candidates takes at most."""
    # Halving weight takes at most log2(all / own) + 2, and no candidate has less than half a share.
    return 0 if candidates < 2 else min(candidates - 1, math.floor(math.log2(2 * candidates)) + 2)
