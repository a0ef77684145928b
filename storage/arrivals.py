"""Arrivals: whether what was put so far has come to enough regions, asked without waiting for it.

A put ``after_all`` waits for that, and whoever has other work must not wait with it.  Only a store of several
regions knows of it; in any other one everything has arrived when its put returns.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Arriving(Protocol):
    """A store that can tell."""

    def mark(self) -> int:
        """Return a number that stands for all puts which have begun so far."""
        ...

    def has_arrived(self, mark: int) -> bool:
        """Tell whether a quorum of regions has all of them."""
        ...
