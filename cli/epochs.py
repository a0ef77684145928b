"""Which epoch a cluster writes next, and where it left its past.  Pure.

A restored cluster has the system identifier of the one it came from, and WAL of its own from
the fork on; so it gets a new writer epoch, whose record says where the fork is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pitr.catalogue.records import EpochParent
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory


@dataclass(frozen=True, slots=True)
class ArchivedPast:
    """What the newest epoch of a cluster holds: its number, its timelines' histories, its signed end."""

    epoch: int
    histories: Sequence[TimelineHistory]
    end: LSN | None


def find_parent(server: TimelineHistory, past: ArchivedPast, start: LSN) -> EpochParent:
    """Return where the server's history leaves what ``past`` archived.

    ``start`` is where the new epoch will begin to stream: where a server goes on on a timeline that
    the archive knows, it takes over there.
    """
    archived = {history.timeline: history for history in past.histories}
    for at, switch in enumerate(server.switches):
        is_last = at + 1 == len(server.switches)
        child = server.timeline if is_last else server.switches[at + 1].timeline
        expected = TimelineHistory(child, server.switches[: at + 1])
        # The same number with another history is another timeline: two servers were promoted apart.
        if archived.get(child) != expected:
            return EpochParent(past.epoch, switch.timeline, switch.lsn)
    end = start if past.end is None else min(start, past.end)
    return EpochParent(past.epoch, server.timeline, end)
