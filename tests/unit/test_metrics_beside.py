"""What is served of fences, of a mirror and of Redis: a value where there is one, and else none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fix_snapshot import NOW, SNAPSHOT

from cli.metrics import SnapshotCollector
from cli.snapshot import DaemonSnapshot, FenceSnapshot, MirrorSnapshot, RedisSnapshotAge

FENCES = FenceSnapshot(
    number=7,
    at=NOW,
    age_s=1.5,
    took_s=0.25,
    partitions=3,
    missing=(),
    unknown=None,
    trouble=None,
    skew_s=-0.125,
    waiting=4,
    dropped=0,
    stored_at=None,
    store_error=None,
    mirror=MirrorSnapshot(age_s=12.0),
)
KNOWN = {
    "pitr_fence_age_seconds": 1.5,
    "pitr_fence_known": 1.0,
    "pitr_fence_duration_seconds": 0.25,
    "pitr_fences_waiting": 4.0,
    "pitr_fence_clock_skew_seconds": -0.125,
    "pitr_mirror_pairs_age_seconds": 12.0,
}


def beside(snapshot: DaemonSnapshot) -> dict[str, float]:
    return {
        sample.name: sample.value
        for metric in SnapshotCollector(lambda: snapshot).collect()
        for sample in metric.samples
        if sample.name.startswith(("pitr_fence", "pitr_mirror", "pitr_redis"))
    }


def test_without_kafka_and_redis_nothing_of_them_has_a_value() -> None:
    assert beside(SNAPSHOT) == {}


def test_each_figure_of_the_last_fence_is_served() -> None:
    assert beside(replace(SNAPSHOT, fences=FENCES)) == KNOWN


@pytest.mark.parametrize(
    ("fences", "changed"),
    [
        (replace(FENCES, unknown="no answer from Kafka"), {"pitr_fence_known": 0.0}),
        (replace(FENCES, number=None), {"pitr_fence_known": None}),
        (replace(FENCES, age_s=None), {"pitr_fence_age_seconds": None}),
        (replace(FENCES, mirror=None), {"pitr_mirror_pairs_age_seconds": None}),
    ],
)
def test_what_is_not_known_is_left_out_and_a_fence_that_knows_nothing_is_0(
    fences: FenceSnapshot, changed: dict[str, float | None]
) -> None:
    wanted = {name: value for name, value in {**KNOWN, **changed}.items() if value is not None}
    assert beside(replace(SNAPSHOT, fences=fences)) == wanted


def test_a_site_of_redis_has_an_age_once_it_has_a_snapshot() -> None:
    sites = (RedisSnapshotAge("cache", NOW, 60.0), RedisSnapshotAge("new", None, None))
    assert beside(replace(SNAPSHOT, redis=sites)) == {"pitr_redis_snapshot_age_seconds": 60.0}


@pytest.mark.parametrize("error", [0.125, None])
def test_the_forecast_of_recovery_is_served_with_its_error(error: float | None) -> None:
    seen = replace(SNAPSHOT, forecast={"seconds": 41.5, "error": error, "runs": 3})
    samples = {
        sample.name: sample.value
        for snapshot in (SNAPSHOT, seen)
        for metric in SnapshotCollector(lambda snapshot=snapshot: snapshot).collect()  # type: ignore[misc]
        for sample in metric.samples
        if sample.name.startswith("pitr_recovery")
    }
    known = {"pitr_recovery_forecast_seconds": 41.5, "pitr_recovery_forecast_error_ratio": error}
    assert samples == {name: value for name, value in known.items() if value is not None}
