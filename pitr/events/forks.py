"""Where timelines fork, in LSNs and in transaction ids.  Pure.

A history file has the LSN.  The transaction id is recorded nowhere; fences before and behind bound it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pitr.events.fence import Mark
from pitr.events.history import FIRST_LSN, XID_MAX, Branch
from pitr.wal.timeline import TimelineHistory


def branches_of(history: TimelineHistory) -> tuple[Branch, ...]:
    """Return the way to a timeline; of its forks only the LSN is known."""
    starts = [FIRST_LSN, *(switch.lsn for switch in history.switches)]
    timelines = [*(switch.timeline for switch in history.switches), history.timeline]
    found = [Branch(timeline, lsn, 0, XID_MAX) for timeline, lsn in zip(timelines, starts, strict=True)]
    return (replace(found[0], fork_xid_max=None), *found[1:])


def narrow(branches: tuple[Branch, ...], marks: Iterable[Mark]) -> tuple[Branch, ...]:
    """Return the branches with forks between what marks before and behind them say.

    A mark before a fork, whether it was committed or not, says which ids had ended by then; one behind it
    has an id of its own.
    """
    found = list(branches)
    order = {branch.timeline: at for at, branch in enumerate(branches)}
    for mark in marks:
        at = order.get(mark.timeline)
        if at is None or not _is_on_way(mark, at, branches):
            continue
        for other in range(1, len(found)):
            branch = found[other]
            low, high = branch.fork_xid or 0, branch.fork_xid_max
            if high is None:
                continue
            if at < other:
                found[other] = replace(branch, fork_xid=min(max(low, mark.next_xid), high))
            else:
                found[other] = replace(branch, fork_xid_max=max(min(high, mark.xid), low))
    return tuple(found)


def narrow_beside(
    beside: Iterable[Branch], way: tuple[Branch, ...], marks: Iterable[Mark]
) -> tuple[Branch, ...]:
    """Return timelines that left a way, each with the least id that can be its own as far as marks tell."""
    order = {branch.timeline: at for at, branch in enumerate(way)}
    on_way = [
        mark for mark in marks if mark.timeline in order and _is_on_way(mark, order[mark.timeline], way)
    ]
    return tuple(
        replace(one, fork_xid=max((mark.next_xid for mark in on_way if mark.lsn < one.fork_lsn), default=0))
        for one in beside
    )


def _is_on_way(mark: Mark, at: int, branches: tuple[Branch, ...]) -> bool:
    """Tell whether a mark's position is before its timeline was left."""
    return at + 1 == len(branches) or mark.lsn < branches[at + 1].fork_lsn
