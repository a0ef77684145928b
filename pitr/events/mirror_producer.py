"""Replayed events to a topic of a mirror's target: how far a replay is stands there under the copies' names.

A group's offsets are of topics that are there, and a source's are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pitr.events.mirror_names import MirrorNames
from pitr.events.partition import TopicPartition
from pitr.events.sink_topic import EventProducer, OutRecord


class MirrorProducer:
    """An ``EventProducer`` whose positions are of the source's topics, by one whose are of the copies."""

    def __init__(self, producer: EventProducer, names: MirrorNames) -> None:
        self._producer: Final = producer
        self._names: Final = names

    @property
    def record_bytes_max(self) -> int:
        return self._producer.record_bytes_max

    def done(self) -> Mapping[TopicPartition, int]:
        found = {}
        for at, offset in self._producer.done().items():
            source = self._names.source(at.topic)
            if source is not None:
                found[TopicPartition(source, at.partition)] = offset
        return found

    def send(self, records: Sequence[OutRecord], done: Mapping[TopicPartition, int]) -> None:
        moved = {self._names.remote_partition(at): end for at, end in done.items()}
        self._producer.send(records, moved)

    def close(self) -> None:
        self._producer.close()
