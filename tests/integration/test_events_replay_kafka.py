"""Replay from a real broker: by the command into PostgreSQL, and to a topic, each event once."""

from __future__ import annotations

import contextlib
import io
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fix_cli import wait_until
from fix_kafka import KafkaNode
from fix_postgres import PostgresFactory, RunningPostgres
from fix_replay import FORK_XID, ORDERS, all_committed

from cli.config_template import NewConfig, NewRegion, render_config
from cli.main import run_cli
from pitr.events.broker import BrokerRefused, BrokerUnavailable
from pitr.events.flows import EventFormat, Flow
from pitr.events.handlers import Handlers, SinkKind
from pitr.events.history import FIRST_LSN, Branch
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.events.kafka_producer import KafkaProducer
from pitr.events.partition import TopicPartition
from pitr.events.phantoms import PhantomList
from pitr.events.plan import (
    GroupPlan,
    OffsetReset,
    PartitionPlan,
    ReplayPlan,
    RestoredPoint,
    Tally,
    TopicPlan,
)
from pitr.events.plan_code import encode_plan
from pitr.events.quarantine import OffsetSpan, QuarantineRule
from pitr.events.replay import Ports, Replay, ReplayRequest, ReplayResult
from pitr.events.replay_apply import Sink
from pitr.events.replay_batch import Event
from pitr.events.sink_topic import TopicSink
from pitr.events.starts import StartReason
from pitr.pipeline.keys import Identity, best_suite
from pitr.postgres.applied_events import ReplaySession
from pitr.postgres.restored_history import left_at
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

# Times of these events are made up: a broker deletes what is too old, the segment that it writes to as well,
# some 30 s after its start and each five minutes.
KEPT = {"retention_ms": "-1"}
HANDLERS = """
[sink]
kind = "sql"
[[handler]]
type = "placed"
sql = '''
INSERT INTO orders (id, customer, amount)
SELECT (payload->>'id')::bigint, payload->>'customer', (payload->>'amount')::int FROM pitr_batch
'''
[[quarantine]]
name = "attack"
principals = ["mallory"]
"""


@dataclass
class Shop:
    """A topic of orders, the restored database, and a configuration that names both."""

    node: KafkaNode
    server: RunningPostgres
    database: str
    folder: Path
    topic: str

    @property
    def dsn(self) -> str:
        return f"{self.server.dsn} dbname={self.database}"

    def broker(self) -> KafkaBroker:
        return KafkaBroker(KafkaSettings(self.node.bootstrap))

    def produce(self, numbers: Sequence[int], *, aborted: bool = False, **headers: str) -> None:
        broker = self.broker()
        ports = [TopicPartition(self.topic, at) for at in range(2)]
        before = broker.ends(ports)
        producer = self.node.producer(**{"transactional.id": f"shop-{uuid.uuid4()}"})
        producer.init_transactions(60)
        producer.begin_transaction()
        for number in numbers:
            said = {
                "event-id": f"order-{number}",
                "event-type": "placed",
                "event-version": "1",
                "pg-xid": str(FORK_XID + number),
                "pg-tl": "1",
                **headers,
            }
            value = {"id": number, "customer": "aborted" if aborted else "c", "amount": 1}
            producer.produce(
                self.topic,
                json.dumps(value).encode(),
                key=f"k{number}".encode(),
                partition=number % 2,
                headers=[(name, text.encode()) for name, text in said.items()],
                timestamp=1_790_000_000_000 + number,
            )
        producer.flush(60)
        if aborted:
            producer.abort_transaction(60)
        else:
            producer.commit_transaction(60)

        def is_over() -> bool:
            # The markers are written after the commit was acknowledged; each takes an offset.
            own = {at: sum(1 for number in numbers if number % 2 == at.partition) for at in ports}
            ends = broker.ends(ports)
            return all(ends[at] >= before[at] + own[at] + 1 for at in ports if own[at])

        wait_until(is_over, "the transaction's markers are written", timeout_s=60)

    def plan(self, groups: tuple[GroupPlan, ...] = ()) -> ReplayPlan:
        broker = self.broker()
        ports = [TopicPartition(self.topic, number) for number in range(2)]
        ends = broker.ends(ports)
        with ReplaySession(self.dsn) as session:
            identifier = session.system_identifier()
        counted = {at: Tally(records=sum(1 for _ in broker.read(at, 0, ends[at]))) for at in ports}
        partitions = tuple(
            PartitionPlan(at.partition, 0, ends[at], StartReason.FENCE, False, None, None, counted[at])
            for at in ports
        )
        topic_id = broker.topics([self.topic])[self.topic].topic_id
        return ReplayPlan(
            broker.cluster_id(),
            RestoredPoint(identifier, TimelineId(1), self.end(), FORK_XID),
            (Branch(TimelineId(1), FIRST_LSN, 0),),
            (),
            (),
            (TopicPlan(self.topic, topic_id, Flow.DB_FIRST, EventFormat.HEADERS, False, partitions),),
            groups,
            PhantomList(0, ()),
            PhantomList(0, ()),
        )

    def end(self) -> LSN:
        """Return where the server left its first timeline."""
        found = left_at(self.dsn, TimelineId(1))
        assert found is not None
        return found

    def pitr(self, *words: object, exit_code: int = 0) -> Any:
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            found = run_cli(["--json", "--config", str(self.folder / "pitr.toml"), *map(str, words)])
        assert found == exit_code, stdout.getvalue() + stderr.getvalue()
        return json.loads(stdout.getvalue())

    def orders(self) -> list[object]:
        return [
            row[0] for row in self.server.execute("SELECT id FROM orders ORDER BY 1", dbname=self.database)
        ]


@pytest.fixture(scope="module")
def server(module_postgres_factory: PostgresFactory) -> RunningPostgres:
    """Return a server that was promoted, as a restored one is: it is on its second timeline."""
    found = module_postgres_factory(17)
    found.stop()
    signal = found.data_dir / "standby.signal"
    signal.touch()
    signal.chmod(0o666)
    found.start()
    found.instance.promote()
    return found


@pytest.fixture
def shop(kafka_node: KafkaNode, server: RunningPostgres, tmp_path: Path) -> Shop:
    name = f"shop{uuid.uuid4().hex[:8]}"
    server.execute(f"CREATE DATABASE {name}")
    server.execute(ORDERS, dbname=name)
    topic = kafka_node.new_topic(2, **KEPT)
    identity = Identity(bytes(range(32)))
    config = NewConfig(
        cluster="main",
        dsn="host=/run/nowhere user=postgres",
        slot="pitr",
        repository="0" * 32,
        root=str(identity.root_signer().public),
        recipients=(str(identity.recipient(best_suite())),),
        quorum=1,
        regions=(NewRegion("north", f"file://{tmp_path}/north"),),
        signing_key_file=tmp_path / "signing-key.toml",
        state_dir=tmp_path / "state",
    )
    (tmp_path / "handlers.toml").write_text(HANDLERS)
    (tmp_path / "pitr.toml").write_text(
        render_config(config)
        + f'\n[events]\nbootstrap = "{kafka_node.bootstrap}"\n'
        + '[events.replay]\nhandlers_file = "handlers.toml"\n'
        + f'[[events.topic]]\nname = "{topic}"\nflow = "db-first"\n'
    )
    return Shop(kafka_node, server, name, tmp_path, topic)


def test_the_command_replays_what_the_plan_names_and_nothing_that_was_aborted(shop: Shop) -> None:
    shop.produce(range(20))
    shop.produce(range(20, 30), aborted=True)
    shop.produce([30, 31], principal="mallory")
    shop.produce(range(40, 50))
    plan = shop.plan()
    path = shop.folder / "plan.json"
    path.write_bytes(encode_plan(plan))
    good = [*range(20), *range(40, 50)]
    words = ["events", "replay", "--plan", path, "--restored", shop.dsn]
    assert shop.pitr(*words, exit_code=2)["error"]["code"] == "PITR-2001"
    assert shop.pitr(*words, "--plan-hash", "0" * 64, exit_code=2)["error"]["code"] == "PITR-2003"
    dry = shop.pitr(*words, "--dry-run")["data"]
    assert [(one["table"], one["inserted"]) for one in dry["diff"]] == [("orders", len(good))]
    assert shop.orders() == []
    words += ["--plan-hash", dry["plan_hash"], "--batch", 7, "--rate-limit", 1000]
    done = shop.pitr(*words)["data"]
    assert shop.orders() == good
    assert sum(one["counts"]["applied"] for one in done["partitions"]) == len(good)
    ends = shop.broker().ends([TopicPartition(shop.topic, at) for at in range(2)])
    assert [one["next_offset"] for one in done["partitions"]] == list(ends.values())
    again = shop.pitr(*words)
    assert again["data"]["partitions"] == done["partitions"]
    assert "2 events are held back" in again["warnings"][0]
    listed = shop.pitr("events", "quarantine", "list", "--restored", shop.dsn)["data"]
    assert [(one["reason"], one["key"]) for one in listed["events"]] == [("rule", "k30"), ("rule", "k31")]
    release = ["events", "quarantine", "release", "--restored", shop.dsn, "--replay", done["replay_id"]]
    shop.pitr(*release, exit_code=2)
    number = listed["events"][0]["number"]
    assert shop.pitr(*release, number)["data"] == {"applied": 1, "duplicate": 0, "held": 0}
    assert shop.orders() == sorted([*good, 30])


def test_a_log_that_has_changed_since_the_plan_was_made_ends_with_7_and_says_where(shop: Shop) -> None:
    shop.produce(range(20))
    plan = shop.plan()
    [topic] = plan.topics
    first, second = topic.partitions
    # Compaction has taken two of those that the plan counted.
    counted = replace(first, tally=Tally(records=first.tally.records + 2))
    plan = replace(plan, topics=(replace(topic, partitions=(counted, second)),))
    path = shop.folder / "plan.json"
    path.write_bytes(encode_plan(plan))
    words = ["events", "replay", "--plan", path, "--restored", shop.dsn]
    for more in (("--dry-run",), ("--plan-hash", plan.hash), ("--plan-hash", plan.hash)):
        told = shop.pitr(*words, *more, exit_code=7)
        assert told["error"]["code"] == "PITR-7002"
        assert told["error"]["why"] == f"{shop.topic}[0]: the plan has 12 events, and 10 were read"
        assert sum(one["counts"]["applied"] for one in told["data"]["partitions"]) == 20
    assert shop.orders() == list(range(20))


def test_a_dry_run_says_why_events_would_be_held_and_names_that_are_none_are_refused(shop: Shop) -> None:
    shop.produce(range(4), **{"event-version": "7"})
    shop.produce([4], principal="mallory")
    plan = shop.plan()
    path = shop.folder / "plan.json"
    path.write_bytes(encode_plan(plan))
    words = ["events", "replay", "--plan", path, "--restored", shop.dsn]
    held = shop.pitr(*words, "--dry-run")["data"]["held_because"]
    assert [(one["reason"], one["detail"], one["count"]) for one in held] == [
        ("unknown version", "no handler takes placed 7", 4),
        ("rule", "attack", 1),
    ]
    done = shop.pitr(*words, "--plan-hash", plan.hash)
    assert done["data"]["held_because"] == held
    quarantine = ["events", "quarantine"]
    for verb in (["list"], ["release", "--all"], ["drop", "--reason", "rule", "--yes"]):
        told = shop.pitr(*quarantine, *verb, "--restored", shop.dsn, "--replay", "nonesuch", exit_code=2)
        assert told["error"]["message"] == "no replay 'nonesuch' ran into this database"
    named = ["--restored", shop.dsn, "--replay", done["data"]["replay_id"]]
    for verb in (["release", "--reason", "attack"], ["drop", "--reason", "attack", "--yes"]):
        assert "nothing that is held was meant" in shop.pitr(*quarantine, *verb, *named)["warnings"][0]
    listed = shop.pitr(*quarantine, "list", *named)["data"]
    assert [one["held"] for one in listed["counts"]] == [1, 4]
    assert listed["events"][0]["held_at"].endswith("Z")


def test_a_file_that_is_no_plan_is_refused_as_what_it_is(shop: Shop) -> None:
    path = shop.folder / "plan.json"
    words = ["events", "replay", "--plan", path, "--restored", shop.dsn, "--dry-run"]
    error = shop.pitr(*words, exit_code=2)["error"]
    assert (error["code"], error["message"]) == ("PITR-2003", f"the plan {path} cannot be read")
    good = encode_plan(shop.plan())
    for content in (b"", HANDLERS.encode(), good.replace(b'"end":', b'"end":1'), good[:-20]):
        path.write_bytes(content)
        error = shop.pitr(*words, exit_code=2)["error"]
        assert (error["code"], error["message"]) == ("PITR-2003", f"{path} is no plan that can be replayed")


def test_what_came_since_the_plan_is_not_replayed_and_told(shop: Shop) -> None:
    shop.produce(range(4))
    plan = shop.plan()
    path = shop.folder / "plan.json"
    path.write_bytes(encode_plan(plan))
    words = ["events", "replay", "--plan", path, "--restored", shop.dsn, "--plan-hash", plan.hash]
    assert shop.pitr(*words, "--dry-run")["warnings"] == []
    shop.produce([7])
    (told,) = shop.pitr(*words)["warnings"]
    # One event and the marker of its transaction.
    assert told.startswith(
        f"2 records came since the plan was made, the first in {shop.topic}[1], and are not"
    )
    assert shop.orders() == [0, 1, 2, 3]


def test_a_plan_for_another_restore_of_the_same_cluster_is_refused(shop: Shop) -> None:
    shop.produce(range(4))
    good = shop.plan()
    path = shop.folder / "plan.json"
    earlier = replace(good.restored, end=LSN(good.restored.end.offset - 8))
    elsewhere = replace(good.restored, timeline=TimelineId(2))
    for restored, said in ((earlier, f"at {good.restored.end}"), (elsewhere, "it never left that timeline")):
        plan = replace(good, restored=restored)
        path.write_bytes(encode_plan(plan))
        words = ["events", "replay", "--plan", path, "--restored", shop.dsn, "--plan-hash", plan.hash]
        error = shop.pitr(*words, exit_code=2)["error"]
        assert error["message"] == "the plan is for another restore of this cluster"
        assert said in error["why"]
    assert shop.orders() == []


def test_a_topic_that_was_made_again_is_refused_and_records_that_went_are_a_gap(shop: Shop) -> None:
    shop.produce(range(20))
    path = shop.folder / "plan.json"
    plan = shop.plan()
    path.write_bytes(encode_plan(plan))
    words = ["events", "replay", "--plan", path, "--restored", shop.dsn, "--plan-hash", plan.hash]
    shop.node.delete_records(shop.topic, 3)
    assert shop.pitr(*words, exit_code=4)["error"]["code"] == "PITR-4004"
    shop.node.delete_topic(shop.topic)
    shop.node.create_topic(shop.topic, 2)
    assert "not the one" in shop.pitr(*words, exit_code=2)["error"]["message"]
    assert shop.orders() == []


def test_groups_are_shown_and_moved_back_but_never_forwards_or_under_a_consumer(shop: Shop) -> None:
    shop.produce(range(20))
    broker, group = shop.broker(), f"sink-{uuid.uuid4()}"
    first, second = (TopicPartition(shop.topic, at) for at in range(2))
    set_soon(broker, group, {first: 8, second: 2})
    plan = shop.plan(
        (GroupPlan(group, (OffsetReset(shop.topic, 0, 8, 5), OffsetReset(shop.topic, 1, 2, 5))),)
    )
    path = shop.folder / "plan.json"
    path.write_bytes(encode_plan(plan))
    words = ["events", "reset-groups", "--plan", path]
    shown = shop.pitr(*words)["data"]
    assert [(one["now"], one["to"], one["is_needed"]) for one in shown["moves"]] == [
        (8, 5, True),
        (2, 5, False),
    ]
    assert shown["moved"] == 0
    assert broker.group(group).offsets == {first: 8, second: 2}
    shop.pitr(*words, "--yes", exit_code=2)
    consumer = shop.node.consumer(group)
    consumer.subscribe([shop.topic])
    wait_until(lambda: consumer.poll(0.5) or consumer.assignment(), "it is a member", timeout_s=60)
    busy = shop.pitr(*words, "--yes", "--plan-hash", plan.hash, exit_code=2)["error"]
    assert "has members" in busy["message"]
    consumer.close()
    assert shop.pitr(*words, "--yes", "--plan-hash", plan.hash)["data"]["moved"] == 1
    assert broker.group(group).offsets == {first: 5, second: 2}
    assert shop.pitr(*words, "--yes", "--plan-hash", plan.hash)["data"]["moved"] == 0


def set_soon(broker: KafkaBroker, group: str, offsets: dict[TopicPartition, int]) -> None:
    """Set a new group's offsets: who keeps them is found out by its first request."""

    def is_set() -> bool:
        try:
            broker.set_group_offsets(group, offsets)
        except BrokerUnavailable:
            return False
        return True

    wait_until(is_set, "the group has a coordinator", timeout_s=60)


# -- to a topic


class Cut(Exception):
    """What ends a run where it is."""


class CutSink:
    """A sink that ends the run right before, or right after, the Nth batch is in Kafka."""

    is_json = False

    def __init__(self, inner: TopicSink, batch: int, is_after: bool) -> None:
        self._inner, self._left, self._is_after = inner, batch, is_after

    def cursors(self) -> Mapping[TopicPartition, int]:
        return self._inner.cursors()

    def apply(self, events: Sequence[Event]) -> None:
        self._inner.apply(events)

    def settle(self, cursors: Mapping[TopicPartition, int]) -> None:
        self._left -= 1
        if not self._left and not self._is_after:
            raise Cut
        self._inner.settle(cursors)
        if not self._left:
            raise Cut

    def close(self) -> None:
        self._inner.close()


def run_to_topic(
    shop: Shop,
    plan: ReplayPlan,
    target: str,
    cut: tuple[int, bool] | None = None,
    rules: tuple[QuarantineRule, ...] = (),
) -> ReplayResult:
    broker = shop.broker()
    handlers = Handlers(SinkKind.TOPIC, target=target, rules=rules)
    request = ReplayRequest(plan, handlers, batch_records=5)
    producer = KafkaProducer(KafkaSettings(shop.node.bootstrap), request.replay_id, broker)
    inner = TopicSink(producer, target, plan.cluster_id, request.replay_id)
    sink: Sink = inner if cut is None else CutSink(inner, *cut)
    with ReplaySession(shop.dsn) as session, contextlib.closing(sink):
        ports = Ports(broker, all_committed, lambda: 0.0, lambda _seconds: None)
        return Replay(request, ports, session, sink).run()


def test_an_event_that_the_topic_never_takes_is_named_and_can_be_held_by_a_rule(shop: Shop) -> None:
    shop.topic = shop.node.new_topic(2, **KEPT, message_timestamp_after_max_ms=str((1 << 63) - 1))
    shop.produce(range(4))
    said = {"event-id": b"late", "event-type": b"placed", "pg-xid": b"%d" % (FORK_XID + 9), "pg-tl": b"1"}
    parts = {"key": b"k0", "headers": list(said.items()), "timestamp": 7_000_000_000_000}
    shop.node.produce(shop.topic, [b"{}"], **parts)
    at = TopicPartition(shop.topic, 0)
    offset = shop.broker().ends([at])[at] - 1
    shop.produce(range(4, 8))
    plan, target = shop.plan(), shop.node.new_topic(1, **KEPT)
    with pytest.raises(BrokerRefused) as refused:
        run_to_topic(shop, plan, target)
    place = f"{plan.cluster_id}/{shop.topic}/0/{offset}"
    assert refused.value.message == f"Kafka refuses the event {place}, or one that was sent with it"
    assert "TIMESTAMP" in str(refused.value.detail)
    rule = QuarantineRule("late", offsets=(OffsetSpan(shop.topic, 0, offset, offset + 1),))
    result = run_to_topic(shop, plan, target, rules=(rule,))
    assert (result.total("applied"), result.total("held")) == (8, 1)


def test_a_topic_gets_each_event_once_whatever_cuts_the_runs(shop: Shop) -> None:
    shop.produce(range(30), tenant="t1")
    plan = shop.plan()
    target = shop.node.new_topic(1, **KEPT)
    for cut in ((1, True), (1, False), (2, True), (2, False)):
        with pytest.raises(Cut):
            run_to_topic(shop, plan, target, cut)
    result = run_to_topic(shop, plan, target)
    assert (result.total("applied"), result.total("held")) == (30, 0)
    broker, at = shop.broker(), TopicPartition(target, 0)
    found = list(broker.read(at, 0, broker.ends([at])[at]))
    assert sorted(one.header("event-id") or b"" for one in found) == sorted(
        f"order-{number}".encode() for number in range(30)
    )
    for one in found:
        number = json.loads(one.value or b"")["id"]
        assert one.key == f"k{number}".encode()
        assert one.timestamp_ms == 1_790_000_000_000 + number
        assert one.header("tenant") == b"t1"
        assert one.header("replay-id") == result.replay_id.encode()
        place = (one.header("replayed-from") or b"").decode()
        assert place.startswith(f"{plan.cluster_id}/{shop.topic}/{number % 2}/")
    for partition in range(2):
        own = [json.loads(one.value or b"")["id"] for one in found if (one.header("event-id") or b"")]
        own = [number for number in own if number % 2 == partition]
        assert own == sorted(own)
