"""The sink that is a topic, for replay consumers: each event once, told from live ones by its headers.

A batch is one Kafka transaction, which also holds how far the replay is, as offsets of a consumer group of
its own.  It is committed right before PostgreSQL's.  After a crash between the two Kafka is ahead, and what
it has is not sent again.

``replayed-from`` is ``cluster/topic/partition/offset``, and ``replay-id`` names the replay: consumers that
have effects outside (mail, bills) leave those out where they see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pitr.errors import MalformedValue
from pitr.events.partition import TopicPartition, check_topic
from pitr.events.replay_batch import Event
from pitr.postgres.applied_events import EventsRefused

REPLAYED_FROM: Final = "replayed-from"
REPLAY_ID: Final = "replay-id"
VERSION: Final = "event-version"
GROUP_PREFIX: Final = "pitr-replay-"

Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class OutRecord:
    """A record to send."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int


class EventProducer(Protocol):
    """Sends records in transactions (``kafka_producer``).  All raise BrokerUnavailable, BrokerRefused."""

    @property
    def record_bytes_max(self) -> int:
        """The largest record that it sends."""
        ...

    def done(self) -> Mapping[TopicPartition, int]:
        """Return the offsets of the last transaction that was committed, by whichever run."""
        ...

    def send(self, records: Sequence[OutRecord], done: Mapping[TopicPartition, int]) -> None:
        """Send all and record ``done``, or nothing at all; returns when it is committed."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class NoProducer:
    """Stands for the producer in a dry run: it connects to nothing, and ends no other run's transaction."""

    record_bytes_max: int

    def done(self) -> Mapping[TopicPartition, int]:
        return {}

    def send(self, records: Sequence[OutRecord], done: Mapping[TopicPartition, int]) -> None:
        assert not records, "a dry run settles nothing"
        assert not done, "a dry run settles nothing"

    def close(self) -> None: ...


class TopicSink:
    """Sends events.  ``target`` is a topic's name; ``{topic}`` in it stands for that of the event."""

    is_json: Final = False

    def __init__(
        self,
        producer: EventProducer,
        target: str,
        cluster_id: str,
        replay_id: str,
        *,
        is_dry_run: bool = False,
    ) -> None:
        self._producer = producer
        self._target = target
        self._cluster_id = cluster_id
        self._replay_id = replay_id
        self._is_dry_run = is_dry_run
        self._done = dict(producer.done())
        self._waiting: list[Event] = []

    def cursors(self) -> Mapping[TopicPartition, int]:
        """Return how far Kafka says that it is."""
        return dict(self._done)

    def apply(self, events: Sequence[Event]) -> None:
        """Take events, which are sent when the batch is settled.  Raises EventsRefused for one too large."""
        for one in events:
            size = sum(len(part or b"") for part in (one.record.key, one.value))
            size += sum(len(name) + len(value or b"") + 16 for name, value in one.record.headers)
            if size + 512 > self._producer.record_bytes_max:
                raise EventsRefused(f"a record of {size} bytes is larger than the producer may send")
        if not self._is_dry_run:
            self._waiting += events

    def settle(self, cursors: Mapping[TopicPartition, int]) -> None:
        """Send what waits, but for what Kafka has from a run that was killed right after this."""
        # An event that is released from quarantine has an offset that was passed long ago.
        records = [
            self._record(one)
            for one in self._waiting
            if one.quarantine_id is not None or one.record.offset >= self._done.get(one.record.at, 0)
        ]
        self._waiting.clear()
        done = {at: max(end, self._done.get(at, 0)) for at, end in cursors.items()}
        self._producer.send(records, done)
        self._done.update(done)

    def close(self) -> None:
        """End the producer."""
        self._producer.close()

    def _record(self, event: Event) -> OutRecord:
        record = event.record
        place = f"{self._cluster_id}/{record.at.topic}/{record.at.partition}/{record.offset}"
        headers = [(name, value) for name, value in record.headers if name not in (REPLAYED_FROM, REPLAY_ID)]
        if event.handler is not None and any(name == VERSION for name, _ in headers):
            headers = [(name, value) for name, value in headers if name != VERSION]
            headers.append((VERSION, str(event.version).encode()))
        headers += [(REPLAYED_FROM, place.encode()), (REPLAY_ID, self._replay_id.encode())]
        return OutRecord(
            target_of(self._target, record.at.topic),
            record.key,
            event.value,
            tuple(headers),
            record.timestamp_ms,
        )


def target_of(target: str, topic: str) -> str:
    """Return where events of a topic go.  Raises MalformedValue for no topic, or for the topic itself."""
    found = check_topic(target.replace("{topic}", topic))
    if found == topic:
        # It would feed itself.
        raise MalformedValue(f"events of {topic} cannot be replayed to {topic} itself")
    return found
