"""A token bucket: how long to wait before so many bytes may be read.  Pure: the caller has the clock.

Whoever finds the bucket not in debt may take what it wants at once, and the debt makes the next one wait.  So
no read is too large for the bucket, and after a change of the rate a debt is paid at the new one.
"""

from __future__ import annotations

from typing import Final

# What an idle time saves up: less than anyone notices, more than a thread's wait is long.
BURST_S: Final = 0.25


class TokenBucket:
    """Bytes at ``rate`` per second; None is no limit.  Times are of one monotonic clock.  Not thread-safe."""

    def __init__(self, rate: float | None, now_s: float) -> None:
        self._check(rate)
        self._rate = rate
        self._at_s = now_s
        self._bytes = 0.0

    @property
    def rate(self) -> float | None:
        return self._rate

    def set_rate(self, rate: float | None, now_s: float) -> None:
        """Go on at another rate from now on."""
        self._check(rate)
        self._refill(now_s)
        if self._rate is None:
            self._bytes = 0.0
        self._rate = rate

    def take(self, size_bytes: int, now_s: float) -> float:
        """Take ``size_bytes`` and return 0; or take nothing and return the seconds until to ask again."""
        self._refill(now_s)
        if self._rate is None:
            return 0.0
        # A part of a byte is no debt: its time would be lost in the rounding of the clock.
        if self._bytes <= -1:
            return -self._bytes / self._rate
        self._bytes -= size_bytes
        return 0.0

    def _refill(self, now_s: float) -> None:
        # A clock that goes back gives nothing and takes nothing.
        passed_s = max(0.0, now_s - self._at_s)
        self._at_s = now_s
        if self._rate is not None:
            self._bytes = min(self._rate * BURST_S, self._bytes + self._rate * passed_s)

    @staticmethod
    def _check(rate: float | None) -> None:
        if rate is not None and not rate > 0:
            raise ValueError(f"a rate of {rate} bytes a second is no limit but an end")
