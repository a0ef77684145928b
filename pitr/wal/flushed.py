"""The flushed end: what a server may be told is durable of the WAL that it has sent.  Pure.

As a rule that is what a quorum of regions has.  By the owner's policy it may for a while be what lies
fsynced on this host; it does not go back when only the quorum counts again, for the server may have let go of
that WAL.
"""

from __future__ import annotations

from pitr.wal.follow import ReceivedEnd


class FlushedEnd:
    """One archive's end, as sealed in the spool and as durable at quorum.  Not thread-safe."""

    def __init__(self, end: ReceivedEnd | None) -> None:
        self.sealed = self._durable = end
        self._counts_spooled = False
        self._spooled: ReceivedEnd | None = None

    @property
    def counts_spooled(self) -> bool:
        """Whether what is sealed counts now."""
        return self._counts_spooled

    def count_spooled(self, *, counts: bool) -> None:
        """Say whether what is sealed counts from now on."""
        self._counts_spooled = counts
        if counts:
            self._spooled = self.sealed

    def note_sealed(self, end: ReceivedEnd) -> None:
        """Learn how far WAL lies in the spool."""
        self.sealed = end
        if self._counts_spooled:
            self._spooled = end

    def note_durable(self, end: ReceivedEnd) -> None:
        """Learn how far WAL is at quorum."""
        self._durable = end
        if self._spooled is not None and end.reaches(self._spooled):
            self._spooled = None

    @property
    def end(self) -> ReceivedEnd | None:
        """Where it is now; None before anything was durable."""
        return self._durable if self._spooled is None else self._spooled
