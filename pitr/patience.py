"""Patience: ask an unreachable store again for a while, with growing, jittered pauses, and then say so."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TypeVar

from storage.store import StoreUnavailable

_FIRST_PAUSE_S = 0.25
_PAUSE_MAX_S = 5.0

_T = TypeVar("_T")


def with_patience(
    attempt: Callable[[], _T],
    *,
    patience_s: float,
    stopping: threading.Event,
    jitter: Callable[[], float] = random.random,
) -> _T:
    """Return what ``attempt`` returns, repeating it after StoreUnavailable for ``patience_s`` of pauses.

    ``jitter`` gives numbers from 0 to 1.  Raises the last StoreUnavailable, also when ``stopping`` is set.
    """
    waited_s = 0.0
    longest_s = _FIRST_PAUSE_S
    while True:
        try:
            return attempt()
        except StoreUnavailable:
            if waited_s >= patience_s or stopping.is_set():
                raise
        # At least half, so that the pauses add up and the loop ends.
        pause_s = longest_s * (0.5 + jitter() / 2)
        stopping.wait(pause_s)
        waited_s += pause_s
        longest_s = min(longest_s * 2, _PAUSE_MAX_S)
