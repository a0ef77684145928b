"""The search for the transaction that did it: right for every place, and never more looks than promised."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.find_search import Bisection, probes_max


def search(suspicion: list[float], is_good: list[bool]) -> tuple[int, int, dict[int, bool]]:
    """Search with an oracle; return what was found, how many looks it took, and what they said."""
    bisection, seen = Bisection(suspicion), {}
    while bisection.found is None:
        state = bisection.next()
        assert state not in seen, "a state is looked at once"
        seen[state] = is_good[state]
        bisection.note(state, is_good=is_good[state])
    return bisection.found, len(seen), seen


weights = st.lists(
    st.one_of(st.just(0.0), st.floats(0.01, 100.0), st.floats(1e4, 1e9)), min_size=1, max_size=200
)


@given(weights, st.data())
def test_the_culprit_is_found_within_the_bound(suspicion: list[float], data: st.DataObject) -> None:
    culprit = data.draw(st.integers(0, len(suspicion) - 1))
    health = [state <= culprit for state in range(len(suspicion) + 1)]
    found, looks, _ = search(suspicion, health)
    assert found == culprit
    assert looks <= probes_max(len(suspicion)) <= max(0, math.ceil(math.log2(len(suspicion)))) + 3


@given(st.integers(1, 600), st.data())
def test_equal_suspicion_is_plain_bisection(candidates: int, data: st.DataObject) -> None:
    culprit = data.draw(st.integers(0, candidates - 1))
    health = [state <= culprit for state in range(candidates + 1)]
    assert search([1.0] * candidates, health)[1] <= math.ceil(math.log2(candidates)) + 1


@given(weights, st.data())
def test_where_health_came_and_went_a_change_from_good_to_bad_is_found(
    suspicion: list[float], data: st.DataObject
) -> None:
    count = len(suspicion)
    inner = data.draw(st.lists(st.booleans(), min_size=count - 1, max_size=count - 1))
    health = [True, *inner, False]
    found, _, seen = search(suspicion, health)
    assert (health[found], health[found + 1]) == (True, False)
    # Both sides were looked at, unless they are the two ends.
    assert found in seen or found == 0
    assert found + 1 in seen or found + 1 == count


def test_a_mass_deletion_in_a_day_of_small_commits_takes_few_looks() -> None:
    suspicion = [1.0] * 100_000
    suspicion[23_456] = 50_000.0
    health = [state <= 23_456 for state in range(100_001)]
    assert search(suspicion, health)[1] <= 5


def test_an_answer_for_a_state_that_is_not_in_question_is_refused() -> None:
    bisection = Bisection([1.0, 1.0, 1.0])
    bisection.note(2, is_good=True)
    with pytest.raises(ValueError, match="not in question"):
        bisection.note(1, is_good=False)
    assert bisection.open == range(2, 3)
