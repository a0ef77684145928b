"""A replay to a topic of a mirror's target keeps its position under the names of the copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pitr.events.mirror_names import MirrorNames, ReplicationPolicy
from pitr.events.mirror_producer import MirrorProducer
from pitr.events.partition import TopicPartition
from pitr.events.sink_topic import OutRecord

ORDERS = TopicPartition("orders", 2)


@dataclass
class PlayedProducer:
    """Keeps what it was given, as a cluster does that knows its own topics only."""

    kept: dict[TopicPartition, int] = field(default_factory=dict)
    sent: list[OutRecord] = field(default_factory=list)
    record_bytes_max: int = 1000
    is_closed: bool = False

    def done(self) -> Mapping[TopicPartition, int]:
        return self.kept

    def send(self, records: Sequence[OutRecord], done: Mapping[TopicPartition, int]) -> None:
        self.sent += records
        self.kept.update(done)

    def close(self) -> None:
        self.is_closed = True


def test_positions_are_the_copies_there_and_the_source_s_here() -> None:
    inner = PlayedProducer({TopicPartition("other", 0): 5})
    producer = MirrorProducer(inner, MirrorNames("eu"))
    assert producer.done() == {}
    record = OutRecord("orders.replayed", b"k", b"{}", (), 7)
    producer.send([record], {ORDERS: 12})
    assert inner.kept == {TopicPartition("other", 0): 5, TopicPartition("eu.orders", 2): 12}
    assert inner.sent == [record]
    assert producer.done() == {ORDERS: 12}
    assert producer.record_bytes_max == 1000
    producer.close()
    assert inner.is_closed


def test_with_the_identity_policy_names_are_the_same() -> None:
    inner = PlayedProducer()
    MirrorProducer(inner, MirrorNames("eu", ReplicationPolicy.IDENTITY)).send([], {ORDERS: 12})
    assert inner.kept == {ORDERS: 12}
