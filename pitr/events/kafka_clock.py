"""A broker's clock, the third that a fence compares.  Beside ``kafka`` a home of confluent_kafka.

No answer of Kafka says what time it is there.  A topic whose records get the broker's time
(``message.timestamp.type=LogAppendTime``) does: a record is appended, and its acknowledgement has the time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pitr.events.broker import BrokerRefused, BrokerUnavailable
from pitr.events.kafka_errors import is_refusal, reason_of
from pitr.events.kafka_link import KafkaSettings

KEY = b"pitr.clock"
"""One key, so that a compacted topic keeps one record."""
_APPEND_TIME = 2  # librdkafka's RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME


class KafkaClock:
    """Asks what time it is.  Not thread-safe; the extra ``kafka`` must be installed."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._producer: Any = None

    def now(self) -> datetime | None:
        """Append a record and return the time that it got; None if the topic keeps the producer's.

        Raises BrokerUnavailable, BrokerRefused.
        """
        import confluent_kafka

        told: list[tuple[Any, Any]] = []
        timeout_s = self._settings.call_timeout_s
        try:
            if self._producer is None:
                self._producer = confluent_kafka.Producer(
                    {
                        **self._settings.client,
                        "bootstrap.servers": self._settings.bootstrap,
                        "log_level": 0,
                        "linger.ms": 0,
                        "acks": 1,
                        "message.timeout.ms": max(int(timeout_s * 1000), 1000),
                        # One record waits at a time; nothing piles up while the cluster is away.
                        "queue.buffering.max.messages": 10,
                    }
                )
            self._producer.produce(
                self._topic, b"", key=KEY, on_delivery=lambda error, record: told.append((error, record))
            )
            self._producer.flush(timeout_s + 1)
        except (confluent_kafka.KafkaException, BufferError) as failed:
            raise BrokerUnavailable(f"Kafka does not take a record into {self._topic}") from failed
        if not told:
            raise BrokerUnavailable(f"no answer from Kafka: {self._topic}")
        error, record = told[0]
        if error is not None:
            kind = BrokerRefused if is_refusal(error) else BrokerUnavailable
            raise kind(f"Kafka does not take a record into {self._topic}", detail=reason_of(error))
        stamp, milliseconds = record.timestamp()
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if stamp == _APPEND_TIME else None
