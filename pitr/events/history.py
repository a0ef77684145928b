"""What the restored database knows of transactions: which of them are in it.  Pure values and a port.

Transaction ids here are 64 bits wide (``xid8``).  They mean nothing without their timeline: after a failover
the new primary hands out the same numbers again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId


class XactStatus(StrEnum):
    """What ``pg_xact_status`` says, and what it cannot say."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    IN_PROGRESS = "in progress"
    """In flight where recovery stopped: it is not in the restored database, and never will be.

    While recovery is paused also one that was prepared: PostgreSQL does not tell them apart then.
    """
    PREPARED = "prepared"
    """Prepared where recovery stopped, and still so: it is not decided whether the database will have it."""
    TOO_OLD = "too old"
    """Before the commit log's horizon: PostgreSQL no longer knows."""


def status_of(text: str | None, *, is_promoted: bool) -> XactStatus:
    """Return what ``pg_xact_status`` says of a transaction below ``fork_xid``.

    The promotion aborts all that were in flight, but not those that were prepared.
    """
    if text is None:
        return XactStatus.TOO_OLD
    status = XactStatus(text)
    return XactStatus.PREPARED if is_promoted and status is XactStatus.IN_PROGRESS else status


@dataclass(frozen=True, slots=True)
class Branch:
    """Where a timeline begins: WAL from ``fork_lsn``, transactions from ``fork_xid`` (None: unknown).

    Where only fences tell the transaction, it lies from ``fork_xid`` to ``fork_xid_max``; else the latter is
    None, and the former exact.
    """

    timeline: TimelineId
    fork_lsn: LSN
    fork_xid: int | None
    fork_xid_max: int | None = None

    @property
    def own_from(self) -> int | None:
        """Return the id from which on transactions are surely this timeline's own; None: unknown."""
        return self.fork_xid if self.fork_xid_max is None else self.fork_xid_max


@dataclass(frozen=True, slots=True)
class OwnLine:
    """What clients have committed on the timeline that the restored server itself has begun, up to ``until``.

    ``xids`` are their transactions, as ranges from a first to a last one, in order; there is one at least.
    """

    timeline: TimelineId
    until: LSN
    xids: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, timeline: TimelineId, until: LSN, xids: Iterable[int]) -> OwnLine | None:
        """Return it of single transactions; None if there are none."""
        ranges: list[tuple[int, int]] = []
        for xid in sorted(xids):
            if ranges and ranges[-1][1] == xid - 1:
                ranges[-1] = ranges[-1][0], xid
            else:
                ranges.append((xid, xid))
        return cls(timeline, until, tuple(ranges)) if ranges else None

    @property
    def count(self) -> int:
        return sum(last - first + 1 for first, last in self.xids)

    def has(self, xid: int) -> bool:
        """Tell whether a transaction of this number is one of them."""
        at = bisect_right(self.xids, (xid, XID_MAX)) - 1
        return at >= 0 and xid <= self.xids[at][1]


FIRST_LSN = LSN(1)
"""Where the first timeline begins, before any record."""
XID_MAX = (1 << 63) - 1
"""No transaction has this id, nor one beyond it."""


class RestoredHistory(Protocol):
    """The restored database before anybody writes to it."""

    @property
    def timeline(self) -> TimelineId:
        """The timeline whose WAL it was restored from, not one that a promotion began."""
        ...

    @property
    def end(self) -> LSN:
        """Where recovery stopped."""
        ...

    @property
    def fork_xid(self) -> int:
        """The first transaction id that is not in it."""
        ...

    @property
    def branches(self) -> Sequence[Branch]:
        """The timelines from the first to ``timeline``; the first begins at ``FIRST_LSN`` and 0."""
        ...

    def statuses(self, xids: Sequence[int]) -> Mapping[int, XactStatus]:
        """Return the status of each, all below ``fork_xid``.  Raises ServerUnavailable."""
        ...
