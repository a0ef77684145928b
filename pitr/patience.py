"""Patience: ask an unreachable store again for a while, with growing, jittered pauses, and then say so."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TypeVar

from storage.store import StoreUnavailable

_FIRST_PAUSE_S = 0.25
_PAUSE_MAX_S = 5.0
_DOUBLINGS_MAX = 10

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
    # Here, for it costs what a command that is run once per segment does not have.
    import tenacity

    def pause_s(state: tenacity.RetryCallState) -> float:
        longest_s = min(_FIRST_PAUSE_S * 2.0 ** min(state.attempt_number - 1, _DOUBLINGS_MAX), _PAUSE_MAX_S)
        # At least half, so that the pauses add up and the loop ends.
        return longest_s * (0.5 + jitter() / 2)

    repeated = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(StoreUnavailable),
        wait=pause_s,
        stop=lambda state: state.idle_for >= patience_s or stopping.is_set(),
        sleep=tenacity.sleep_using_event(stopping),
        reraise=True,
    )
    return repeated(attempt)
