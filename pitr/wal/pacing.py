"""Group commit: when received WAL is cut while commits wait for it.  Pure; the caller has the clock.

A commit that waits costs one put's time at least.  All that has arrived goes in one put, so a put carries
any number of commits; and several puts are under way at once, so that a commit need not wait for the end
of the put before its own.  With one put at a time a commit takes up to twice a put's time, with eight that
are spread evenly a sixteenth more than one on average.  What is adapted is how far apart they begin: little
while few are under way, and the more the nearer they are to their limit, for the next place is free only
when the first of them ends.  It is also what bounds a store's bill and the CPU for sealing.
"""

from __future__ import annotations

from typing import Final

from pitr.errors import MalformedValue

PUTS_MAX: Final = 16
# A store's latency changes within seconds, and single puts differ by half.
_WEIGHT: Final = 0.1


class GroupCommit:
    """Says how long to wait before the next cut.  Not thread-safe."""

    def __init__(self, *, puts_max: int, spacing_s: float) -> None:
        if not 1 <= puts_max <= PUTS_MAX or not 0 <= spacing_s <= 60:
            raise MalformedValue(f"{puts_max} puts at a time, {spacing_s} s apart, are no group commit")
        self._puts_max: Final = puts_max
        self._spacing_s: Final = spacing_s
        self._put_s = 0.0

    def note_put(self, duration_s: float) -> None:
        """Learn from a put that has ended how long one takes."""
        self._put_s += (duration_s - self._put_s) * (_WEIGHT if self._put_s else 1.0)

    def spacing_s(self, under_way: int) -> float:
        """Return how far the next put begins after the last one, with so many under way."""
        return max(self._spacing_s, self._put_s * under_way / self._puts_max**2)

    def wait_s(self, since_cut_s: float, under_way: int) -> float | None:
        """Return how long to wait before what has arrived is cut; None until one of the puts has ended."""
        if under_way >= self._puts_max:
            return None
        return max(self.spacing_s(under_way) - since_cut_s, 0.0)
