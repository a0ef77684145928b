"""The target of a mirror in the place of its source: topics by the source's names, offsets of the target.

Plan and replay ask it as they ask any cluster, with fences that were translated (``mirror_fences``).  The
source is never asked: it may be gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from pitr.events.broker import Broker, EventRecord, GroupState, OffsetGone, TopicFacts
from pitr.events.mirror_names import MirrorNames
from pitr.events.partition import TopicPartition


class MirrorBroker:
    """A ``Broker`` over the target of a mirror.  Topics that are no copies are not there."""

    def __init__(self, target: Broker, names: MirrorNames) -> None:
        self._target: Final = target
        self._names: Final = names

    def cluster_id(self) -> str:
        return self._target.cluster_id()

    def topics(self, names: Iterable[str]) -> Mapping[str, TopicFacts]:
        wanted = {self._names.remote(name): name for name in names}
        found = self._target.topics(wanted)
        return {wanted[remote]: replace(facts, name=wanted[remote]) for remote, facts in found.items()}

    def names(self) -> Sequence[str]:
        sources = map(self._names.source, self._target.names())
        return sorted(name for name in sources if name is not None)

    def ends(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self._back(self._target.ends(map(self._names.remote_partition, partitions)))

    def high_watermarks(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self._back(self._target.high_watermarks(map(self._names.remote_partition, partitions)))

    def begins(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self._back(self._target.begins(map(self._names.remote_partition, partitions)))

    def offsets_at(
        self, moment: datetime, partitions: Iterable[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        return self._back(self._target.offsets_at(moment, map(self._names.remote_partition, partitions)))

    def group(self, name: str) -> GroupState:
        """Return the group as the target has it: MirrorMaker moves it there, if it was told to."""
        found = self._target.group(name)
        return replace(found, offsets=self._back(found.offsets))

    def set_group_offsets(self, name: str, offsets: Mapping[TopicPartition, int]) -> None:
        moved = {self._names.remote_partition(at): offset for at, offset in offsets.items()}
        self._target.set_group_offsets(name, moved)

    def read(self, at: TopicPartition, start: int, end: int) -> Iterator[EventRecord]:
        try:
            for record in self._target.read(self._names.remote_partition(at), start, end):
                yield record._replace(at=at)
        except OffsetGone as gone:
            raise OffsetGone(at, gone.start, gone.log_start) from gone

    def close(self) -> None:
        self._target.close()

    def _back(self, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Return offsets by the source's names, without those of what is no copy."""
        found = {}
        for at, offset in offsets.items():
            source = self._names.source(at.topic)
            if source is not None:
                found[TopicPartition(source, at.partition)] = offset
        return found
