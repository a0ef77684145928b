"""Retention against the planner's brute-force model: nothing inside the window is lost or changes.

The worlds are those of ``test_planner_model``, with chains of incremental backups put in: epochs, timelines,
orphaned tails, holes.  The model asks, second by second, which backup a restore would begin with.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import fix_archive as fix
import pytest
from fix_retention import Case, cases
from fix_worlds import FIRST, LAST, SLOT_BYTES, World
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import ExpiryRefused
from pitr.retention import ExpiredWal, plan_expiry, what_stays
from pitr.retention_proof import prove_plan
from pitr.survey import ArchiveSurvey

_SLOW = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class View(World):
    """A world along one way, which nobody changes: what was looked up once is known."""

    stored: dict[int, bool] = field(default_factory=dict)
    ends: dict[str, int | None] = field(default_factory=dict)
    places: dict[int, tuple[int, int]] = field(default_factory=dict)

    def is_stored(self, slot: int) -> bool:
        if slot not in self.stored:
            self.stored[slot] = super().is_stored(slot)
        return self.stored[slot]

    def way(self, slot: int) -> tuple[int, int]:
        if slot not in self.places:
            self.places[slot] = super().way(slot)
        return self.places[slot]

    def run_end(self, b: BackupManifest) -> int | None:
        if b.backup not in self.ends:
            self.ends[b.backup] = super().run_end(b)
        return self.ends[b.backup]


def _world_of(world: World, survey: ArchiveSurvey, epoch: int, timeline: int) -> View:
    """Return the model of what a survey holds, along one way."""
    return View(world.writers, list(survey.units), list(survey.backups), world.end, epoch, timeline)


def _newest_for(world: World, instant: datetime) -> str | None:
    known = {each.backup: each for each in world.backups}

    def is_whole(backup: BackupManifest) -> bool:
        return backup.parent is None or (backup.parent in known and is_whole(known[backup.parent]))

    usable = [b for b in world.backups if is_whole(b) and world.stop_for(b, instant) is not None]
    return max(usable, key=lambda b: (b.stop_lsn, b.backup)).backup if usable else None


def _is_on(world: World, backup: BackupManifest) -> bool:
    return world.way(backup.start_lsn.offset // SLOT_BYTES) == (
        backup.archive.epoch,
        backup.timeline.number,
    )


def _ways(case: Case) -> list[tuple[int, int]]:
    """Return the ways on which something happened inside the window, by looking at every slot."""
    found = [(case.world.archive, case.world.timeline)]
    for writer in case.world.writers.values():
        for timeline, _ in writer.timelines:
            view = _world_of(case.world, case.world.survey(), writer.epoch, timeline)
            ends = [s for slot in range(FIRST, LAST) if view.is_stored(slot) and (s := view.record(slot))]
            times = [fix.at_second(second) for second in ends]
            times += [each.stopped_at for each in view.backups if _is_on(view, each)]
            if times and max(times) >= case.since:
                found.append((writer.epoch, timeline))
    return found


def _instants(case: Case) -> list[datetime]:
    seconds = {second for w in case.world.writers.values() for second in w.records.values()}
    moments = {fix.at_second(s) + shift for s in seconds for shift in (timedelta(seconds=-1), timedelta())}
    moments |= {each.stopped_at for each in case.world.backups}
    moments |= {case.since, case.now, case.since + (case.now - case.since) / 2}
    return sorted(at for at in moments if at >= case.since)


@_SLOW
@given(cases(is_aligned=True))
def test_no_target_inside_the_window_is_lost_or_begins_with_another_backup(case: Case) -> None:
    plan = case.plan
    event(f"expired {min(2, len(plan.expired))}, wal {bool(plan.wal)}, holes {bool(plan.holes)}")
    stays = what_stays(case.world.survey(), plan)
    for epoch, timeline in _ways(case):
        before = _world_of(case.world, case.world.survey(), epoch, timeline)
        after = _world_of(case.world, stays, epoch, timeline)
        for instant in _instants(case):
            assert _newest_for(after, instant) == _newest_for(before, instant), (epoch, timeline, instant)
        for backup in after.backups:
            if _is_on(after, backup):
                assert after.run_end(backup) == before.run_end(backup), backup.backup


@_SLOW
@given(cases(is_aligned=False))
def test_the_planner_itself_gives_the_same_answers_to_every_target(case: Case) -> None:
    plan = case.plan
    proven = prove_plan(case.world.survey(), plan, now=case.now, instants=_instants(case))
    event("something is restorable" if proven.restorable else "nothing is")
    assert proven.targets >= len(_instants(case))


@_SLOW
@given(cases(is_aligned=False))
def test_chains_stay_whole_and_nothing_inside_the_window_goes(case: Case) -> None:
    plan = case.plan
    kept = {each.backup.backup: each.backup for each in plan.kept}
    assert {each.backup for each in case.world.backups} == kept.keys() | {e.backup for e in plan.expired}
    assert all(each.parent is None or each.parent in kept for each in kept.values())
    assert all(each.stopped_at < case.since for each in plan.expired)
    assert all(each.why for each in plan.kept)
    full = [each for each in case.world.backups if each.type == "full"]
    assert not full or any(each.type == "full" for each in kept.values())


@_SLOW
@given(cases(is_aligned=True))
def test_nothing_is_kept_that_no_target_needs(case: Case) -> None:
    """Of old backups what serves the window, the least number and chains; and no WAL before them."""
    plan = case.plan
    if plan.holes or not plan.kept:
        return
    needed: set[str] = set()
    for epoch, timeline in _ways(case):
        view = _world_of(case.world, case.world.survey(), epoch, timeline)
        needed |= {found for at in _instants(case) if (found := _newest_for(view, at)) is not None}
    for each in plan.kept:
        if each.backup.stopped_at < case.since and each.backup.backup not in needed:
            event("kept beside the targets")
            assert not any(why == "inside the window" for why in each.why) or any(
                (slot := case.world.record(s)) is not None and fix.at_second(slot) >= case.since
                for s in range(FIRST, LAST)
            )
    first = min(each.backup.start_lsn.offset for each in plan.kept) // fix.SEGMENT_BYTES
    stays = what_stays(case.world.survey(), plan)
    # A way without a kept backup, or without any time, stays as it is: nobody can say what of it is of use.
    views = [_world_of(case.world, stays, archive.epoch, timeline.number) for archive, timeline in plan.ways]
    if all(any(_is_on(view, each.backup) for each in plan.kept) for view in views):
        assert all(unit.end.offset > first * fix.SEGMENT_BYTES for unit in stays.units)


@_SLOW
@given(cases(is_aligned=True))
def test_an_expired_archive_has_nothing_more_to_expire(case: Case) -> None:
    plan = case.plan
    stays = what_stays(case.world.survey(), plan)
    again = plan_expiry(stays, window=case.now - case.since, minimum_full_backups=case.minimum, now=case.now)
    assert again.is_empty
    assert [each.backup for each in again.kept] == [each.backup for each in plan.kept]


@_SLOW
@given(cases(is_aligned=True), st.data())
def test_the_proof_refuses_a_plan_that_takes_one_backup_or_segment_too_many(
    case: Case, data: st.DataObject
) -> None:
    plan, survey = case.plan, case.world.survey()
    main = _world_of(case.world, survey, case.world.archive, case.world.timeline)
    chosen = _newest_for(main, case.now)
    if chosen is None:
        return
    victim = next(each.backup for each in plan.kept if each.backup.backup == chosen)
    if data.draw(st.booleans()):
        too_much = replace(plan, expired=(*plan.expired, victim))
    else:
        number = victim.start_lsn.offset // fix.SEGMENT_BYTES
        names = {
            (unit.archive, unit.key.segment)
            for unit in survey.units
            if unit.key.segment.number(fix.SEGMENT_BYTES) == number
        }
        gone = [ExpiredWal(archive, name, name, None, 0) for archive, name in names]
        too_much = replace(plan, wal=(*plan.wal, *gone))
    with pytest.raises(ExpiryRefused, match="would be lost or change"):
        prove_plan(survey, too_much, now=case.now)
