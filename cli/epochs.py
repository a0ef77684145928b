"""Which epoch a cluster writes next, and where it left its past.  Pure.

A restored cluster has the system identifier of the one it came from, and WAL of its own from
the fork on; so it gets a new writer epoch, whose record says where the fork is.

A timeline's number and history do not say whose it is: two servers that were restored to one target each
took the next number, and their history files are equal.  So its WAL is compared (``cli.epoch_proof``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from pitr.catalogue.records import EpochParent
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId


class Sameness(Enum):
    """What comparing the server's WAL with the archive's has shown; UNKNOWN: not both have it still."""

    SAME = auto()
    DIFFERENT = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class ArchivedPast:
    """What an epoch of a cluster holds: its number, its timelines' histories, its signed end.

    ``timeline`` is the one in which the end lies.  ``kept_to``: how far it holds WAL of a timeline beyond
    where it left that one, after a failover below its end.
    """

    epoch: int
    histories: Sequence[TimelineHistory]
    end: LSN | None
    timeline: TimelineId | None = None
    kept_to: Mapping[TimelineId, LSN] = field(default_factory=dict)

    def left_at(self, timeline: TimelineId) -> LSN | None:
        """Return how far the epoch has a timeline that it left on its way to its end; None if it did not."""
        own = next((history for history in self.histories if history.timeline == self.timeline), None)
        switches = () if own is None else own.switches
        left = next((switch.lsn for switch in switches if switch.timeline == timeline), None)
        return None if left is None else max(left, self.kept_to.get(timeline, left))


# Compares a timeline's WAL up to an LSN.
Compare: TypeAlias = Callable[[TimelineId, LSN], Sameness]


def find_parent(
    server: TimelineHistory, past: ArchivedPast, start: LSN, compare: Compare
) -> EpochParent | None:
    """Return where the server's history leaves what ``past`` archived; None if they have nothing in common.

    ``start`` is where the new epoch will begin to stream: where a server goes on on a timeline that
    the archive knows, it takes over there.  A timeline counts as the archive's only if its WAL is seen to
    be the same; else the server has left the archive where it left the timeline before that.  The
    first one is given once, when a cluster is made, so it counts unless its WAL is seen to differ.
    """
    way = [switch.timeline for switch in server.switches] + [server.timeline]
    # An ancestor whose own file no server had is known by what its descendants say of it.
    archived = {
        one.timeline: history.up_to(one.timeline) for history in past.histories for one in history.switches
    }
    archived |= {way[0]: TimelineHistory(way[0])} | {one.timeline: one for one in past.histories}
    alike = 0
    while alike < len(way) and archived.get(way[alike]) == TimelineHistory(
        way[alike], server.switches[:alike]
    ):
        alike += 1
    for at in reversed(range(alike)):
        timeline = way[at]
        goes_on_to = start if past.end is None else min(start, past.end)
        lsn = server.switches[at].lsn if at < len(server.switches) else goes_on_to
        left_at = past.left_at(timeline)
        lsn = lsn if left_at is None else min(lsn, left_at)
        sameness = compare(timeline, lsn)
        if sameness is Sameness.SAME or (at == 0 and sameness is Sameness.UNKNOWN):
            return EpochParent(past.epoch, timeline, lsn)
    return None


def leaves_all(server: TimelineHistory, parent: EpochParent | None) -> bool:
    """Tell whether ``parent`` lies as late on the server's way as it can: no older epoch has more of it."""
    if parent is None:
        return False
    if parent.timeline == server.timeline:
        return True
    return bool(server.switches) and (parent.timeline, parent.lsn) == (
        server.switches[-1].timeline,
        server.switches[-1].lsn,
    )
