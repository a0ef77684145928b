"""Where a replay starts, and which events it applies, against a world that knows the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from fix_replay_world import (
    CLUSTER,
    CURSOR,
    DB,
    EPOCH,
    GROUPED,
    LAGGING,
    MAX_LAG_S,
    STEPS,
    SYSTEM,
    TOPICS,
    ModelEvent,
    Restored,
    World,
)
from hypothesis import event, given
from hypothesis import strategies as st

from pitr.events.classify import EventClass, Lineage, OffsetBounds, classify, classify_offset, xids_to_ask
from pitr.events.event_facts import EventFacts
from pitr.events.flows import Flow, FlowDeclaration
from pitr.events.history import Branch
from pitr.events.starts import FenceView, Known, PartitionNow, StartReason, out_from, start_of, view_fences
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

DECLARED = {
    DB: FlowDeclaration(DB, Flow.DB_FIRST),
    GROUPED: FlowDeclaration(GROUPED, Flow.SINK_GROUP, group="sink"),
    CURSOR: FlowDeclaration(CURSOR, Flow.SINK_CURSOR, cursor_sql="SELECT 0, next FROM cursors"),
    LAGGING: FlowDeclaration(LAGGING, Flow.EVENT_FIRST, max_lag_s=MAX_LAG_S),
}
steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7)), min_size=5, max_size=120)


@dataclass(frozen=True)
class Case:
    """A world after its steps, a point of restore in it, and what may be known of the forks."""

    world: World
    at: Restored
    lineage: Lineage

    @property
    def view(self) -> FenceView:
        return view_fences(self.world.fences, self.lineage, self.world.statuses(self.at), SYSTEM)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    world = World()
    for name, choice in draw(steps):
        getattr(world, name)(choice)
    points = world.points() or [world.tip()]
    at = points[draw(st.integers(0, len(points) - 1))]
    later: list[Branch] = []
    tip = world.tip()
    # What followed is known only if the last history goes through the restored point.
    if tip.way[: len(at.way)] == at.way and world.holds(tip, at.way[-1], at.end - 1):
        later = list(world.branches(tip)[len(at.way) :])
    known = {*at.way, *(one.timeline.number for one in later)}
    beside = tuple(
        Branch(TimelineId(timeline), LSN(lsn), xid)
        for timeline, (_, lsn, xid) in world.forks.items()
        if timeline not in known
    )
    return Case(world, at, Lineage(world.branches(at), LSN(at.end), world.fork_xid(at), tuple(later), beside))


def _facts(one: ModelEvent) -> EventFacts:
    effect = one.effects[0]
    return EventFacts(xid=effect.xid, timeline=TimelineId(effect.timeline), lsn=LSN(effect.lsn))


def _in_fact(case: Case, one: ModelEvent) -> EventClass:
    return EventClass.IN_DATABASE if case.world.is_in(case.at, one) else EventClass.NOT_IN_DATABASE


@given(cases())
def test_an_event_that_names_its_transaction_and_timeline_is_classified_exactly(case: Case) -> None:
    world, statuses = case.world, case.world.statuses(case.at)
    for one in world.logs[DB]:
        facts = _facts(one)
        assert all(xid in statuses for xid in xids_to_ask([facts], case.lineage))
        for known in (facts, replace(facts, lsn=None)):
            found = classify(known, case.lineage, statuses)
            event(f"{found}, {len(case.at.way)} timelines, {len(case.lineage.later)} later")
            assert (found is EventClass.IN_DATABASE) == world.is_in(case.at, one)
            assert found is not EventClass.UNKNOWN
            if world.is_lost(case.at, one):
                assert found is EventClass.LOST_BRANCH


@given(cases(), st.data())
def test_whatever_is_known_of_an_event_it_is_never_classified_wrongly(
    case: Case, data: st.DataObject
) -> None:
    """Fewer headers, 32-bit ids, vague forks and no database make more of it unknown, and nothing false."""
    world, statuses = case.world, case.world.statuses(case.at)
    vague = data.draw(st.sampled_from(["exact", "range", "unknown"]))
    lineage = replace(
        case.lineage,
        branches=tuple(_vague(one, vague, data) for one in case.lineage.branches),
        beside=tuple(_vague(one, vague, data) for one in case.lineage.beside),
        fork_xid=case.lineage.fork_xid if data.draw(st.booleans(), "asked") else None,
    )
    for one in world.logs[DB]:
        facts, effect = _facts(one), one.effects[0]
        if data.draw(st.booleans(), "no timeline"):
            facts = replace(facts, timeline=None)
        if data.draw(st.booleans(), "no LSN"):
            facts = replace(facts, lsn=None)
        if data.draw(st.booleans(), "commit LSN"):
            facts = replace(facts, commit_lsn=LSN(effect.commit_lsn))
        facts = replace(facts, is_xid_wide=data.draw(st.booleans(), "wide"))
        if data.draw(st.booleans(), "no xid"):
            facts = replace(facts, xid=None)
        found = classify(facts, lineage, statuses)
        event(f"{found} {vague}")
        if found is not EventClass.UNKNOWN:
            assert (found is EventClass.IN_DATABASE) == world.is_in(case.at, one)


def _vague(branch: Branch, how: str, data: st.DataObject) -> Branch:
    if not branch.fork_xid or how == "exact":
        return branch
    if how == "unknown":
        return replace(branch, fork_xid=None)
    low = branch.fork_xid - data.draw(st.integers(0, 4))
    return replace(branch, fork_xid=low, fork_xid_max=branch.fork_xid + data.draw(st.integers(0, 4)))


@given(cases())
def test_a_replay_starts_at_or_before_the_first_event_that_is_not_in_the_database(case: Case) -> None:
    world, view = case.world, case.view
    cursor = world.cursor_in(case.at)
    for topic in TOPICS:
        known = Known(view, case.lineage, {0: cursor}, EPOCH, timedelta(days=10_000))
        start = start_of(DECLARED[topic], PartitionNow(0, f"id-{topic}", CLUSTER), known)
        event(f"{topic}: {start.reason}")
        if start.offset is None:
            continue
        absent = [one for one in world.logs[topic] if not world.is_in(case.at, one)]
        # A failover before the first fence lost what no fence stands before.
        fences_at = {one.mark.timeline.number for one in view.inside}
        if case.at.way[0] not in fences_at and topic != CURSOR:
            absent = [one for one in absent if not world.is_lost(case.at, one)]
        assert all(start.offset <= one.offset for one in absent)
        if topic == CURSOR:
            assert start.reason is StartReason.CURSOR
            assert all(world.is_in(case.at, one) for one in world.logs[topic] if one.offset < start.offset)


@given(cases())
def test_what_was_appended_after_the_end_is_not_in_the_database(case: Case) -> None:
    world = case.world
    known = Known(case.view, case.lineage, {0: world.cursor_in(case.at)})
    for topic in (GROUPED, CURSOR, LAGGING):
        found = out_from(DECLARED[topic], PartitionNow(0, f"id-{topic}", CLUSTER), known)
        for one in world.logs[topic]:
            verdict = classify_offset(one.offset, OffsetBounds(found))
            event(f"{topic}: {verdict}")
            if verdict is EventClass.NOT_IN_DATABASE:
                assert not world.is_in(case.at, one)


@given(cases())
def test_the_fences_of_a_restored_database_are_those_whose_marks_are_in_it(case: Case) -> None:
    world = case.world

    def is_in(number: int) -> bool:
        mark = next(one.mark for one in world.fences if one.mark.number == number)
        # The commit follows its position by the record that begins the transaction.
        return world.holds(case.at, mark.timeline.number, mark.lsn.offset + 1)

    exact = {one.mark.number for one in case.view.inside}
    assert exact == {one.mark.number for one in world.fences if is_in(one.mark.number)}
    without = view_fences(world.fences, replace(case.lineage, fork_xid=None), {}, SYSTEM)
    assert {one.mark.number for one in without.inside} <= exact
    assert not exact & {one.mark.number for one in without.after}
