"""Reconciliation: each record of a plan has a fate, or is missing."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pitr.events.flows import EventFormat, Flow
from pitr.events.gaps import Gap, GapKind
from pitr.events.history import FIRST_LSN, Branch
from pitr.events.partition import TopicPartition
from pitr.events.phantoms import PhantomList
from pitr.events.plan import PartitionPlan, ReplayPlan, RestoredPoint, Tally, TopicPlan
from pitr.events.reconcile import Reconciled, Replayed, Verdict, came_since, reconcile, unreconciled
from pitr.events.starts import StartReason
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

AT = TopicPartition("orders", 0)
TALLY = Tally(records=10, in_database=4, to_apply=6)
ALL = {"read": 10, "in database": 4, "applied": 5, "duplicate": 1, "held": 0}
GONE = Gap(GapKind.DELETED, 40, 50)


def _plan(*gaps: Gap, tally: Tally = TALLY, estimated: bool = False) -> ReplayPlan:
    partition = PartitionPlan(0, 50, 70, StartReason.FENCE, estimated, 3, None, tally, gaps)
    topic = TopicPlan("orders", "id", Flow.DB_FIRST, EventFormat.HEADERS, False, (partition,))
    return ReplayPlan(
        "cluster",
        RestoredPoint(7, TimelineId(1), LSN(1000), 700),
        (Branch(TimelineId(1), FIRST_LSN, 0),),
        (),
        (),
        (topic,),
        (),
        PhantomList(0, ()),
        PhantomList(0, ()),
    )


def _one(plan: ReplayPlan, counts: Mapping[str, int], next_offset: int = 70) -> Reconciled:
    (found,) = reconcile(plan, {AT: Replayed(next_offset, counts)})
    return found


def test_a_replay_that_accounts_for_every_record_is_reconciled() -> None:
    found = _one(_plan(), ALL)
    assert (found.verdict, found.missing, found.result) == (Verdict.RECONCILED, 0, "reconciled")
    assert (found.offset_at_target, found.high_watermark) == (50, 70)
    assert (found.replayed_from, found.replayed_to) == (50, 70)
    assert (found.in_database, found.applied, found.duplicates, found.passed_over) == (4, 5, 1, 0)
    assert unreconciled([found]) == []


@pytest.mark.parametrize(
    ("counts", "next_offset", "verdict", "missing"),
    [
        (ALL, 69, Verdict.INCOMPLETE, 0),
        ({"read": 9, "in database": 4, "applied": 5}, 70, Verdict.MISSING, 1),
        ({**ALL, "applied": 3}, 70, Verdict.MISSING, 2),
        ({**ALL, "read": 11, "applied": 6}, 70, Verdict.DIFFERS, 0),
        ({**ALL, "applied": 7}, 70, Verdict.DIFFERS, 0),
        ({**ALL, "in database": 5, "applied": 4}, 70, Verdict.DIFFERS, 0),
        ({**ALL, "applied": 3, "held": 2}, 70, Verdict.HELD, 0),
        ({**ALL, "applied": 2, "ignored": 3}, 70, Verdict.RECONCILED, 0),
        ({}, 50, Verdict.INCOMPLETE, 10),
    ],
)
def test_what_is_not_accounted_for_is_told(
    counts: Mapping[str, int], next_offset: int, verdict: Verdict, missing: int
) -> None:
    found = _one(_plan(), counts, next_offset)
    assert (found.verdict, found.missing) == (verdict, missing)
    is_done = verdict in {Verdict.HELD, Verdict.RECONCILED}
    assert bool(unreconciled([found])) is not is_done
    assert bool(unreconciled([found], {AT})) is not is_done


def test_only_a_gap_can_be_accepted_and_stays_told() -> None:
    found = _one(_plan(GONE), ALL)
    assert (found.verdict, found.missing, found.offset_at_target) == (Verdict.MISSING, 10, 40)
    assert found.result == "missing: deleted from 40 to 50"
    assert unreconciled([found]) == [found]
    assert unreconciled([found], {AT}) == []
    unbounded = _one(_plan(Gap(GapKind.RECREATED, 40, None)), ALL)
    assert unbounded.missing == 1
    worse = _one(_plan(GONE), {**ALL, "applied": 4})
    assert (worse.lost, unreconciled([worse], {AT})) == (1, [worse])


def test_without_a_replay_the_plan_says_what_one_would_find() -> None:
    (found,) = reconcile(_plan(), None)
    assert (found.verdict, found.result) == (Verdict.REPLAYABLE, "replayable: 6 of 10 events to apply")
    assert (found.replayed_from, found.replayed_to, found.in_database, found.missing) == (None, None, 4, 0)
    (gone,) = reconcile(_plan(GONE), None)
    assert (gone.verdict, gone.missing, gone.offset_at_target) == (Verdict.MISSING, 10, 40)
    (guessed,) = reconcile(_plan(estimated=True), None)
    assert guessed.verdict is Verdict.ESTIMATED
    (unknown,) = reconcile(_plan(tally=Tally(10, 4, 3, 1, 2)), None)
    assert unknown.result.endswith("3 of 10 events to apply, 1 lost by a failover, 2 unknown")


def test_a_partition_without_records_needs_no_cursor() -> None:
    plan = _plan(tally=Tally())
    topic = plan.topics[0]
    empty = PartitionPlan(0, 50, 50, StartReason.FENCE, False, 3, None, Tally())
    nothing = ReplayPlan(
        plan.cluster_id,
        plan.restored,
        plan.branches,
        (),
        (),
        (TopicPlan("orders", "id", topic.flow, topic.format, False, (empty,)),),
        (),
        plan.phantoms,
        plan.lost,
    )
    (found,) = reconcile(nothing, {})
    assert (found.verdict, found.replayed_to) == (Verdict.RECONCILED, 50)


@pytest.mark.parametrize(
    ("ends", "later"),
    [
        ({AT: 70}, {}),
        ({AT: 69}, {}),
        ({AT: 73}, {AT: 3}),
        ({TopicPartition("orders", 1): 2, AT: 71}, {AT: 1, TopicPartition("orders", 1): 2}),
        ({TopicPartition("orders", 1): 0}, {}),
    ],
)
def test_what_came_behind_a_plan_or_into_a_partition_that_it_does_not_have_is_counted(
    ends: Mapping[TopicPartition, int], later: Mapping[TopicPartition, int]
) -> None:
    assert came_since(_plan(), ends) == later
