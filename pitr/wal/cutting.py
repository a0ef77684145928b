"""Cutting: what of the received WAL goes in the next piece, and when.  Pure; the caller has the clock.

Pieces are cut by size and age, and while commits wait for them as group commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pitr.wal.pacing import GroupCommit
from pitr.wal.pieces import PieceCutter, RawPiece


@dataclass(frozen=True, slots=True)
class Cut:
    """The next piece; or else how long until there may be one, None for until something happens."""

    piece: RawPiece | None
    wait_s: float | None
    is_empty: bool


class Cutting:
    """A cutter with two paces.  Not thread-safe."""

    def __init__(self, cutter: PieceCutter, pacing: GroupCommit, *, piece_age_s: float, now_s: float) -> None:
        self.cutter: Final = cutter
        self.pacing: Final = pacing
        self._piece_age_s: Final = piece_age_s
        self._cut_s = now_s
        self._is_synchronous = False

    @property
    def is_synchronous(self) -> bool:
        """Whether commits wait."""
        return self._is_synchronous

    def set_synchronous(self, *, is_synchronous: bool) -> None:
        """Say whether commits wait."""
        self._is_synchronous = is_synchronous
        self.cutter.hasten(0.0 if is_synchronous else self._piece_age_s)

    def take(self, now_s: float, under_way: int) -> Cut:
        """Return what is to be sealed now, with so many pieces on their way."""
        pause_s = self.pacing.wait_s(now_s - self._cut_s, under_way) if self._is_synchronous else 0.0
        piece = self.cutter.take(now_s) if pause_s == 0.0 else None
        if piece is not None:
            self._cut_s = now_s
            return Cut(piece, None, is_empty=False)
        ready_at = self.cutter.ready_at()
        if ready_at is None or pause_s is None:
            return Cut(None, None, is_empty=ready_at is None)
        return Cut(None, max(ready_at - now_s, pause_s, 0.001), is_empty=False)
