"""What librdkafka hands over, as our values.  Pure: nothing of it is imported.

A topic's id is written as Kafka does: base64 of its 16 bytes, without padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import methodcaller
from typing import Any, Final, Protocol

from pitr.events.broker import EventRecord, TopicFacts
from pitr.events.partition import OFFSET_MAX, TopicPartition

_LOG_APPEND_TIME = 2  # librdkafka's RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME


# Of a name that is no UTF-8 the client's C code returns a list with holes, and leaves an exception set.  A
# call in Python's byte code may not look for that, and is met by it somewhere later; this one always does.
_headers_of: Final = methodcaller("headers")


class MessageLike(Protocol):
    """The parts of confluent_kafka's Message that are asked for.  No serializer is set: all is bytes."""

    def offset(self) -> int | None: ...
    def timestamp(self) -> tuple[int, int]: ...
    def headers(self) -> Any: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...


def facts_of(name: str, topic_id: str, partitions: int, config: Mapping[str, str]) -> TopicFacts:
    """Return a topic from its description and its settings, which are texts by name."""
    policies = {word.strip() for word in config.get("cleanup.policy", "delete").split(",")}
    return TopicFacts(
        name,
        topic_id,
        partitions,
        is_compacted="compact" in policies,
        is_deleted_by_age="delete" in policies,
        retention_ms=_limit(config.get("retention.ms")),
        retention_bytes=_limit(config.get("retention.bytes")),
        delete_retention_ms=int(config.get("delete.retention.ms", 0)),
        has_append_time=config.get("message.timestamp.type") == "LogAppendTime",
    )


def _limit(text: str | None) -> int | None:
    """Read a retention.  Kafka writes "no limit" as -1, and as the largest number in some tools."""
    number = -1 if text is None else int(text)
    return None if number < 0 or number == OFFSET_MAX else number


def record_of(at: TopicPartition, message: MessageLike) -> EventRecord:
    """Return a message that is no error as a record.  Each costs a replay's time: nothing is copied here."""
    kind, timestamp_ms = message.timestamp()
    unreadable = None
    try:
        headers = tuple(_headers_of(message) or ())
    except (UnicodeDecodeError, SystemError):  # the latter is how the client's C code hands over the former
        # No broker looks at names, and the client gives either all headers or none: so one such record must
        # not end everything that reads its topic.
        headers, unreadable = (), "the name of a header is not UTF-8"
    return EventRecord(
        at,
        message.offset() or 0,
        timestamp_ms,
        kind == _LOG_APPEND_TIME,
        message.key(),
        message.value(),
        headers,
        unreadable,
    )
