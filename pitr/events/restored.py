"""The restored database as what the decisions ask: transactions, timelines, cursors, its own fences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pitr.errors import MalformedValue
from pitr.events.fence import Fence
from pitr.events.fence_code import decode_fence
from pitr.events.forks import branches_of
from pitr.events.history import Branch, OwnLine, XactStatus, status_of
from pitr.postgres.restored_history import RestoredFacts, RestoredServer
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

# One query's ids; a batch of events has fewer.
_ASKED_MAX: Final = 10_000
_ROWS: Final = 100
NUMBER_MAX: Final = (1 << 63) - 1


class RestoredDatabase:
    """A ``RestoredHistory`` over a server.  Not thread-safe."""

    def __init__(self, server: RestoredServer) -> None:
        """Ask where recovery stopped.  Raises ServerRefused, ServerUnavailable."""
        self._server: Final = server
        self.facts: Final[RestoredFacts] = server.facts()
        self.unreadable: Final[list[str]] = []
        """What is wrong with rows of fences that were read; bounded by their number."""

    @property
    def timeline(self) -> TimelineId:
        return self.facts.timeline

    @property
    def end(self) -> LSN:
        return self.facts.end

    @property
    def fork_xid(self) -> int:
        return self.facts.fork_xid

    @property
    def branches(self) -> Sequence[Branch]:
        return branches_of(self.facts.history)

    def statuses(self, xids: Sequence[int]) -> Mapping[int, XactStatus]:
        found: dict[int, XactStatus] = {}
        for at in range(0, len(xids), _ASKED_MAX):
            for xid, text in self._server.statuses(xids[at : at + _ASKED_MAX]).items():
                found[xid] = status_of(text, is_promoted=self.facts.is_promoted)
        return found

    def own_line(self) -> OwnLine | None:
        """Return what clients have committed in it until now, since it was promoted; None for nothing.

        Raises ServerRefused, ServerUnavailable, MalformedValue.
        """
        since = self._server.since_promotion()
        return None if since is None else OwnLine.of(since.timeline, since.until, since.xids)

    def cursor(self, statement: str) -> Mapping[int, int]:
        """Return a sink's next offsets.  Raises ServerRefused, MalformedValue."""
        return self._server.cursor(statement)

    def fences(self) -> Iterator[Fence]:
        """Yield the fences that its table has, the newest first; rows that are none are left out and noted.

        Whoever may write the table may have written them.
        """
        below = NUMBER_MAX
        while rows := self._server.fence_rows(below, _ROWS):
            for number, text in rows:
                try:
                    yield decode_fence(text or "")
                except MalformedValue as wrong:
                    if len(self.unreadable) < _ROWS:
                        self.unreadable.append(f"row {number} of pitr.fence is no fence: {wrong.message}")
            below = rows[-1][0]
        if self._server.has_strange_fences:
            self.unreadable.append("pitr.fence is not the table that fences are kept in, and was not read")
