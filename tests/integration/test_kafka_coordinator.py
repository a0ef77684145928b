"""A coordinator that moves, is away or says no: none of it ends the process.  Played over a socket.

librdkafka 2.16 ends the process where an admin client lists a group's offsets and the coordinator has moved
between two answers, which no order of questions can prevent.
"""

from __future__ import annotations

import subprocess
import sys
from collections import deque

import pytest
from fix_cli import CHECKOUT
from fix_kafka_protocol import (
    DESCRIBE_GROUPS,
    FIND_COORDINATOR,
    GROUP_AUTHORIZATION_FAILED,
    LIST_OFFSETS,
    NOT_COORDINATOR,
    OFFSET_COMMIT,
    OFFSET_FETCH,
    PlayedKafka,
)

_BEGIN = """
from pitr.events.broker import BrokerRefused, BrokerUnavailable
from pitr.events.kafka import KafkaBroker
from pitr.events.kafka_link import KafkaSettings
from pitr.events.partition import TopicPartition
at = [TopicPartition("orders", number) for number in range(3)]
broker = KafkaBroker(KafkaSettings({bootstrap!r}, call_timeout_s=8.0))
"""


def run(kafka: PlayedKafka, words: str) -> str:
    """Ask in a process of its own: a client that is ended by the answer must not end the tests."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN.format(bootstrap=kafka.bootstrap) + words],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=CHECKOUT,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


_OLD_WAY = """
import confluent_kafka as kafka
from confluent_kafka.admin import AdminClient
admin = AdminClient({{"bootstrap.servers": {bootstrap!r}, "log_level": 0}})
wanted = [kafka.ConsumerGroupTopicPartitions("sink")]
admin.list_consumer_group_offsets(wanted, request_timeout=8)["sink"].result(10)
"""


@pytest.mark.parametrize("moves", [1, 3])
def test_a_coordinator_that_moves_between_two_answers_is_asked_again(moves: int) -> None:
    with PlayedKafka(stands={0: 5, 2: 7}) as kafka:
        kafka.errors[OFFSET_FETCH] = deque([NOT_COORDINATOR] * moves)
        words = 'print(sorted((str(one), at) for one, at in broker.committed(["sink"], at)["sink"].items()))'
        assert run(kafka, words) == "[('orders[0]', 5), ('orders[2]', 7)]"
        assert kafka.asked.count(OFFSET_FETCH) > moves
        kafka.errors[OFFSET_FETCH] = deque([NOT_COORDINATOR] * moves)
        words = 'found = broker.group("sink"); print(found.is_empty, sorted(found.offsets.values()))'
        assert run(kafka, words) == "True [5, 7]"


def test_the_admin_client_would_end_the_process() -> None:
    """If this fails, librdkafka has mended it: then the words about it in ``kafka_offsets`` are history."""
    with PlayedKafka() as kafka:
        kafka.errors[OFFSET_FETCH] = deque([NOT_COORDINATOR])
        done = subprocess.run(
            [sys.executable, "-c", _OLD_WAY.format(bootstrap=kafka.bootstrap)],
            capture_output=True,
            timeout=120,
            cwd=CHECKOUT,
        )
    assert done.returncode < 0, done.stderr


def test_several_groups_are_asked_at_once_and_each_gets_its_own() -> None:
    with PlayedKafka(stands={1: 9}) as kafka:
        words = """
names = [f"sink-{number}" for number in range(40)]  # more than stay connected
found = broker.committed(names, at)
print(len(found), {str(dict(one)) for one in found.values()})
broker.close()
"""
        told = run(kafka, words)
    assert told == "40 {\"{TopicPartition(topic='orders', partition=1): 9}\"}"


@pytest.mark.parametrize("api", [FIND_COORDINATOR, OFFSET_FETCH])
def test_a_group_that_may_not_be_described_is_refused_and_soon(api: int) -> None:
    with PlayedKafka() as kafka:
        kafka.errors[api] = deque([GROUP_AUTHORIZATION_FAILED] * 1000)
        words = """
import time
for _ in range(2):
    began = time.monotonic()
    try:
        print(broker.committed(["sink"], at))
    except BrokerRefused as refused:
        print(refused.message, time.monotonic() - began < 7)
"""
        assert run(kafka, words).split("\n") == ["Kafka refuses: group sink True"] * 2


def test_a_group_is_moved_though_its_coordinator_moves() -> None:
    with PlayedKafka(stands={0: 5}) as kafka:
        kafka.errors[OFFSET_COMMIT] = deque([NOT_COORDINATOR])
        run(kafka, 'broker.set_group_offsets("sink", {at[0]: 2})')
        assert kafka.stands[0] == 2
        kafka.errors[DESCRIBE_GROUPS] = deque([NOT_COORDINATOR])
        assert run(kafka, 'print(broker.group("sink").offsets[at[0]])') == "2"


def test_a_leader_that_moves_costs_one_more_question_and_no_fence() -> None:
    with PlayedKafka(ends={0: 3, 1: 4, 2: 5}) as kafka:
        words = "print(list(broker.ends(at).values()), list(broker.begins(at).values()))"
        assert run(kafka, words) == "[3, 4, 5] [0, 0, 0]"
        kafka.errors[LIST_OFFSETS] = deque([6, 0, 0])
        assert run(kafka, words) == "[3, 4, 5] [0, 0, 0]"
