"""Makes a plan of replay: asks the broker what is there, reads it once, and counts.

Nothing is changed anywhere.  Memory is bounded: records are counted as they pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from pitr.events.broker import Broker, EventRecord, OffsetGone, TopicFacts
from pitr.events.chunks import chunks
from pitr.events.classify import Classifier, EventClass, Lineage, OffsetBounds
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.gaps import Gap, GapKind, Placed, place
from pitr.events.history import OwnLine, XactStatus
from pitr.events.partition import TopicPartition
from pitr.events.phantoms import PhantomCounter, all_phantoms, lost_events
from pitr.events.plan import GroupPlan, PartitionPlan, ReplayPlan, RestoredPoint, Tally, TopicPlan
from pitr.events.resets import plan_resets
from pitr.events.starts import (
    LOOK_BACK,
    FenceView,
    Known,
    PartitionNow,
    Start,
    StartReason,
    out_from,
    start_of,
)

# Retention can delete while we read; each time is a gap, and this many are told one by one.
_OVERTAKEN_MAX = 5

Offsets = Mapping[TopicPartition, int]


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a plan is made from.

    ``ask``: statuses of transactions in the restored database.  ``cursors``: topic → partition → next
    offset of sinks that keep one, None if no database was asked; ``unbound`` is as in ``starts.Known``.
    ``moment``: a time not after the end.  ``wait`` is called while open transactions of Kafka hide records:
    it waits a little, and returns False once that was long enough; None: what they hide is not looked for.
    ``own_line`` returns what clients have committed in the restored server since its promotion, and refuses
    where a sink works in it: it is called once, when the ends are known, and what was published before them
    was committed before.
    """

    declarations: Sequence[FlowDeclaration]
    system_identifier: int
    lineage: Lineage
    view: FenceView
    ask: Callable[[Sequence[int]], Mapping[int, XactStatus]]
    cursors: Mapping[str, Mapping[int, int]] | None = None
    moment: datetime | None = None
    look_back: timedelta = LOOK_BACK
    unbound: frozenset[TopicPartition] = frozenset()
    wait: Callable[[], bool] | None = None
    own_line: Callable[[], OwnLine | None] = lambda: None

    def known(self, topic: str) -> Known:
        cursors = None if self.cursors is None else self.cursors.get(topic, {})
        unbound = frozenset(at.partition for at in self.unbound if at.topic == topic)
        return Known(self.view, self.lineage, cursors, self.moment, self.look_back, unbound)


@dataclass(slots=True)
class _Seen:
    """What is counted over all topics."""

    phantoms: PhantomCounter = field(default_factory=all_phantoms)
    lost: PhantomCounter = field(default_factory=lost_events)


def build_plan(
    request: PlanRequest,
    broker: Broker,
    told: Callable[[TopicPartition, int], None] = lambda _at, _count: None,
) -> ReplayPlan:
    """Return the plan.  ``told`` hears how many records of a partition were read.

    Raises BrokerUnavailable, BrokerRefused, and what ``request.ask`` and ``request.own_line`` raise.
    """
    cluster_id = broker.cluster_id()
    # In the order in which they are declared: a replay keeps it, and what others refer to is named first.
    declared = {one.topic: one for one in request.declarations}
    facts = broker.topics(declared)
    wanted = {name: _partitions(name, facts.get(name), request.view) for name in declared}
    there = [
        TopicPartition(name, number) for name, found in facts.items() for number in range(found.partitions)
    ]
    # Ends first: what is appended or deleted meanwhile makes the part to read smaller, never a false gap.
    ends, hidden = _ends(request, broker, there)
    request = replace(request, lineage=replace(request.lineage, own=request.own_line()))
    begins = broker.begins(there)
    seen = _Seen()
    topics = []
    for name, declaration in declared.items():
        source = _Topic(
            request, broker, declaration, facts.get(name), cluster_id, ends, hidden, begins, seen, told
        )
        topics.append(source.plan(wanted[name]))
    restored = RestoredPoint(
        request.system_identifier, request.lineage.timeline, request.lineage.end, request.lineage.fork_xid
    )
    return ReplayPlan(
        cluster_id,
        restored,
        request.lineage.branches,
        request.lineage.later,
        request.lineage.beside,
        tuple(topics),
        _groups(topics, declared, broker),
        seen.phantoms.found(),
        seen.lost.found(),
        request.lineage.own,
    )


def _ends(request: PlanRequest, broker: Broker, there: Sequence[TopicPartition]) -> tuple[Offsets, Offsets]:
    """Return the last stable offsets, and the high watermarks of what still has an open transaction.

    A producer that died with the database leaves its transaction open until Kafka's time for it is over, and
    all that others published behind its first record lies above the last stable offset until then.
    """
    if request.wait is None:
        return broker.ends(there), {}
    high, ends = broker.high_watermarks(there), broker.ends(there)
    while any(ends[at] < high[at] for at in there) and request.wait():
        ends = broker.ends(there)
    return ends, {at: high[at] for at in there if ends[at] < high[at]}


def _partitions(topic: str, found: TopicFacts | None, view: FenceView) -> list[int]:
    """Return the partitions to plan: those that are there, and those that a fence says were."""
    known = {
        part.number
        for fence in view.inside
        for one in fence.topics
        if one.name == topic and (found is None or one.topic_id == found.topic_id)
        for part in one.partitions
    }
    return sorted(known | set(range(0 if found is None else found.partitions)) or {0})


@dataclass(frozen=True, slots=True)
class _Topic:
    """Plans one topic."""

    request: PlanRequest
    broker: Broker
    declaration: FlowDeclaration
    facts: TopicFacts | None
    cluster_id: str
    ends: Offsets
    hidden: Offsets
    begins: Offsets
    seen: _Seen
    told: Callable[[TopicPartition, int], None]

    def plan(self, numbers: Sequence[int]) -> TopicPlan:
        topic_id = "" if self.facts is None else self.facts.topic_id
        now = [PartitionNow(number, topic_id, self.cluster_id) for number in numbers]
        known = self.request.known(self.declaration.topic)
        starts = {one.number: start_of(self.declaration, one, known) for one in now}
        estimates = self._estimates(starts)
        bounds = {one.number: OffsetBounds(out_from(self.declaration, one, known)) for one in now}
        classifier = Classifier(self.declaration, self.request.lineage, bounds, self.request.ask)
        return TopicPlan(
            self.declaration.topic,
            topic_id,
            self.declaration.flow,
            self.declaration.format,
            self.facts is not None and self.facts.is_compacted,
            tuple(
                self._partition(one, starts[one.number], estimates, bounds[one.number], classifier)
                for one in now
            ),
        )

    def _estimates(self, starts: Mapping[int, Start]) -> Offsets:
        """Ask for offsets by time, where nothing better is known: one question for all of a topic."""
        asked = {
            TopicPartition(self.declaration.topic, number): one.moment
            for number, one in starts.items()
            if one.moment is not None
        }
        there = [at for at in asked if at in self.ends]
        return self.broker.offsets_at(min(asked.values()), there) if there else {}

    def _partition(
        self,
        now: PartitionNow,
        start: Start,
        estimates: Offsets,
        bounds: OffsetBounds,
        classifier: Classifier,
    ) -> PartitionPlan:
        at = TopicPartition(self.declaration.topic, now.number)
        low, end = self.begins.get(at), self.ends.get(at)
        wanted = start.offset
        if wanted is None:
            wanted = estimates.get(at, low) if start.reason is StartReason.TIMESTAMP else low
        placed = place(
            0 if wanted is None else wanted,
            is_same_cluster=start.cluster_id in {None, now.cluster_id},
            is_same_topic=start.topic_id in {None, now.topic_id},
            low=low,
            end=end,
            stood_at=start.stood_at,
        )
        placed, tally = self._count(at, placed, classifier)
        if at in self.hidden:
            gaps = (*placed.gaps, Gap(GapKind.OPEN, self.ends[at], self.hidden[at]))
            placed = Placed(placed.start, placed.end, gaps)
        return PartitionPlan(
            now.number,
            placed.start,
            placed.end,
            start.reason,
            start.is_estimated,
            start.fence,
            bounds.out_from,
            tally,
            placed.gaps,
        )

    def _count(self, at: TopicPartition, placed: Placed, classifier: Classifier) -> tuple[Placed, Tally]:
        """Read a partition once.  Where retention overtakes us, that is one more gap."""
        tally, position = Tally(), placed.start
        gaps = list(placed.gaps)
        for _ in range(_OVERTAKEN_MAX):
            if position >= placed.end:
                break
            try:
                for chunk in chunks(self.broker.read(at, position, placed.end)):
                    tally += self._tally(chunk.records, classifier)
                    position = chunk.records[-1].offset + 1
                    self.told(at, tally.records)
                break
            except OffsetGone as gone:
                gaps.append(Gap(GapKind.DELETED, gone.start, min(gone.log_start, placed.end)))
                position = gone.log_start
        return Placed(placed.start, placed.end, tuple(gaps)), tally

    def _tally(self, batch: Sequence[EventRecord], classifier: Classifier) -> Tally:
        counts = dict.fromkeys(EventClass, 0)
        for one in classifier(batch):
            counts[one.event_class] += 1
            if self.declaration.flow is Flow.DB_FIRST:
                self.seen.phantoms.see(one)
                self.seen.lost.see(one)
        return Tally(
            len(batch),
            counts[EventClass.IN_DATABASE],
            counts[EventClass.NOT_IN_DATABASE],
            counts[EventClass.LOST_BRANCH],
            counts[EventClass.UNKNOWN],
        )


def _groups(
    topics: Sequence[TopicPlan], declared: Mapping[str, FlowDeclaration], broker: Broker
) -> tuple[GroupPlan, ...]:
    names = {
        one.group for one in declared.values() if one.group is not None and one.flow is not Flow.DB_FIRST
    }
    return plan_resets(topics, declared, {name: broker.group(name) for name in sorted(names)})
