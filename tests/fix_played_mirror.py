"""A cluster in memory with what a mirror leaves on it: for what must not wait for a real one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pitr.events.broker import EventRecord, GroupState, OffsetGone, TopicFacts
from pitr.events.partition import TopicPartition
from pitr.events.sync_pairs import Sync, SyncPair, encode_sync


@dataclass
class PlayedLog:
    """One partition; an offset without a record is a marker's."""

    begin: int = 0
    end: int = 0
    records: dict[int, EventRecord] = field(default_factory=dict)


@dataclass
class PlayedTarget:
    """A ``Broker`` in memory that counts what is read."""

    logs: dict[TopicPartition, PlayedLog] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    groups: dict[str, dict[TopicPartition, int]] = field(default_factory=dict)
    read_count: int = 0
    _made: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def make(self, topic: str, partitions: int = 1) -> None:
        """Make a topic, also in place of one of that name."""
        self.logs = {at: log for at, log in self.logs.items() if at.topic != topic}
        self.logs.update({TopicPartition(topic, number): PlayedLog() for number in range(partitions)})
        self.ids[topic] = f"id-{next(self._made)}"

    def add(self, at: TopicPartition, name: str, timestamp_ms: int | None = None) -> int:
        """Append an event; its name is its value."""
        log = self.logs[at]
        stamp = log.end if timestamp_ms is None else timestamp_ms
        return self.add_record(EventRecord(at, 0, stamp, False, b"k", name.encode(), (("event-id", b"7"),)))

    def add_record(self, record: EventRecord) -> int:
        log = self.logs[record.at]
        log.records[log.end] = record._replace(offset=log.end)
        log.end += 1
        return log.end - 1

    def mark(self, at: TopicPartition) -> None:
        """Append a transaction's marker."""
        self.logs[at].end += 1

    def sync(self, topic: str, at: TopicPartition, upstream: int, downstream: int) -> None:
        """Append a pair as MirrorMaker writes it."""
        key, value = encode_sync(Sync(at, SyncPair(upstream, downstream)))
        self.add_record(EventRecord(TopicPartition(topic, 0), 0, 1_000, False, key, value))

    # -- Broker

    def cluster_id(self) -> str:
        return "target"

    def topics(self, names: Iterable[str]) -> Mapping[str, TopicFacts]:
        counts: dict[str, int] = {}
        for at in self.logs:
            counts[at.topic] = counts.get(at.topic, 0) + 1
        return {
            name: TopicFacts(name, self.ids[name], counts[name], False, True, None, None, 0, False)
            for name in names
            if name in counts
        }

    def names(self) -> Sequence[str]:
        return sorted({at.topic for at in self.logs})

    def ends(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: self.logs[at].end for at in partitions}

    def high_watermarks(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self.ends(partitions)

    def begins(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: self.logs[at].begin for at in partitions}

    def offsets_at(
        self, moment: datetime, partitions: Iterable[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        stamp = moment.timestamp() * 1000
        found = {}
        for at in partitions:
            log = self.logs[at]
            young = (
                one for one in log.records.values() if one.offset >= log.begin and one.timestamp_ms >= stamp
            )
            found[at] = min((one.offset for one in young), default=log.end)
        return found

    def group(self, name: str) -> GroupState:
        return GroupState(name, True, dict(self.groups.get(name, {})))

    def set_group_offsets(self, name: str, offsets: Mapping[TopicPartition, int]) -> None:
        self.groups.setdefault(name, {}).update(offsets)

    def read(self, at: TopicPartition, start: int, end: int) -> Iterator[EventRecord]:
        log = self.logs[at]
        if start < end and log.begin > start:
            raise OffsetGone(at, start, log.begin)
        for offset in range(start, end):
            if offset in log.records:
                self.read_count += 1
                yield log.records[offset]

    def close(self) -> None:
        pass
