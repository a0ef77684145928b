"""A compacted topic on a real broker: last values are replayed, and what goes after the plan is missed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from fix_cli import wait_until
from fix_kafka import KafkaNode, MakeKafka
from fix_postgres import PostgresFactory, RunningPostgres
from fix_replay import FORK_XID, all_committed

from pitr.events.classify import Lineage
from pitr.events.fence import Fence, Mark, PartitionFence, TopicFence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.handlers import Handler, Handlers, SinkKind
from pitr.events.history import FIRST_LSN, Branch
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.events.partition import TopicPartition
from pitr.events.plan import ReplayPlan
from pitr.events.plan_build import PlanRequest, build_plan
from pitr.events.reconcile import Reconciled, Replayed, Verdict, reconcile
from pitr.events.replay import Ports, Replay, ReplayRequest
from pitr.events.sink_sql import SqlSink
from pitr.events.starts import FenceView, StartReason
from pitr.postgres.applied_events import ReplaySession
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

ONE = TimelineId(1)
LINEAGE = Lineage((Branch(ONE, FIRST_LSN, 0),), LSN(1 << 40), FORK_XID)
SYSTEM = 7_300_000_000_000_000_001
SET = """
    INSERT INTO state SELECT key, (payload->>'n')::int FROM pitr_batch
    ON CONFLICT (key) DO UPDATE SET n = excluded.n"""
HANDLERS = Handlers(
    SinkKind.SQL,
    (
        Handler("set", 1, (SET,)),
        Handler("gone", 1, ("DELETE FROM state USING pitr_batch AS one WHERE state.key = one.key",)),
    ),
)
# A cleaner that looks all the time.
CLEANER = {"log.cleaner.backoff.ms": "200"}
TOPIC = {
    "cleanup_policy": "compact",
    "min_cleanable_dirty_ratio": "0.01",
    "delete_retention_ms": "86400000",
}


class State:
    """A topic that holds the state of keys, and the restored database."""

    def __init__(self, node: KafkaNode, server: RunningPostgres) -> None:
        self.node, self.server = node, server
        self.at = TopicPartition(node.new_topic(1, **TOPIC), 0)
        self.broker = KafkaBroker(KafkaSettings(node.bootstrap, call_timeout_s=60.0))
        self.count = 0

    def write(self, key: str, number: int | None, xid: int) -> None:
        """Set a key, or remove it where there is no number."""
        said = {
            "event-id": uuid.uuid4().hex,
            "event-type": "gone" if number is None else "set",
            "pg-xid": str(xid),
            "pg-tl": "1",
        }
        headers = [(name, text.encode()) for name, text in said.items()]
        value: list[bytes | None] = [None if number is None else b'{"n": %d}' % number]
        self.node.produce(self.at.topic, value, key=key.encode(), headers=headers)  # type: ignore[arg-type]
        self.count += 1

    def close_segment(self) -> None:
        """Let the next record begin a segment: the cleaner leaves the open one alone."""
        from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

        entry = ConfigEntry("segment.ms", "100", incremental_operation=AlterConfigOpType.SET)
        topic = ConfigResource(ResourceType.TOPIC, self.at.topic, incremental_configs=[entry])
        admin = self.node.admin()  # it must live until the answer is there
        admin.incremental_alter_configs([topic])[topic].result(60)
        time.sleep(0.2)

    def offsets(self) -> list[int]:
        return [one.offset for one in self.broker.read(self.at, 0, self.broker.ends([self.at])[self.at])]

    def fence(self) -> Fence:
        end = self.broker.ends([self.at])[self.at]
        facts = self.broker.topics([self.at.topic])[self.at.topic]
        moment = datetime.now(UTC)
        mark = Mark(1, SYSTEM, ONE, LSN(1 << 20), 100, 90, 100, moment)
        topic = TopicFence(self.at.topic, facts.topic_id, (PartitionFence(0, 0, end),))
        return Fence(mark, moment, None, self.broker.cluster_id(), (topic,), (), committed_by=LSN(1 << 21))

    def plan(self, fence: Fence) -> ReplayPlan:
        flows = [FlowDeclaration(self.at.topic, Flow.DB_FIRST)]
        view = FenceView((fence,), ())
        request = PlanRequest(flows, SYSTEM, LINEAGE, view, all_committed, wait=lambda: False)
        return build_plan(request, self.broker)

    def replay(self, plan: ReplayPlan) -> Reconciled:
        ports = Ports(self.broker, all_committed, time.monotonic, time.sleep)
        with ReplaySession(self.server.dsn) as session:
            found = Replay(ReplayRequest(plan, HANDLERS), ports, session, SqlSink(session)).run()
        replayed = {at: Replayed(found.cursors[at], counts) for at, counts in found.counts.items()}
        [row] = reconcile(plan, replayed)
        return row

    def rows(self) -> Mapping[object, object]:
        return dict(self.server.execute("SELECT key, n FROM state"))  # type: ignore[arg-type]


@pytest.mark.timeout(900)
def test_last_values_are_replayed_and_what_is_compacted_after_the_plan_is_missed(
    make_kafka: MakeKafka, postgres_factory: PostgresFactory
) -> None:
    state = State(make_kafka(settings=CLEANER).start(), postgres_factory(17))
    state.server.execute("CREATE TABLE state (key text PRIMARY KEY, n int)")
    for key in ("a", "b", "c"):
        state.write(key, 1, FORK_XID - 10)
    state.server.execute("INSERT INTO state VALUES ('a', 1), ('b', 1), ('c', 1)")
    fence = state.fence()
    for number in range(2, 6):
        for key in ("a", "b", "c"):
            state.write(key, number, FORK_XID + number)
    state.write("c", None, FORK_XID + 9)
    early = state.plan(fence)
    assert early.topics[0].is_lossy
    assert (early.tally.records, early.tally.to_apply) == (13, 13)

    state.close_segment()
    state.write("z", 7, FORK_XID + 20)
    last = [12, 13, 15, 16]
    wait_until(lambda: state.offsets() == last, f"only {last} are left", timeout_s=120)
    [at] = [state.at]
    assert state.broker.begins([at]) == {at: 0}, "nothing but the records says that some are gone"
    assert state.broker.last_records({at: 17}, 60.0)[at].offset == 16

    plan = state.plan(fence)
    [partition] = plan.topics[0].partitions
    assert (partition.start, partition.end, partition.reason) == (3, 17, StartReason.FENCE)
    assert (partition.tally.records, partition.tally.to_apply, partition.gaps) == (4, 4, ())
    row = state.replay(plan)
    assert (row.verdict, row.applied, row.missing) == (Verdict.RECONCILED, 4, 0)
    assert state.rows() == {"a": 5, "b": 5, "z": 7}

    # The plan from before has counted what nobody can read now.
    row = state.replay(early)
    assert (row.verdict, row.duplicates, row.missing) == (Verdict.MISSING, 3, 10)
    assert state.rows() == {"a": 5, "b": 5, "z": 7}
