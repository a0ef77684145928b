"""A broker in memory, for tests of what is asked of one; ``test_kafka`` asks a real one the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from pitr.events.broker import (
    BrokerRefused,
    BrokerUnavailable,
    EventRecord,
    GroupState,
    OffsetGone,
    TopicFacts,
)
from pitr.events.partition import TopicPartition


@dataclass
class MemoryLog:
    """One partition.  ``end`` can lie behind the last record: markers take offsets too."""

    records: list[EventRecord] = field(default_factory=list)
    begin: int = 0
    end: int = 0


@dataclass
class MemoryBroker:
    """A ``Broker`` whose content the test writes."""

    id: str = "cluster-1"
    is_away: bool = False
    facts: dict[str, TopicFacts] = field(default_factory=dict)
    logs: dict[TopicPartition, MemoryLog] = field(default_factory=dict)
    groups: dict[str, GroupState] = field(default_factory=dict)
    overtaken: dict[TopicPartition, int] = field(default_factory=dict)
    """Partition → where its log begins from the first read on: retention that deletes meanwhile."""

    open_from: dict[TopicPartition, int] = field(default_factory=dict)
    """Partition → the first record of a Kafka transaction that is open."""

    def create(
        self, name: str, partitions: int = 1, topic_id: str | None = None, *, compacted: bool = False
    ) -> None:
        self.facts[name] = TopicFacts(
            name, topic_id or f"id-{name}", partitions, compacted, not compacted, None, None, 0, False
        )
        for number in range(partitions):
            self.logs[TopicPartition(name, number)] = MemoryLog()

    def append(
        self,
        topic: str,
        headers: Mapping[str, str] | None = None,
        *,
        partition: int = 0,
        timestamp_ms: int = 0,
        skip: int = 0,
    ) -> int:
        """Append a record, after ``skip`` offsets that hold none, and return its offset."""
        at = TopicPartition(topic, partition)
        log = self.logs[at]
        offset = log.end + skip
        pairs = tuple((name, text.encode()) for name, text in (headers or {}).items())
        log.records.append(EventRecord(at, offset, timestamp_ms, False, b"key", b"value", pairs))
        log.end = offset + 1
        return offset

    def delete_before(self, topic: str, offset: int, partition: int = 0) -> None:
        self.logs[TopicPartition(topic, partition)].begin = offset

    def _answer(self) -> None:
        if self.is_away:
            raise BrokerUnavailable("no answer from Kafka")

    def _log(self, at: TopicPartition) -> MemoryLog:
        self._answer()
        if at not in self.logs:
            raise BrokerRefused(f"Kafka refuses: {at}")
        return self.logs[at]

    def cluster_id(self) -> str:
        self._answer()
        return self.id

    def topics(self, names: Iterable[str]) -> Mapping[str, TopicFacts]:
        self._answer()
        return {name: self.facts[name] for name in names if name in self.facts}

    def names(self) -> Sequence[str]:
        self._answer()
        return sorted(self.facts)

    def ends(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: min(self._log(at).end, self.open_from.get(at, self._log(at).end)) for at in partitions}

    def high_watermarks(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: self._log(at).end for at in partitions}

    def begins(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: self._log(at).begin for at in partitions}

    def offsets_at(
        self, moment: datetime, partitions: Iterable[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        since = int(moment.timestamp() * 1000)
        return {
            at: next(
                (one.offset for one in self._log(at).records if one.timestamp_ms >= since), self._log(at).end
            )
            for at in partitions
        }

    def group(self, name: str) -> GroupState:
        self._answer()
        return self.groups.get(name, GroupState(name, True, {}))

    def set_group_offsets(self, name: str, offsets: Mapping[TopicPartition, int]) -> None:
        state = self.group(name)
        if not state.is_empty:
            raise BrokerRefused(f"Kafka refuses: group {name} is in use")
        self.groups[name] = replace(state, offsets={**state.offsets, **offsets})

    def read(self, at: TopicPartition, start: int, end: int) -> Iterator[EventRecord]:
        log = self._log(at)
        log.begin = max(log.begin, self.overtaken.pop(at, 0))
        if start < log.begin and start < end:
            raise OffsetGone(at, start, log.begin)
        for one in log.records:
            if start <= one.offset < end:
                yield one

    def close(self) -> None:
        pass
