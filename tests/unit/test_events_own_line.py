"""Events that clients published from the promoted server itself, before the plan was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fix_memory_broker import MemoryBroker

from pitr.errors import MalformedValue
from pitr.events.classify import EventClass, Lineage, classify
from pitr.events.event_facts import EventFacts
from pitr.events.fence import Fence, Mark, PartitionFence, TopicFence
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.history import FIRST_LSN, Branch, OwnLine, XactStatus
from pitr.events.plan import Tally
from pitr.events.plan_build import PlanRequest, build_plan
from pitr.events.plan_code import decode_plan, encode_plan
from pitr.events.starts import FenceView
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

ONE, TWO, THREE = TimelineId(1), TimelineId(2), TimelineId(3)
END, UNTIL = LSN(5000), LSN(6000)
SYSTEM = 7
AT = datetime(2026, 5, 4, 12, tzinfo=UTC)
OWN = OwnLine(TWO, UNTIL, ((702, 704), (708, 708)))
LINEAGE = Lineage((Branch(ONE, FIRST_LSN, 0),), END, 700, own=OWN)


def test_transactions_are_kept_as_ranges() -> None:
    assert OwnLine.of(TWO, UNTIL, [708, 703, 702, 704]) == OWN
    assert [xid for xid in range(700, 712) if OWN.has(xid)] == [702, 703, 704, 708]
    assert OWN.count == 4
    assert OwnLine.of(TWO, UNTIL, []) is None


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (EventFacts(xid=703, timeline=TWO), EventClass.IN_DATABASE),
        (EventFacts(xid=703, timeline=TWO, lsn=LSN(5500)), EventClass.IN_DATABASE),
        (EventFacts(xid=703, timeline=TWO, commit_lsn=LSN(5500)), EventClass.IN_DATABASE),
        (EventFacts(xid=703, timeline=ONE), EventClass.NOT_IN_DATABASE),
        # Of another restore that was promoted to a timeline of the same number.
        (EventFacts(xid=706, timeline=TWO), EventClass.NOT_IN_DATABASE),
        (EventFacts(xid=703, timeline=TWO, lsn=LSN(6000)), EventClass.NOT_IN_DATABASE),
        (EventFacts(xid=703, timeline=THREE), EventClass.NOT_IN_DATABASE),
        # It can be both, unless its number or its position says otherwise.
        (EventFacts(xid=703), EventClass.UNKNOWN),
        (EventFacts(xid=703, lsn=LSN(5500)), EventClass.UNKNOWN),
        (EventFacts(xid=706), EventClass.NOT_IN_DATABASE),
        (EventFacts(xid=703, lsn=LSN(4999)), EventClass.NOT_IN_DATABASE),
        (EventFacts(xid=703, commit_lsn=LSN(6000)), EventClass.NOT_IN_DATABASE),
        (EventFacts(commit_lsn=LSN(5500)), EventClass.UNKNOWN),
        (EventFacts(commit_lsn=LSN(5500), timeline=TWO), EventClass.UNKNOWN),
        (EventFacts(commit_lsn=LSN(6500)), EventClass.NOT_IN_DATABASE),
    ],
)
def test_what_was_committed_in_the_restored_server_itself_is_in_it(
    facts: EventFacts, expected: EventClass
) -> None:
    assert classify(facts, LINEAGE, {}) is expected
    if expected is EventClass.UNKNOWN:
        assert classify(facts, replace(LINEAGE, own=None), {}) is EventClass.NOT_IN_DATABASE


def test_a_number_that_another_timeline_has_too_proves_nothing() -> None:
    facts = EventFacts(xid=703, timeline=TWO)
    later = replace(LINEAGE, later=(Branch(TWO, END, 700),))
    assert classify(facts, later, {}) is EventClass.UNKNOWN
    beside = replace(LINEAGE, beside=(Branch(TWO, LSN(4000), 600),))
    assert classify(facts, beside, {}) is EventClass.UNKNOWN
    below = replace(LINEAGE, beside=(Branch(TWO, END, 704),))
    assert classify(facts, below, {}) is EventClass.IN_DATABASE


def _request(flow: FlowDeclaration, own: OwnLine | None) -> PlanRequest:
    def ask(xids: Sequence[int]) -> Mapping[int, XactStatus]:
        return dict.fromkeys(xids, XactStatus.COMMITTED)

    topics = (TopicFence(flow.topic, f"id-{flow.topic}", (PartitionFence(0, 0, 0, 2),)),)
    fences = [
        Fence(Mark(number, SYSTEM, ONE, LSN(lsn), xid, 5, xid, at), at, None, "cluster-1", topics, ())
        for number, lsn, xid, at in ((1, 900, 9, AT - timedelta(1)), (2, 1000, 10, AT), (3, 5100, 701, AT))
    ]
    view = FenceView((fences[1], fences[0]), (fences[2],))
    cursors = {flow.topic: {0: 1}} if flow.flow is Flow.SINK_CURSOR else {}
    return PlanRequest([flow], SYSTEM, replace(LINEAGE, own=None), view, ask, cursors, own_line=lambda: own)


def test_the_plan_asks_once_the_ends_are_known_and_keeps_the_answer_for_the_replay() -> None:
    broker = MemoryBroker()
    broker.create("outbox")

    def own_line() -> OwnLine:
        # Published, and committed before, while the plan was made: not below its end.
        broker.append("outbox", {"event-id": "late", "pg-xid": "703", "pg-tl": "2"})
        return OWN

    for xid, timeline in ((703, 1), (703, 2), (708, 2)):
        broker.append("outbox", {"event-id": f"{timeline}-{xid}", "pg-xid": str(xid), "pg-tl": str(timeline)})
    broker.append("outbox", {"event-id": "bare", "pg-xid": "703"})
    flow = FlowDeclaration("outbox", Flow.DB_FIRST)
    plan = build_plan(replace(_request(flow, None), own_line=own_line), broker)
    assert plan.tally == Tally(records=4, in_database=2, to_apply=1, unknown=1)
    assert [one.event_id for one in plan.phantoms.first] == ["1-703"]
    assert plan.own == OWN
    assert decode_plan(encode_plan(plan)) == plan
    for bad in (((704, 702),), ((702, 704), (704, 705)), ()):
        with pytest.raises(MalformedValue, match="transactions"):
            decode_plan(encode_plan(replace(plan, own=replace(OWN, xids=bad))))


@pytest.mark.parametrize(
    ("flow", "out_from"),
    [
        (FlowDeclaration("t", Flow.SINK_GROUP, group="g"), 2),
        (FlowDeclaration("t", Flow.EVENT_FIRST, max_lag_s=1), 2),
        (FlowDeclaration("t", Flow.SINK_CURSOR, cursor_sql="SELECT 0, 1"), 1),
    ],
)
def test_offsets_bound_nothing_where_sinks_may_have_gone_on_but_a_cursor_does(
    flow: FlowDeclaration, out_from: int
) -> None:
    broker = MemoryBroker()
    broker.create("t")
    for _ in range(4):
        broker.append("t", {"event-id": "e"})
    lost = build_plan(_request(flow, None), broker).topics[0].partitions[0]
    assert (lost.out_from, lost.tally.to_apply) == (out_from, 4 - out_from)
    worked = build_plan(_request(flow, OWN), broker).topics[0].partitions[0]
    if flow.flow is Flow.SINK_CURSOR:
        assert worked == lost
    else:
        assert (worked.out_from, worked.tally.to_apply) == (None, 0)
        assert worked.tally.unknown == worked.tally.records
