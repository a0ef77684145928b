"""The order of a fence, and what it says when something is away."""

from __future__ import annotations

import pytest
from fix_fences import FENCE_AT, PlayedCluster, PlayedMarker

from pitr.errors import ServerUnavailable
from pitr.events.broker import BrokerRefused, BrokerUnavailable
from pitr.events.fence import Identity
from pitr.events.fence_code import before_mark, decode_fence
from pitr.events.fence_take import LogBegins, TakenFence, take_fence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.partition import TopicPartition

ORDERS = TopicPartition("orders", 0)
FLOWS = (
    FlowDeclaration("orders", Flow.SINK_GROUP, group="sink"),
    FlowDeclaration("gone", Flow.DB_FIRST),
)


def taken(cluster: PlayedCluster, marker: PlayedMarker) -> TakenFence:
    return take_fence(cluster, marker, FLOWS, now=lambda: FENCE_AT)


def test_offsets_come_before_the_mark_and_ends_again_after_it() -> None:
    cluster = PlayedCluster({ORDERS: 10}, low=2, stands={ORDERS: 8, TopicPartition("other", 0): 1})
    marker = PlayedMarker(cluster.asked, during=lambda: cluster.ends_now.update({ORDERS: 14}))
    found = taken(cluster, marker)
    asked = cluster.asked
    assert asked.index("now") < min(asked.index(one) for one in ("committed", "begins", "ends")), (
        "a recreated topic would be believed"
    )
    assert asked[-2:] == ["mark", "ends"]
    assert {"committed", "ends", "begins"} <= set(asked[: asked.index("mark")])
    (topic,) = found.fence.topics
    (part,) = topic.partitions
    assert (part.low, part.before, part.after) == (2, 10, 14)
    assert [(one.group, one.offsets) for one in found.fence.groups] == [("sink", {"orders": {0: 8}})]
    assert found.missing == ("gone",)
    assert found.trouble is None
    assert asked.index("committed") < asked.index("ends"), "a group is never past an end that was read"
    # The row says what was known then, and not what came after.
    assert decode_fence(marker.payloads[0]) == before_mark(found.fence)
    assert found.fence.committed_by is not None


@pytest.mark.parametrize("call", ["now", "committed", "begins", "ends"])
@pytest.mark.parametrize("error", [BrokerUnavailable, BrokerRefused])
def test_kafka_away_gives_a_mark_that_says_unknown(
    call: str, error: type[BrokerUnavailable] | type[BrokerRefused]
) -> None:
    cluster = PlayedCluster({ORDERS: 10}, stands={ORDERS: 8}, fails={})
    cluster.fails[call] = error("no answer", detail="broker\x1b[31m is away" + "x" * 1000)
    marker = PlayedMarker(cluster.asked)
    found = taken(cluster, marker)
    assert found.fence.unknown is not None
    assert found.fence.unknown.startswith("no answer; broker [31m is away")
    assert (found.fence.topics, found.fence.groups, found.fence.cluster_id) == ((), (), None)
    assert decode_fence(marker.payloads[0]) == before_mark(found.fence)


def test_kafka_that_goes_after_the_mark_leaves_only_what_is_after_unknown() -> None:
    cluster = PlayedCluster({ORDERS: 10})
    marker = PlayedMarker(
        cluster.asked, during=lambda: cluster.fails.update(ends=BrokerUnavailable("no answer"))
    )
    found = taken(cluster, marker)
    (part,) = found.fence.topics[0].partitions
    assert (part.before, part.after) == (10, None)
    assert found.fence.unknown is None
    assert found.trouble == "no answer"


def test_a_topic_that_is_recreated_meanwhile_has_no_end_after() -> None:
    cluster = PlayedCluster({ORDERS: 10})
    marker = PlayedMarker(cluster.asked, during=lambda: cluster.ends_now.update({ORDERS: 1}))
    (part,) = taken(cluster, marker).fence.topics[0].partitions
    assert (part.before, part.after) == (10, None)


def test_postgresql_away_gives_no_fence() -> None:
    cluster = PlayedCluster({ORDERS: 10})
    with pytest.raises(ServerUnavailable):
        taken(cluster, PlayedMarker(cluster.asked, fails=ServerUnavailable("away")))


def test_last_records_stand_in_the_signed_copy_alone() -> None:
    cluster = PlayedCluster({ORDERS: 10})
    marker = PlayedMarker(cluster.asked)
    identity = Identity(1_700_000_000_000, bytes(32))
    found = take_fence(
        cluster,
        marker,
        FLOWS[1:] + FLOWS[:1],
        now=lambda: FENCE_AT,
        identify=lambda ends: {ORDERS: (9, identity)},
    )
    (part,) = found.fence.topics[0].partitions
    assert (part.last_offset, part.last) == (9, identity)
    assert decode_fence(marker.payloads[0]).topics[0].partitions[0].last is None


def test_a_brokers_time_is_kept_and_none_of_it_decides() -> None:
    cluster = PlayedCluster({ORDERS: 10})
    marker = PlayedMarker(cluster.asked)
    found = take_fence(cluster, marker, FLOWS, now=lambda: FENCE_AT, broker_clock=lambda: FENCE_AT)
    assert (found.fence.broker_at, found.fence.unknown) == (FENCE_AT, None)

    def away() -> None:
        raise BrokerUnavailable("no answer")

    found = take_fence(cluster, marker, FLOWS, now=lambda: FENCE_AT, broker_clock=away)
    assert (found.fence.broker_at, found.fence.unknown, found.trouble) == (None, None, None)


def test_begins_are_asked_for_each_minute_and_of_what_is_new() -> None:
    """They decide nothing; all else is asked for with each fence."""
    cluster, clock = PlayedCluster({ORDERS: 10}, low=2), [0.0]
    marker, begins = PlayedMarker(cluster.asked), LogBegins(cluster, lambda: clock[0])

    def lows() -> list[int]:
        cluster.asked.clear()
        found = take_fence(cluster, marker, FLOWS, now=lambda: FENCE_AT, begins=begins).fence
        assert found.unknown is None
        return [one.low for topic in found.topics for one in topic.partitions]

    assert lows() == [2]
    cluster.low, clock[0] = 5, 59.0
    assert lows() == [2]
    assert cluster.asked == ["now", "committed", "ends", "mark", "ends"]
    cluster.ends_now[TopicPartition("orders", 1)] = 9
    assert lows() == [5, 5], "a topic that has grown"
    cluster.low, cluster.ids["orders"] = 0, "id-2"
    assert lows() == [0, 0], "one that was made anew"
    cluster.low, clock[0] = 7, 60.0
    assert lows() == [7, 7]
    cluster.low, clock[0], cluster.ends_now[ORDERS] = 9, 121.0, 8
    assert lows() == [8, 9], "never above the end"
    cluster.fails["begins"], clock[0] = BrokerUnavailable("no answer"), 200.0
    assert (
        take_fence(cluster, marker, FLOWS, now=lambda: FENCE_AT, begins=begins).fence.unknown == "no answer"
    )
    cluster.fails.clear()
    assert lows() == [8, 9]
    assert "begins" in cluster.asked, "what was not told is asked for again"
