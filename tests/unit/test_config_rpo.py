"""The recovery point, followed."""

from __future__ import annotations

from cli.rpo import SAMPLES_MAX, RecoveryPoint
from pitr.wal.lsn import LSN


def test_nothing_is_at_risk_when_all_that_the_server_has_is_durable() -> None:
    point = RecoveryPoint()
    point.observe(10, LSN(500), LSN(500), is_streaming=True)
    assert point.age_s(10, None) == 0


def test_the_age_is_that_of_the_first_look_at_what_is_not_durable() -> None:
    point = RecoveryPoint()
    point.observe(10, LSN(500), LSN(100), is_streaming=True)
    point.observe(12, LSN(900), LSN(400), is_streaming=True)
    assert point.age_s(12, None) == 2
    point.observe(13, LSN(900), LSN(500), is_streaming=True)
    assert point.age_s(13, None) == 1
    point.observe(14, LSN(900), LSN(900), is_streaming=True)
    assert point.age_s(14, None) == 0


def test_the_archivers_own_age_counts_if_it_is_greater() -> None:
    point = RecoveryPoint()
    point.observe(10, LSN(500), LSN(500), is_streaming=True)
    assert point.age_s(10, 0.7) == 0.7


def test_while_nothing_is_streamed_the_age_grows() -> None:
    point = RecoveryPoint()
    point.observe(10, LSN(500), LSN(500), is_streaming=True)
    point.observe(40, LSN(500), LSN(500), is_streaming=False)
    assert point.age_s(40, None) == 30


def test_a_long_outage_keeps_the_oldest_look_in_bounded_memory() -> None:
    point = RecoveryPoint()
    for at in range(10 * SAMPLES_MAX):
        point.observe(at, LSN(1000 + at), LSN(1), is_streaming=True)
    assert point.age_s(10 * SAMPLES_MAX - 1, None) == 10 * SAMPLES_MAX - 1
    assert len(point._samples) <= SAMPLES_MAX
