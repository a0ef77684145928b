"""The ladder: data never gives way, the primary gives way by steps, and both come back by themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr.protection import HOLD_S, Ladder, Level, Observation, Protect, ProtectionPolicy

PRIMARY = ProtectionPolicy(Protect.PRIMARY, 30.0)
GOOD = Observation(0.0, True, 0, 0.0, 3, 3, 2, True)
STUCK = replace(GOOD, commits_waiting=4, unflushed_age_s=31.0, regions_answering=1, regions_level=1)


def walk(ladder: Ladder, seen: Observation, *times_s: float) -> list[Level]:
    return [ladder.step(replace(seen, at_s=at_s)) for at_s in times_s]


def test_data_waits_however_long() -> None:
    ladder = Ladder(ProtectionPolicy(Protect.DATA, 30.0))
    assert set(walk(ladder, STUCK, 0, 100, 10_000)) == {Level.QUORUM}


def test_the_primary_gives_way_one_step_at_a_time() -> None:
    ladder = Ladder(PRIMARY)
    assert walk(ladder, replace(STUCK, unflushed_age_s=29.0), 0) == [Level.QUORUM]
    assert walk(ladder, STUCK, 1, 30, 31, 60, 61, 200) == [
        Level.FEWER_REGIONS,
        Level.FEWER_REGIONS,
        Level.SPOOLED,
        Level.SPOOLED,
        Level.ASYNCHRONOUS,
        Level.ASYNCHRONOUS,
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"regions_answering": 0}, Level.SPOOLED),
        ({"quorum": 1}, Level.SPOOLED),
        ({"commits_waiting": 0}, Level.QUORUM),
        ({"is_synchronous": False}, Level.QUORUM),
    ],
)
def test_a_step_that_does_not_help_is_passed_over(change: dict[str, int], expected: Level) -> None:
    ladder = Ladder(PRIMARY)
    assert walk(ladder, replace(STUCK, **change), 1) == [expected]  # type: ignore[arg-type]


def test_a_step_that_could_not_be_taken_is_not_tried_again_at_once() -> None:
    ladder = Ladder(PRIMARY)
    assert walk(ladder, STUCK, 0) == [Level.FEWER_REGIONS]
    ladder.stay(Level.QUORUM)
    assert walk(ladder, STUCK, 1, 29, 30) == [Level.QUORUM, Level.QUORUM, Level.FEWER_REGIONS]


def test_without_the_right_to_release_the_spool_is_the_last_step() -> None:
    ladder = Ladder(PRIMARY, Level.SPOOLED)
    assert walk(ladder, replace(STUCK, can_release=False), 1, 1000) == [Level.SPOOLED] * 2


@pytest.mark.parametrize("level", [Level.FEWER_REGIONS, Level.SPOOLED, Level.ASYNCHRONOUS])
def test_it_is_undone_when_the_quorum_has_been_back_for_a_while(level: Level) -> None:
    ladder = Ladder(PRIMARY, level)
    seen = replace(GOOD, is_synchronous=level is not Level.ASYNCHRONOUS)
    assert walk(ladder, seen, 0, HOLD_S / 2) == [level] * 2
    # It was away again in between, so the time begins anew.
    assert walk(ladder, replace(seen, regions_level=1), HOLD_S / 2 + 1) == [level]
    assert walk(ladder, seen, 100, 100 + HOLD_S / 2, 100 + HOLD_S) == [level, level, Level.QUORUM]


def test_when_nobody_waits_any_more_the_promise_is_whole_again() -> None:
    ladder = Ladder(PRIMARY, Level.SPOOLED)
    seen = replace(STUCK, is_synchronous=False)
    assert walk(ladder, seen, 0, HOLD_S) == [Level.SPOOLED, Level.QUORUM]
    released = Ladder(PRIMARY, Level.ASYNCHRONOUS)
    assert walk(released, seen, 0, HOLD_S, 1000) == [Level.ASYNCHRONOUS] * 3


OBSERVATIONS = st.builds(
    Observation,
    at_s=st.just(0.0),
    is_synchronous=st.booleans(),
    commits_waiting=st.integers(0, 2),
    unflushed_age_s=st.sampled_from([0.0, 5.0, 31.0]),
    regions_answering=st.integers(0, 3),
    regions_level=st.integers(0, 3),
    quorum=st.integers(1, 3),
    can_release=st.booleans(),
)


@given(st.lists(st.tuples(st.floats(0.1, 20.0), OBSERVATIONS), max_size=60), st.sampled_from(Protect))
def test_the_level_never_changes_faster_than_it_may(
    steps: list[tuple[float, Observation]], protect: Protect
) -> None:
    ladder = Ladder(ProtectionPolicy(protect, 30.0))
    at_s, lowered_s = 0.0, float("-inf")
    for pause_s, seen in steps:
        at_s += pause_s
        before, after = ladder.level, ladder.step(replace(seen, at_s=at_s))
        if after > before:
            assert protect is Protect.PRIMARY
            assert seen.is_synchronous
            assert seen.commits_waiting
            assert seen.unflushed_age_s >= 30.0
            assert at_s - lowered_s >= 30.0 or before is Level.QUORUM
            assert after is not Level.ASYNCHRONOUS or seen.can_release
            lowered_s = at_s
        elif after < before:
            assert after is Level.QUORUM
            assert at_s - lowered_s >= HOLD_S
