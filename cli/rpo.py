"""The recovery point now: how old is the oldest WAL that is not yet safe.  Pure.

The server says with each message where its WAL ends; what ended later than the durable LSN, and
was seen so long ago, would be lost with the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pitr.wal.lsn import LSN

# At four looks a second some minutes; while all regions are down for longer, the steps get coarser.
SAMPLES_MAX = 1024


@dataclass(slots=True)
class RecoveryPoint:
    """Follows the server's end and the durable end.  Times are of a monotonic clock, in seconds."""

    _samples: list[tuple[float, LSN]] = field(default_factory=list)
    _last_streaming_s: float | None = None

    def observe(
        self, now_s: float, server_end: LSN | None, durable: LSN | None, *, is_streaming: bool
    ) -> None:
        """Take one look."""
        if is_streaming or self._last_streaming_s is None:
            self._last_streaming_s = now_s
        if durable is not None:
            self._samples = [sample for sample in self._samples if sample[1] > durable]
        if server_end is None or (durable is not None and server_end <= durable):
            return
        if not self._samples or self._samples[-1][1] < server_end:
            self._samples.append((now_s, server_end))
        if len(self._samples) > SAMPLES_MAX:
            # The oldest is what counts, and it stays: every second one of the others goes.
            self._samples = self._samples[:1] + self._samples[1::2]

    def age_s(self, now_s: float, oldest_unshipped_age_s: float | None) -> float:
        """Return the age of the oldest WAL that is not safe; 0 if all that is known is.

        While nothing is streamed nobody knows what the server commits, so the age is at least that of
        the last look.
        """
        ages = [0.0, oldest_unshipped_age_s or 0.0]
        if self._samples:
            ages.append(now_s - self._samples[0][0])
        if self._last_streaming_s is not None and self._last_streaming_s < now_s:
            ages.append(now_s - self._last_streaming_s)
        return max(ages)
