"""When a server suffers, and when it has recovered: whether copying pauses.  Pure.

Copying pauses as soon as a figure is beyond its bound, and goes on when all of them have been within for
``RECOVERED_S``: else it would start and stop with every look.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from pitr.wal.lsn import LSN

RECOVERED_S: Final = 5.0
# An hour of looks, one a second; a standby that is further behind has a lag of at least that.
_SAMPLES_MAX: Final = 3600


@dataclass(frozen=True, slots=True)
class StrainBounds:
    """What is too much.  None: it is not looked at."""

    lag_bytes: int | None = None
    lag_s: float | None = None
    latency_s: float | None = None

    @property
    def are_set(self) -> bool:
        return (self.lag_bytes, self.lag_s, self.latency_s) != (None, None, None)

    @property
    def need_lag(self) -> bool:
        return self.lag_bytes is not None or self.lag_s is not None


@dataclass(frozen=True, slots=True)
class StandbyPosition:
    """How far a standby has replayed."""

    name: str
    replayed: LSN


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a server at ``at_s`` of a monotonic clock.  None: it was not, or could not be seen."""

    at_s: float
    server_end: LSN | None = None
    standbys: tuple[StandbyPosition, ...] = ()
    latency_s: float | None = None


class StrainJudge:
    """Decides from look to look.  ``reason`` says why copying pauses; None: it does not."""

    def __init__(self, bounds: StrainBounds) -> None:
        self._bounds = bounds
        self._ends: deque[tuple[float, LSN]] = deque(maxlen=_SAMPLES_MAX)
        self._within_since_s: float | None = None
        self.reason: str | None = None

    def judge(self, look: Look) -> str | None:
        """Return the reason to pause after this look, None if copying may go on."""
        beyond = self._beyond(look)
        if beyond is not None:
            self.reason, self._within_since_s = beyond, None
        elif self.reason is not None:
            if self._within_since_s is None:
                self._within_since_s = look.at_s
            if look.at_s - self._within_since_s >= RECOVERED_S:
                self.reason, self._within_since_s = None, None
        return self.reason

    def _beyond(self, look: Look) -> str | None:
        bounds = self._bounds
        # Whatever else is said of this look: a standby's lag is told from when WAL was written.
        if look.server_end is not None:
            self._ends.append((look.at_s, look.server_end))
        if bounds.latency_s is not None and look.latency_s is not None and look.latency_s > bounds.latency_s:
            return f"a commit takes {look.latency_s * 1000:.0f} ms"
        if look.server_end is None:
            return None
        for standby in look.standbys:
            lag_bytes = max(0, look.server_end - standby.replayed)
            if bounds.lag_bytes is not None and lag_bytes > bounds.lag_bytes:
                return f"standby {standby.name} is {lag_bytes / (1 << 20):.1f} MiB behind"
            lag_s = self._age_s(standby.replayed, look.at_s)
            if bounds.lag_s is not None and lag_s > bounds.lag_s:
                return f"standby {standby.name} is {lag_s:.0f} s behind"
        return None

    def _age_s(self, replayed: LSN, now_s: float) -> float:
        """Return how long the server has had WAL that a standby has not replayed, as far as we have seen."""
        return next((now_s - at_s for at_s, end in self._ends if end > replayed), 0.0)
