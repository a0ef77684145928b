"""Take one fence: offsets of Kafka, then the mark in PostgreSQL, then ends of Kafka again.

The order is what makes it true; see ``pitr.events.fence``.  Offsets that were read after the mark would be
wrong: an event committed between both lies below them, and is in no database that stops at the mark.

Kafka away gives a fence that says so: the mark is made all the same, and nothing is guessed.  PostgreSQL away
gives none.  Kafka is never asked while a transaction is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from pitr.errors import NotInitialised
from pitr.events.broker import BrokerRefused, BrokerUnavailable, GroupState
from pitr.events.fence import Fence, GroupFence, Identity, Mark, PartitionFence, TopicFence
from pitr.events.fence_code import REASON_CHARS_MAX, encode_row
from pitr.events.flows import FlowDeclaration
from pitr.events.partition import TopicPartition
from pitr.postgres.fence_mark import Marked, MarkFacts

Offsets = Mapping[TopicPartition, int]
Identities = Mapping[TopicPartition, tuple[int, Identity]]
_BROKER_ERRORS = (BrokerUnavailable, BrokerRefused, NotInitialised)


class OffsetSource(Protocol):
    """What a fence asks of a cluster; ``pitr.events.kafka.KafkaBroker`` is one.  Raises as ``Broker``."""

    def cluster_id(self) -> str: ...

    def topic_ids(self, names: Iterable[str]) -> Mapping[str, tuple[str, int]]:
        """Return id and number of partitions of the topics that are there."""
        ...

    def ends(self, partitions: Iterable[TopicPartition]) -> Offsets: ...

    def begins(self, partitions: Iterable[TopicPartition]) -> Offsets: ...

    def group(self, name: str) -> GroupState: ...


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


def take_fence(
    source: OffsetSource,
    marker: Marker,
    flows: Sequence[FlowDeclaration],
    *,
    now: Callable[[], datetime],
    broker_clock: Callable[[], datetime | None] = lambda: None,
    identify: Callable[[Offsets], Identities] | None = None,
) -> TakenFence:
    """Take a fence over the declared topics.  ``identify`` looks at the last records below offsets.

    Raises ServerUnavailable and ServerRefused if PostgreSQL does not take the mark: there is no fence then.
    """
    try:
        before = _look(source, flows, broker_clock)
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
        return encode_row(taken[0])

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
) -> _Before:
    """Read what is known before the mark.

    A topic's id comes before its offsets: if it is recreated in between, the offsets of the new one stand
    under the old id, which no longer fits and is told as a gap.  The other way round they would be believed.
    """
    cluster_id = source.cluster_id()
    names = sorted({flow.topic for flow in flows})
    known = source.topic_ids(names)
    groups = [
        _group(source.group(name), names) for name in sorted({flow.group for flow in flows if flow.group})
    ]
    partitions = [
        TopicPartition(name, number) for name, (_, count) in sorted(known.items()) for number in range(count)
    ]
    # The begin first: it only grows, so it is never above an end that is read after it.
    begins, ends = source.begins(partitions), source.ends(partitions)
    topics = tuple(
        TopicFence(
            name,
            topic_id,
            tuple(
                PartitionFence(number, min(begins[at], ends[at]), ends[at])
                for number in range(count)
                for at in (TopicPartition(name, number),)
            ),
        )
        for name, (topic_id, count) in sorted(known.items())
    )
    missing = tuple(name for name in names if name not in known)
    try:
        broker_at = broker_clock()
    except _BROKER_ERRORS:
        broker_at = None  # a clock decides nothing
    return _Before(cluster_id, topics, tuple(groups), broker_at, missing)


def _group(state: GroupState, names: Sequence[str]) -> GroupFence:
    offsets: dict[str, dict[int, int]] = {}
    for at, offset in sorted(state.offsets.items()):
        if at.topic in names:
            offsets.setdefault(at.topic, {})[at.partition] = offset
    return GroupFence(state.group, offsets)


def _with_after(
    fence: Fence, source: OffsetSource, identify: Callable[[Offsets], Identities] | None
) -> Fence:
    before = {
        TopicPartition(topic.name, one.number): one.before
        for topic in fence.topics
        for one in topic.partitions
    }
    after = source.ends(before)
    last = identify(before) if identify is not None else {}
    topics = tuple(
        replace(
            topic,
            partitions=tuple(
                _partition_after(one, TopicPartition(topic.name, one.number), after, last)
                for one in topic.partitions
            ),
        )
        for topic in fence.topics
    )
    return replace(fence, topics=topics)


def _partition_after(
    one: PartitionFence, at: TopicPartition, after: Offsets, last: Identities
) -> PartitionFence:
    # Below ``before`` only if the topic was recreated meanwhile: then nothing is known of it.
    end = after[at] if after[at] >= one.before else None
    offset, identity = last.get(at, (None, None))
    return replace(one, after=end, last=identity, last_offset=offset)


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
    text = "; ".join(part for part in (away.message, away.detail) if part)
    printable = "".join(one if one.isprintable() else " " for one in text)
    return printable[:REASON_CHARS_MAX]
