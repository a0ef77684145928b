"""An earlier incremental holds the objective where it can, not too often, and says why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from verifiers.rto_model import RtoModel, Run, Work, learn
from verifiers.rto_objective import INTERVAL_MIN_S, judge_objective

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
GIB = 1 << 30
LONG_AGO = NOW - timedelta(hours=1)


def model() -> RtoModel:
    """One that restores 100 MB/s and replays 50 MB/s."""
    works = [Work(n * GIB, 1000, (9 - n) * GIB) for n in range(1, 9)]
    found = learn([Run(work, 2 + work.size_bytes / 100e6 + work.wal_bytes / 50e6) for work in works])
    assert found is not None
    return found


def test_much_wal_over_the_objective_takes_a_backup_and_says_why() -> None:
    work = Work(10 * GIB, 1000, 20 * GIB)
    found = judge_objective(model(), work, 300.0, last_backup_at=LONG_AGO, now=NOW)
    assert found.takes_backup
    assert found.reason is not None
    assert "over the 300 s of rto_objective" in found.reason
    assert "20480 MiB of WAL" in found.reason


def test_within_the_objective_nothing_is_done() -> None:
    work = Work(10 * GIB, 1000, GIB)
    found = judge_objective(model(), work, 300.0, last_backup_at=LONG_AGO, now=NOW)
    assert (found.takes_backup, found.reason) == (False, None)


@pytest.mark.parametrize(("ago_s", "takes"), [(INTERVAL_MIN_S - 1, False), (INTERVAL_MIN_S, True)])
def test_it_is_not_taken_again_before_the_least_interval(ago_s: float, takes: bool) -> None:
    work = Work(10 * GIB, 1000, 20 * GIB)
    begun = NOW - timedelta(seconds=ago_s)
    found = judge_objective(model(), work, 300.0, last_backup_at=begun, now=NOW)
    assert found.takes_backup is takes


def test_where_the_files_alone_take_too_long_it_says_so_and_takes_none() -> None:
    work = Work(400 * GIB, 1000, GIB)
    found = judge_objective(model(), work, 300.0, last_backup_at=LONG_AGO, now=NOW)
    assert not found.takes_backup
    assert found.reason is not None
    assert "a backup would not help" in found.reason


def test_without_a_measured_run_nothing_is_done() -> None:
    work = Work(400 * GIB, 1000, 400 * GIB)
    found = judge_objective(None, work, 1.0, last_backup_at=LONG_AGO, now=NOW)
    assert (found.takes_backup, found.reason) == (False, None)
