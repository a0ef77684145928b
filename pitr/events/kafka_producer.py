"""A producer that sends whole batches, or nothing of them, by librdkafka (extra ``kafka``).

Its transactional id is the replay's: a second run ends the transactions of one that hangs somewhere.

Reference: Apache Kafka, KIP-98 (transactions), KIP-447; librdkafka, "Transactional producer".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from pitr.errors import NotInitialised
from pitr.events.broker import Broker, BrokerRefused, BrokerUnavailable
from pitr.events.kafka_errors import INVALID_TIMESTAMP, is_record_fault, is_refusal, reason_of
from pitr.events.kafka_link import KafkaSettings
from pitr.events.partition import TopicPartition
from pitr.events.sink_topic import GROUP_PREFIX, REPLAYED_FROM, OutRecord

SEND_TIMEOUT_S: Final = 60.0
"""For each step of a transaction.  The broker itself ends one that is open longer than this."""
RECORD_BYTES_MAX: Final = 1_000_000
"""What brokers take unless they are told otherwise is 1,048,588 bytes, with the frame of a batch."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why a record was not delivered."""

    error: Any
    record: OutRecord

    @property
    def oddness(self) -> tuple[int, int, bool]:
        """Return how far it is from what any topic takes: in time, by its size, without a key."""
        is_time = self.error.code() == INVALID_TIMESTAMP
        off_ms = abs(self.record.timestamp_ms - int(time.time() * 1000)) if is_time else 0
        return off_ms, len(self.record.value or b"") + len(self.record.key or b""), self.record.key is None

    @property
    def place(self) -> str:
        """Return where it is replayed from."""
        found = next((value for name, value in self.record.headers if name == REPLAYED_FROM), None)
        return (found or b"?").decode("utf-8", "replace")


class KafkaProducer:
    """An ``EventProducer`` for one replay.  Not thread-safe."""

    def __init__(self, settings: KafkaSettings, replay_id: str, broker: Broker) -> None:
        """Connect, and end what an earlier run left open.  Raises BrokerUnavailable, BrokerRefused."""
        try:
            import confluent_kafka
        except ImportError as missing:
            raise NotInitialised(
                "Kafka's client is not installed", hint="install the extra: pip install 'pitr[kafka]'"
            ) from missing
        self._kafka = confluent_kafka
        self._settings = settings
        self._broker = broker
        self._group = GROUP_PREFIX + replay_id
        self._failed: _Failed | None = None
        base: dict[str, Any] = {
            **settings.client,
            "bootstrap.servers": settings.bootstrap,
            "log_level": 0,
        }
        self._producer = self._call(
            lambda: confluent_kafka.Producer(
                {
                    **base,
                    "transactional.id": self._group,
                    "transaction.timeout.ms": int(SEND_TIMEOUT_S * 1000),
                    "delivery.timeout.ms": int(SEND_TIMEOUT_S * 1000),
                    "linger.ms": 5,
                    "compression.type": "lz4",
                    "message.max.bytes": RECORD_BYTES_MAX,
                }
            )
        )
        # Only to name the group: it joins nothing and reads nothing.
        self._member = self._call(
            lambda: confluent_kafka.Consumer({**base, "group.id": self._group, "enable.auto.commit": False})
        )
        self._call(lambda: self._producer.init_transactions(SEND_TIMEOUT_S))

    @property
    def record_bytes_max(self) -> int:
        return RECORD_BYTES_MAX

    def done(self) -> Mapping[TopicPartition, int]:
        return self._broker.group(self._group).offsets

    def send(self, records: Sequence[OutRecord], done: Mapping[TopicPartition, int]) -> None:
        if not records and not done:
            return
        self._failed = None
        self._call(self._producer.begin_transaction)
        try:
            deadline = time.monotonic() + SEND_TIMEOUT_S
            for one in records:
                self._produce(one, deadline)
            offsets = [
                self._kafka.TopicPartition(at.topic, at.partition, end) for at, end in sorted(done.items())
            ]
            if offsets:
                metadata = self._member.consumer_group_metadata()
                self._call(
                    lambda: self._producer.send_offsets_to_transaction(offsets, metadata, SEND_TIMEOUT_S)
                )
            # It waits for what is still on its way, and fails if one of them did.
            self._call(lambda: self._producer.commit_transaction(SEND_TIMEOUT_S))
        except (BrokerRefused, BrokerUnavailable) as failed:
            self._abort()  # what is said of records that were on their way has come by then
            if (odd := self._at_fault()) is not None:
                raise BrokerRefused(
                    f"Kafka refuses the event {odd.place}, or one that was sent with it",
                    detail=self._reason(),
                    hint="hold it back by its offset, in a [[quarantine]] of the handlers file; or see to the"
                    " topic's settings; then run the same command again",
                ) from failed
            raise

    def _produce(self, one: OutRecord, deadline: float) -> None:
        while True:
            try:
                self._call(
                    lambda: self._producer.produce(
                        one.topic,
                        value=one.value,
                        key=one.key,
                        headers=list(one.headers),
                        timestamp=max(one.timestamp_ms, 0),  # below 0 it has none; then it gets one
                        on_delivery=partial(self._delivered, one),
                    )
                )
            except BufferError:
                # Its queue is full: let some go.
                self._producer.poll(0.1)
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"Kafka took no records within {SEND_TIMEOUT_S:g} s", detail=self._reason()
                    ) from None
                continue
            self._producer.poll(0)
            return

    def close(self) -> None:
        self._member.close()

    def _delivered(self, record: OutRecord, error: Any, _message: Any) -> None:
        if error is None:
            return
        before, failed = self._failed, _Failed(error, record)
        if before is None or not is_record_fault(before.error):
            self._failed = failed
        elif is_record_fault(error) and failed.oddness > before.oddness:
            # One that is at fault fails all that were sent with it: the oddest is it, most likely.
            self._failed = failed

    def _at_fault(self) -> _Failed | None:
        """Return what was not delivered for what it is."""
        return self._failed if self._failed is not None and is_record_fault(self._failed.error) else None

    def _reason(self) -> str | None:
        return None if self._failed is None else reason_of(self._failed.error)

    def _abort(self) -> None:
        try:
            self._producer.abort_transaction(SEND_TIMEOUT_S)
            self._producer.poll(0)
        except self._kafka.KafkaException:
            # What was sent is never committed: the broker ends it when its time is up.
            return

    def _call(self, do: Callable[[], T]) -> T:
        try:
            return do()
        except self._kafka.KafkaException as failed:
            error = failed.args[0]
            why = self._reason() or reason_of(error)
            if is_refusal(error) or (self._failed is not None and is_refusal(self._failed.error)):
                raise BrokerRefused("Kafka refuses the replayed events", detail=why) from failed
            raise BrokerUnavailable(
                f"no answer from Kafka at {self._settings.bootstrap}",
                detail=why,
                hint="run the same command again: it goes on from here",
            ) from failed
