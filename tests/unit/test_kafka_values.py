"""What librdkafka hands over, as values: also of records that no well-behaved client wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fix_replay import event

from pitr.events.classify import Lineage, classify
from pitr.events.event_facts import read_headers
from pitr.events.history import FIRST_LSN, Branch
from pitr.events.identity import identity_of
from pitr.events.kafka_values import record_of
from pitr.events.partition import TopicPartition
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

AT = TopicPartition("orders", 0)


@dataclass
class Message:
    """A message as confluent_kafka's; ``names`` None: one of its headers has a name that is no UTF-8."""

    names: list[tuple[str, bytes]] | None

    def offset(self) -> int:
        return 7

    def timestamp(self) -> tuple[int, int]:
        return 1, 5

    def headers(self) -> Any:
        if self.names is None:
            raise SystemError("returned a result with an exception set")
        return self.names

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"{}"


def test_a_header_whose_name_is_no_text_is_a_problem_of_that_event_alone() -> None:
    record = record_of(AT, Message(None))
    facts = read_headers(record)
    assert (record.headers, record.offset, record.key) == ((), 7, b"k")
    assert facts.problem == "the name of a header is not UTF-8"
    lineage = Lineage((Branch(TimelineId(1), FIRST_LSN, 0),), LSN(1000), 100)
    assert classify(facts, lineage, {}) == "unknown"
    good = record_of(AT, Message([("event-id", b"e1")]))
    assert (good.headers, good.unreadable) == ((("event-id", b"e1"),), None)


def test_what_nobody_could_read_is_not_taken_for_nothing() -> None:
    assert identity_of(record_of(AT, Message(None))) != identity_of(record_of(AT, Message([])))
    assert identity_of(event(1)) == identity_of(event(1))
