"""Following a server: where its stream must begin so that the archive goes on.  Pure.

The archive has one past.  A server whose history left that past before the archive's end has
another one, and is refused; a person decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from pitr.errors import ArchiveDiverged
from pitr.wal.lsn import LSN
from pitr.wal.pieces import RunStart
from pitr.wal.timeline import TimelineHistory, TimelineId


@dataclass(frozen=True, slots=True)
class ReceivedEnd:
    """Where the WAL ends that was received so far, without a gap."""

    timeline: TimelineId
    end: LSN


def first_run(timeline: TimelineId, kept_from: LSN, *, segment_bytes: int) -> RunStart:
    """Return the run that begins an archive, or begins it anew after a gap, where the slot keeps WAL from."""
    return RunStart(timeline, segment_start(kept_from, segment_bytes), None, follows=False)


def next_run(
    received: ReceivedEnd, history: TimelineHistory, flushed: LSN, *, segment_bytes: int
) -> RunStart | None:
    """Return the run that goes on where ``received`` ends, on a server with this history and flush position.

    None if the server has not got so far yet, as a standby that lags.  Raises ArchiveDiverged if its
    history left ours before ``received`` ends.
    """
    if received.timeline == history.timeline:
        if flushed < received.end:
            return None
        return _restart(received, segment_bytes)
    left_at = next((one.lsn for one in history.switches if one.timeline == received.timeline), None)
    if left_at is None:
        raise ArchiveDiverged(
            f"the server is on timeline {history.timeline}, whose past is not the archive's",
            detail=f"Timeline {received.timeline}, where the archive ends at {received.end}, is not in it.",
            hint=_HINT,
        )
    if left_at < received.end:
        raise ArchiveDiverged(
            f"the server's timeline {history.timeline} left the archive's below its end",
            detail=f"It left timeline {received.timeline} at {left_at}; the archive has {received.end}.",
            hint=_HINT,
        )
    if received.end < left_at:
        return _restart(received, segment_bytes)
    following = timeline_after(history, received.timeline)
    # A new timeline's first segment repeats the old one's bytes up to the switch.
    return RunStart(following, segment_start(left_at, segment_bytes), None, follows=True)


_HINT = (
    "After a failover that lost WAL, or a restore, a person must decide;"
    " `pitr init --identity FILE` starts a new epoch with a new key and keeps this configuration."
)


def _restart(received: ReceivedEnd, segment_bytes: int) -> RunStart:
    start = segment_start(received.end, segment_bytes)
    return RunStart(received.timeline, start, received.end if start < received.end else None, follows=True)


def timeline_after(history: TimelineHistory, timeline: TimelineId) -> TimelineId:
    """Return the timeline that follows an ancestor on the way to the history's own."""
    path = [switch.timeline for switch in history.switches] + [history.timeline]
    return path[path.index(timeline) + 1]


def segment_start(lsn: LSN, segment_bytes: int) -> LSN:
    """Return the boundary at or below a position.

    Segment 0 is never written, so this is an LSN.
    """
    return LSN(lsn.offset // segment_bytes * segment_bytes)
