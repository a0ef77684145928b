"""What a report says was lost: what was measured, and null for all that was not."""

from __future__ import annotations

import itertools

import fix_archive as fix
import fix_reports
import pytest

from pitr.catalogue.records import EpochRecord
from pitr.planner import plan_restore
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan
from pitr.survey import ArchiveEnd, ArchiveSurvey
from pitr.wal.lsn import LSN
from verifiers.check_maker import CheckMaker, failed, passed
from verifiers.controls import CONTROLS, Status, status_of
from verifiers.findings import Care, FindingState, Retest, findings_of
from verifiers.statement import verdicts
from verifiers.verify_report import data_loss, loss_limits
from verifiers.verify_values import Verified

HOUR_MS = 3_600_000
LATEST = RecoveryTarget("latest")
PAST = RecoveryTarget("time", instant=fix.at_second(35))


def plan_of(target: RecoveryTarget) -> RestorePlan:
    """Plan a restore of an archive of four segments, one each ten seconds."""
    places = [LSN(number * fix.SEGMENT_BYTES) for number in range(2, 7)]
    units = [
        fix.unit_of(start, end, fix.times(10 * number), sequence=number, is_segment=True)
        for number, (start, end) in enumerate(itertools.pairwise(places), 2)
    ]
    backup = fix.backup_of(places[0] + 40, places[0] + 1000, stopped_at=fix.at_second(21))
    end = ArchiveEnd(None, True, "3 of 3 regions answered")
    epoch = EpochRecord(fix.REPOSITORY, fix.archive_of(1), fix.BEGIN, "ed25519:x", None)
    return plan_restore(target, ArchiveSurvey(epoch.archive, (epoch,), {}, (backup,), tuple(units), end))


def found(*, is_there: bool = True) -> Verified:
    maker, result = CheckMaker("test"), passed("", "") if is_there else failed("", "", "it is not")
    return Verified(checks=[maker.run(name, name, lambda: result) for name in ("C09", "C10", "C21")])


def report(target: RecoveryTarget, age_ms: int | None) -> dict[str, object]:
    """Return a report whose objective is a minute."""
    said = fix_reports.draft(1, fix_reports.BEGIN)
    said["request"]["kind"] = target.kind
    said["data_loss"] = data_loss(plan_of(target), found(), age_ms)
    met = verdicts(said)
    said["result"] |= {"overall": str(met.overall), "rto_met": met.rto_met, "rpo_met": met.rpo_met}
    return said


@pytest.mark.parametrize("age_ms", [0, HOUR_MS])
def test_a_moment_in_the_past_that_is_there_meets_no_objective(age_ms: int) -> None:
    """Archiving may have stopped an hour ago: the moment before is there all the same."""
    said = report(PAST, age_ms)
    lost = data_loss(plan_of(PAST), found(), age_ms)
    assert (lost["data_loss_ms"], lost["data_loss_tx"]) == (None, None)
    assert verdicts(said).rpo_met is None
    objectives = next(one for one in CONTROLS if one.control == "12(6)")
    assert status_of(objectives, said) is Status.PARTIAL
    (limit,) = loss_limits(plan_of(PAST), age_ms)
    assert f"{age_ms} ms" in limit


def test_the_latest_moment_tells_how_old_the_newest_head_was() -> None:
    lost = data_loss(plan_of(LATEST), found(), HOUR_MS)
    assert (lost["data_loss_ms"], lost["data_loss_tx"]) == (HOUR_MS, 0)
    assert verdicts(report(LATEST, HOUR_MS)).rpo_met is False
    assert verdicts(report(LATEST, 60_000)).rpo_met is True
    assert loss_limits(plan_of(LATEST), HOUR_MS) == []


def test_what_is_not_there_or_has_no_head_was_not_measured() -> None:
    assert data_loss(plan_of(LATEST), found(is_there=False), 1)["data_loss_ms"] is None
    assert data_loss(plan_of(LATEST), found(), None)["data_loss_ms"] is None


def test_a_random_run_closes_no_finding_about_data_loss() -> None:
    old = FindingState("1/F-RPO", "high", "open", "lost", None, None, None, None, None, 1)
    for target, status in ((PAST, "open"), (LATEST, "closed")):
        (one,) = findings_of(report(target, 1_000), "r", Care(), [Retest(old)])
        assert one["status"] == status
