"""Which of a cluster's epochs a target means, when more than one goes on."""

from __future__ import annotations

from datetime import datetime

import fix_archive as fix
import pytest

from pitr.catalogue.records import EpochParent, EpochRecord, HeadRecord
from pitr.epoch_choice import judge_epoch
from pitr.errors import TargetRefused
from pitr.planner import plan_restore
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan
from pitr.survey import ArchiveEnd, ArchiveSurvey
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

SEG = fix.SEGMENT_BYTES
BORN = fix.at_second(100)
FORK = LSN(4 * SEG)


def epochs(created_at: datetime = BORN) -> list[EpochRecord]:
    first = EpochRecord(fix.REPOSITORY, fix.archive_of(1), fix.BEGIN, "ed25519:x")
    parent = EpochParent(1, TimelineId(1), FORK)
    return [first, EpochRecord(fix.REPOSITORY, fix.archive_of(2), created_at, "ed25519:y", parent)]


def head(second: float, wal_end: LSN) -> dict[object, HeadRecord]:
    return {fix.archive_of(1): fix.head_of(wal_start=LSN(2 * SEG), wal_end=wal_end, at=fix.at_second(second))}


def plan(target: RecoveryTarget) -> RestorePlan:
    """Epoch 1 wrote segments 2 to 5 and was left after 3; epoch 2 wrote 4."""
    units = [
        fix.unit_of(LSN(n * SEG), LSN((n + 1) * SEG), fix.times(10 * n), epoch=e, sequence=n, is_segment=True)
        for e, n in ((1, 2), (1, 3), (1, 4), (1, 5), (2, 4))
    ]
    backup = fix.backup_of(LSN(2 * SEG + 40), LSN(2 * SEG + 1000), stopped_at=fix.at_second(21))
    end = ArchiveEnd(None, True, "3 of 3 regions answered")
    survey = ArchiveSurvey(fix.archive_of(2), tuple(epochs()), {}, (backup,), tuple(units), end)
    return plan_restore(target, survey)


def to_second(second: float) -> RecoveryTarget:
    return RecoveryTarget("time", instant=fix.at_second(second))


def test_a_time_between_the_fork_and_the_new_epochs_birth_is_refused_with_both() -> None:
    with pytest.raises(TargetRefused, match="two epochs") as refused:
        judge_epoch(plan(to_second(60)), epochs(), head(90, LSN(6 * SEG)))
    assert "lies before epoch 2 began" in str(refused.value.detail)
    assert str(fix.archive_of(1)) in str(refused.value.hint)
    assert str(fix.archive_of(2)) in str(refused.value.hint)


def test_two_epochs_that_both_write_make_the_end_unclear() -> None:
    for target in (RecoveryTarget("latest"), to_second(200), RecoveryTarget("lsn", lsn=LSN(4 * SEG + 8))):
        with pytest.raises(TargetRefused, match="two epochs"):
            judge_epoch(plan(target), epochs(), head(150, LSN(6 * SEG)))


def test_an_old_epoch_that_has_ended_is_told_and_left() -> None:
    warning = judge_epoch(plan(RecoveryTarget("latest")), epochs(), head(90, LSN(6 * SEG)))
    assert warning is not None
    assert "epoch 1 goes on to" in warning
    assert "--archive" in warning


def test_before_the_fork_and_where_nothing_follows_it_there_is_one_past() -> None:
    assert judge_epoch(plan(to_second(25)), epochs(), head(150, LSN(6 * SEG))) is None
    assert judge_epoch(plan(RecoveryTarget("latest")), epochs(), head(150, FORK)) is None
    assert judge_epoch(plan(RecoveryTarget("latest")), epochs()[:1], head(150, LSN(6 * SEG))) is None
