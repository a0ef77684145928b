"""Fences made by hand, and a cluster and a database that are played: they say what was asked, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pitr.errors import PitrError
from pitr.events.broker import ClusterNow
from pitr.events.fence import Fence, GroupFence, Mark, PartitionFence, TopicFence
from pitr.events.partition import TopicPartition
from pitr.postgres.fence_mark import Marked, MarkFacts
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

FENCE_AT = datetime(2026, 11, 23, 12, tzinfo=UTC)


def fence_of(
    number: int,
    *,
    timeline: int = 1,
    lsn: int | None = None,
    committed_by: int | None = None,
    before: int = 100,
    unknown: str | None = None,
) -> Fence:
    """Return fence ``number``; its positions ascend with it."""
    start = number * 1000 if lsn is None else lsn
    mark = Mark(
        number,
        7_000_000_000_000_000_001,
        TimelineId(timeline),
        LSN(start),
        xid=700 + number,
        oldest_xid=700 + number,
        next_xid=700 + number,
        at=FENCE_AT + timedelta(seconds=10 * number),
    )
    partitions = (PartitionFence(0, 0, before, before + 5), PartitionFence(1, 3, 7, None))
    topics = (TopicFence("orders", "b9qrx1LcTYKzTVmCgKwMiQ", partitions),)
    groups = (GroupFence("sink", {"orders": {0: before - 3, 1: 5}}),)
    return Fence(
        mark,
        collector_at=mark.at - timedelta(milliseconds=3),
        broker_at=None,
        cluster_id=None if unknown else "KsR1o9nPT2mG8yYqJ0a1bA",
        topics=() if unknown else topics,
        groups=() if unknown else groups,
        unknown=unknown,
        committed_by=LSN(start + 200 if committed_by is None else committed_by),
    )


@dataclass
class PlayedCluster:
    """Topics with ends; ``asked`` has the calls in order, ``fails`` what a call raises."""

    ends_now: dict[TopicPartition, int]
    low: int = 0
    stands: dict[TopicPartition, int] = field(default_factory=dict)
    """Where every group stands."""
    asked: list[str] = field(default_factory=list)
    fails: dict[str, PitrError] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    def _ask(self, name: str) -> None:
        self.asked.append(name)
        if name in self.fails:
            raise self.fails[name]

    def now(self, names: Iterable[str]) -> ClusterNow:
        self._ask("now")
        counts: dict[str, int] = {}
        for at in self.ends_now:
            counts[at.topic] = counts.get(at.topic, 0) + 1
        found = {name: (self.ids.get(name, "id-1"), counts[name]) for name in names if name in counts}
        return ClusterNow("cluster", found)

    def ends(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        self._ask("ends")
        return {at: self.ends_now[at] for at in partitions}

    def begins(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        self._ask("begins")
        return dict.fromkeys(partitions, self.low)

    def committed(
        self, groups: Iterable[str], partitions: Iterable[TopicPartition]
    ) -> Mapping[str, Mapping[TopicPartition, int]]:
        self._ask("committed")
        wanted = set(partitions)
        offsets = {at: offset for at, offset in self.stands.items() if at in wanted}
        return dict.fromkeys(groups, offsets)


@dataclass
class PlayedMarker:
    """Commits marks in memory; ``during`` happens between the offsets and the commit."""

    asked: list[str]
    payloads: list[str] = field(default_factory=list)
    during: Callable[[], None] = lambda: None
    fails: PitrError | None = None

    def mark(self, write: Callable[[MarkFacts], str]) -> Marked:
        self.asked.append("mark")
        self.during()
        if self.fails is not None:
            raise self.fails
        number = len(self.payloads) + 1
        facts = MarkFacts(
            number, 7_000_000_000_000_000_001, TimelineId(1), LSN(number * 1000), 700, 699, 700, FENCE_AT
        )
        self.payloads.append(write(facts))
        return Marked(facts, LSN(number * 1000 + 200))
