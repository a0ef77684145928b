"""A partition of a topic, and the offsets in it.

Offsets are not dense: transaction markers, aborted records and compaction leave gaps.  So nothing here, nor
elsewhere, counts records by subtraction, and a reader is done when its position is at the end, not when it
saw the last offset.  Reference: Apache Kafka, KIP-98 (transactions), KIP-516 (topic ids).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pitr.errors import MalformedValue

OFFSET_MAX = (1 << 63) - 1
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


def check_topic(name: str) -> str:
    """Return a topic's name.  Raises MalformedValue for what Kafka would not take as one."""
    if _TOPIC.fullmatch(name) is None or name in {".", ".."}:
        raise MalformedValue(f"not a Kafka topic's name: {name[:80]!r}")
    return name


@dataclass(frozen=True, order=True, slots=True)
class TopicPartition:
    """One partition; ordered by topic, then number."""

    topic: str
    partition: int

    def __post_init__(self) -> None:
        check_topic(self.topic)
        if not 0 <= self.partition < 1 << 31:
            raise MalformedValue(f"not a partition's number: {self.partition}")

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"
