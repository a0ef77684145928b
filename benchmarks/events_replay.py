"""Events into PostgreSQL: how many a second one core applies, and how many it finds applied before.

The figure is events per CPU second of both together, this process and the server: they take turns, so it is
what one core does alone.  ``run_all`` takes records from memory, ``from_broker`` the same ones from a real
broker, whose own CPU does not count: it is another machine's.
"""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.cluster import BenchCluster, bench_cluster
from benchmarks.harness import Row, ServerCpu
from benchmarks.kafka_node import KafkaNode
from cli.memory import settle_memory
from pitr.events.broker import Broker, EventRecord, GroupState, TopicFacts
from pitr.events.flows import EventFormat, Flow
from pitr.events.handlers import Handler, Handlers, SinkKind
from pitr.events.history import FIRST_LSN, Branch
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.events.partition import TopicPartition
from pitr.events.phantoms import PhantomList
from pitr.events.plan import PartitionPlan, ReplayPlan, RestoredPoint, Tally, TopicPlan
from pitr.events.replay import Ports, Replay, ReplayRequest, statuses_of
from pitr.events.sink_sql import SqlSink
from pitr.events.starts import StartReason
from pitr.postgres.applied_events import ReplaySession
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

_APPLIED_GOAL = 20_000.0
_DUPLICATES_GOAL = 50_000.0
_KEYS = 20_000
_FORK_XID = 1 << 31
_TABLES = """
CREATE TABLE accounts (
    id bigint PRIMARY KEY, owner text, balance bigint NOT NULL, moves int NOT NULL DEFAULT 0
)
"""
_OPENED = """
INSERT INTO accounts (id, owner, balance)
SELECT (payload->>'id')::bigint, payload->>'owner', (payload->>'amount')::bigint FROM pitr_batch
ON CONFLICT (id) DO NOTHING
"""
_MOVED = """
UPDATE accounts SET balance = balance + moved.amount, moves = moves + moved.count
FROM (
    SELECT (payload->>'id')::bigint AS id, sum((payload->>'amount')::bigint) AS amount, count(*)::int AS count
    FROM pitr_batch GROUP BY 1
) AS moved
WHERE accounts.id = moved.id
"""


@dataclass
class _Log:
    """A ``Broker`` of one topic that holds its records in memory."""

    logs: dict[TopicPartition, list[EventRecord]]

    def cluster_id(self) -> str:
        return "bench"

    def topics(self, _names: Iterable[str]) -> Mapping[str, TopicFacts]:
        return {}

    def names(self) -> Sequence[str]:
        return ["accounts"]

    def ends(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: len(self.logs[at]) for at in partitions}

    def high_watermarks(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self.ends(partitions)

    def begins(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def offsets_at(
        self, _moment: datetime, partitions: Iterable[TopicPartition]
    ) -> Mapping[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def group(self, name: str) -> GroupState:
        return GroupState(name, True, {})

    def set_group_offsets(self, name: str, offsets: Mapping[TopicPartition, int]) -> None:
        raise AssertionError(f"a replay moves no group: {name}, {len(offsets)} offsets")

    def read(self, at: TopicPartition, start: int, end: int) -> Iterator[EventRecord]:
        return iter(self.logs[at][start:end])

    def close(self) -> None: ...


def run_all(work: Path, quick: bool) -> list[Row]:
    count = 60_000 if quick else 200_000
    # As every command of pitr does.
    settle_memory()
    log = _make_log(count)
    # A broker's records come and go: those of this log must not be walked through again and again.
    gc.freeze()
    with bench_cluster(work, settings={"autovacuum": "on", "max_wal_size": "2GB"}) as cluster:
        cluster.execute(_TABLES)
        # Another end is another plan, and so another replay of the same events.
        ends = {at: len(records) for at, records in log.logs.items()}
        applied = _replay(cluster, log, _plan_of(ends), count)
        found = _replay(cluster, log, _plan_of({at: end + 1 for at, end in ends.items()}), count)
        assert (applied.applied, found.duplicates) == (count, count)
        return [
            _row("events: replay, applied", applied, _APPLIED_GOAL),
            _row("events: replay, found applied", found, _DUPLICATES_GOAL),
            Row(
                "events: replay, of that in the server",
                "%",
                round(100 * applied.server_s / applied.cpu_s),
                "(none)",
                None,
                None,
                "",
                None,
            ),
        ]


def from_broker(work: Path, node: KafkaNode, quick: bool) -> list[Row]:
    """Return the rows of replays that read from a broker: fetching, decoding and the consumer are in them."""
    log = _make_log(60_000 if quick else 200_000)
    records = [one for partition in log.logs.values() for one in partition]
    _produce(node, records)
    ends = {at: len(partition) for at, partition in log.logs.items()}
    count = len(records)
    del log, records
    settle_memory()
    broker = KafkaBroker(KafkaSettings(node.bootstrap))
    try:
        with bench_cluster(work, settings={"autovacuum": "on", "max_wal_size": "2GB"}) as cluster:
            cluster.execute(_TABLES)
            applied = _replay(cluster, broker, _plan_of(ends), count)
            # Another end is another plan: one record less is read.
            last = max(ends)
            found = _replay(cluster, broker, _plan_of({**ends, last: ends[last] - 1}), count - 1)
    finally:
        broker.close()
    assert (applied.applied, found.duplicates) == (count, count - 1)
    return [
        _row("events: replay from a broker, applied", applied, _APPLIED_GOAL),
        _row("events: replay from a broker, found applied", found, _DUPLICATES_GOAL),
    ]


def _produce(node: KafkaNode, records: Sequence[EventRecord]) -> None:
    """Put the records into a topic of their own, each where and in the order in which it was made."""
    partitions = 1 + max(one.at.partition for one in records)
    # The log's times are what they are, whenever this runs.
    forever = {"retention_ms": "-1", "message_timestamp_after_max_ms": str((1 << 63) - 1)}
    node.create_topic("accounts", partitions, **forever)
    producer = node.producer(**{"enable.idempotence": True, "queue.buffering.max.messages": 1_000_000})
    for one in records:
        producer.produce(
            "accounts",
            one.value,
            key=one.key,
            partition=one.at.partition,
            timestamp=one.timestamp_ms,
            headers=list(one.headers),
        )
    left = producer.flush(600)
    assert left == 0, f"{left} records were not produced"


@dataclass(frozen=True, slots=True)
class _Run:
    count: int
    applied: int
    duplicates: int
    wall_s: float
    cpu_s: float
    server_s: float


def _row(name: str, run: _Run, goal: float) -> Row:
    rate = run.count / run.cpu_s
    return Row(name, "/CPU-s", round(rate), "(none)", None, None, f">= {goal:g} /CPU-s", rate >= goal)


def _replay(cluster: BenchCluster, broker: Broker, plan: ReplayPlan, count: int) -> _Run:
    handlers = Handlers(
        SinkKind.SQL,
        (Handler("opened", 1, (_OPENED,), takes_many=True), Handler("moved", 1, (_MOVED,), takes_many=True)),
    )
    request = ReplayRequest(plan, handlers)
    server = ServerCpu(cluster.postmaster_pid)
    own, begun = time.process_time(), time.monotonic()
    with ReplaySession(cluster.dsn) as session:
        ports = Ports(broker, statuses_of(session), time.monotonic, time.sleep)
        result = Replay(request, ports, session, SqlSink(session)).run()
    own_s, wall_s = time.process_time() - own, time.monotonic() - begun
    # The session's process has ended, but the postmaster may not have said so yet.
    time.sleep(0.5)
    server_s = server.spent_s()
    return _Run(count, result.total("applied"), result.total("duplicate"), wall_s, own_s + server_s, server_s)


def _make_log(count: int) -> _Log:
    chance = random.Random(1)
    logs: dict[TopicPartition, list[EventRecord]] = {TopicPartition("accounts", at): [] for at in range(4)}
    ports = list(logs)
    seen: set[int] = set()
    for number in range(count):
        account = chance.randrange(_KEYS)
        kind = "moved" if account in seen else "opened"
        seen.add(account)
        at = ports[account % len(ports)]
        value = {"id": account, "amount": chance.randrange(-500, 500), "currency": "EUR"}
        if kind == "opened":
            value["owner"] = f"owner {account}"
        else:
            value["reference"] = f"transfer {number:012d}"
        headers = {
            "event-id": f"{chance.getrandbits(128):032x}",
            "event-type": kind,
            "event-version": "1",
            "pg-xid": str(_FORK_XID + number),
            "pg-tl": "1",
        }
        logs[at].append(
            EventRecord(
                at,
                len(logs[at]),
                1_790_000_000_000 + number,
                False,
                f"account-{account}".encode(),
                json.dumps(value).encode(),
                tuple((name, text.encode()) for name, text in headers.items()),
            )
        )
    return _Log(logs)


def _plan_of(ends: Mapping[TopicPartition, int]) -> ReplayPlan:
    partitions = tuple(
        PartitionPlan(at.partition, 0, end, StartReason.FENCE, False, None, None, Tally(end, to_apply=end))
        for at, end in ends.items()
    )
    return ReplayPlan(
        "bench",
        RestoredPoint(1, TimelineId(1), LSN(1 << 40), _FORK_XID),
        (Branch(TimelineId(1), FIRST_LSN, 0),),
        (),
        (),
        (TopicPlan("accounts", "id", Flow.DB_FIRST, EventFormat.HEADERS, False, partitions),),
        (),
        PhantomList(0, ()),
        PhantomList(0, ()),
    )
