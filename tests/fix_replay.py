"""What tests of replay share: a broker in memory, events, and plans for them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pitr.events.broker import EventRecord, GroupState, OffsetGone, TopicFacts
from pitr.events.flows import EventFormat, Flow
from pitr.events.gaps import Gap
from pitr.events.handlers import Handler, Handlers, SinkKind
from pitr.events.history import FIRST_LSN, Branch, XactStatus
from pitr.events.partition import TopicPartition
from pitr.events.phantoms import PhantomList
from pitr.events.plan import PartitionPlan, ReplayPlan, RestoredPoint, Tally, TopicPlan
from pitr.events.starts import StartReason
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

CLUSTER = "memory-cluster"
FORK_XID = 1_000_000
END = LSN(1 << 30)
FIRST_MS = 1_790_000_000_000


@dataclass
class MemoryBroker:
    """A ``Broker`` that holds its records in memory.  Offsets may have holes, as markers leave them."""

    records: dict[TopicPartition, list[EventRecord]] = field(default_factory=dict)
    log_starts: dict[TopicPartition, int] = field(default_factory=dict)
    groups: dict[str, GroupState] = field(default_factory=dict)
    reads: list[tuple[TopicPartition, int, int]] = field(default_factory=list)

    def add(self, record: EventRecord) -> EventRecord:
        log = self.records.setdefault(record.at, [])
        assert not log or log[-1].offset < record.offset
        log.append(record)
        return record

    def cluster_id(self) -> str:
        return CLUSTER

    def names(self) -> Sequence[str]:
        return sorted({at.topic for at in self.records})

    def topics(self, names: Iterable[str]) -> Mapping[str, TopicFacts]:
        found = {}
        for name in set(names) & set(self.names()):
            count = 1 + max(at.partition for at in self.records if at.topic == name)
            found[name] = TopicFacts(name, f"id-{name}", count, False, True, None, None, 0, False)
        return found

    def ends(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: self.records[at][-1].offset + 1 if self.records[at] else 0 for at in partitions}

    def high_watermarks(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self.ends(partitions)

    def begins(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: self.log_starts.get(at, 0) for at in partitions}

    def offsets_at(
        self, moment: datetime, partitions: Iterable[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        least = int(moment.timestamp() * 1000)
        ends = self.ends(partitions)
        return {
            at: next((one.offset for one in self.records[at] if one.timestamp_ms >= least), end)
            for at, end in ends.items()
        }

    def group(self, name: str) -> GroupState:
        return self.groups.get(name, GroupState(name, True, {}))

    def set_group_offsets(self, name: str, offsets: Mapping[TopicPartition, int]) -> None:
        self.groups[name] = GroupState(name, True, {**self.group(name).offsets, **offsets})

    def read(self, at: TopicPartition, start: int, end: int) -> Iterator[EventRecord]:
        self.reads.append((at, start, end))
        if (low := self.log_starts.get(at, 0)) > start:
            raise OffsetGone(at, start, low)
        for one in self.records.get(at, []):
            if start <= one.offset < end:
                yield one

    def close(self) -> None: ...


def event(
    offset: int,
    *,
    topic: str = "orders",
    partition: int = 0,
    event_type: str | None = "placed",
    version: int | None = 1,
    event_id: str | None = None,
    key: str | bytes | None = None,
    value: Any = None,
    xid: int | None = FORK_XID + 10,
    principal: str | None = None,
    headers: Sequence[tuple[str, bytes | None]] = (),
    timestamp_ms: int | None = None,
) -> EventRecord:
    """Return a record in the format ``headers``; ``value`` is bytes as they are, or written as JSON."""
    said = {
        "event-id": event_id if event_id is not None else f"{topic}-{partition}-{offset}",
        "event-type": event_type,
        "event-version": None if version is None else str(version),
        "pg-xid": None if xid is None else str(xid),
        "pg-tl": "1",
        "principal": principal,
    }
    return EventRecord(
        TopicPartition(topic, partition),
        offset,
        FIRST_MS + offset if timestamp_ms is None else timestamp_ms,
        False,
        key.encode() if isinstance(key, str) else key,
        value if isinstance(value, bytes) or value is None else json.dumps(value).encode(),
        (*((name, text.encode()) for name, text in said.items() if text is not None), *headers),
    )


def plan_of(
    broker: MemoryBroker,
    *,
    system_identifier: int,
    flow: Flow = Flow.DB_FIRST,
    topics: Sequence[str] | None = None,
    gaps: Mapping[TopicPartition, tuple[Gap, ...]] | None = None,
    ends: Mapping[TopicPartition, int] | None = None,
) -> ReplayPlan:
    """Return a plan to replay everything, to a little behind the last record unless ``ends`` say other."""
    names = broker.names() if topics is None else topics
    found = []
    for name in names:
        partitions = []
        for at in sorted(one for one in broker.records if one.topic == name):
            end = (ends or {}).get(at, broker.ends([at])[at] + 2)
            count = sum(1 for one in broker.records[at] if one.offset < end)
            partitions.append(
                PartitionPlan(
                    at.partition,
                    broker.log_starts.get(at, 0),
                    end,
                    StartReason.LOG_START,
                    False,
                    None,
                    0 if flow is not Flow.DB_FIRST else None,
                    Tally(records=count, to_apply=count),
                    (gaps or {}).get(at, ()),
                )
            )
        found.append(TopicPlan(name, f"id-{name}", flow, EventFormat.HEADERS, False, tuple(partitions)))
    return ReplayPlan(
        CLUSTER,
        RestoredPoint(system_identifier, TimelineId(1), END, FORK_XID),
        (Branch(TimelineId(1), FIRST_LSN, 0),),
        (),
        (),
        tuple(found),
        (),
        PhantomList(0, ()),
        PhantomList(0, ()),
    )


def all_committed(xids: Sequence[int]) -> Mapping[int, XactStatus]:
    """What a database says in which every transaction below the fork was committed."""
    return dict.fromkeys(xids, XactStatus.COMMITTED)


PLACED = Handler(
    "placed",
    1,
    (
        """
        INSERT INTO orders (id, customer, amount)
        SELECT (payload->>'id')::bigint, payload->>'customer', (payload->>'amount')::int FROM pitr_batch
        """,
    ),
)
CHANGED = Handler(
    "changed",
    1,
    (
        """
        UPDATE orders SET amount = (payload->>'amount')::int, changes = changes + 1
        FROM pitr_batch WHERE orders.id = (payload->>'id')::bigint
        """,
    ),
)
ORDERS = """
CREATE TABLE orders (
    id bigint PRIMARY KEY, customer text, amount int CHECK (amount < 1000000), changes int NOT NULL DEFAULT 0
)
"""


def orders_handlers(**changed: Any) -> Handlers:
    """Return handlers of ``placed`` and ``changed``."""
    return Handlers(**{"sink": SinkKind.SQL, "handlers": (PLACED, CHANGED), "sha256": "0" * 64, **changed})


LOGGED = Handler(
    "logged", 1, ("INSERT INTO logged SELECT event_id FROM pitr_batch ORDER BY seq",), takes_many=True
)
SHOP = ORDERS + "; CREATE TABLE logged (event_id text)"
SHOP_BATCH = 12


def shop_handlers() -> Handlers:
    """Return handlers for the events of ``shop``."""
    return orders_handlers(handlers=(PLACED, CHANGED, LOGGED))


def shop(seed: int) -> MemoryBroker:
    """Return a log with some of everything: orders, changes, notes, duplicates, poison, an unknown version.

    What is applied twice shows: a change counts, and a note has no key to hide behind.
    """
    chance = random.Random(seed)
    broker = MemoryBroker()
    known: dict[int, list[int]] = {0: [], 1: []}
    offsets = {0: 0, 1: 0}
    for number in range(90):
        partition = chance.randrange(2)
        at = offsets[partition] = offsets[partition] + chance.choice([1, 1, 1, 2, 3])
        kind = chance.choice(["placed", "changed", "changed", "logged", "again"])
        orders = known[partition]
        options: dict[str, Any] = {"partition": partition}
        if kind == "placed" or not orders:
            orders.append(number)
            options |= {"key": f"o{number}", "value": {"id": number, "customer": "c", "amount": 1}}
        elif kind == "changed":
            order = chance.choice(orders)
            amount = 10**9 if chance.random() < 0.05 else number
            options |= {"key": f"o{order}", "event_type": kind, "value": {"id": order, "amount": amount}}
            options["version"] = 9 if chance.random() < 0.05 else 1
        else:
            options |= {"event_type": "logged", "key": None, "value": {"n": number}}
            if kind == "again":
                options["event_id"] = f"note-{chance.randrange(4)}"
        broker.add(event(at, **options))
    return broker
