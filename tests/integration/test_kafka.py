"""The broker's port over a real Kafka broker."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from fix_cli import CHECKOUT, wait_until
from fix_fences import FENCE_AT, PlayedMarker
from fix_kafka import KafkaNode, MakeKafka
from fix_ports import HOST, free_port
from fix_raw_records import produce_with_header

from pitr.events.broker import BrokerRefused, BrokerUnavailable, ClusterNow, OffsetGone
from pitr.events.fence_take import LogBegins, take_fence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_clock import KafkaClock
from pitr.events.kafka_link import KafkaSettings
from pitr.events.partition import TopicPartition


def broker_of(node: KafkaNode, **parts: object) -> KafkaBroker:
    return KafkaBroker(KafkaSettings(node.bootstrap, **parts))  # type: ignore[arg-type]


def test_a_topic_is_described_as_it_is_set(kafka_node: KafkaNode) -> None:
    name = kafka_node.new_topic(
        3, retention_ms="-1", cleanup_policy="compact,delete", message_timestamp_type="LogAppendTime"
    )
    broker = broker_of(kafka_node)
    assert broker.cluster_id() == kafka_node.cluster_id
    assert name in broker.names()
    found = broker.topics([name, "is-not-there"])
    assert set(found) == {name}
    topic = found[name]
    assert (topic.partitions, topic.is_compacted, topic.is_deleted_by_age) == (3, True, True)
    assert (topic.retention_ms, topic.retention_bytes, topic.has_append_time) == (None, None, True)
    assert topic.delete_retention_ms == 86_400_000
    now = broker.now([name, "is-not-there"])
    assert now == ClusterNow(kafka_node.cluster_id, {name: (topic.topic_id, 3)})
    kafka_node.delete_topic(name)
    kafka_node.create_topic(name)
    assert broker.topics([name])[name].topic_id != topic.topic_id


def test_ends_are_last_stable_and_a_read_is_done_at_its_position(kafka_node: KafkaNode) -> None:
    name = kafka_node.new_topic()
    at = TopicPartition(name, 0)
    broker = broker_of(kafka_node)
    kafka_node.produce(name, [b"a", b"b"], key=b"k", headers=[("event-id", b"1"), ("none", None)])
    assert broker.ends([at]) == {at: 2}
    producer = kafka_node.producer(**{"transactional.id": f"x-{uuid.uuid4()}"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(name, b"open", partition=0)
    producer.flush(30)
    assert broker.ends([at]) == {at: 2}, "a record of an open transaction is not below the end"
    assert broker.high_watermarks([at]) == {at: 3}
    producer.abort_transaction(30)
    # Aborted record and marker: an end that no record is just below.
    wait_until(lambda: broker.ends([at]) == {at: 4}, "the end is past the marker", timeout_s=30)
    records = list(broker.read(at, 0, 4))
    assert [(one.offset, one.value, one.key) for one in records] == [(0, b"a", b"k"), (1, b"b", b"k")]
    assert records[0].headers == (("event-id", b"1"), ("none", None))
    assert records[0].header("event-id") == b"1"
    assert not records[0].is_append_time
    assert [one.offset for one in broker.read(at, 1, 2)] == [1]
    assert list(broker.read(at, 4, 4)) == []


def test_a_fence_of_a_thousand_partitions_knows_each_of_them(kafka_node: KafkaNode) -> None:
    topics = [kafka_node.new_topic(100) for _ in range(10)]
    broker, group = broker_of(kafka_node, call_timeout_s=60.0), f"g-{uuid.uuid4().hex[:8]}"
    kafka_node.produce(topics[3], [b"a"] * 5, partition=7)
    open_one = kafka_node.producer(
        **{"transactional.id": f"x-{uuid.uuid4()}", "transaction.timeout.ms": 600_000}
    )
    open_one.init_transactions(30)
    open_one.begin_transaction()
    open_one.produce(topics[3], b"open", partition=7)
    open_one.flush(30)
    moved = {TopicPartition(topics[3], 7): 4, TopicPartition(topics[9], 99): 0}
    broker.set_group_offsets(group, moved)
    flows = [FlowDeclaration(topic, Flow.SINK_GROUP, group=group) for topic in topics]
    marker, begins = PlayedMarker([]), LogBegins(broker)
    fence = take_fence(broker, marker, flows, now=lambda: FENCE_AT, begins=begins).fence
    assert fence.unknown is None
    found = {(one.name, part.number): part for one in fence.topics for part in one.partitions}
    assert len(found) == 1_000
    stable = found[topics[3], 7]
    assert (stable.low, stable.before, stable.after) == (0, 5, 5), "not what is in an open transaction"
    assert sum(one.before for one in found.values()) == 5
    assert fence.groups[0].offsets == {one.topic: {one.partition: offset} for one, offset in moved.items()}
    open_one.abort_transaction(60)


def test_a_read_never_skips_what_was_deleted(kafka_node: KafkaNode) -> None:
    name = kafka_node.new_topic()
    at = TopicPartition(name, 0)
    kafka_node.produce(name, [b"%d" % n for n in range(10)])
    kafka_node.delete_records(name, 6)
    broker = broker_of(kafka_node)
    assert broker.begins([at]) == {at: 6}
    with pytest.raises(OffsetGone) as gone:
        list(broker.read(at, 3, 10))
    assert (gone.value.start, gone.value.log_start) == (3, 6)
    assert [one.offset for one in broker.read(at, 6, 10)] == [6, 7, 8, 9]


def test_a_header_whose_name_is_no_text_ends_no_read_and_no_look_at_the_last_record(
    kafka_node: KafkaNode,
) -> None:
    name = kafka_node.new_topic()
    at = TopicPartition(name, 0)
    kafka_node.produce(name, [b"1"], headers=[("event-id", b"1")])
    produce_with_header(kafka_node.bootstrap, name, b"\xff\xfe")
    broker = broker_of(kafka_node)
    first, second = broker.read(at, 0, 2)
    assert (first.headers, first.unreadable) == ((("event-id", b"1"),), None)
    assert (second.headers, second.unreadable) == ((), "the name of a header is not UTF-8")
    assert broker.last_records({at: 2}, 30.0) == {at: second}


def test_records_that_go_while_they_are_read_are_a_gap(kafka_node: KafkaNode) -> None:
    name = kafka_node.new_topic()
    at = TopicPartition(name, 0)
    count = 60_000
    kafka_node.produce(name, [b"x" * 1000] * count)
    reading = broker_of(kafka_node).read(at, 0, count)
    first = next(reading)
    assert first.offset == 0
    kafka_node.delete_records(name, count - 5)
    with pytest.raises(OffsetGone) as gone:
        for _ in reading:
            pass
    assert 0 < gone.value.start < count - 5
    assert gone.value.log_start == count - 5


def test_offsets_of_a_time_are_the_end_where_nothing_is_later(kafka_node: KafkaNode) -> None:
    # The broker looks for what is too old some 30 s after its start: these times are.
    name = kafka_node.new_topic(2, retention_ms="-1")
    kafka_node.produce(name, [b"a"], timestamp=1_000)
    kafka_node.produce(name, [b"b"], timestamp=5_000)
    kafka_node.produce(name, [b"c"], partition=1, timestamp=1_000)
    both = [TopicPartition(name, 0), TopicPartition(name, 1)]
    found = broker_of(kafka_node).offsets_at(datetime.fromtimestamp(2, UTC), both)
    assert found == {both[0]: 1, both[1]: 1}


def test_a_group_moves_only_when_nobody_is_in_it(kafka_node: KafkaNode) -> None:
    name = kafka_node.new_topic(2)
    kafka_node.produce(name, [b"a"] * 5)
    group = f"g-{uuid.uuid4().hex[:8]}"
    broker = broker_of(kafka_node)
    unknown = broker.group(group)
    assert unknown.is_empty
    assert unknown.offsets == {}
    consumer = kafka_node.consumer(group)
    consumer.subscribe([name])
    for _ in range(5):
        assert consumer.poll(30) is not None
    consumer.commit(asynchronous=False)
    at = TopicPartition(name, 0)
    state = broker.group(group)
    assert not state.is_empty
    assert state.offsets[at] == 5
    with pytest.raises(BrokerRefused):
        broker.set_group_offsets(group, {at: 2})
    consumer.close()
    broker.set_group_offsets(group, {at: 2})
    after = broker.group(group)
    assert after.is_empty
    assert after.offsets[at] == 2


def test_what_is_missing_is_refused_and_never_left_out(kafka_node: KafkaNode) -> None:
    name = kafka_node.new_topic()
    broker = broker_of(kafka_node)
    for missing in (TopicPartition("is-not-there", 0), TopicPartition(name, 7)):
        with pytest.raises(BrokerRefused):
            broker.ends([TopicPartition(name, 0), missing])


def test_a_cluster_that_is_away_is_said_so_in_time_and_without_the_secret() -> None:
    secret = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "u"}
    settings = KafkaSettings(
        f"{HOST}:{free_port()}", {**secret, "sasl.password": "hunter2"}, call_timeout_s=1.0
    )
    broker = KafkaBroker(settings)
    began = datetime.now(UTC)
    with pytest.raises(BrokerUnavailable) as away:
        broker.cluster_id()
    assert (datetime.now(UTC) - began).total_seconds() < 5
    assert "hunter2" not in f"{away.value} {away.value.detail} {settings!r}"
    assert "refused" in str(away.value.detail), "the reason below is told"


def test_a_brokers_time_is_that_of_a_record_that_it_stamps(kafka_node: KafkaNode) -> None:
    settings = KafkaSettings(kafka_node.bootstrap)
    stamped = kafka_node.new_topic(message_timestamp_type="LogAppendTime")
    before = datetime.now(UTC)
    told = KafkaClock(settings, stamped).now()
    assert told is not None
    assert abs((told - before).total_seconds()) < 60, "one machine has one clock"
    assert KafkaClock(settings, kafka_node.new_topic()).now() is None, "it would be our own"
    with pytest.raises((BrokerRefused, BrokerUnavailable)):
        KafkaClock(KafkaSettings(kafka_node.bootstrap, call_timeout_s=2.0), "is-not-there").now()


@pytest.mark.slow
def test_a_broker_that_hangs_is_unavailable_and_answers_when_it_goes_on(kafka_node: KafkaNode) -> None:
    name = kafka_node.new_topic()
    at = TopicPartition(name, 0)
    broker = broker_of(kafka_node, call_timeout_s=2.0, read_timeout_s=2.0)
    assert broker.ends([at]) == {at: 0}
    assert broker.group("nobody").offsets == {}
    kafka_node.process.signal(signal.SIGSTOP)
    asked: list[Callable[[], object]] = [
        broker.cluster_id,
        broker.names,
        lambda: broker.topics([name]),
        lambda: broker.now([name]),
        lambda: broker.ends([at]),
        lambda: broker.begins([at]),
        lambda: broker.offsets_at(datetime.now(UTC), [at]),
        lambda: broker.group("nobody"),
        lambda: list(broker.read(at, 0, 1)),
    ]
    try:
        for ask in asked:
            with pytest.raises(BrokerUnavailable):
                print(ask())
    finally:
        kafka_node.process.signal(signal.SIGCONT)

    def answers() -> bool:
        try:
            return broker.ends([at]) == {at: 0}
        except BrokerUnavailable:
            return False

    wait_until(answers, "the same client gets answers again", timeout_s=30)


def test_a_group_is_asked_for_before_the_cluster_has_a_coordinator(make_kafka: MakeKafka) -> None:
    node = make_kafka().start()
    # In a process of its own: a client that is ended by the answer must not end the tests.
    words = f"""
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
found = KafkaBroker(KafkaSettings({node.bootstrap!r}, call_timeout_s=60.0)).group("never-seen")
assert (found.is_empty, dict(found.offsets)) == (True, {{}}), found
"""
    done = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, timeout=120, cwd=CHECKOUT
    )
    assert done.returncode == 0, done.stderr
