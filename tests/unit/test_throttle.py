"""The token bucket, by a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr.throttle import BURST_S, TokenBucket

RATE = 1000.0


def read_for(bucket: TokenBucket, duration_s: float, size_bytes: int, now_s: float) -> tuple[int, float]:
    """Read pieces of a size for a time; return the bytes that were read, and the time after."""
    end_s, done = now_s + duration_s, 0
    while now_s < end_s:
        wait_s = bucket.take(size_bytes, now_s)
        if wait_s:
            now_s += wait_s
        else:
            done += size_bytes
    return done, now_s


def test_without_a_rate_nobody_waits() -> None:
    bucket = TokenBucket(None, 0.0)
    assert all(bucket.take(1 << 30, 0.0) == 0 for _ in range(100))


@given(st.integers(1, 5000), st.floats(1, 100))
def test_no_more_is_read_than_rate_and_burst_allow_and_not_much_less(size: int, duration_s: float) -> None:
    done, now_s = read_for(TokenBucket(RATE, 0.0), duration_s, size, 0.0)
    assert done <= RATE * (now_s + BURST_S) + size
    assert done >= RATE * duration_s - size


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 4000)), max_size=30))
def test_after_idling_only_the_burst_is_saved_up(looks: list[tuple[float, int]]) -> None:
    bucket, now_s = TokenBucket(RATE, 0.0), 0.0
    for pause_s, size in looks:
        now_s += pause_s
        bucket.take(size, now_s)
    now_s += 1000.0
    done = 0
    while bucket.take(10, now_s) == 0:
        done += 10
    assert done <= RATE * BURST_S + 10


def test_a_debt_is_paid_at_the_new_rate() -> None:
    bucket = TokenBucket(RATE, 0.0)
    assert bucket.take(10_000, 0.0) == 0
    assert bucket.take(1, 0.0) == pytest.approx(10.0)
    bucket.set_rate(10 * RATE, 0.0)
    assert bucket.take(1, 0.0) == pytest.approx(1.0)
    bucket.set_rate(None, 0.0)
    assert bucket.take(1 << 40, 0.0) == 0
    # What was read without a limit is no debt.
    bucket.set_rate(RATE, 1.0)
    assert bucket.take(1, 1.0) == 0


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    bucket = TokenBucket(RATE, 100.0)
    bucket.take(1000, 100.0)
    assert bucket.take(1, 50.0) == pytest.approx(1.0)
    assert bucket.take(1, 51.0) == 0


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_is_more_than_nothing(rate: float) -> None:
    with pytest.raises(ValueError, match="no limit but an end"):
        TokenBucket(rate, 0.0)
