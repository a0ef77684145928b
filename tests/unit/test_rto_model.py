"""The forecast of recovery time: sensible after one run, right after some, and honest about its error."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.rto_model import Forecast, Run, Work, held_out_error, learn

GIB = 1 << 30


def took(work: Work, *, slower: float = 1.0) -> Run:
    """Return a run on a machine that restores 80 MB/s, opens 4,000 files/s and replays 30 MB/s of WAL."""
    seconds = 4 + work.size_bytes / 80e6 + work.files / 4000 + work.wal_bytes / 30e6
    return Run(work, seconds * slower)


def some_work(number: int) -> Work:
    drawn = random.Random(number)
    size_bytes = drawn.randrange(GIB // 50, 200 * GIB)
    return Work(size_bytes, 900 + size_bytes // (64 << 20), drawn.randrange(16 << 20, 30 * GIB))


def relative_error(runs: list[Run], work: Work) -> float:
    model = learn(runs)
    assert model is not None
    truth = took(work).seconds
    return abs(model.forecast(work).seconds - truth) / truth


def test_without_a_run_there_is_no_forecast() -> None:
    assert learn([]) is None


def test_one_run_tells_how_fast_the_machine_is_and_that_the_error_is_not_known() -> None:
    work = Work(20 * GIB, 2000, 2 * GIB)
    model = learn([took(work)])
    assert model is not None
    assert model.forecast(work).seconds == pytest.approx(took(work).seconds, rel=0.02)
    assert model.error is None
    twice = Work(40 * GIB, 4000, 4 * GIB)
    assert relative_error([took(work)], twice) < 0.1
    assert model.forecast(twice).runs == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_dozen_noisy_runs_forecast_others_within_a_fifth(seed: int) -> None:
    drawn = random.Random(seed)
    runs = [took(some_work(seed * 100 + n), slower=drawn.uniform(0.92, 1.08)) for n in range(12)]
    model = learn(runs)
    assert model is not None
    others = [took(some_work(seed * 100 + 50 + n)) for n in range(9)]
    errors = sorted(abs(model.forecast(one.work).seconds / one.seconds - 1) for one in others)
    assert errors[4] < 0.2
    assert model.error is not None
    assert model.error < 0.2


def test_a_run_on_a_bad_day_hardly_counts() -> None:
    runs = [took(some_work(n)) for n in range(12)]
    runs[3] = took(some_work(3), slower=10.0)
    assert relative_error(runs, some_work(99)) < 0.1


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1 << 44), st.integers(0, 10**7), st.integers(0, 1 << 44), st.floats(0.001, 1e6)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_no_part_is_negative_and_more_work_never_takes_less(rows: list[tuple[int, int, int, float]]) -> None:
    model = learn([Run(Work(size, files, wal), seconds) for size, files, wal, seconds in rows])
    assert model is not None
    assert min(model.fixed_s, model.byte_s, model.file_s, model.wal_byte_s) >= 0
    small, large = model.forecast(Work(GIB, 10, GIB)), model.forecast(Work(2 * GIB, 20, 2 * GIB))
    assert 0 <= small.seconds <= large.seconds


def test_the_error_is_that_of_forecasts_and_not_of_the_fit() -> None:
    # One run that is four times as long as its work says: the others cannot know.
    runs = [took(some_work(1)), took(some_work(2), slower=4.0)]
    error = held_out_error(runs)
    assert error is not None
    assert error > 0.5
    assert held_out_error(runs[:1]) is None


def test_the_longest_time_has_the_error_added() -> None:
    assert Forecast(100.0, 0.25, 4).longest_s == 125.0
    assert Forecast(100.0, None, 1).longest_s == 100.0


def test_work_far_beyond_what_was_measured_has_a_wider_error() -> None:
    """Runs with a little WAL say next to nothing of fifty times as much."""
    alike = [Run(Work(10**9, 1000, 10**8), 20.0 + noise) for noise in (0.0, 0.5, 1.0, 1.5)]
    model = learn(alike)
    assert model is not None
    assert model.error is not None
    inside, beyond = (model.forecast(Work(10**9, 1000, wal)) for wal in (10**8, 50 * 10**8))
    assert inside.error == model.error == model.forecast(Work(0, 0, 0)).error
    assert beyond.error == 50 * model.error
    assert beyond.longest_s > 2 * beyond.seconds
