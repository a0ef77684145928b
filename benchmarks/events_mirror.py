"""Records of a mirror that are read to translate an offset of its source exactly.

The mirror is in memory, shaped as a real one was measured: pairs come in bursts up to a thousand records
apart, one transaction of ten is aborted, a crash copies some thousands of records again.  What counts is how
many records are read, which is the same wherever they lie.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from benchmarks.harness import Row
from pitr.events.broker import EventRecord
from pitr.events.identity import identity_of
from pitr.events.mirror_search import READ_MAX, search
from pitr.events.partition import TopicPartition
from pitr.events.sync_pairs import KnownPairs, SyncPair, add_pairs, thin
from pitr.events.translate import mirror_log, translate

_SEED = 20261130
_AT = TopicPartition("eu.orders", 0)
_PER_MS = 3
_LAG = 100
_BURST_MAX = 1_000


@dataclass
class _Target:
    """The part of a ``Broker`` that a search asks."""

    records: list[EventRecord] = field(default_factory=list)
    read_count: int = 0

    def offsets_at(
        self, moment: datetime, partitions: Iterable[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        stamp = moment.timestamp() * 1000
        return {
            at: next((one.offset for one in self.records if one.timestamp_ms >= stamp), len(self.records))
            for at in partitions
        }

    def read(self, at: TopicPartition, start: int, end: int) -> Iterator[EventRecord]:
        for offset in range(start, end):
            assert at == _AT, "it has one partition"
            self.read_count += 1
            yield self.records[offset]


def _mirrored(count: int, draw: random.Random) -> tuple[_Target, list[int], KnownPairs]:
    """Return the target, upstream offsets of the source's records, and the pairs; the mirror crashes once."""
    upstream: list[int] = []
    offset = 0
    while len(upstream) < count:
        size = draw.randint(1, 40)
        if draw.random() >= 0.1:
            upstream += range(offset, offset + size)
        offset += size + 1  # the transaction's marker
    pairs: tuple[SyncPair, ...] = ()
    target, due = _Target(), 0
    crash = count // 2
    for index in [*range(crash), *range(crash - 3_000, len(upstream))]:
        at = len(target.records)
        stamp = 1_700_000_000_000 + index // _PER_MS
        name = str(index).encode()
        target.records.append(EventRecord(_AT, at, stamp, False, b"k%d" % (index % 97), name))
        if at >= due or index == crash - 3_000:
            pairs = add_pairs(pairs, [SyncPair(upstream[index], at)])
            # Few pairs are under way at a time: in a burst they are far apart.
            due = at + (_LAG if draw.random() < 0.8 else draw.randint(_LAG, _BURST_MAX))
    return target, upstream, KnownPairs("t", thin(pairs), settled=len(target.records))


def run_all(_work: Path, quick: bool) -> list[Row]:
    """Return the figures; the goal is READ_MAX for each."""
    draw = random.Random(_SEED)
    target, upstream, known = _mirrored(12_000 if quick else 60_000, draw)
    log = mirror_log(known, log_start=0, end=len(target.records))
    reads, exact = [], 0
    tried = 100 if quick else 500
    for index in draw.sample(range(1, len(upstream)), tried):
        wanted = target.records[index if index < len(upstream) // 2 else index + 3_000]
        told = translate(log, upstream[index] + 1, last_offset=upstream[index])
        target.read_count = 0
        done = search(target, _AT, told, identity_of(wanted))
        exact += done.translation.is_exact
        reads.append(target.read_count)
    return [
        Row(
            "events: an offset over a mirror: records read, most",
            "records",
            float(max(reads)),
            f"median {statistics.median(reads):.0f}, {exact} of {tried} exact",
            None,
            None,
            f"≤ {READ_MAX}",
            max(reads) <= READ_MAX,
        )
    ]
