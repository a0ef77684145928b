"""Random targets: what is logged before a run decides the moment, and whoever has the seed finds it again."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr.errors import MalformedValue, TargetRefused
from verifiers.verify_target import (
    STRETCHES_MAX,
    Stretch,
    merge,
    parse_stretches,
    random_moment,
    seed_sha256,
    stretches_text,
)

DAY = datetime(2026, 11, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def at(second: float) -> datetime:
    return DAY + timedelta(seconds=second)


def stretch(start: float, end: float) -> Stretch:
    return Stretch(at(start), at(end))


seeds = st.binary(min_size=32, max_size=32).map(bytes.hex)
parts = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(0, 500)).map(lambda p: stretch(p[0], p[0] + p[1])),
    min_size=1,
)


def test_a_seed_means_the_moment_that_the_documentation_computes() -> None:
    stretches = (stretch(0, 10), stretch(100, 200))
    seed = "ab" * 32
    text = "2026-11-01T00:00:00.000000Z/2026-11-01T00:00:10.000000Z"
    text += ";2026-11-01T00:01:40.000000Z/2026-11-01T00:03:20.000000Z"
    assert stretches_text(stretches) == text
    mark = b"pitr/v1/random-target\0" + seed.encode() + b"\0" + text.encode()
    number = int.from_bytes(hashlib.sha256(mark).digest()[:8], "big") % (10_000_001 + 100_000_001)
    if number < 10_000_001:
        expected = at(0) + number * MICROSECOND
    else:
        expected = at(100) + (number - 10_000_001) * MICROSECOND
    assert random_moment(seed, stretches) == expected
    assert seed_sha256(seed) == hashlib.sha256(bytes.fromhex(seed)).hexdigest()


@given(seeds, parts)
def test_the_moment_lies_in_a_stretch_and_depends_on_seed_and_stretches_alone(
    seed: str, stretches: list[Stretch]
) -> None:
    merged = merge(stretches)
    moment = random_moment(seed, merged)
    assert any(one.start <= moment <= one.end for one in merged)
    assert random_moment(seed, parse_stretches(stretches_text(merged))) == moment


def test_every_moment_of_a_small_window_is_drawn_by_some_seed() -> None:
    window = (Stretch(at(0), at(0) + MICROSECOND), Stretch(at(9), at(9) + MICROSECOND))
    drawn = {random_moment(f"{number:064x}", window) for number in range(200)}
    assert drawn == {at(0), at(0) + MICROSECOND, at(9), at(9) + MICROSECOND}


@given(parts)
def test_merged_stretches_hold_the_same_moments_and_do_not_meet(stretches: list[Stretch]) -> None:
    merged = merge(stretches)
    for before, after in pairwise(merged):
        assert before.end + MICROSECOND < after.start
    if len(merged) < STRETCHES_MAX:
        for one in stretches:
            assert sum(kept.start <= one.start and one.end <= kept.end for kept in merged) == 1


def test_many_stretches_are_bounded_to_the_newest() -> None:
    merged = merge(stretch(10 * number, 10 * number + 1) for number in range(STRETCHES_MAX + 5))
    assert len(merged) == STRETCHES_MAX
    assert merged[-1] == stretch(10 * (STRETCHES_MAX + 4), 10 * (STRETCHES_MAX + 4) + 1)


@pytest.mark.parametrize("wrong", ["", "ab", "AB" * 32, "ab" * 33, "zz" * 32])
def test_what_is_no_seed_is_refused(wrong: str) -> None:
    with pytest.raises(MalformedValue):
        random_moment(wrong, (stretch(0, 1),))


def test_without_a_restorable_moment_none_is_drawn() -> None:
    with pytest.raises(TargetRefused):
        random_moment("ab" * 32, ())
    with pytest.raises(MalformedValue):
        stretch(2, 1)
    with pytest.raises(MalformedValue):
        parse_stretches("2026-11-01T00:00:00.000000Z")
