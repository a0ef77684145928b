"""The map of timelines against the planner and against a model that walks every slot.

What the map says can be restored, and nothing else, is what the planner plans: for all regions together and
for each alone, on every way, whatever holes, forks, epochs, backups and lagging regions there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise

import fix_archive as fix
from fix_worlds import FIRST, LAST, SLOT_BYTES, World, lsn, worlds
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pitr.errors import TargetRefused
from pitr.planner import plan_restore
from pitr.recovery import RecoveryTarget
from pitr.survey import ArchiveEnd, ArchiveSurvey
from pitr.timeline_map import BranchId, MapSources, TimelineMap, map_timelines
from pitr.timeline_spans import Cause
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

REGIONS = ("ap", "eu", "us")
_SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Spread:
    """A world whose objects are spread over regions: each somewhere, some regions lag or lack some."""

    world: World
    backup_regions: dict[str, tuple[str, ...]]

    def sources(self) -> MapSources:
        survey = self.world.survey()
        ends = {fix.archive_of(epoch): ArchiveEnd(None, True, "asked") for epoch in self.world.writers}
        return MapSources(survey, ends | {survey.archive: survey.end}, REGIONS, self.backup_regions)

    def alone(self, region: str) -> ArchiveSurvey:
        survey = self.world.survey()
        return replace(
            survey,
            units=tuple(unit for unit in survey.units if region in unit.regions),
            backups=tuple(each for each in survey.backups if region in self.backup_regions[each.backup]),
        )

    def map(self) -> TimelineMap:
        return map_timelines(self.sources(), TimelineId(self.world.timeline))


@st.composite
def spreads(draw: st.DrawFn, *, is_aligned: bool) -> Spread:
    world = draw(worlds(is_aligned=is_aligned))
    # Up to where each region has got; and now and then one that lacks a single object.
    reach = {name: draw(st.sampled_from([LAST, LAST, draw(st.integers(FIRST, LAST))])) for name in REGIONS}
    rare = st.sampled_from([True] * 9 + [False])
    units = []
    for unit in world.units:
        held = tuple(name for name in REGIONS if unit.end <= lsn(reach[name]) and draw(rare))
        units.append(replace(unit, regions=held))
    world.units = units
    holders = {
        each.backup: tuple(name for name in REGIONS if each.stop_lsn <= lsn(reach[name]) and draw(rare))
        for each in world.backups
    }
    return Spread(world, holders)


def _is_planned(survey: ArchiveSurvey, target: RecoveryTarget) -> bool:
    try:
        plan_restore(target, survey)
    except TargetRefused:
        return False
    return True


def _places(spans_at: list[LSN]) -> list[LSN]:
    """Every slot's beginning, the byte before and after it, and the places where spans change."""
    slots = [lsn(slot) for slot in range(FIRST - 2, LAST + 3)]
    near = [LSN(at.offset + by) for at in (*slots, *spans_at) for by in (-1, 0, 1)]
    return sorted(set(near))


@_SLOW
@given(spreads(is_aligned=False))
def test_an_lsn_can_be_restored_exactly_if_the_planner_plans_it(spread: Spread) -> None:
    survey, made = spread.world.survey(), spread.map()
    timeline = TimelineId(spread.world.timeline)
    for place in _places([at for span in made.spans for at in (span.start, span.end)]):
        is_planned = _is_planned(survey, RecoveryTarget("lsn", lsn=place, timeline=timeline))
        assert made.is_restorable(place) == is_planned, place
    event("whole" if made.is_whole else f"gaps: {', '.join(sorted({str(gap.cause) for gap in made.gaps}))}")


@_SLOW
@given(spreads(is_aligned=True), st.integers(-40, 40))
def test_a_time_can_be_restored_exactly_if_planner_and_model_say_so(spread: Spread, shift: int) -> None:
    world, made = spread.world, spread.map()
    timeline = TimelineId(world.timeline)
    seconds = {second for writer in world.writers.values() for second in writer.records.values()}
    instants = {fix.at_second(second + by) for second in seconds for by in (0, shift / 10)}
    instants |= {backup.stopped_at + by for backup in world.backups for by in (timedelta(), -fix_tick())}
    for instant in instants:
        is_planned = _is_planned(world.survey(), RecoveryTarget("time", instant=instant, timeline=timeline))
        assert made.holds_time(instant) == is_planned
        assert made.holds_time(instant) == (world.newest_for(instant) is not None)


def fix_tick() -> timedelta:
    return timedelta(microseconds=1)


@_SLOW
@given(spreads(is_aligned=False))
def test_a_region_is_named_exactly_where_it_suffices_alone(spread: Spread) -> None:
    made = spread.map()
    timeline = TimelineId(spread.world.timeline)
    for region in REGIONS:
        alone = spread.alone(region)
        for span in made.spans:
            inner = {
                span.start,
                span.end,
                *(
                    at
                    for slot in range(FIRST, LAST)
                    for at in (lsn(slot), lsn(slot) + 1)
                    if span.start <= at <= span.end
                ),
            }
            for place in inner:
                is_planned = _is_planned(alone, RecoveryTarget("lsn", lsn=place, timeline=timeline))
                if span.is_restorable and region in span.regions:
                    assert is_planned
                # An end of a span is an end of its neighbour too, of which other regions may hold all.
                elif span.start < place < span.end:
                    assert not is_planned
            if span.is_restorable:
                lacking = {one.region for one in span.lacking}
                assert lacking == set(REGIONS) - set(span.regions)
                event(f"regions: {len(span.regions)}")


@_SLOW
@given(spreads(is_aligned=False))
def test_the_spans_of_a_way_follow_each_other_and_say_why(spread: Spread) -> None:
    made = spread.map()
    for before, after in pairwise(made.spans):
        assert before.end == after.start
        assert replace(before, start=after.start, end=after.end) != after
    for span in made.spans:
        assert span.start < span.end or span.is_restorable
        assert span.is_restorable == (span.cause is None)
        assert span.aside is None
        for slot in range(FIRST, LAST):
            if span.start <= lsn(slot) and lsn(slot + 1) <= span.end:
                is_missing = span.cause in (Cause.WAL_MISSING, Cause.WAL_DAMAGED, Cause.EXPIRED)
                assert spread.world.is_stored(slot) != is_missing
                assert (span.archive.epoch, span.timeline.number) == spread.world.way(slot)
        if span.segments is not None:
            numbers = [name.number(fix.SEGMENT_BYTES) for name in (span.segments.first, span.segments.last)]
            assert numbers[0] * fix.SEGMENT_BYTES <= span.start.offset
            assert span.end.offset <= (numbers[1] + 1) * fix.SEGMENT_BYTES
            assert span.segments.count == numbers[1] - numbers[0] + 1


@_SLOW
@given(spreads(is_aligned=False))
def test_what_is_aside_can_be_restored_exactly_if_it_is_named(spread: Spread) -> None:
    """Each branch beside the way, as its own timeline's way: ``--archive A --timeline T``."""
    made, sources = spread.map(), spread.sources()
    for branch in made.branches:
        survey = replace(sources.survey, archive=branch.id.archive, end=sources.ends[branch.id.archive])
        aside = [span for span in branch.spans if span.aside is not None]
        for span in aside:
            assert BranchId(span.archive, span.timeline) == branch.id
            event(f"aside: {span.aside}")
            for place in (span.start + 1, LSN((span.start.offset + span.end.offset) // 2), span.end):
                if span.start < place < span.end:
                    target = RecoveryTarget("lsn", lsn=place, timeline=branch.id.timeline)
                    assert span.is_restorable == _is_planned(survey, target)


@_SLOW
@given(spreads(is_aligned=False))
def test_all_wal_that_is_stored_is_on_the_map(spread: Spread) -> None:
    made = spread.map()
    shown: dict[BranchId, list[tuple[int, int]]] = {}
    for branch in made.branches:
        for span in branch.spans:
            shown.setdefault(branch.id, []).append((span.start.offset, span.end.offset))
    for unit in spread.world.units:
        owner = BranchId(unit.archive, unit.timeline)
        began = next(
            b for t, b in spread.world.writers[owner.archive.epoch].timelines if t == owner.timeline.number
        )
        for slot in range(unit.start.offset // SLOT_BYTES, unit.end.offset // SLOT_BYTES):
            if slot < began:
                continue  # a copy of its parent's end
            at = slot * SLOT_BYTES
            assert any(start <= at and at + SLOT_BYTES <= end for start, end in _merged(shown[owner])), slot


def _merged(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(pairs):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
