"""A real Kafka cluster, asked by librdkafka: a ``Broker``.  A home of confluent_kafka (extra ``kafka``).

Reads are of committed records only, never begin elsewhere than asked (``auto.offset.reset=error``;
``earliest`` would skip a gap without a word), and keep at most ``QUEUED_KBYTES`` in memory.  How a cluster is
asked is ``kafka_link``; offsets are ``kafka_offsets``.

Reference: Apache Kafka, KIP-98, KIP-516; librdkafka CONFIGURATION.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from pitr.events.broker import BrokerUnavailable, ClusterNow, EventRecord, GroupState, OffsetGone, TopicFacts
from pitr.events.kafka_errors import is_gone, is_refusal, is_unknown_group, is_unknown_topic
from pitr.events.kafka_link import KafkaLink, KafkaSettings
from pitr.events.kafka_offsets import EARLIEST, LATEST, NONE_LATER, KafkaOffsets
from pitr.events.kafka_values import facts_of, record_of
from pitr.events.partition import TopicPartition

QUEUED_KBYTES = 8 << 10
"""Records that librdkafka fetches ahead; what is read is bounded by this, whatever the topic holds."""
FETCH_BYTES = 1 << 20
BATCH_RECORDS = 1000
_BATCH_WAIT_S = 0.05  # for a batch that is not full: a read of one record must not take long
LAST_BACK_OFFSETS = 8
"""So far below an end the last record is looked for: markers and aborted records may follow it."""

Offsets = Mapping[TopicPartition, int]


class KafkaBroker:
    """A ``Broker`` over one cluster.  Connects when first asked, and again by itself after an outage."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._link = KafkaLink(settings)
        self._offsets = KafkaOffsets(self._link)

    def close(self) -> None:
        """Forget the connections; a later call makes new ones."""
        self._offsets.close()
        self._link.close()

    # -- what is there

    def cluster_id(self) -> str:
        asked = self._link.admin().describe_cluster(request_timeout=self.settings.call_timeout_s)
        return self._id_of(self._link.wait(asked))

    def _id_of(self, described: Any) -> str:
        if not described.cluster_id:
            raise BrokerUnavailable("the cluster did not say its id")
        return str(described.cluster_id)

    def names(self) -> Sequence[str]:
        found = self._link.call(lambda: self._link.admin().list_topics(timeout=self.settings.call_timeout_s))
        return sorted(found.topics)

    def topics(self, names: Iterable[str]) -> Mapping[str, TopicFacts]:
        wanted = sorted(set(names))
        described = self._describe(wanted)
        resource = self._link.admin_parts.ConfigResource
        asked = {name: resource(self._link.admin_parts.ResourceType.TOPIC, name) for name in described}
        timeout_s = self.settings.call_timeout_s
        answers = (
            self._link.admin().describe_configs(list(asked.values()), request_timeout=timeout_s)
            if asked
            else {}
        )
        found = {}
        for name, one in described.items():
            config = {key: entry.value for key, entry in self._link.wait(answers[asked[name]]).items()}
            found[name] = facts_of(name, str(one.topic_id), len(one.partitions), config)
        return found

    def now(self, names: Iterable[str]) -> ClusterNow:
        """Return the cluster's id, and id and number of partitions of what is there: two requests at once."""
        timeout_s = self.settings.call_timeout_s
        cluster = self._link.call(lambda: self._link.admin().describe_cluster(request_timeout=timeout_s))
        found = self._describe(sorted(set(names)))
        topics = {name: (str(one.topic_id), len(one.partitions)) for name, one in found.items()}
        return ClusterNow(self._id_of(self._link.wait(cluster)), topics)

    def _describe(self, names: Sequence[str]) -> dict[str, Any]:
        if not names:
            return {}
        timeout_s = self.settings.call_timeout_s
        answers = self._link.call(
            lambda: self._link.admin().describe_topics(
                self._link.kafka.TopicCollection(list(names)), request_timeout=timeout_s
            )
        )
        found: dict[str, Any] = {}
        for name in names:
            one = self._link.wait(answers[name], or_none_if=is_unknown_topic)
            if one is not None:
                found[name] = one
        return found

    # -- offsets

    def ends(self, partitions: Iterable[TopicPartition]) -> Offsets:
        return self._offsets.at(LATEST, partitions)

    def high_watermarks(self, partitions: Iterable[TopicPartition]) -> Offsets:
        return self._offsets.high(partitions)

    def begins(self, partitions: Iterable[TopicPartition]) -> Offsets:
        return self._offsets.at(EARLIEST, partitions)

    def offsets_at(self, moment: datetime, partitions: Iterable[TopicPartition]) -> Offsets:
        found = self._offsets.at(int(moment.timestamp() * 1000), partitions)
        beyond = [at for at, offset in found.items() if offset == NONE_LATER]
        return {**found, **self.ends(beyond)} if beyond else found

    # -- groups

    def committed(self, groups: Iterable[str], partitions: Iterable[TopicPartition]) -> Mapping[str, Offsets]:
        """Return the next offsets that groups have committed in these partitions; none where none is."""
        return self._offsets.committed(groups, partitions)

    def group(self, name: str) -> GroupState:
        timeout_s = self.settings.call_timeout_s

        def describe() -> Any:
            answers = self._link.admin().describe_consumer_groups([name], request_timeout=timeout_s)
            return self._link.wait(answers[name], what=f"group {name}", or_none_if=is_unknown_group)

        state = self._link.again(describe)
        # Of all partitions that there are: only a request that names none could tell of all that it knows,
        # and that one ends the process where a coordinator moves (see ``kafka_offsets``).
        listed = self._link.call(lambda: self._link.admin().list_topics(timeout=timeout_s)).topics
        partitions = [
            TopicPartition(topic, number) for topic, one in listed.items() for number in one.partitions
        ]
        offsets = self.committed([name], partitions)[name]
        return GroupState(name, is_empty=state is None or not state.members, offsets=offsets)

    def set_group_offsets(self, name: str, offsets: Offsets) -> None:
        if offsets:
            self._link.again(lambda: self._move(name, offsets))

    def _move(self, name: str, offsets: Offsets) -> None:
        timeout_s = self.settings.call_timeout_s
        wanted = [self._link.kafka.TopicPartition(at.topic, at.partition, to) for at, to in offsets.items()]
        parts = self._link.kafka.ConsumerGroupTopicPartitions(name, wanted)
        answer = self._link.admin().alter_consumer_group_offsets([parts], request_timeout=timeout_s)[name]
        done = self._link.wait(answer, what=f"group {name}")
        for at in done.topic_partitions:
            if at.error is not None:
                raise self._link.error(at.error, f"group {name}, {at.topic}[{at.partition}]")

    # -- records

    def read(self, at: TopicPartition, start: int, end: int) -> Iterator[EventRecord]:
        if start >= end:
            return
        log_start = self.begins([at])[at]
        if log_start > start:
            raise OffsetGone(at, start, log_start)
        consumer = self._reader()
        try:
            consumer.assign([self._link.kafka.TopicPartition(at.topic, at.partition, start)])
            yield from self._records(consumer, at, start, end)
        finally:
            consumer.close()

    def _records(self, consumer: Any, at: TopicPartition, start: int, end: int) -> Iterator[EventRecord]:
        position = start
        deadline = time.monotonic() + self.settings.read_timeout_s
        while position < end:
            if time.monotonic() > deadline:
                raise self._link.no_answer(f"{at} gave nothing from offset {position} on")
            batch = self._link.call(lambda: consumer.consume(BATCH_RECORDS, timeout=_BATCH_WAIT_S))
            before = position
            for message in batch:
                error = message.error()
                if error is None:
                    offset = int(message.offset())
                    if offset >= end:
                        return
                    yield record_of(at, message)
                    position = offset + 1
                elif error.code() == self._link.kafka.KafkaError._PARTITION_EOF:
                    # Its offset is the position: past the markers of transactions and aborted records.
                    position = max(position, int(message.offset()))
                elif is_gone(error):
                    raise OffsetGone(at, position, self.begins([at])[at])
                elif is_refusal(error):
                    raise self._link.error(error, str(at))
                else:
                    self._link.note(error)
            if position > before:
                deadline = time.monotonic() + self.settings.read_timeout_s

    def last_records(self, ends: Offsets, budget_s: float) -> Mapping[TopicPartition, EventRecord]:
        """Return the last committed record below each of these ends, of those that are found in the time.

        One consumer reads them all; a partition whose last LAST_BACK_OFFSETS offsets hold none has none.
        """
        deadline = time.monotonic() + budget_s
        begins = self.begins(ends)
        wanted = {
            at: max(begins[at], end - LAST_BACK_OFFSETS) for at, end in ends.items() if end > begins[at]
        }
        found: dict[TopicPartition, EventRecord] = {}
        left = set(wanted)
        consumer = self._reader()
        try:
            kinds = self._link.kafka.TopicPartition
            consumer.assign([kinds(at.topic, at.partition, start) for at, start in wanted.items()])
            while left and time.monotonic() < deadline:
                for message in self._link.call(
                    lambda: consumer.consume(BATCH_RECORDS, timeout=_BATCH_WAIT_S)
                ):
                    at, error = TopicPartition(message.topic(), message.partition()), message.error()
                    if error is None and message.offset() < ends[at]:
                        found[at] = record_of(at, message)
                    is_end = error is not None and error.code() == self._link.kafka.KafkaError._PARTITION_EOF
                    if is_end or (error is None and message.offset() >= ends[at] - 1):
                        left.discard(at)
        finally:
            consumer.close()
        return {at: record for at, record in found.items() if at not in left}

    def _reader(self) -> Any:
        return self._link.consumer(
            {
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "queued.max.messages.kbytes": QUEUED_KBYTES,
                "fetch.message.max.bytes": FETCH_BYTES,
            }
        )
