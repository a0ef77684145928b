"""Tail the offset syncs of a mirror on its target, and keep every pair.

One poll reads what was written since the last one, bounded, and returns.  It may be repeated at any time and
after any crash: what was not kept is read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from pitr.errors import MalformedValue
from pitr.events.broker import Broker, BrokerRefused, OffsetGone, TopicFacts
from pitr.events.fence import Fence
from pitr.events.mirror_names import MirrorNames
from pitr.events.partition import TopicPartition
from pitr.events.sync_book import Position, SyncBook
from pitr.events.sync_pairs import Sync, decode_sync

RECORDS_MAX: Final = 20_000
"""Of one poll: what is left over is read by the next."""


@dataclass(frozen=True, slots=True)
class Polled:
    """What one poll read.  ``behind`` offsets are still to be read; ``unreadable`` records were no pairs.

    ``has_missed``: records that were not read yet are gone, so pairs may be missing.
    """

    pairs: int
    unreadable: int
    behind: int
    has_missed: bool = False


class SyncKeeper:
    """Reads the syncs topic of one mirror into a book.  Not thread-safe."""

    def __init__(self, broker: Broker, names: MirrorNames, book: SyncBook) -> None:
        self._broker: Final = broker
        self._names: Final = names
        self._book: Final = book
        self._at: Final = TopicPartition(names.syncs, 0)

    def poll(self, fence: Fence | None = None) -> Polled:
        """Read and keep what is new, at most RECORDS_MAX records.

        ``fence`` is one of the source that was taken after the last poll returned, None if none was: it says
        how far the mirror can have been, so pairs that are known by now can be settled.

        Raises BrokerRefused if the target has no such topic, BrokerUnavailable, BookFailed; then nothing
        counts as read.
        """
        topic = self._broker.topics([self._names.syncs]).get(self._names.syncs)
        if topic is None:
            raise BrokerRefused(
                f"the mirror's target has no topic {self._names.syncs}",
                detail="without its pairs no offset can be translated once the source is gone",
                hint="set offset-syncs.topic.location = target in MirrorMaker 2",
            )
        if fence is not None:
            self._book.source_stood_at(source_ends(fence))
        self._book.target_stands(self._logs())
        before = self._book.position()
        if before.topic_id != topic.topic_id:
            # Made anew: pairs that are kept stay true, they are about other topics.
            before = Position(topic.topic_id, 0, before.unreadable, before.newest_ms)
        end, begin = self._broker.ends([self._at])[self._at], self._broker.begins([self._at])[self._at]
        has_missed = begin > before.next_offset > 0
        return self._read(before, max(before.next_offset, begin), end, has_missed=has_missed)

    def _logs(self) -> dict[TopicPartition, tuple[int, int]]:
        """Return where the logs of the target begin and end, of what pairs are known of and is there."""
        found = self._book.partitions()
        there = self._broker.topics({self._names.remote(at.topic) for at in found})
        remotes = {at: self._names.remote_partition(at) for at in found}
        known = {at: to for at, to in remotes.items() if _has(there, to)}
        begins, ends = self._broker.begins(known.values()), self._broker.ends(known.values())
        return {at: (begins[to], ends[to]) for at, to in known.items()}

    def _read(self, before: Position, start: int, end: int, *, has_missed: bool) -> Polled:
        syncs: list[Sync] = []
        unreadable, newest_ms, read = 0, before.newest_ms, 0
        position = start
        try:
            for record in islice(self._broker.read(self._at, start, end), RECORDS_MAX):
                read, position = read + 1, record.offset + 1
                try:
                    syncs.append(decode_sync(record.key, record.value))
                    newest_ms = record.timestamp_ms
                except MalformedValue:
                    unreadable += 1
        except OffsetGone:
            has_missed = True
        else:
            # What lies behind the last record is a marker; but a poll that stopped early has more to read.
            position = position if read == RECORDS_MAX else max(start, end)
        # Asked for after the pairs were read: a topic that was made anew before they were written shows.
        named = {self._names.remote(topic): topic for topic in {sync.at.topic for sync in syncs}}
        found = self._broker.topics(named)
        ids = {named[remote]: facts.topic_id for remote, facts in found.items()}
        after = Position(before.topic_id, position, before.unreadable + unreadable, newest_ms)
        self._book.add(syncs, ids, after)
        return Polled(len(syncs), unreadable, max(0, end - position), has_missed)


def source_ends(fence: Fence) -> dict[TopicPartition, int]:
    """Return one past the last record of each partition of the source, or more, as a fence has it."""
    return {
        TopicPartition(topic.name, one.number): one.before if one.last_offset is None else one.last_offset + 1
        for topic in fence.topics
        for one in topic.partitions
    }


def _has(there: Mapping[str, TopicFacts], at: TopicPartition) -> bool:
    return at.topic in there and at.partition < there[at.topic].partitions
