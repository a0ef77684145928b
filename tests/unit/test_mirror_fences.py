"""Fences in a mirror's offsets: exact by who a record is, safe where nobody knows; gaps are named."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from fix_fences import fence_of
from fix_played_mirror import PlayedTarget

from pitr.events.broker import BrokerRefused, EventRecord, OffsetGone
from pitr.events.fence import Fence, Identity, PartitionFence, TopicFence
from pitr.events.identity import identity_of
from pitr.events.mirror_broker import MirrorBroker
from pitr.events.mirror_fences import FenceTranslator
from pitr.events.mirror_names import MirrorNames, ReplicationPolicy
from pitr.events.mirror_search import READ_MAX, search
from pitr.events.partition import TopicPartition
from pitr.events.sync_pairs import KnownPairs, SyncPair
from pitr.events.translate import Basis, mirror_log, translate

ORDERS = TopicPartition("orders", 0)
NAMES = MirrorNames("eu")
REMOTE = NAMES.remote_partition(ORDERS)


class Pairs:
    """A ``PairSource`` of one partition."""

    def __init__(self, topic_id: str, *pairs: tuple[int, int], settled: int = -1) -> None:
        self.pairs = KnownPairs(topic_id, tuple(SyncPair(*one) for one in pairs), settled)

    def known(self, at: TopicPartition) -> KnownPairs | None:
        return self.pairs if at == ORDERS else None


def mirrored(count: int, *, names: MirrorNames = NAMES, every: int = 2) -> PlayedTarget:
    """Return a target with the copies of source's records 0, 2, 4, …: markers are between them."""
    target = PlayedTarget()
    target.make(names.remote("orders"))
    for upstream in range(0, count * every, every):
        target.add(names.remote_partition(ORDERS), f"event {upstream}", timestamp_ms=10_000 + upstream)
    return target


def at(fence: Fence, before: int, last: tuple[int, Identity] | None = None) -> Fence:
    """Return the fence with one partition that ends at ``before``."""
    offset, identity = (None, None) if last is None else last
    part = PartitionFence(0, 0, before, before + 5, identity, offset)
    return replace(fence, topics=(TopicFence("orders", "source-id", (part,)),), groups=())


def of_event(upstream: int) -> tuple[int, Identity]:
    record = EventRecord(
        ORDERS, 0, 10_000 + upstream, False, b"k", f"event {upstream}".encode(), (("event-id", b"7"),)
    )
    return upstream, identity_of(record)


def test_a_fence_is_exact_where_its_last_record_is_found() -> None:
    target = mirrored(5_000)
    translator = FenceTranslator(target, NAMES, Pairs("id-1", (0, 0), (9_998, 4_999)), ["orders"])
    fence, parts = translator.closely(at(fence_of(1), 6_002, of_event(6_000)))
    (topic,) = fence.topics
    assert (topic.topic_id, fence.cluster_id) == ("id-1", "target")
    assert (topic.partitions[0].before, topic.partitions[0].after) == (3_001, None)
    assert parts[0].translation.basis is Basis.IDENTITY
    assert parts[0].unmirrored_max == 0
    # Thousands of records lie between the pairs; timestamps say where to look.
    assert parts[0].read == target.read_count <= 2


def test_a_fence_whose_last_record_is_not_known_starts_at_the_pair_below() -> None:
    translator = FenceTranslator(
        mirrored(100), NAMES, Pairs("id-1", (0, 0), (40, 20), (80, 40), settled=20), ["orders"]
    )
    fence, parts = translator.closely(at(fence_of(1), 90))
    assert fence.topics[0].partitions[0].before == 21  # the pair of 80 is not settled
    assert parts[0].stopped == "the fence does not say which record was its last"
    assert parts[0].unmirrored_max == 9


def test_a_record_of_the_same_looks_further_on_is_not_taken_where_the_first_may_be_gone() -> None:
    target = mirrored(10)
    target.add(REMOTE, "event 6", timestamp_ms=10_006)  # as a producer that sends again makes it
    target.logs[REMOTE].begin = 5
    log = mirror_log(Pairs("", (0, 0), (4, 2)).pairs, log_start=5, end=11)
    told = translate(log, 7)
    assert told.is_cut
    assert search(target, REMOTE, told, of_event(6)[1]).translation == told


def test_a_search_stops_after_so_many_records_and_says_so() -> None:
    target = PlayedTarget()
    target.make(REMOTE.topic)
    for number in range(3 * READ_MAX):
        target.add(REMOTE, f"event {number}", timestamp_ms=5)  # no timestamp helps
    log = mirror_log(Pairs("", (0, 0)).pairs, log_start=0, end=3 * READ_MAX)
    wanted = identity_of(target.logs[REMOTE].records[2 * READ_MAX])
    done = search(target, REMOTE, translate(log, 2 * READ_MAX), wanted)
    assert (done.read, done.translation.lower) == (READ_MAX, 1)
    assert "first 1000 records" in str(done.stopped)
    assert target.read_count == READ_MAX


@pytest.mark.parametrize("stamp", [-1, 0, 1 << 62])
def test_a_producer_may_claim_any_time(stamp: int) -> None:
    target = PlayedTarget()
    target.make(REMOTE.topic)
    target.add(REMOTE, "first")
    target.add(REMOTE, "wanted", timestamp_ms=stamp)
    log = mirror_log(Pairs("", (0, 0)).pairs, log_start=0, end=2)
    done = search(target, REMOTE, translate(log, 9), identity_of(target.logs[REMOTE].records[1]))
    assert done.translation.lower == 2


def test_pairs_of_a_topic_that_was_before_this_one_are_not_used() -> None:
    translator = FenceTranslator(mirrored(10), NAMES, Pairs("older", (0, 0), (4, 2)), ["orders"])
    assert translator.offset(ORDERS, 6).basis is Basis.LOG_START


def test_records_that_were_never_mirrored_are_named() -> None:
    translator = FenceTranslator(mirrored(10), NAMES, Pairs("id-1", (500, 0), (504, 2)), ["orders"])
    told = translator.offset(ORDERS, 450)
    assert (told.lower, told.missing) == (0, (450, 500))
    assert translator.offset(ORDERS, 501).missing is None
    translator.fences([at(fence_of(3), 450), at(fence_of(4), 503)])
    assert translator.missing == {(3, ORDERS): (450, 500)}


def test_a_topic_that_the_target_does_not_have_is_an_error_that_names_it() -> None:
    with pytest.raises(BrokerRefused, match=r"topic invoices was never mirrored: .* no eu\.invoices"):
        FenceTranslator(mirrored(1), NAMES, Pairs("id-1"), ["orders", "invoices"])
    translator = FenceTranslator(mirrored(1), NAMES, Pairs("id-1"), ["orders"])
    with pytest.raises(BrokerRefused, match=r"orders\[7\] was never mirrored"):
        translator.offset(TopicPartition("orders", 7), 1)


def test_a_topic_that_was_made_anew_at_the_source_keeps_its_id_so_that_a_plan_sees_the_gap() -> None:
    translator = FenceTranslator(mirrored(10), NAMES, Pairs("id-1", (0, 0)), ["orders"])
    old = at(fence_of(1), 6)
    (topic,) = old.topics
    new = replace(
        old,
        collector_at=old.collector_at + timedelta(seconds=9),
        topics=(replace(topic, topic_id="source-id-2"),),
    )
    first, second = translator.fences([old, new])
    assert (first.topics[0].topic_id, second.topics[0].topic_id) == ("source-id", "id-1")
    assert translator.closely(old, new)[0].topics[0].topic_id == "source-id"


def test_offsets_of_groups_are_translated_and_what_is_not_asked_for_is_left_out() -> None:
    translator = FenceTranslator(mirrored(50), NAMES, Pairs("id-1", (0, 0), (40, 20), settled=20), ["orders"])
    fence = fence_of(1, before=60)  # group sink is at 57 of partition 0, and at 5 of partition 1
    with pytest.raises(BrokerRefused, match=r"orders\[1\] was never mirrored"):
        translator.fences([fence])
    (topic,) = fence.topics
    empty = replace(topic.partitions[1], low=0, before=0)
    fence = replace(fence, topics=(replace(topic, partitions=(topic.partitions[0], empty)),))
    translated = translator.fences([fence])[0]
    assert translated.groups[0].offsets == {"orders": {0: 21}}
    assert [one.number for one in translated.topics[0].partitions] == [0]
    with_other = replace(fence, topics=(*fence.topics, TopicFence("other", "x", ())))
    assert [topic.name for topic in translator.fences([with_other])[0].topics] == ["orders"]


@pytest.mark.parametrize("policy", list(ReplicationPolicy))
def test_the_target_stands_in_for_the_source_under_its_names(policy: ReplicationPolicy) -> None:
    names = MirrorNames("eu", policy)
    target = mirrored(10, names=names)
    target.make(names.syncs)
    target.make("us.other")
    broker = MirrorBroker(target, names)
    assert "orders" in broker.names()
    assert names.syncs not in broker.names()
    assert broker.topics(["orders", "nothing"])["orders"].name == "orders"
    assert broker.ends([ORDERS]) == {ORDERS: 10}
    assert broker.begins([ORDERS]) == {ORDERS: 0}
    assert [record.at for record in broker.read(ORDERS, 8, 10)] == [ORDERS, ORDERS]
    broker.set_group_offsets("sink", {ORDERS: 4})
    assert target.groups == {"sink": {names.remote_partition(ORDERS): 4}}
    assert broker.group("sink").offsets == {ORDERS: 4}
    target.logs[names.remote_partition(ORDERS)].begin = 5
    with pytest.raises(OffsetGone, match=r"^orders\[0\] no longer has offset 2"):
        list(broker.read(ORDERS, 2, 10))


def test_an_identity_tells_parts_of_a_record_apart() -> None:
    plain = EventRecord(ORDERS, 0, 1, False, b"ab", b"c", ())
    others = [
        plain._replace(key=b"a", value=b"bc"),
        plain._replace(key=None, value=b"abc"),
        plain._replace(value=b"", headers=(("c", b""),)),
        plain._replace(headers=(("c", None),)),
        plain._replace(headers=(("c", b""),)),
        plain._replace(timestamp_ms=2),
    ]
    found = [identity_of(one) for one in (plain, *others)]
    assert len(set(found)) == len(found)
    assert identity_of(plain._replace(offset=9, at=REMOTE)) == found[0]
