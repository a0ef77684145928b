"""Who the last record below an offset is, for fences: by it the place is found again on a mirror.

Only partitions that moved since they were last looked at are read, all of them at once, and no longer than
BUDGET_S: a fence without it is as safe, and only costs a replay from a mirror some records more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from pitr.events.broker import BrokerRefused, BrokerUnavailable, EventRecord
from pitr.events.fence import Identity
from pitr.events.identity import identity_of
from pitr.events.partition import TopicPartition

BUDGET_S: Final = 1.0


class LastRecordSource(Protocol):
    """The part of ``kafka.KafkaBroker`` that this needs."""

    def last_records(
        self, ends: Mapping[TopicPartition, int], budget_s: float
    ) -> Mapping[TopicPartition, EventRecord]:
        """Return the last committed record below each end, of those that are found in the time."""
        ...


class LastRecords:
    """Looks at last records.  Not thread-safe; ``identify`` is what ``fence_take.take_fence`` takes."""

    def __init__(self, source: LastRecordSource) -> None:
        self._source: Final = source
        self._seen: dict[TopicPartition, tuple[int, tuple[int, Identity]]] = {}

    def identify(self, ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, tuple[int, Identity]]:
        """Return offset and identity of the last record below each end, where one was found in time."""
        moved = {at: end for at, end in ends.items() if at not in self._seen or self._seen[at][0] != end}
        try:
            found = self._source.last_records(moved, BUDGET_S) if moved else {}
        except (BrokerUnavailable, BrokerRefused):
            found = {}  # the fence holds without
        # What is no longer declared is forgotten, so this is bounded by a fence's partitions.
        self._seen = {at: one for at, one in self._seen.items() if at in ends and at not in moved}
        for at, record in found.items():
            self._seen[at] = (ends[at], (record.offset, identity_of(record)))
        return {at: one for at, (_, one) in self._seen.items()}
