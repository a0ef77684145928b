"""When the watchdog releases commits, and when it lets them wait again: a table, and what always holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr.commit_release import (
    BEHIND_MAX_S,
    HOLD_MAX_S,
    HOLD_S,
    ReleaseAction,
    ReleaseJudge,
    ReleaseLook,
    ReleasePolicy,
)
from pitr.protection import Protect
from pitr.wal.lsn import LSN

AFTER_S = 10.0
POLICY = ReleasePolicy(Protect.PRIMARY, AFTER_S)
STUCK = ReleaseLook(
    at_s=0.0, waiting=3, hangs_without_us=True, streams=False, flushed=None, end=LSN(100), is_released=False
)
IDLE = replace(STUCK, waiting=0, streams=True, flushed=LSN(100))


def first(judge: ReleaseJudge, looks: list[ReleaseLook]) -> tuple[ReleaseAction, float] | None:
    """Return the first action, and when."""
    for look in looks:
        decision = judge.look(look)
        if decision.action is not ReleaseAction.NONE:
            return decision.action, look.at_s
    return None


def each_second(seen: ReleaseLook, seconds: int, start: int = 0) -> list[ReleaseLook]:
    return [replace(seen, at_s=float(at)) for at in range(start, start + seconds)]


def moving(looks: list[ReleaseLook]) -> list[ReleaseLook]:
    return [
        replace(one, flushed=LSN(100 + int(one.at_s)), end=LSN(120 + int(one.at_s)), streams=True)
        for one in looks
    ]


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (STUCK, ReleaseAction.RELEASE),
        (replace(STUCK, streams=True, flushed=LSN(7)), ReleaseAction.RELEASE),
        (replace(STUCK, streams=True), ReleaseAction.RELEASE),
        (replace(STUCK, waiting=0), None),
        (replace(STUCK, hangs_without_us=False), None),
        (IDLE, None),
    ],
)
def test_commits_are_released_only_where_they_wait_for_a_daemon_that_does_nothing(
    seen: ReleaseLook, expected: ReleaseAction | None
) -> None:
    found = first(ReleaseJudge(POLICY), each_second(seen, 60))
    assert (found and found[0]) == expected
    if found is not None:
        assert AFTER_S <= found[1] <= AFTER_S + 1


def test_a_flush_that_moves_is_no_reason_however_many_wait() -> None:
    assert first(ReleaseJudge(POLICY), moving(each_second(STUCK, 300))) is None


def test_a_daemon_that_comes_and_goes_without_a_flush_is_stuck_all_the_same() -> None:
    looks = [
        replace(one, streams=at % 2 == 0, flushed=LSN(50) if at % 4 == 0 else None)
        for at, one in enumerate(each_second(STUCK, 30))
    ]
    found = first(ReleaseJudge(POLICY), looks)
    assert found is not None
    assert found[0] is ReleaseAction.RELEASE


def test_under_data_it_is_said_once_and_again_after_it_was_over() -> None:
    judge = ReleaseJudge(ReleasePolicy(Protect.DATA, AFTER_S))
    looks = each_second(STUCK, 60) + each_second(IDLE, 5, 60) + each_second(STUCK, 60, 65)
    said = [judge.look(one).action for one in looks]
    assert said.count(ReleaseAction.WARN) == 2
    assert set(said) == {ReleaseAction.NONE, ReleaseAction.WARN}


def test_commits_wait_again_once_the_daemon_has_kept_up_for_a_while() -> None:
    judge = ReleaseJudge(POLICY)
    gone = replace(STUCK, waiting=0, is_released=True)
    assert first(judge, each_second(gone, 100)) is None
    back = replace(gone, streams=True, flushed=LSN(100))
    found = first(judge, each_second(back, 100, 100))
    assert found == (ReleaseAction.HOLD_AGAIN, 100 + HOLD_S)


@pytest.mark.parametrize(
    ("behind_s", "expected"), [(int(BEHIND_MAX_S) + 2, None), (5, ReleaseAction.HOLD_AGAIN)]
)
def test_a_daemon_that_is_behind_is_not_waited_for(behind_s: int, expected: ReleaseAction | None) -> None:
    looks = [
        replace(
            one, streams=True, flushed=LSN(1000 + int(one.at_s) - behind_s), end=LSN(1000 + int(one.at_s))
        )
        for one in each_second(replace(STUCK, waiting=0, is_released=True), 300)
    ]
    found = first(ReleaseJudge(POLICY), looks)
    assert (found and found[0]) == expected


def test_a_pause_of_the_watchdog_itself_proves_nothing() -> None:
    judge = ReleaseJudge(POLICY)
    judge.look(STUCK)
    assert judge.look(replace(STUCK, at_s=1000.0)).action is ReleaseAction.NONE


def test_each_release_of_the_last_hour_doubles_the_hold() -> None:
    judge = ReleaseJudge(POLICY)
    holds = []
    at = 0.0
    for _ in range(8):
        judge.look(replace(IDLE, at_s=at, is_released=True))
        holds.append(judge.hold_s)
        judge.look(replace(IDLE, at_s=at + 1, is_released=False))
        at += 2
    assert holds == [30, 60, 120, 240, 480, 960, 960, 960]
    assert HOLD_MAX_S == 960
    judge.look(replace(IDLE, at_s=at + 4000, is_released=True))
    assert judge.hold_s == HOLD_S


_looks = st.lists(
    st.tuples(
        st.floats(0.1, 20),
        st.integers(0, 2),
        st.booleans(),
        st.booleans(),
        st.one_of(st.none(), st.integers(0, 5)),
        st.integers(0, 2),
        st.booleans(),
    ),
    max_size=120,
)


@given(st.sampled_from(Protect), st.floats(1, 60), _looks)
def test_it_never_releases_under_data_and_never_changes_faster_than_its_bounds(
    protect: Protect,
    after_s: float,
    steps: list[tuple[float, int, bool, bool, int | None, int, bool]],
) -> None:
    judge, is_released, at, end = ReleaseJudge(ReleasePolicy(protect, after_s)), False, 0.0, 10
    changed_s: float | None = None
    for pause_s, waiting, hangs, streams, behind, grown, is_done in steps:
        at, end = at + pause_s, end + grown
        flushed = None if behind is None else LSN(end - behind)
        seen = ReleaseLook(at, waiting, hangs, streams, flushed, LSN(end), is_released)
        action = judge.look(seen).action
        assert protect is Protect.PRIMARY or action is not ReleaseAction.RELEASE
        if action is ReleaseAction.RELEASE:
            assert not is_released
            assert waiting
            assert hangs
        if action is ReleaseAction.HOLD_AGAIN:
            assert is_released
            assert streams
            assert flushed is not None
        if action in (ReleaseAction.RELEASE, ReleaseAction.HOLD_AGAIN) and is_done:
            least_s = after_s if action is ReleaseAction.RELEASE else HOLD_S
            # A change is seen at the look after it.
            assert changed_s is None or at - changed_s >= least_s - 1e-6
            is_released, changed_s = not is_released, at
