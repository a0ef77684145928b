"""Fences over a real broker and a real server, judged by where commits stand in WAL."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from fix_kafka import KafkaNode
from fix_ports import HOST, free_port
from fix_postgres import PostgresFactory, RunningPostgres
from psycopg.conninfo import make_conninfo

from pitr.events.broker import ClusterNow
from pitr.events.fence import Fence
from pitr.events.fence_choice import RowState, judge_row
from pitr.events.fence_take import OffsetSource, TakenFence, take_fence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.events.partition import TopicPartition
from pitr.postgres.fence_mark import FenceMarker, newest_rows
from pitr.wal.lsn import LSN

WRITERS = 4
_COMMIT = re.compile(r"tx:\s+(\d+), lsn: ([0-9A-F]+/[0-9A-F]+),.* desc: COMMIT")


@dataclass
class Flow4:
    """Writers that commit to the database and then publish: each event says its transaction."""

    server: RunningPostgres
    dsn: str
    kafka: KafkaNode
    topic: str
    begin: str
    xids: dict[int, int] = field(default_factory=dict)
    published: dict[TopicPartition, dict[int, int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def commit(self, session: psycopg.Connection[tuple[int, ...]]) -> int:
        row = session.execute(
            "INSERT INTO work DEFAULT VALUES RETURNING id, pg_current_xact_id()::text::bigint"
        ).fetchone()
        assert row is not None
        self.xids[row[0]] = row[1]
        return row[0]

    def publish(self, producer: Any, event: int) -> None:
        def done(error: object, message: Any) -> None:
            assert error is None, error
            at = TopicPartition(self.topic, message.partition())
            with self._lock:
                self.published.setdefault(at, {})[message.offset()] = event

        producer.produce(self.topic, b"%d" % event, key=b"%d" % event, on_delivery=done)
        producer.poll(0)

    def write(self, stopping: threading.Event) -> None:
        producer = self.kafka.producer(**{"linger.ms": 0})
        with psycopg.connect(self.dsn, autocommit=True) as session:
            while not stopping.is_set():
                self.publish(producer, self.commit(session))
        assert producer.flush(60) == 0

    def commit_lsns(self) -> Mapping[int, LSN]:
        """Return where the commit record of each transaction stands: what WAL says, nobody else."""
        end = self.server.value("SELECT pg_current_wal_flush_lsn()")
        program = self.server.instance.installation.bin_dir / "pg_waldump"
        words = [str(program), "-p", str(self.server.data_dir / "pg_wal"), "-r", "Transaction"]
        words += ["-s", self.begin, "-e", str(end)]
        told = subprocess.run(words, capture_output=True, text=True, timeout=120)
        assert told.returncode == 0, told.stderr
        return {int(xid): LSN.parse(lsn) for xid, lsn in _COMMIT.findall(told.stdout)}


@pytest.fixture(scope="module")
def server(module_postgres_factory: PostgresFactory) -> RunningPostgres:
    return module_postgres_factory(major=17)


@pytest.fixture
def flow(server: RunningPostgres, kafka_node: KafkaNode) -> Flow4:
    topic = kafka_node.new_topic(3)
    name = topic.replace("-", "_")
    begin = str(server.value("SELECT pg_current_wal_lsn()"))
    server.execute(f"CREATE DATABASE {name}")
    dsn = make_conninfo(server.dsn, dbname=name)
    server.execute("CREATE TABLE work (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)", dbname=name)
    return Flow4(server, dsn, kafka_node, topic, begin)


def declared(topic: str) -> tuple[FlowDeclaration, ...]:
    return (FlowDeclaration(topic, Flow.DB_FIRST),)


def take(source: OffsetSource, marker: FenceMarker, topic: str) -> TakenFence:
    return take_fence(source, marker, declared(topic), now=lambda: datetime.now(UTC))


def known(taken: TakenFence) -> Fence:
    assert (taken.fence.unknown, taken.trouble, taken.missing) == (None, None, ())
    return taken.fence


def missed(flow: Flow4, fence: Fence, commits: Mapping[int, LSN], *, after: bool) -> list[int]:
    """Return events below a fence's offsets whose commit is not before the mark's."""
    mark = commits[fence.mark.xid]
    assert fence.committed_by is not None
    assert fence.mark.lsn <= mark < fence.committed_by
    wrong = []
    for part in fence.topics[0].partitions:
        bound = part.after if after else part.before
        assert bound is not None
        events = flow.published.get(TopicPartition(flow.topic, part.number), {})
        wrong += [
            event for offset, event in events.items() if offset < bound if commits[flow.xids[event]] > mark
        ]
    return wrong


def test_every_event_below_a_fence_was_committed_before_its_mark(flow: Flow4) -> None:
    stopping = threading.Event()
    writers = [threading.Thread(target=flow.write, args=[stopping]) for _ in range(WRITERS)]
    broker = KafkaBroker(KafkaSettings(flow.kafka.bootstrap, call_timeout_s=60.0))
    fences: list[Fence] = []
    for writer in writers:
        writer.start()
    try:
        with FenceMarker(lambda: flow.dsn) as marker:
            while len(fences) < 50:
                fences.append(known(take(broker, marker, flow.topic)))
                time.sleep(0.02)
    finally:
        stopping.set()
        for writer in writers:
            writer.join(120)
    commits = flow.commit_lsns()
    assert len(flow.xids) > 100
    assert [missed(flow, fence, commits, after=False) for fence in fences] == [[]] * len(fences)
    assert sum(part.before for part in fences[-1].topics[0].partitions) > 0
    # The rows say what the signed copies will say.
    rows = newest_rows(flow.dsn, 100)
    signed = {fence.mark.number: fence for fence in fences}
    assert {judge_row(row.number, row.payload, signed).state for row in rows} == {RowState.SIGNED}


class WritesBetween:
    """A cluster to which an event is committed and published just before its ends are read again."""

    def __init__(self, inner: KafkaBroker, flow: Flow4, producer: Any) -> None:
        self._inner, self._flow, self._calls = inner, flow, 0
        self._producer = producer

    def now(self, names: Iterable[str]) -> ClusterNow:
        return self._inner.now(names)

    def begins(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self._inner.begins(partitions)

    def committed(
        self, groups: Iterable[str], partitions: Iterable[TopicPartition]
    ) -> Mapping[str, Mapping[TopicPartition, int]]:
        return self._inner.committed(groups, partitions)

    def ends(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
        self._calls += 1
        if self._calls == 2:
            with psycopg.connect(self._flow.dsn, autocommit=True) as session:
                self._flow.publish(self._producer, self._flow.commit(session))
            self._producer.flush(60)
        return self._inner.ends(partitions)


def test_offsets_that_are_read_after_the_mark_would_lose_an_event(flow: Flow4) -> None:
    broker = KafkaBroker(KafkaSettings(flow.kafka.bootstrap, call_timeout_s=60.0))
    producer = flow.kafka.producer()
    with FenceMarker(lambda: flow.dsn) as marker:
        fence = known(take(WritesBetween(broker, flow, producer), marker, flow.topic))
    commits = flow.commit_lsns()
    assert missed(flow, fence, commits, after=False) == []
    assert len(missed(flow, fence, commits, after=True)) == 1, "this is why they are read before it"


def test_kafka_away_marks_that_nothing_is_known(flow: Flow4) -> None:
    broker = KafkaBroker(KafkaSettings(f"{HOST}:{free_port()}", call_timeout_s=1.0))
    began = time.monotonic()
    with FenceMarker(lambda: flow.dsn) as marker:
        found = take(broker, marker, flow.topic)
    assert time.monotonic() - began < 60
    assert found.fence.unknown is not None
    assert "no answer from Kafka" in found.fence.unknown
    (row,) = newest_rows(flow.dsn, 10)
    assert judge_row(row.number, row.payload, {row.number: found.fence}).state is RowState.SIGNED


def test_a_recreated_topic_has_another_id_in_the_next_fence(flow: Flow4) -> None:
    broker = KafkaBroker(KafkaSettings(flow.kafka.bootstrap, call_timeout_s=60.0))
    flow.kafka.produce(flow.topic, [b"x"] * 5)
    with FenceMarker(lambda: flow.dsn) as marker:
        first = known(take(broker, marker, flow.topic))
        flow.kafka.delete_topic(flow.topic)
        gone = take(broker, marker, flow.topic)
        assert gone.missing == (flow.topic,)
        assert gone.fence.topics == ()
        flow.kafka.create_topic(flow.topic, 3)
        again = known(take(broker, marker, flow.topic))
    assert first.topics[0].topic_id != again.topics[0].topic_id
    assert [part.before for part in again.topics[0].partitions] == [0, 0, 0]
