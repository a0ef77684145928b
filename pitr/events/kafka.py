"""A real Kafka cluster, asked by librdkafka.  The only home of confluent_kafka (extra ``kafka``).

* Every wait has a deadline.  What a cluster could not answer in it is BrokerUnavailable.
* Reads are of committed records only, never begin elsewhere than asked (``auto.offset.reset=error``;
  ``earliest`` would skip a gap without a word), and keep at most ``QUEUED_KBYTES`` in memory.
* librdkafka writes no log of its own: its lines are not ours to redact.  Its errors are kept, the last one.

Reference: Apache Kafka, KIP-98, KIP-516; librdkafka CONFIGURATION.md.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from pitr.errors import NotInitialised
from pitr.events.broker import (
    BrokerRefused,
    BrokerUnavailable,
    EventRecord,
    GroupState,
    OffsetGone,
    TopicFacts,
)
from pitr.events.kafka_errors import (
    is_gone,
    is_passing,
    is_refusal,
    is_unknown_group,
    is_unknown_topic,
    reason_of,
)
from pitr.events.kafka_values import facts_of, record_of
from pitr.events.partition import TopicPartition

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

CALL_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 30.0
"""How long a read may make no progress."""
QUEUED_KBYTES = 8 << 10
"""Records that librdkafka fetches ahead; what is read is bounded by this, whatever the topic holds."""
FETCH_BYTES = 1 << 20
BATCH_RECORDS = 1000
_BATCH_WAIT_S = 0.05  # for a batch that is not full: a read of one record must not take long
LAST_BACK_OFFSETS = 8
"""So far below an end the last record is looked for: markers and aborted records may follow it."""
_PASSING_PAUSE_S = 0.1
_OFFSET_END = -1  # of a time that no record is after
_GRACE_S = 1.0  # librdkafka's own deadline comes first, and says more

T = TypeVar("T")
Offsets = Mapping[TopicPartition, int]


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Where a cluster is; ``client`` are librdkafka's settings for security, and may hold secrets."""

    bootstrap: str
    client: Mapping[str, str] = field(default_factory=dict, repr=False)
    call_timeout_s: float = CALL_TIMEOUT_S
    read_timeout_s: float = READ_TIMEOUT_S


class _Passing(BrokerUnavailable):
    """It will pass by itself, soon."""


class KafkaBroker:
    """A ``Broker`` over one cluster.  Connects when first asked, and again by itself after an outage."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._kafka, self._admin_parts = _libraries()
        self._last_error: str | None = None
        self._admin_client: AdminClient | None = None

    # -- what is there

    def cluster_id(self) -> str:
        found = self._wait(self._admin().describe_cluster(request_timeout=self.settings.call_timeout_s))
        if not found.cluster_id:
            raise BrokerUnavailable("the cluster did not say its id")
        return str(found.cluster_id)

    def names(self) -> Sequence[str]:
        found = self._call(lambda: self._admin().list_topics(timeout=self.settings.call_timeout_s))
        return sorted(found.topics)

    def topics(self, names: Iterable[str]) -> Mapping[str, TopicFacts]:
        wanted = sorted(set(names))
        described = self._describe(wanted)
        resource = self._admin_parts.ConfigResource
        asked = {name: resource(self._admin_parts.ResourceType.TOPIC, name) for name in described}
        timeout_s = self.settings.call_timeout_s
        answers = (
            self._admin().describe_configs(list(asked.values()), request_timeout=timeout_s) if asked else {}
        )
        found = {}
        for name, one in described.items():
            config = {key: entry.value for key, entry in self._wait(answers[asked[name]]).items()}
            found[name] = facts_of(name, str(one.topic_id), len(one.partitions), config)
        return found

    def topic_ids(self, names: Iterable[str]) -> Mapping[str, tuple[str, int]]:
        """Return id and number of partitions of what is there: one request, without settings."""
        found = self._describe(sorted(set(names)))
        return {name: (str(one.topic_id), len(one.partitions)) for name, one in found.items()}

    def _describe(self, names: Sequence[str]) -> dict[str, Any]:
        if not names:
            return {}
        timeout_s = self.settings.call_timeout_s
        answers = self._call(
            lambda: self._admin().describe_topics(
                self._kafka.TopicCollection(list(names)), request_timeout=timeout_s
            )
        )
        found: dict[str, Any] = {}
        for name in names:
            one = self._wait(answers[name], or_none_if=is_unknown_topic)
            if one is not None:
                found[name] = one
        return found

    # -- offsets

    def ends(self, partitions: Iterable[TopicPartition]) -> Offsets:
        return self._offsets(self._admin_parts.OffsetSpec.latest(), partitions)

    def begins(self, partitions: Iterable[TopicPartition]) -> Offsets:
        return self._offsets(self._admin_parts.OffsetSpec.earliest(), partitions)

    def offsets_at(self, moment: datetime, partitions: Iterable[TopicPartition]) -> Offsets:
        wanted = tuple(partitions)
        found = self._offsets(
            self._admin_parts.OffsetSpec.for_timestamp(int(moment.timestamp() * 1000)),
            wanted,
            may_be_beyond=True,
        )
        beyond = [at for at, offset in found.items() if offset < 0]
        return {**found, **self.ends(beyond)} if beyond else found

    def _offsets(
        self, which: Any, partitions: Iterable[TopicPartition], *, may_be_beyond: bool = False
    ) -> Offsets:
        wanted = tuple(partitions)
        return self._again(lambda: self._offsets_once(which, wanted, may_be_beyond))

    def _offsets_once(self, which: Any, partitions: Sequence[TopicPartition], may_be_beyond: bool) -> Offsets:
        asked = {self._kafka.TopicPartition(at.topic, at.partition): which for at in partitions}
        if not asked:
            return {}
        committed = self._kafka.IsolationLevel.READ_COMMITTED
        answers = self._call(
            lambda: self._admin().list_offsets(
                asked, isolation_level=committed, request_timeout=self.settings.call_timeout_s
            )
        )
        found = {}
        for one, future in answers.items():
            at = TopicPartition(one.topic, one.partition)
            offset = int(self._wait(future, what=str(at)).offset)
            if offset < 0 and not (may_be_beyond and offset == _OFFSET_END):
                # A broker that does not answer in time is no error here, but an offset that is none.
                raise self._no_answer(f"{at} has no offset")
            found[at] = offset
        return found

    # -- groups

    def group(self, name: str) -> GroupState:
        return self._again(lambda: self._group_once(name))

    def _group_once(self, name: str) -> GroupState:
        timeout_s = self.settings.call_timeout_s
        wanted = [self._kafka.ConsumerGroupTopicPartitions(name)]
        admin = self._admin()
        described = admin.describe_consumer_groups([name], request_timeout=timeout_s)[name]
        state = self._wait(described, what=f"group {name}", or_none_if=is_unknown_group)
        # Only once its coordinator has answered: confluent-kafka 2.16 ends the process (SIGSEGV) where this
        # request gets an error for the whole group, as from a cluster whose coordinators are not there yet.
        listed = admin.list_consumer_group_offsets(wanted, request_timeout=timeout_s)[name]
        offsets = self._wait(listed, what=f"group {name}", or_none_if=is_unknown_group)
        committed: dict[TopicPartition, int] = {}
        for one in () if offsets is None else offsets.topic_partitions:
            if one.error is not None:
                raise self._error(one.error, f"group {name}, {one.topic}[{one.partition}]")
            if one.offset >= 0:  # else the group has committed nothing there
                committed[TopicPartition(one.topic, one.partition)] = int(one.offset)
        return GroupState(name, is_empty=state is None or not state.members, offsets=committed)

    def set_group_offsets(self, name: str, offsets: Offsets) -> None:
        if not offsets:
            return
        timeout_s = self.settings.call_timeout_s
        wanted = [self._kafka.TopicPartition(at.topic, at.partition, to) for at, to in offsets.items()]
        parts = self._kafka.ConsumerGroupTopicPartitions(name, wanted)
        answer = self._admin().alter_consumer_group_offsets([parts], request_timeout=timeout_s)[name]
        done = self._wait(answer, what=f"group {name}")
        for at in done.topic_partitions:
            if at.error is not None:
                raise self._error(at.error, f"group {name}, {at.topic}[{at.partition}]")

    # -- records

    def read(self, at: TopicPartition, start: int, end: int) -> Iterator[EventRecord]:
        if start >= end:
            return
        log_start = self.begins([at])[at]
        if log_start > start:
            raise OffsetGone(at, start, log_start)
        consumer = self._consumer()
        try:
            consumer.assign([self._kafka.TopicPartition(at.topic, at.partition, start)])
            yield from self._records(consumer, at, start, end)
        finally:
            consumer.close()

    def _records(self, consumer: Any, at: TopicPartition, start: int, end: int) -> Iterator[EventRecord]:
        position = start
        deadline = time.monotonic() + self.settings.read_timeout_s
        while position < end:
            if time.monotonic() > deadline:
                raise self._no_answer(f"{at} gave nothing from offset {position} on")
            batch = self._call(lambda: consumer.consume(BATCH_RECORDS, timeout=_BATCH_WAIT_S))
            before = position
            for message in batch:
                error = message.error()
                if error is None:
                    offset = int(message.offset())
                    if offset >= end:
                        return
                    yield record_of(at, message)
                    position = offset + 1
                elif error.code() == self._kafka.KafkaError._PARTITION_EOF:
                    # Its offset is the position: past the markers of transactions and aborted records.
                    position = max(position, int(message.offset()))
                elif is_gone(error):
                    raise OffsetGone(at, position, self.begins([at])[at])
                elif is_refusal(error):
                    raise self._error(error, str(at))
                else:
                    self._last_error = reason_of(error)
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
        consumer = self._consumer()
        try:
            kinds = self._kafka.TopicPartition
            consumer.assign([kinds(at.topic, at.partition, start) for at, start in wanted.items()])
            while left and time.monotonic() < deadline:
                for message in self._call(lambda: consumer.consume(BATCH_RECORDS, timeout=_BATCH_WAIT_S)):
                    at, error = TopicPartition(message.topic(), message.partition()), message.error()
                    if error is None and message.offset() < ends[at]:
                        found[at] = record_of(at, message)
                    is_end = error is not None and error.code() == self._kafka.KafkaError._PARTITION_EOF
                    if is_end or (error is None and message.offset() >= ends[at] - 1):
                        left.discard(at)
        finally:
            consumer.close()
        return {at: record for at, record in found.items() if at not in left}

    # -- how it is asked

    def close(self) -> None:
        """Forget the connection; a later call makes a new one."""
        self._admin_client = None

    def _base(self) -> dict[str, object]:
        timeout_ms = int(self.settings.call_timeout_s * 1000)
        return {
            **self.settings.client,
            "bootstrap.servers": self.settings.bootstrap,
            "log_level": 0,
            "error_cb": self._note,
            "socket.timeout.ms": max(timeout_ms, 1000),
            "socket.connection.setup.timeout.ms": max(timeout_ms, 1000),
            # After an outage it is tried again within a fence's time, not after librdkafka's ten seconds.
            "reconnect.backoff.max.ms": 1000,
        }

    def _note(self, error: Any) -> None:
        self._last_error = reason_of(error)

    def _admin(self) -> AdminClient:
        if self._admin_client is None:
            self._admin_client = self._call(lambda: self._admin_parts.AdminClient(self._base()))
        return self._admin_client

    def _consumer(self) -> Any:
        settings = {
            **self._base(),
            "group.id": f"pitr-{uuid.uuid4()}",  # never committed, never joined
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": QUEUED_KBYTES,
            "fetch.message.max.bytes": FETCH_BYTES,
        }
        return self._call(lambda: self._kafka.Consumer(settings))

    def _again(self, ask: Callable[[], T]) -> T:
        """Ask again, within a call's time, while a leader or coordinator changes places."""
        deadline = time.monotonic() + self.settings.call_timeout_s
        while True:
            try:
                return ask()
            except _Passing:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PASSING_PAUSE_S)

    def _wait(
        self, future: Future[T], *, what: str = "", or_none_if: Callable[[Any], bool] | None = None
    ) -> Any:
        try:
            return future.result(self.settings.call_timeout_s + _GRACE_S)
        except FutureTimeout:
            raise self._no_answer(what) from None
        except self._kafka.KafkaException as failed:
            if or_none_if is not None and or_none_if(failed.args[0]):
                return None
            raise self._error(failed.args[0], what) from failed

    def _call(self, do: Callable[[], T]) -> T:
        try:
            return do()
        except self._kafka.KafkaException as failed:
            raise self._error(failed.args[0], "") from failed
        except ValueError as wrong:  # a partition or a setting that librdkafka does not take
            raise BrokerRefused(f"Kafka's client refuses the request: {wrong}") from wrong

    def _error(self, error: Any, what: str) -> BrokerRefused | BrokerUnavailable:
        about = f": {what}" if what else ""
        if is_refusal(error):
            return BrokerRefused(f"Kafka refuses{about}", detail=reason_of(error))
        kind = _Passing if is_passing(error) else BrokerUnavailable
        return self._no_answer(what, reason_of(error), kind)

    def _no_answer(
        self, what: str, reason: str | None = None, kind: type[BrokerUnavailable] = BrokerUnavailable
    ) -> BrokerUnavailable:
        if self._admin_client is not None:
            self._admin_client.poll(0)  # hands over what went wrong below
        about = f": {what}" if what else ""
        known = [one for one in (reason, self._last_error) if one]
        return kind(
            f"no answer from Kafka at {self.settings.bootstrap}{about}",
            detail="; ".join(dict.fromkeys(known)) or None,
            hint="is the cluster up, and are its address and client_file right?",
        )


def _libraries() -> tuple[Any, Any]:
    try:
        import confluent_kafka
        import confluent_kafka.admin
    except ImportError as missing:
        raise NotInitialised(
            "Kafka's client is not installed", hint="install the extra: pip install 'pitr[kafka]'"
        ) from missing
    return confluent_kafka, confluent_kafka.admin
