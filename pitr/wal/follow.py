"""Following a server: where its stream must begin so that the archive goes on.  Pure.

The archive has one past.  A server whose history left that past before the archive's end has another
one: after a failover that lost WAL the archive follows it, and keeps what was lost under the old
timeline; else it is refused, and a person decides.
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

    def reaches(self, other: ReceivedEnd) -> bool:
        """Say whether this is the other end or beyond it; a later timeline goes on from an earlier one."""
        return (self.timeline, self.end) >= (other.timeline, other.end)


@dataclass(frozen=True, slots=True)
class ArchiveFork:
    """Where a server's past and the archive's part, below the archive's end.

    ``timeline`` is the last one that both have, and ``left_at`` how much of it they share.  The archive ends
    at ``end`` of ``ended_on``: what it has after ``left_at`` the server lacks.  The server goes on with
    ``following``, which begins at ``follows_at``: ``left_at``, unless it had more of ``timeline`` than we.
    """

    timeline: TimelineId
    left_at: LSN
    ended_on: TimelineId
    end: LSN
    following: TimelineId
    follows_at: LSN

    def __str__(self) -> str:
        return (
            f"timeline {self.following} left timeline {self.timeline} at {self.left_at};"
            f" the archive's WAL up to {self.end} of timeline {self.ended_on} is not in its past"
        )


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
            hint=HINT_FORK,
        )
    if left_at < received.end:
        raise ArchiveDiverged(
            f"the server's timeline {history.timeline} left the archive's below its end",
            detail=f"It left timeline {received.timeline} at {left_at}; the archive has {received.end}.",
            hint=HINT_FORK,
        )
    if received.end < left_at:
        return _restart(received, segment_bytes)
    following = timeline_after(history, received.timeline)
    # A new timeline's first segment repeats the old one's bytes up to the switch.
    return RunStart(following, segment_start(left_at, segment_bytes), None, follows=True)


def find_fork(received: ReceivedEnd, own: TimelineHistory, server: TimelineHistory) -> ArchiveFork | None:
    """Return where the server's past parts from the archive's; None if it goes on from ``received``.

    ``own`` is the history of the timeline that the archive ends on.  Raises ArchiveDiverged where no
    failover explains it: nothing in common, a timeline that the archive has left already, or a number that
    it has given to another timeline.
    """
    ours, theirs = _path(own, received.end), _path(server, None)
    for at, (timeline, our_end) in enumerate(ours):
        if at == len(theirs) or theirs[at][0] != timeline:
            break
        their_end, is_last = theirs[at][1], at + 1 == len(ours)
        if our_end is None or (is_last and (their_end is None or their_end >= our_end)):
            return None
        if their_end is None:
            raise _diverged(
                f"the server is on timeline {timeline}, which the archive has left",
                f"The archive left it at {our_end} and ends at {received.end} of timeline"
                f" {received.timeline}.",
            )
        following = theirs[at + 1][0]
        if not is_last and (their_end, following) == (our_end, ours[at + 1][0]):
            continue
        if following <= received.timeline:
            raise _diverged(
                f"the server's timeline {following} is not the archive's of that number",
                f"It left timeline {timeline} at {their_end}; the archive ends at {received.end} of timeline"
                f" {received.timeline}.",
            )
        left_at = min(their_end, our_end)
        return ArchiveFork(timeline, left_at, received.timeline, received.end, following, their_end)
    raise _diverged(
        f"the server is on timeline {server.timeline}, whose past is not the archive's",
        f"Timeline {received.timeline}, where the archive ends at {received.end}, is not in it.",
    )


def run_after(fork: ArchiveFork, since: LSN | None, *, segment_bytes: int) -> RunStart:
    """Return the run that goes on with the server's next timeline, from the segment of the fork on.

    ``since`` is where the archive's WAL begins that has no hole up to its end.
    """
    start = segment_start(fork.follows_at, segment_bytes)
    is_joined = since is not None and since <= fork.left_at and start <= fork.left_at
    return RunStart(fork.following, start, None, follows=is_joined)


@dataclass(frozen=True, slots=True)
class LostStretch:
    """WAL of one timeline that the archive will never have."""

    timeline: TimelineId
    start: LSN
    end: LSN

    def __str__(self) -> str:
        return f"from {self.start} to {self.end} of timeline {self.timeline}"


def lost_stretches(received: ReceivedEnd, history: TimelineHistory, until: LSN) -> tuple[LostStretch, ...]:
    """Return what is lacking between what was received and ``until``, on each timeline of the server's way.

    A run on a new timeline begins at a segment's boundary, with WAL of the timeline before; so what counts
    as received may lie before its timeline's begin.
    """
    stretches: list[LostStretch] = []
    begin: LSN | None = None
    for timeline, end in _path(history, None):
        if timeline >= received.timeline:
            start = received.end if begin is None else max(received.end, begin)
            stop = until if end is None else min(until, end)
            if start < stop:
                stretches.append(LostStretch(timeline, start, stop))
        begin = end
    return tuple(stretches)


def _path(history: TimelineHistory, end: LSN | None) -> list[tuple[TimelineId, LSN | None]]:
    return [*((one.timeline, one.lsn) for one in history.switches), (history.timeline, end)]


def _diverged(message: str, detail: str) -> ArchiveDiverged:
    return ArchiveDiverged(message, detail=detail, hint=HINT_RESTORED)


# As the operator is told them, wherever the archive's end and a server's past do not join.
HINT_FORK = (
    "If this was a failover: `pitr adopt --as failover`;"
    " after a restore: `pitr adopt --as restore --identity FILE`."
)
HINT_RESTORED = (
    "Stop this daemon if the server is a forgotten one; if it is the right one, restored or set back:"
    " `pitr adopt --as restore --identity FILE`."
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
