"""A plan over a mirror applies what a plan over its source would, and says what the mirror lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fix_memory_broker import MemoryBroker

from cli.mirror_parts import mirror_fields
from pitr.events.broker import BrokerRefused, EventRecord
from pitr.events.classify import Lineage
from pitr.events.fence import Fence, GroupFence, Mark, PartitionFence, TopicFence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.gaps import Gap, GapKind
from pitr.events.history import FIRST_LSN, Branch, XactStatus
from pitr.events.identity import identity_of
from pitr.events.mirror_names import MirrorNames
from pitr.events.mirror_plan import MirrorPlan, build_mirror_plan
from pitr.events.partition import TopicPartition
from pitr.events.plan import PartitionPlan
from pitr.events.plan_build import PlanRequest, build_plan
from pitr.events.starts import FenceView, StartReason
from pitr.events.sync_pairs import KnownPairs, SyncPair
from pitr.events.translate import Basis
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

SYSTEM = 7_300_000_000_000_000_001
AT = datetime(2026, 5, 4, 12, tzinfo=UTC)
ONE = TimelineId(1)
LINEAGE = Lineage((Branch(ONE, FIRST_LSN, 0),), LSN(1_000_000), 100_000)
NAMES = MirrorNames("eu")
ORDERS = TopicPartition("orders", 0)
REMOTE = NAMES.remote_partition(ORDERS)
COUNT = 200
RESTORED = 120
"""Events of transactions below this are in the restored database."""


class Region:
    """A source with an outbox, its mirror, and the pairs that were kept of it."""

    def __init__(self, *, first: int = 0, copied: int = COUNT) -> None:
        self.source = MemoryBroker()
        self.source.create("orders")
        self.target = MemoryBroker("cluster-2")
        self.target.create(REMOTE.topic)
        pairs = []
        for number in range(COUNT):
            headers = {"event-id": f"e{number}", "pg-xid": str(100 + number), "pg-tl": "1"}
            # A marker behind every third event: offsets of source and target differ.
            self.source.append("orders", headers, timestamp_ms=5_000 + number, skip=number % 3 == 0)
        for record in self.source.logs[ORDERS].records[first:copied]:
            offset = self.copy(record)
            if offset % 50 == 0:
                pairs.append(SyncPair(record.offset, offset))
        end = self.target.logs[REMOTE].end
        self.pairs = KnownPairs("id-eu.orders", tuple(pairs), settled=end)

    def copy(self, record: EventRecord) -> int:
        """Append a copy of a record to the target, and return its offset there."""
        log = self.target.logs[REMOTE]
        log.records.append(record._replace(at=REMOTE, offset=log.end))
        log.end += 1
        return log.end - 1

    def known(self, at: TopicPartition) -> KnownPairs | None:
        return self.pairs if at == ORDERS else None

    def fence(
        self, number: int, events: int, *, has_identity: bool = True, group: int | None = None
    ) -> Fence:
        """Return a fence that was taken when there were so many events."""
        records = self.source.logs[ORDERS].records
        last = records[events - 1]
        part = PartitionFence(
            0, 0, last.offset + 1, last.offset + 2, identity_of(last) if has_identity else None, last.offset
        )
        at = AT + timedelta(seconds=number)
        mark = Mark(number, SYSTEM, ONE, LSN(1000 * number), 100 + events, 5, 100 + events, at)
        groups = () if group is None else (GroupFence("sink", {"orders": {0: group}}),)
        return Fence(mark, at, None, "cluster-1", (TopicFence("orders", "id-orders", (part,)),), groups)

    def request(self, *fences: Fence, flow: FlowDeclaration | None = None) -> PlanRequest:
        def ask(xids: Sequence[int]) -> Mapping[int, XactStatus]:
            return {
                xid: XactStatus.COMMITTED if xid < 100 + RESTORED else XactStatus.IN_PROGRESS for xid in xids
            }

        declared = flow or FlowDeclaration("orders", Flow.DB_FIRST)
        return PlanRequest([declared], SYSTEM, LINEAGE, FenceView(fences[:1], fences[1:]), ask)

    def plan(self, request: PlanRequest) -> MirrorPlan:
        return build_mirror_plan(request, self.target, NAMES, self)


def only(found: MirrorPlan) -> PartitionPlan:
    [topic] = found.plan.topics
    assert topic.topic == "orders"
    [partition] = topic.partitions
    return partition


@pytest.mark.parametrize("has_identity", [True, False])
def test_a_plan_over_the_mirror_applies_what_the_source_would(has_identity: bool) -> None:
    region = Region()
    request = region.request(region.fence(1, 110, has_identity=has_identity), region.fence(2, 190))
    of_source = build_plan(request, region.source)
    (expected,) = of_source.topics[0].partitions
    found = region.plan(request)
    got = only(found)
    assert found.plan.cluster_id == "cluster-2"
    assert got.reason is StartReason.FENCE
    assert got.gaps == ()
    assert got.tally.to_apply == expected.tally.to_apply == COUNT - RESTORED
    # Without knowing who the last record was, reading begins at the pair below: those are in the database.
    more = 0 if has_identity else 110 - 101
    assert got.tally.in_database == expected.tally.in_database + more
    assert (got.start, got.end) == (110 - more, COUNT)
    assert found.partitions[0].translation.basis is (Basis.IDENTITY if has_identity else Basis.LOWER_BOUND)
    assert [one.event_id for one in found.plan.phantoms.first] == [
        one.event_id for one in of_source.phantoms.first
    ]


def test_what_was_not_mirrored_is_counted_and_what_never_was_is_a_gap() -> None:
    region = Region(first=30, copied=150)
    request = region.request(region.fence(1, 20), region.fence(2, 180))
    found = region.plan(request)
    first = region.source.logs[ORDERS].records[30].offset
    start = region.source.logs[ORDERS].records[19].offset + 1
    assert only(found).gaps == (Gap(GapKind.UNMIRRORED, start, first),)
    assert only(found).start == 0
    fields = mirror_fields(found)
    newest = region.pairs.pairs[-1].upstream
    assert fields["unmirrored_max"] == region.source.logs[ORDERS].records[179].offset - newest
    assert fields["mirrored_until"] is None
    whole = Region()
    assert mirror_fields(whole.plan(whole.request(whole.fence(1, 110))))["unmirrored_max"] == 0


def test_records_that_the_mirror_deleted_are_a_gap() -> None:
    region = Region()
    region.target.delete_before(REMOTE.topic, 130)
    found = only(region.plan(region.request(region.fence(1, 110, has_identity=False))))
    assert found.gaps == (Gap(GapKind.DELETED, 101, 130),)


def test_a_cursor_says_of_no_event_that_it_is_not_in_the_database() -> None:
    region = Region()
    flow = FlowDeclaration("orders", Flow.SINK_CURSOR, cursor_sql="select")
    records = region.source.logs[ORDERS].records
    request = region.request(region.fence(1, 110), flow=flow)
    inexact = replace(request, cursors={"orders": {0: records[110].offset}})
    found = only(region.plan(inexact))
    assert (found.start, found.out_from, found.reason) == (101, None, StartReason.CURSOR)
    # Where a pair names it, too: the mirror may have gone back since, and then what the sink has applied lies
    # behind it once more.
    exact = replace(request, cursors={"orders": {0: records[100].offset}})
    again = [region.copy(one) for one in records[90:100]]
    found = only(region.plan(exact))
    assert (found.start, found.out_from) == (100, None)
    assert found.start < again[0] < found.end
    assert (found.tally.to_apply, found.tally.unknown) == (0, found.tally.records)
    region = Region(first=30)
    lost = region.plan(replace(request, cursors={"orders": {0: records[10].offset}}))
    assert only(lost).gaps == (Gap(GapKind.UNMIRRORED, records[10].offset, records[30].offset),)


def test_groups_are_reset_in_the_mirror_s_offsets() -> None:
    region = Region()
    records = region.source.logs[ORDERS].records
    flow = FlowDeclaration("orders", Flow.SINK_GROUP, group="sink")
    region.target.set_group_offsets("sink", {REMOTE: COUNT})
    found = region.plan(region.request(region.fence(1, 110, group=records[100].offset), flow=flow))
    assert (only(found).start, only(found).reason) == (100, StartReason.GROUP)
    (group,) = found.plan.groups
    assert [(one.topic, one.before, one.to) for one in group.resets] == [("orders", COUNT, 100)]


def test_a_fence_that_knows_nothing_of_kafka_is_not_translated() -> None:
    region = Region()
    unknown = replace(region.fence(3, 115), topics=(), groups=(), cluster_id=None, unknown="away")
    request = region.request(region.fence(1, 110))
    view = FenceView((unknown, *request.view.inside), ())
    assert only(region.plan(replace(request, view=view))).start == 110


def test_a_topic_that_was_never_mirrored_is_refused_by_name() -> None:
    region = Region()
    request = region.request(region.fence(1, 110), flow=FlowDeclaration("bills", Flow.DB_FIRST))
    with pytest.raises(BrokerRefused, match="topic bills was never mirrored"):
        region.plan(request)
