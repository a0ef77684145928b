"""Take one fence: offsets of Kafka, then the mark in PostgreSQL, then ends of Kafka again.

The order is what makes it true; see ``pitr.events.fence``.  Offsets that were read after the mark would be
wrong: an event committed between both lies below them, and is in no database that stops at the mark.

Kafka away gives a fence that says so: the mark is made all the same, and nothing is guessed.  PostgreSQL away
gives none.  Kafka is never asked while a transaction is open.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from typing import Final, Protocol

from pitr.errors import NotInitialised
from pitr.events.broker import BrokerRefused, BrokerUnavailable, ClusterNow
from pitr.events.fence import Fence, GroupFence, Identity, Mark, PartitionFence, TopicFence
from pitr.events.fence_code import REASON_CHARS_MAX, encode_fence
from pitr.events.flows import FlowDeclaration
from pitr.events.partition import TopicPartition
from pitr.postgres.fence_mark import Marked, MarkFacts

Offsets = Mapping[TopicPartition, int]
Identities = Mapping[TopicPartition, tuple[int, Identity]]
BEGINS_EVERY_S: Final = 60.0
TOPICS_KEPT: Final = 1_000
_BROKER_ERRORS = (BrokerUnavailable, BrokerRefused, NotInitialised)


class OffsetSource(Protocol):
    """What a fence asks of a cluster; ``pitr.events.kafka.KafkaBroker`` is one.  Raises as ``Broker``."""

    def now(self, names: Iterable[str]) -> ClusterNow:
        """Return the cluster's id, and id and number of partitions of the topics that are there."""
        ...

    def ends(self, partitions: Iterable[TopicPartition]) -> Offsets: ...

    def begins(self, partitions: Iterable[TopicPartition]) -> Offsets: ...

    def committed(self, groups: Iterable[str], partitions: Iterable[TopicPartition]) -> Mapping[str, Offsets]:
        """Return the next offsets that groups have committed; none where none is."""
        ...


class Marker(Protocol):
    """Who commits the mark; ``pitr.postgres.fence_mark.FenceMarker`` does."""

    def mark(self, write: Callable[[MarkFacts], str]) -> Marked: ...


@dataclass(frozen=True, slots=True)
class TakenFence:
    """A fence; ``missing`` are declared topics that the cluster does not have, ``trouble`` is for people."""

    fence: Fence
    missing: tuple[str, ...] = ()
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class _Before:
    cluster_id: str | None
    topics: tuple[TopicFence, ...] = ()
    groups: tuple[GroupFence, ...] = ()
    broker_at: datetime | None = None
    missing: tuple[str, ...] = ()
    unknown: str | None = None


class LogBegins:
    """Where logs begin, asked anew each BEGINS_EVERY_S, and of topics that are new or have grown.

    Nothing is decided by a fence's begins, and an old one is below the one of now.  Not thread-safe.
    """

    def __init__(self, source: OffsetSource, clock: Callable[[], float] = time.monotonic) -> None:
        self._source: Final = source
        self._clock: Final = clock
        self._known: dict[str, tuple[tuple[str, int], Offsets]] = {}
        self._asked_at = -BEGINS_EVERY_S

    def of(self, topics: Mapping[str, tuple[str, int]]) -> Offsets:
        """Return them for topics, which are given by id and number of partitions.  Raises as the source."""
        at = self._clock()
        if at - self._asked_at >= BEGINS_EVERY_S:
            self._known, self._asked_at = {}, at
        known = {name: one for name, one in self._known.items() if topics.get(name) == one[0]}
        new = [name for name in topics if name not in known]
        if new:
            told = self._source.begins([at for name in new for at in partitions_of(name, topics[name][1])])
            for name in new:
                parts = partitions_of(name, topics[name][1])
                known[name] = (topics[name], {at: told[at] for at in parts})
        self._known = known
        return {at: offset for _, begins in known.values() for at, offset in begins.items()}


def take_fence(
    source: OffsetSource,
    marker: Marker,
    flows: Sequence[FlowDeclaration],
    *,
    now: Callable[[], datetime],
    broker_clock: Callable[[], datetime | None] = lambda: None,
    identify: Callable[[Offsets], Identities] | None = None,
    begins: LogBegins | None = None,
) -> TakenFence:
    """Take a fence over the declared topics.  ``identify`` looks at the last records below offsets.

    ``begins`` is for whoever takes many; without it they are asked for.

    Raises ServerUnavailable and ServerRefused if PostgreSQL does not take the mark: there is no fence then.
    """
    try:
        before = _look(source, flows, broker_clock, begins or LogBegins(source))
    except _BROKER_ERRORS as away:
        before = _Before(None, unknown=_reason(away))
    collector_at = now()
    taken: list[Fence] = []

    def write(facts: MarkFacts) -> str:
        taken[:] = [
            Fence(
                _mark(facts),
                collector_at,
                before.broker_at,
                before.cluster_id,
                before.topics,
                before.groups,
                before.unknown,
            )
        ]
        return encode_fence(taken[0])  # it has nothing yet of what comes after the mark

    marked = marker.mark(write)
    fence = replace(taken[0], committed_by=marked.committed_by)
    if fence.unknown is not None:
        return TakenFence(fence, before.missing, fence.unknown)
    try:
        return TakenFence(_with_after(fence, source, identify), before.missing)
    except _BROKER_ERRORS as away:
        return TakenFence(fence, before.missing, _reason(away))


def _look(
    source: OffsetSource,
    flows: Sequence[FlowDeclaration],
    broker_clock: Callable[[], datetime | None],
    log_begins: LogBegins,
) -> _Before:
    """Read what is known before the mark.

    A topic's id comes before its offsets: if it is recreated in between, the offsets of the new one stand
    under the old id, which no longer fits and is told as a gap.  The other way round they would be believed.
    """
    names = sorted({flow.topic for flow in flows})
    cluster = source.now(names)
    known = dict(sorted(cluster.topics.items()))
    partitions = [at for name, (_, count) in known.items() for at in partitions_of(name, count)]
    groups = sorted({flow.group for flow in flows if flow.group})
    committed = source.committed(groups, partitions)
    # The begin first: it only grows, so it is never above an end that is read after it.
    begins, ends = log_begins.of(known), source.ends(partitions)
    topics = tuple(
        TopicFence(
            name,
            topic_id,
            tuple(
                PartitionFence(at.partition, min(begins[at], ends[at]), ends[at])
                for at in partitions_of(name, count)
            ),
        )
        for name, (topic_id, count) in known.items()
    )
    missing = tuple(name for name in names if name not in known)
    try:
        broker_at = broker_clock()
    except _BROKER_ERRORS:
        broker_at = None  # a clock decides nothing
    stands = tuple(_group(name, committed[name], partitions) for name in groups)
    return _Before(cluster.cluster_id, topics, stands, broker_at, missing)


def _group(name: str, committed: Offsets, ordered: Sequence[TopicPartition]) -> GroupFence:
    offsets: dict[str, dict[int, int]] = {}
    for at in ordered:
        if (offset := committed.get(at)) is not None:
            offsets.setdefault(at.topic, {})[at.partition] = offset
    return GroupFence(name, offsets)


def _with_after(
    fence: Fence, source: OffsetSource, identify: Callable[[Offsets], Identities] | None
) -> Fence:
    before = {
        at: one.before
        for topic in fence.topics
        for at, one in zip(partitions_of(topic.name, len(topic.partitions)), topic.partitions, strict=True)
    }
    after = source.ends(before)
    last = identify(before) if identify is not None else {}
    topics = tuple(
        TopicFence(
            topic.name,
            topic.topic_id,
            tuple(
                _partition_after(one, after[at], last.get(at))
                for at, one in zip(
                    partitions_of(topic.name, len(topic.partitions)), topic.partitions, strict=True
                )
            ),
        )
        for topic in fence.topics
    )
    return replace(fence, topics=topics)


def _partition_after(one: PartitionFence, after: int, last: tuple[int, Identity] | None) -> PartitionFence:
    # Below ``before`` only if the topic was recreated meanwhile: then nothing is known of it.
    end = after if after >= one.before else None
    offset, identity = last or (None, None)
    return PartitionFence(one.number, one.low, one.before, end, identity, offset)


@lru_cache(TOPICS_KEPT)
def partitions_of(topic: str, count: int) -> tuple[TopicPartition, ...]:
    """Return a topic's partitions, in order; they are the same with each fence."""
    return tuple(TopicPartition(topic, number) for number in range(count))


def _mark(facts: MarkFacts) -> Mark:
    return Mark(
        facts.number,
        facts.system_identifier,
        facts.timeline,
        facts.lsn,
        facts.xid,
        facts.oldest_xid,
        facts.next_xid,
        facts.at,
    )


def _reason(away: BrokerUnavailable | BrokerRefused | NotInitialised) -> str:
    printable = "".join(one if one.isprintable() else " " for one in away.in_one_line)
    return printable[:REASON_CHARS_MAX]
