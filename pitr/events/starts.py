"""Where replay starts in each partition, so that nothing is missed.  Pure.

In this order: the sink's cursor in the restored database; the offsets of the last fence whose mark is in it
(group offsets for a sink with a group, ends before the mark for db-first, those of a fence older than the
largest lag for event-first); a timestamp, which is an estimate; the beginning of the log.

A failover lost commits whose events were published: those stand before the fences of the new timeline.  So
where one happened within the look-back, reading starts at the last fence before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from pitr.events.classify import EventClass, Lineage, classify
from pitr.events.event_facts import EventFacts
from pitr.events.fence import Fence, Mark, PartitionFence, TopicFence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.history import XactStatus
from pitr.wal.lsn import LSN

# Clocks of servers that run NTP differ by less; fences say by how much.
SKEW = timedelta(seconds=1)
LOOK_BACK = timedelta(days=1)


class StartReason(StrEnum):
    """Why replay of a partition starts where it does."""

    CURSOR = "cursor"
    """The sink's own cursor in the restored database: exact."""
    GROUP = "group"
    """The group's offset at the fence, read before the mark."""
    FENCE = "fence"
    """The end of the partition at the fence, read before the mark."""
    FENCE_BEFORE_LAG = "fence-before-lag"
    """The end at a fence that is older than the largest lag."""
    FENCE_BEFORE_FAILOVER = "fence-before-failover"
    """The offset at the last fence before a failover, to find what that lost."""
    NEW_PARTITION = "new-partition"
    """The partition was not there at the fence: all of it."""
    TIMESTAMP = "timestamp"
    """Nothing better is known: an estimate."""
    LOG_START = "log-start"
    """Nothing is known at all: everything that is there."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where to start; ``offset`` None: at the first record not before ``moment``, or at the log's beginning.

    ``fence``: the one it is from.  ``topic_id``, ``cluster_id``: whose offsets these are; None: whoever's is
    there now.  ``stood_at``: an end that the partition is known to have had.
    """

    reason: StartReason
    offset: int | None
    fence: int | None = None
    moment: datetime | None = None
    topic_id: str | None = None
    cluster_id: str | None = None
    stood_at: int | None = None

    @property
    def is_estimated(self) -> bool:
        return self.reason is StartReason.TIMESTAMP


@dataclass(frozen=True, slots=True)
class FenceView:
    """Fences by where their marks are: ``inside`` the restored database, newest first, or ``after`` it.

    ``inside`` are only those that surely are; ``after`` those that are surely not before.
    """

    inside: tuple[Fence, ...]
    after: tuple[Fence, ...]

    @property
    def last(self) -> Fence | None:
        return self.inside[0] if self.inside else None


def marks_to_ask(fences: Iterable[Fence], lineage: Lineage) -> list[int]:
    """Return the transaction ids of the marks whose status decides, sorted."""
    limit = lineage.fork_xid
    return [] if limit is None else sorted({one.mark.xid for one in fences if one.mark.xid < limit})


def view_fences(
    fences: Sequence[Fence], lineage: Lineage, statuses: Mapping[int, XactStatus], system_identifier: int
) -> FenceView:
    """Part the fences.  Those of other clusters, of lost branches and in doubt are left out."""
    own = [one for one in fences if one.mark.system_identifier == system_identifier]
    way = [branch.timeline for branch in lineage.way]
    own = sorted(
        (one for one in own if one.mark.timeline in way),
        key=lambda one: (way.index(one.mark.timeline), one.mark.lsn),
    )
    inside, after = [], []
    for at, one in enumerate(own):
        if _is_inside(one, own[at + 1 :], lineage, statuses):
            inside.append(one)
        elif _is_after(one.mark, lineage):
            after.append(one)
    return FenceView(tuple(reversed(inside)), tuple(after))


def _is_inside(
    fence: Fence, following: Sequence[Fence], lineage: Lineage, statuses: Mapping[int, XactStatus]
) -> bool:
    mark = fence.mark
    facts = EventFacts(xid=mark.xid, timeline=mark.timeline, lsn=mark.lsn)
    verdict = classify(facts, lineage, statuses)
    if verdict is not EventClass.UNKNOWN:
        return verdict is EventClass.IN_DATABASE
    limit = _limit(mark, lineage)
    if limit is None:
        return False
    if fence.committed_by is not None:
        return fence.committed_by <= limit
    # A row does not say by where its mark was committed.  Fences are taken one after the other: the position
    # of the next one on this timeline lies behind it, so if that was restored, the commit was.
    return any(one.mark.timeline == mark.timeline and mark.lsn < one.mark.lsn <= limit for one in following)


def _limit(mark: Mark, lineage: Lineage) -> LSN | None:
    """Return up to where the mark's timeline was restored; None if it was not."""
    if mark.timeline == lineage.timeline:
        return lineage.end
    if mark.timeline not in [branch.timeline for branch in lineage.branches]:
        return None
    fork = lineage.next_fork(mark.timeline)
    return None if fork is None else fork.fork_lsn


def _is_after(mark: Mark, lineage: Lineage) -> bool:
    if mark.timeline == lineage.timeline:
        return mark.lsn >= lineage.end
    return mark.timeline in [branch.timeline for branch in lineage.later]


@dataclass(frozen=True, slots=True)
class PartitionNow:
    """A partition as it is asked for: which topic of that name, in which cluster."""

    number: int
    topic_id: str
    cluster_id: str


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of where things stood.

    ``cursors``: partition → next offset, None if there is no restored database to ask; of ``unbound``
    partitions records may lie behind it which the sink has applied.  ``moment``: a time that is not after the
    end of the restore, None if none is known.
    """

    view: FenceView
    lineage: Lineage
    cursors: Mapping[int, int] | None = None
    moment: datetime | None = None
    look_back: timedelta = LOOK_BACK
    unbound: frozenset[int] = frozenset()


def start_of(declaration: FlowDeclaration, now: PartitionNow, known: Known) -> Start:
    """Return where to start in one partition."""
    if declaration.flow is Flow.SINK_CURSOR:
        if known.cursors is None:
            return _by_time(declaration, known)
        if now.number in known.cursors:
            return _from_cursor(declaration, now, known, known.cursors[now.number])
        return Start(StartReason.LOG_START, None)
    usable = [one for one in known.view.inside if _topic(one, declaration.topic) is not None]
    if not usable:
        return _by_time(declaration, known)
    fence, before_failover = _anchor(usable, declaration.topic, now, known)
    reason = StartReason.FENCE_BEFORE_FAILOVER if before_failover else StartReason.FENCE
    if declaration.flow is Flow.EVENT_FIRST:
        older = _before_lag(usable, fence, declaration)
        if older is None:
            return _by_time(declaration, known, fence)
        if _fits(fence, declaration.topic, now) and not _fits(older, declaration.topic, now):
            # The topic was made anew in between: all of it came after the older fence.
            return Start(StartReason.LOG_START, None, older.mark.number)
        fence, reason = older, reason if before_failover else StartReason.FENCE_BEFORE_LAG
    return _from_fence(declaration, now, known, fence, reason)


def _from_cursor(declaration: FlowDeclaration, now: PartitionNow, known: Known, offset: int) -> Start:
    """Return the sink's own place.  It is a number alone: of which topic, the last fence says."""
    fence = next((one for one in known.view.inside if _topic(one, declaration.topic) is not None), None)
    topic = None if fence is None else _topic(fence, declaration.topic)
    if fence is None or topic is None:
        return Start(StartReason.CURSOR, offset)
    return Start(
        StartReason.CURSOR,
        offset,
        topic_id=topic.topic_id,
        cluster_id=fence.cluster_id,
        stood_at=_stood_at(declaration.topic, topic.topic_id, now.number, known.view),
    )


def _from_fence(
    declaration: FlowDeclaration, now: PartitionNow, known: Known, fence: Fence, reason: StartReason
) -> Start:
    topic = _topic(fence, declaration.topic)
    assert topic is not None, "only fences that know the topic are looked at"
    offset: int | None
    found = next((one for one in topic.partitions if one.number == now.number), None)
    if found is None:
        # Partitions are only ever added: every record of it came after the fence.
        reason, offset = StartReason.NEW_PARTITION, 0
    elif declaration.flow is Flow.SINK_GROUP:
        offset = _group_offset(fence, declaration, now.number)
        if offset is None:
            # The group had committed nothing: what it began with is not known.
            return Start(StartReason.LOG_START, None, fence.mark.number)
        reason = StartReason.GROUP if reason is StartReason.FENCE else reason
    else:
        offset = found.before
    return Start(
        reason,
        offset,
        fence.mark.number,
        topic_id=topic.topic_id,
        cluster_id=fence.cluster_id,
        stood_at=_stood_at(declaration.topic, topic.topic_id, now.number, known.view),
    )


def _anchor(usable: Sequence[Fence], topic: str, now: PartitionNow, known: Known) -> tuple[Fence, bool]:
    """Return the fence to start from, and whether it lies before a failover that the last one is behind."""
    last = usable[0]
    order = {branch.timeline: at for at, branch in enumerate(known.lineage.branches)}
    since = last.mark.at - known.look_back
    for at in range(1, len(known.lineage.branches)):
        before = next((one for one in usable if order[one.mark.timeline] < at), None)
        is_needed = before is not None and order[last.mark.timeline] >= at and before.mark.at >= since
        if before is not None and is_needed and _fits(before, topic, now):
            return before, True
    return last, False


def _fits(fence: Fence, topic: str, now: PartitionNow) -> bool:
    """Tell whether a fence's offsets are those of the topic that is there now."""
    found = _topic(fence, topic)
    return found is not None and found.topic_id == now.topic_id and fence.cluster_id == now.cluster_id


def _before_lag(usable: Sequence[Fence], anchor: Fence, declaration: FlowDeclaration) -> Fence | None:
    """Return the newest fence below whose ends all was committed by the anchor's mark."""
    assert declaration.max_lag_s is not None, "event-first is declared with its lag"
    latest = anchor.mark.at - timedelta(seconds=declaration.max_lag_s) - SKEW
    behind = usable[usable.index(anchor) :]
    return next((one for one in behind if one.mark.at <= latest), None)


def _by_time(declaration: FlowDeclaration, known: Known, fence: Fence | None = None) -> Start:
    """Return an estimate from the latest time that is surely not after the end of the restore."""
    last = fence or known.view.last
    moment = known.moment if last is None else last.mark.at
    if moment is None:
        return Start(StartReason.LOG_START, None)
    return Start(
        StartReason.TIMESTAMP, None, moment=moment - SKEW - timedelta(seconds=declaration.max_lag_s or 0)
    )


def out_from(declaration: FlowDeclaration, now: PartitionNow, known: Known) -> int | None:
    """Return from which offset on events are surely not in the database; None if nothing tells.

    Not for db-first, where an event can be appended long after its commit.
    """
    if declaration.flow is Flow.DB_FIRST:
        return None
    if declaration.flow is Flow.SINK_CURSOR:
        is_bound = known.cursors is not None and now.number not in known.unbound
        return known.cursors.get(now.number) if is_bound and known.cursors is not None else None
    if known.lineage.own is not None:
        # What a fence bounds is what was lost.  Of what clients have done since, offsets say nothing.
        return None
    ends = [
        partition.after
        for fence in known.view.after
        if _fits(fence, declaration.topic, now)
        for partition in _partitions(fence, declaration.topic)
        if partition.number == now.number and partition.after is not None
    ]
    return min(ends, default=None)


def _stood_at(topic: str, topic_id: str, number: int, view: FenceView) -> int | None:
    ends = [
        partition.before
        for fence in (*view.inside, *view.after)
        for one in fence.topics
        if one.name == topic and one.topic_id == topic_id
        for partition in one.partitions
        if partition.number == number
    ]
    return max(ends, default=None)


def _topic(fence: Fence, name: str) -> TopicFence | None:
    if fence.unknown is not None:
        return None
    return next((one for one in fence.topics if one.name == name), None)


def _partitions(fence: Fence, name: str) -> tuple[PartitionFence, ...]:
    found = _topic(fence, name)
    return () if found is None else found.partitions


def _group_offset(fence: Fence, declaration: FlowDeclaration, number: int) -> int | None:
    for one in fence.groups:
        if one.group == declaration.group:
            return one.offsets.get(declaration.topic, {}).get(number)
    return None
