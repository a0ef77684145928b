"""When the disk will be full of WAL: growth, bursts, checkpoints, idleness; and when the slot must go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr.disk_forecast import (
    LEVEL_BYTES,
    DiskForecaster,
    DiskSample,
    DropPolicy,
    Forecast,
    why_drop,
)
from pitr.wal.lsn import LSN

MIB, GIB = 1 << 20, 1 << 30
START = LSN(GIB)


def sample(at_s: float, kept: int, free: int | None = 100 * GIB, spare: int | None = None) -> DiskSample:
    return DiskSample(at_s, LSN(START.offset + kept), kept, kept, free, spare)


def after(samples: Iterable[DiskSample]) -> Forecast:
    forecaster, forecast = DiskForecaster(), Forecast()
    for one in samples:
        forecast = forecaster.add(one)
    return forecast


def test_steady_growth_says_when_the_disk_is_full() -> None:
    # 1 MiB a second, and 3 h 10 min of it left.
    room = 11_400 * MIB
    forecast = after(sample(at, at * MIB, room + (600 - at) * MIB, 2 * GIB) for at in range(0, 601, 10))
    assert forecast.full_in_s == pytest.approx(11_400, rel=0.01)
    assert forecast.growth_rate == pytest.approx(MIB, rel=0.01)
    assert forecast.slot_lost_in_s == pytest.approx(2048, rel=0.01)


def test_a_burst_before_or_amid_growth_moves_it_little() -> None:
    def kept(at: int) -> int:
        return at * MIB + (1000 * MIB if at >= 300 else 0)

    forecast = after(sample(at, kept(at)) for at in range(0, 1201, 10))
    assert forecast.growth_rate is not None
    assert MIB * 0.9 < forecast.growth_rate < 3 * MIB


def test_a_checkpoint_that_removes_wal_does_not_lengthen_it() -> None:
    steady = after(sample(at, at * MIB, 10 * GIB) for at in range(0, 601, 10))
    jumping = after(sample(at, at * MIB, (10 if at == 600 else 9 + at % 7) * GIB) for at in range(0, 601, 10))
    assert jumping == steady


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [sample(at, 0) for at in range(0, 3600, 10)],
        [sample(at, 500 * MIB) for at in range(0, 3600, 10)],
        [sample(at, at % 60 * MIB) for at in range(0, 3600, 10)],
        [sample(at, 200 * MIB + at * MIB) for at in range(0, 40, 10)],
        [sample(at, GIB + at) for at in range(0, 3600, 10)],
    ],
    ids=["nothing", "level", "stuck but idle", "saw teeth below the level", "too short", "weeks away"],
)
def test_where_nothing_fills_nothing_is_foreseen(samples: list[DiskSample]) -> None:
    assert after(samples).full_in_s is None


def test_growth_that_has_ended_is_forgotten_at_once() -> None:
    growing = [sample(at, at * MIB) for at in range(0, 1201, 10)]
    assert after(growing).full_in_s is not None
    caught_up = replace(sample(1210, 600 * MIB), end=LSN(growing[-1].end.offset + MIB))
    assert after([*growing, caught_up]) == Forecast()
    assert after([*growing, sample(1210, 0)]) == Forecast()


def test_a_disk_that_is_not_seen_has_no_forecast_but_the_slot_has() -> None:
    forecast = after(sample(at, at * MIB, None, GIB) for at in range(0, 601, 10))
    assert forecast.full_in_s is None
    assert forecast.slot_lost_in_s is not None


@given(st.lists(st.integers(0, 64 * MIB), min_size=0, max_size=600))
def test_samples_are_bounded_and_no_forecast_is_beyond_what_was_seen(steps: list[int]) -> None:
    forecaster, kept, forecast = DiskForecaster(), 0, Forecast()
    for at, step in enumerate(steps):
        kept += step
        forecast = forecaster.add(sample(at * 10.0, kept))
        assert len(forecaster._samples) <= 120
        if forecast.growth_rate is not None:
            assert 0 < forecast.growth_rate <= 6.4 * MIB * 1.01
        assert forecast.full_in_s is None or forecast.full_in_s >= 0


DROP = DropPolicy(drops=True, before_s=1800, below_bytes=GIB)


@pytest.mark.parametrize(
    ("policy", "kept", "free", "full_in_s", "is_dropped"),
    [
        (DropPolicy(), GIB, 0, 1.0, False),
        (DROP, GIB, GIB - 1, None, True),
        (DROP, GIB, GIB, None, False),
        (DROP, GIB, 50 * GIB, 1799.0, True),
        (DROP, GIB, 50 * GIB, 1800.0, False),
        (DROP, GIB, None, 1.0, False),
        (DROP, LEVEL_BYTES - 1, 0, 1.0, False),
    ],
)
def test_the_slot_goes_only_where_the_owner_says_so_and_it_helps(
    policy: DropPolicy, kept: int, free: int | None, full_in_s: float | None, is_dropped: bool
) -> None:
    reason = why_drop(policy, sample(0, kept, free), Forecast(1.0, full_in_s))
    assert (reason is not None) is is_dropped


def test_what_the_server_needs_itself_is_no_reason() -> None:
    seen = DiskSample(0, START, 10 * GIB, LEVEL_BYTES - 1, 0)
    assert why_drop(DROP, seen, Forecast()) is None
