"""A plan of replay: what is asked of a broker, gaps, counts, phantoms, groups, and the plan's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fix_memory_broker import MemoryBroker

from cli.events_plan_view import summary
from pitr.errors import MalformedValue
from pitr.events.broker import BrokerUnavailable, GroupState
from pitr.events.classify import Lineage
from pitr.events.fence import Fence, GroupFence, Mark, PartitionFence, TopicFence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.gaps import Gap, GapKind
from pitr.events.history import FIRST_LSN, Branch, XactStatus
from pitr.events.partition import TopicPartition
from pitr.events.plan import OffsetReset, PartitionPlan, ReplayPlan, Tally
from pitr.events.plan_build import PlanRequest, build_plan
from pitr.events.plan_code import decode_plan, encode_plan
from pitr.events.reconcile import Verdict, reconcile
from pitr.events.starts import FenceView, StartReason
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

SYSTEM = 7_300_000_000_000_000_001
AT = datetime(2026, 5, 4, 12, tzinfo=UTC)
ONE, TWO = TimelineId(1), TimelineId(2)
FIRST = Branch(ONE, FIRST_LSN, 0)
LINEAGE = Lineage((FIRST,), LSN(10_000), 100)
DB = FlowDeclaration("outbox", Flow.DB_FIRST)
SINK = FlowDeclaration("orders", Flow.SINK_GROUP, group="sink")


def _mark(number: int = 1, timeline: TimelineId = ONE, at: datetime = AT) -> Mark:
    return Mark(number, SYSTEM, timeline, LSN(1000 * number), 10 * number, 5, 10 * number, at)


def _fence(
    before: Mapping[str, int] | None = None,
    *,
    mark: Mark | None = None,
    ids: Mapping[str, str] | None = None,
    after: int | None = None,
    group: int | None = None,
    cluster: str = "cluster-1",
) -> Fence:
    topics = tuple(
        TopicFence(name, (ids or {}).get(name, f"id-{name}"), (PartitionFence(0, 0, offset, after),))
        for name, offset in sorted((before or {"outbox": 2}).items())
    )
    groups = () if group is None else (GroupFence("sink", {"orders": {0: group}}),)
    mark = mark or _mark()
    return Fence(mark, mark.at, None, cluster, topics, groups)


def _ask(committed: Sequence[int]) -> PlanRequest:
    def ask(xids: Sequence[int]) -> Mapping[int, XactStatus]:
        return {one: XactStatus.COMMITTED if one in committed else XactStatus.IN_PROGRESS for one in xids}

    return PlanRequest([DB], SYSTEM, LINEAGE, FenceView((_fence(),), ()), ask)


def _event(xid: int, timeline: int = 1, **more: str) -> dict[str, str]:
    return {"event-id": f"e{xid}", "pg-xid": str(xid), "pg-tl": str(timeline), **more}


def _broker(*topics: str) -> MemoryBroker:
    broker = MemoryBroker()
    for name in topics or ("outbox",):
        broker.create(name)
    return broker


def _only(plan: ReplayPlan) -> PartitionPlan:
    [topic] = plan.topics
    [partition] = topic.partitions
    return partition


def test_events_are_counted_by_their_transactions_from_the_fence_on() -> None:
    broker = _broker()
    for xid in (10, 11, 12, 13, 250):
        broker.append("outbox", _event(xid))
    broker.append("outbox", {"event-id": "no-xid"}, skip=2)
    plan = build_plan(_ask([10, 11, 12]), broker)
    found = _only(plan)
    assert (found.start, found.end, found.reason, found.fence) == (2, 8, StartReason.FENCE, 1)
    assert found.tally == Tally(records=4, in_database=1, to_apply=2, lost_branch=0, unknown=1)
    assert not found.gaps
    assert not found.is_estimated
    assert [(one.offset, one.event_id, one.xid) for one in plan.phantoms.first] == [
        (3, "e13", 13),
        (4, "e250", 250),
    ]


def test_events_of_commits_that_a_failover_lost_are_named() -> None:
    broker = _broker()
    lineage = Lineage((FIRST, Branch(TWO, LSN(5000), 50)), LSN(10_000), 100)
    fences = (_fence(mark=_mark(7, TWO)), _fence({"outbox": 0}, mark=_mark(1, at=AT - timedelta(hours=1))))
    for xid, timeline in ((40, 1), (55, 1), (55, 2), (99, 2)):
        broker.append("outbox", _event(xid, timeline))
    request = replace(_ask([40, 55]), lineage=lineage, view=FenceView(fences, ()))
    plan = build_plan(request, broker)
    found = _only(plan)
    assert (found.start, found.reason) == (0, StartReason.FENCE_BEFORE_FAILOVER)
    assert found.tally == Tally(records=4, in_database=2, to_apply=1, lost_branch=1)
    assert [(one.xid, one.timeline) for one in plan.lost.first] == [(55, ONE)]
    assert plan.phantoms.count == 2
    # A failover of long ago is not searched.
    later = build_plan(replace(request, look_back=timedelta(minutes=1)), broker)
    assert (_only(later).start, _only(later).reason) == (2, StartReason.FENCE)


def test_topics_are_planned_in_the_order_in_which_they_are_declared() -> None:
    broker = _broker("b", "c", "a")
    declared = [FlowDeclaration(name, Flow.DB_FIRST) for name in ("b", "c", "a")]
    plan = build_plan(replace(_ask([]), declarations=declared), broker)
    assert [one.topic for one in plan.topics] == ["b", "c", "a"]
    assert decode_plan(encode_plan(plan)) == plan


def test_phantoms_are_listed_up_to_a_bound_and_counted_beyond() -> None:
    broker = _broker()
    for _ in range(250):
        broker.append("outbox", _event(200))
    plan = build_plan(_ask([]), broker)
    assert plan.phantoms.count == 248
    assert len(plan.phantoms.first) == 100


def test_deleted_records_are_a_gap() -> None:
    broker = _broker()
    for xid in (10, 11, 12, 13):
        broker.append("outbox", _event(xid))
    broker.delete_before("outbox", 3)
    found = _only(build_plan(_ask([]), broker))
    assert found.gaps == (Gap(GapKind.DELETED, 2, 3),)
    assert (found.start, found.tally.records) == (3, 1)


def test_what_an_open_transaction_hides_is_waited_for_and_else_a_gap() -> None:
    broker, at = _broker(), TopicPartition("outbox", 0)
    for xid in (10, 11, 12, 13, 250):
        broker.append("outbox", _event(xid))
    broker.open_from[at] = 3

    def end_it() -> bool:
        broker.open_from.clear()
        return True

    found = _only(build_plan(replace(_ask([10, 11, 12]), wait=end_it), broker))
    assert (found.end, found.tally.to_apply, found.gaps) == (5, 2, ())
    broker.open_from[at] = 3
    plan = build_plan(replace(_ask([10, 11, 12]), wait=lambda: False), broker)
    found = _only(plan)
    assert (found.end, found.tally.to_apply, found.gaps) == (3, 0, (Gap(GapKind.OPEN, 3, 5),))
    assert decode_plan(encode_plan(plan)) == plan
    [row] = reconcile(plan, None)
    assert (row.verdict, row.missing) == (Verdict.MISSING, 2)
    # On a cluster that is in use some are always open, and a verification promises nothing of its end.
    assert not _only(build_plan(_ask([10, 11, 12]), broker)).gaps


def test_records_that_are_deleted_while_they_are_read_are_a_gap() -> None:
    broker = _broker()
    for xid in (10, 11, 12, 13):
        broker.append("outbox", _event(xid))
    broker.overtaken[TopicPartition("outbox", 0)] = 3
    found = _only(build_plan(_ask([]), broker))
    assert found.gaps == (Gap(GapKind.DELETED, 2, 3),)
    assert found.tally.records == 1


def test_a_recreated_topic_is_a_gap_and_read_from_its_beginning() -> None:
    broker = MemoryBroker()
    broker.create("outbox", topic_id="another")
    for xid in (10, 11, 12):
        broker.append("outbox", _event(xid))
    found = _only(build_plan(_ask([]), broker))
    assert found.gaps == (Gap(GapKind.RECREATED, 2, None),)
    assert (found.start, found.tally.records) == (0, 3)


def test_another_cluster_is_a_gap() -> None:
    broker = _broker()
    broker.id = "cluster-2"
    broker.append("outbox", _event(10))
    found = _only(build_plan(_ask([]), broker))
    assert found.gaps == (Gap(GapKind.OTHER_CLUSTER, 2, None),)
    assert found.start == 0


def test_a_missing_topic_and_a_log_that_lost_its_end_are_gaps() -> None:
    found = _only(build_plan(_ask([]), MemoryBroker()))
    assert found.gaps == (Gap(GapKind.MISSING, 2, None),)
    assert found.tally == Tally()
    broker = _broker()
    broker.append("outbox", _event(10))
    found = _only(build_plan(_ask([]), broker))
    assert found.gaps == (Gap(GapKind.TRUNCATED, 1, 2),)
    assert (found.start, found.end) == (1, 1)


def test_a_partition_that_was_added_after_the_fence_is_read_whole() -> None:
    broker = MemoryBroker()
    broker.create("outbox", 2)
    broker.append("outbox", _event(10))
    broker.append("outbox", _event(11))
    broker.append("outbox", _event(12), partition=1)
    plan = build_plan(_ask([]), broker)
    _, added = plan.topics[0].partitions
    assert any("partitions were added" in line and line.endswith(": outbox") for line in summary(plan))
    assert (added.start, added.reason, added.tally.records) == (0, StartReason.NEW_PARTITION, 1)


def test_without_a_fence_the_start_is_an_estimate_and_says_so() -> None:
    broker = _broker()
    before = int((AT - timedelta(seconds=5)).timestamp() * 1000)
    broker.append("outbox", _event(10), timestamp_ms=before)
    broker.append("outbox", _event(11), timestamp_ms=before + 4500)
    request = replace(_ask([]), view=FenceView((), ()), moment=AT)
    found = _only(build_plan(request, broker))
    assert (found.start, found.reason, found.is_estimated) == (1, StartReason.TIMESTAMP, True)
    found = _only(build_plan(replace(request, moment=None), broker))
    assert (found.start, found.reason, found.is_estimated) == (0, StartReason.LOG_START, False)


def test_a_fence_that_knows_nothing_of_kafka_is_passed_over() -> None:
    broker = _broker()
    for xid in range(10, 16):
        broker.append("outbox", _event(xid))
    blind = Fence(_mark(5), AT, None, None, (), (), unknown="no answer from Kafka")
    found = _only(build_plan(replace(_ask([]), view=FenceView((blind, _fence()), ())), broker))
    assert (found.start, found.fence) == (2, 1)


def test_a_sink_group_starts_at_its_offset_and_is_moved_back_to_it() -> None:
    broker = _broker("orders")
    for _ in range(6):
        broker.append("orders")
    at = TopicPartition("orders", 0)
    broker.groups["sink"] = GroupState("sink", True, {at: 6})
    last = _fence({"orders": 4}, group=3)
    later = _fence({"orders": 4}, mark=_mark(20), after=5)
    request = replace(_ask([]), declarations=[SINK], view=FenceView((last,), (later,)))
    plan = build_plan(request, broker)
    found = _only(plan)
    assert (found.start, found.reason, found.out_from) == (3, StartReason.GROUP, 5)
    # Offset 5 was appended after a fence that is itself after the end: it cannot be in the database.
    assert found.tally == Tally(records=3, to_apply=1, unknown=2)
    assert [(one.group, one.resets) for one in plan.groups] == [("sink", (OffsetReset("orders", 0, 6, 3),))]
    assert plan.phantoms.count == 0
    broker.groups["sink"] = GroupState("sink", True, {at: 2})
    assert not build_plan(request, broker).groups


def test_a_cursor_in_the_restored_database_is_exact() -> None:
    broker = _broker("payments")
    for _ in range(5):
        broker.append("payments")
    declared = FlowDeclaration("payments", Flow.SINK_CURSOR, cursor_sql="SELECT 0, next FROM cursors")
    request = replace(_ask([]), declarations=[declared], cursors={"payments": {0: 4}})
    found = _only(build_plan(request, broker))
    assert (found.start, found.reason, found.tally) == (4, StartReason.CURSOR, Tally(records=1, to_apply=1))
    # A number alone does not say of which topic: that the fence does.
    for id_then, gaps in (("id-payments", ()), ("id-before", (Gap(GapKind.RECREATED, 4, None),))):
        fence = _fence({"payments": 3}, ids={"payments": id_then})
        found = _only(build_plan(replace(request, view=FenceView((fence,), ())), broker))
        assert (found.start, found.gaps) == (0 if gaps else 4, gaps)
    fence = _fence({"payments": 9})
    found = _only(build_plan(replace(request, view=FenceView((fence,), ())), broker))
    assert found.gaps == (Gap(GapKind.TRUNCATED, 5, 9),)
    # Without a database to ask, where the cursor stood is not known.
    found = _only(build_plan(replace(request, cursors=None, moment=AT), broker))
    assert found.is_estimated


def test_event_first_starts_at_the_fence_before_its_lag() -> None:
    broker = _broker("audit")
    for _ in range(9):
        broker.append("audit")
    declared = FlowDeclaration("audit", Flow.EVENT_FIRST, max_lag_s=30)
    fences = tuple(
        _fence({"audit": number}, mark=_mark(number, at=AT + timedelta(seconds=10 * number)))
        for number in (9, 8, 7, 6, 5, 4)
    )
    request = replace(_ask([]), declarations=[declared], view=FenceView(fences, ()))
    found = _only(build_plan(request, broker))
    # 30 seconds and one of skew before the last: not the third before it, but the fourth.
    assert (found.start, found.reason) == (5, StartReason.FENCE_BEFORE_LAG)
    found = _only(build_plan(replace(request, view=FenceView(fences[:3], ())), broker))
    assert found.is_estimated


def test_a_compacted_topic_is_lossy() -> None:
    broker = MemoryBroker()
    broker.create("outbox", compacted=True)
    assert build_plan(_ask([]), broker).topics[0].is_lossy


def test_a_broker_that_does_not_answer_makes_no_plan() -> None:
    broker = _broker()
    broker.is_away = True
    with pytest.raises(BrokerUnavailable):
        build_plan(_ask([]), broker)


def _a_plan() -> ReplayPlan:
    broker = _broker("outbox", "orders")
    for xid in (10, 11, 12, 13):
        broker.append("outbox", _event(xid))
    broker.append("orders")
    broker.delete_before("outbox", 3)
    broker.groups["sink"] = GroupState("sink", True, {TopicPartition("orders", 0): 1})
    view = FenceView((_fence({"outbox": 2, "orders": 1}, group=0),), ())
    return build_plan(replace(_ask([]), declarations=[DB, SINK], view=view), broker)


def test_a_plan_is_read_back_as_it_was_written() -> None:
    plan = _a_plan()
    assert plan.topics[0].partitions[0].gaps
    assert plan.groups
    assert plan.phantoms.count
    content = encode_plan(plan)
    assert decode_plan(content) == plan
    assert encode_plan(decode_plan(content)) == content


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"start":3', b'"start":4'),
        (b'"flow":"db-first"', b'"flow":"sideways"'),
        (b'"schema":"pitr.events.plan/1"', b'"schema":"pitr.events.plan/2"'),
        (b'"groups":', b'"extra":1,"groups":'),
        (b'"records":1', b'"records":true'),
        (b'"records":1', b'"records": 1'),
        (b'"kind":"deleted"', b'"kind":"forgiven"'),
    ],
)
def test_a_plan_that_was_changed_is_refused(old: bytes, new: bytes) -> None:
    content = encode_plan(_a_plan())
    assert old in content
    with pytest.raises(MalformedValue):
        decode_plan(content.replace(old, new, 1))


def test_the_hash_tells_plans_apart() -> None:
    plan = _a_plan()
    assert len(plan.hash) == 64
    assert plan.hash == decode_plan(encode_plan(plan)).hash
    assert replace(plan, cluster_id="other").hash != plan.hash
