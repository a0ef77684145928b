"""The planner against a model that walks every slot of WAL and every record by brute force.

The model knows what the planner must infer: each record and its time.  Where timelines are left and
backups begin and end at segment boundaries, both must agree exactly; elsewhere the planner, which
sees only the times of whole units, may refuse more, but what it accepts must be right.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import fix_archive as fix
from fix_worlds import FIRST, LAST, SLOT_BYTES, TICK, World, lsn, worlds
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pitr.errors import TargetRefused
from pitr.layout import ArchiveId
from pitr.planner import plan_restore
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan, TargetNotRestorable
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId


@dataclass
class Question:
    """A world, and a second that is near something that happened in it."""

    world: World
    second: int


@st.composite
def questions(draw: st.DrawFn, *, is_aligned: bool) -> Question:
    world = draw(worlds(is_aligned=is_aligned))
    seconds = {second for w in world.writers.values() for second in w.records.values()}
    seconds |= {int((b.stopped_at - fix.BEGIN).total_seconds()) for b in world.backups}
    near = draw(st.sampled_from(sorted(seconds | {FIRST * 10, LAST * 10})))
    return Question(world, near + draw(st.sampled_from([0, 1, -1, 7, 40])))


_SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _plan(world: World, target: RecoveryTarget) -> RestorePlan | TargetRefused:
    try:
        return plan_restore(target, world.survey())
    except TargetNotRestorable as refused:
        return refused


def _time(world: World, instant: datetime, *, is_inclusive: bool = True) -> RecoveryTarget:
    return RecoveryTarget(
        "time", instant=instant, is_inclusive=is_inclusive, timeline=TimelineId(world.timeline)
    )


def _by_lsn(world: World, place: LSN) -> RecoveryTarget:
    return RecoveryTarget("lsn", lsn=place, timeline=TimelineId(world.timeline))


def _check_candidates(world: World, plan: RestorePlan, instant: datetime) -> None:
    """What the plan says to read holds the stop, and nothing that it leaves out comes before it."""
    stop = world.stop_for(plan.backup, instant)
    assert stop is not None
    if stop == LAST:
        assert plan.is_past_end
        return
    assert any(c.start <= lsn(stop) < c.until for c in plan.candidates)
    position = plan.links[0].start
    for link in plan.links:
        assert link.start == position
        position = link.until


@_SLOW
@given(questions(is_aligned=True), st.booleans())
def test_a_time_gives_the_models_backup_or_is_refused_as_in_the_model(
    question: Question, is_inclusive: bool
) -> None:
    world, instant = question.world, fix.at_second(question.second)
    effective = instant if is_inclusive else instant - TICK
    plan = _plan(world, _time(world, instant, is_inclusive=is_inclusive))
    expected = world.newest_for(effective)
    event("refused" if expected is None else "planned")
    if isinstance(plan, RestorePlan):
        assert expected is not None
        assert plan.backup == expected
        assert list(plan.parents) == world.parents(expected)
        event(f"{len(plan.parents)} parents")
        _check_candidates(world, plan, effective)
    else:
        assert expected is None


@_SLOW
@given(questions(is_aligned=False))
def test_what_is_accepted_is_right_where_units_are_cut_by_switches(question: Question) -> None:
    world, instant = question.world, fix.at_second(question.second)
    plan = _plan(world, _time(world, instant))
    event("planned" if isinstance(plan, RestorePlan) else "refused")
    if isinstance(plan, RestorePlan) and world.stop_for(plan.backup, instant) is not None:
        _check_candidates(world, plan, instant)
    elif isinstance(plan, RestorePlan):
        # Only a reader can tell: the record lies before the consistency point, in a unit that goes on.
        late = [
            c
            for c in plan.candidates
            if c.start < plan.backup.stop_lsn < c.unit.end
            or c.unit.start < plan.backup.start_lsn
            or not c.is_whole
        ]
        assert late


@_SLOW
@given(questions(is_aligned=True), st.booleans())
def test_the_nearest_moments_of_a_refusal_are_restorable_and_nearest(
    question: Question, is_inclusive: bool
) -> None:
    world, instant = question.world, fix.at_second(question.second)
    refused = _plan(world, _time(world, instant, is_inclusive=is_inclusive))
    if isinstance(refused, RestorePlan):
        return
    assert isinstance(refused, TargetNotRestorable)
    shift = timedelta() if is_inclusive else TICK
    seconds = {s for w in world.writers.values() for s in w.records.values()}
    moments = {fix.at_second(s) + d for s in seconds for d in (-TICK, timedelta())}
    moments |= {b.stopped_at for b in world.backups}
    restorable = {m + shift for m in moments if world.newest_for(m) is not None}
    earlier = [m for m in restorable if m < instant]
    later = [m for m in restorable if m > instant]
    for moment, is_before in ((refused.before, True), (refused.after, False)):
        if moment is None:
            continue
        assert isinstance(_plan(world, _by_lsn(world, moment.lsn)), RestorePlan)
        if moment.at is not None:
            event("before" if is_before else "after")
            assert isinstance(_plan(world, _time(world, moment.at, is_inclusive=is_inclusive)), RestorePlan)
            assert moment.at < instant if is_before else moment.at > instant
    if earlier:
        assert refused.before is not None
        assert refused.before.at == max(earlier)
    if later:
        assert refused.after is not None
        assert refused.after.at == min(later)


@_SLOW
@given(worlds(is_aligned=True), st.integers(FIRST - 2, LAST + 2), st.integers(0, SLOT_BYTES - 1))
def test_an_lsn_gives_the_newest_backup_from_which_wal_leads_there(
    world: World, slot: int, within: int
) -> None:
    place = LSN(slot * SLOT_BYTES + within)
    usable = [
        b for b in world.backups if (end := world.run_end(b)) is not None and b.stop_lsn <= place <= lsn(end)
    ]
    plan = _plan(world, _by_lsn(world, place))
    if isinstance(plan, RestorePlan):
        assert plan.backup == max(usable, key=lambda b: (b.stop_lsn, b.backup))
        assert any(c.start <= place <= c.until for c in plan.candidates)
    else:
        assert not usable
        assert isinstance(plan, TargetNotRestorable)
        for moment in (plan.before, plan.after):
            if moment is not None:
                assert isinstance(_plan(world, _by_lsn(world, moment.lsn)), RestorePlan)


@_SLOW
@given(worlds(is_aligned=True))
def test_latest_is_the_certain_end_after_the_newest_usable_backup(world: World) -> None:
    usable = [(b.stop_lsn, b.backup, b) for b in world.backups if world.run_end(b) is not None]
    plan = _plan(world, RecoveryTarget("latest", timeline=TimelineId(world.timeline)))
    newest = max(usable)[2] if usable else None
    end = world.run_end(newest) if newest is not None else None
    if newest is not None and end is not None and world.is_end(end):
        assert isinstance(plan, RestorePlan)
        assert plan.backup == newest
        assert plan.wal_end == lsn(end)
    else:
        assert isinstance(plan, TargetNotRestorable)
        if plan.before is not None:
            assert isinstance(_plan(world, _by_lsn(world, plan.before.lsn)), RestorePlan)


def _archives(world: World) -> set[ArchiveId]:
    return {fix.archive_of(epoch) for epoch in world.writers}


@_SLOW
@given(worlds(is_aligned=False))
def test_a_plan_never_uses_what_lies_off_the_way(world: World) -> None:
    """No orphaned tail, no superseded epoch: each byte of each link is the way's own."""
    plan = _plan(world, RecoveryTarget("immediate", timeline=TimelineId(world.timeline)))
    if not isinstance(plan, RestorePlan):
        return
    for link in plan.links:
        assert link.unit.archive in _archives(world)
        for slot in range(link.start.offset // SLOT_BYTES, link.until.offset // SLOT_BYTES):
            writer = world.writers[link.unit.archive.epoch]
            mine = writer.records.get((link.unit.timeline.number, slot))
            assert mine == world.record(slot)
