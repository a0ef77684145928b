"""What the planner says in the cases that operators meet: holes, failovers, restores, uncertain ends."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import fix_archive as fix
import pytest

from pitr.catalogue.backup_record import BackupManifest, PageFinding
from pitr.catalogue.records import EpochParent, EpochRecord, HeadRecord
from pitr.catalogue.wal_records import WalUnit
from pitr.errors import TargetRefused
from pitr.layout import ArchiveId
from pitr.planner import plan_restore, restorable_stretches
from pitr.quorum import Answers, WriteQuorum
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import StopPoint, TargetNotRestorable
from pitr.survey import ArchiveEnd, ArchiveSurvey
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, TimelineSwitch
from pitr.wal_runs import Histories

SEG = fix.SEGMENT_BYTES
ALL_THERE = ArchiveEnd(None, True, "3 of 3 regions answered")
LATEST = RecoveryTarget("latest")
QUORUM = WriteQuorum(3, 2)


def seg(number: float) -> LSN:
    return LSN(int(number * SEG))


def whole(number: int, *, epoch: int = 1, timeline: int = 1, regions: tuple[str, ...] = ()) -> WalUnit:
    """Segment ``number``, in which a transaction ended at second ``10 * number``."""
    return fix.unit_of(
        seg(number),
        seg(number + 1),
        fix.times(10 * number),
        epoch=epoch,
        timeline=timeline,
        sequence=number,
        is_segment=True,
        regions=regions,
    )


def backup_at(number: int, *, epoch: int = 1, timeline: int = 1) -> BackupManifest:
    """A backup within segment ``number``, complete at second ``10 * number + 1``."""
    start, stop = seg(number) + 40, seg(number) + 1000
    stopped = fix.at_second(10 * number + 1)
    return fix.backup_of(start, stop, stopped_at=stopped, epoch=epoch, timeline=timeline, number=number)


def epoch_record(epoch: int, parent: EpochParent | None = None) -> EpochRecord:
    return EpochRecord(fix.REPOSITORY, fix.archive_of(epoch), fix.BEGIN, "ed25519:x", parent)


def survey(
    units: list[WalUnit],
    backups: list[BackupManifest],
    *,
    end: ArchiveEnd = ALL_THERE,
    epochs: tuple[EpochRecord, ...] = (epoch_record(1),),
    archive: int = 1,
    histories: Histories | None = None,
) -> ArchiveSurvey:
    return ArchiveSurvey(fix.archive_of(archive), epochs, histories or {}, tuple(backups), tuple(units), end)


def to_second(second: float) -> RecoveryTarget:
    return RecoveryTarget("time", instant=fix.at_second(second))


def failover(epoch: int = 1, *, at: LSN) -> Histories:
    switch = TimelineSwitch(TimelineId(1), at)
    return {fix.archive_of(epoch): [TimelineHistory(TimelineId(2), (switch,))]}


def ended(head: HeadRecord) -> ArchiveEnd:
    return ArchiveEnd.of(head, Answers(2, QUORUM))


def test_a_hole_is_named_with_its_range_its_times_and_the_nearest_moments() -> None:
    known = survey([whole(n) for n in (2, 3, 5, 6)], [backup_at(2), backup_at(5)])
    with pytest.raises(TargetNotRestorable) as refused:
        plan_restore(to_second(42), known)
    assert refused.value.detail == (
        f"WAL from {seg(4)} to {seg(5)} is in no region"
        ", after 2026-11-23T12:00:30Z, before 2026-11-23T12:00:50Z"
    )
    assert refused.value.before is not None
    assert refused.value.before.at == fix.at_second(30) - timedelta(microseconds=1)
    assert refused.value.before.lsn == seg(4)
    assert refused.value.after is not None
    assert refused.value.after.at == fix.at_second(51)
    assert "lsn:" in str(refused.value.hint)


def test_an_older_backup_is_taken_and_said_where_the_newest_has_no_wal() -> None:
    known = survey([whole(n) for n in (2, 3, 4, 5)], [backup_at(2), backup_at(6)])
    plan = plan_restore(LATEST, known)
    assert plan.backup == backup_at(2)
    assert [s.backup for s in plan.skipped] == [backup_at(6).backup]
    assert "WAL from 0/600000 on is missing" in plan.skipped[0].reason


def test_wal_that_the_head_signs_and_no_region_holds_is_missing_and_not_the_end() -> None:
    head = fix.head_of(wal_start=seg(2), wal_end=seg(5))
    known = survey([whole(n) for n in (2, 3)], [backup_at(2)], end=ended(head))
    with pytest.raises(TargetNotRestorable, match="end of the archive is not restorable") as refused:
        plan_restore(LATEST, known)
    assert f"WAL from {seg(4)} to the signed end {seg(5)} is in no region" in str(refused.value.detail)
    with pytest.raises(TargetNotRestorable):
        plan_restore(to_second(99), known)
    assert plan_restore(RecoveryTarget("lsn", lsn=seg(4)), known).backup == backup_at(2)


def test_an_end_without_head_and_regions_is_refused_but_can_be_accepted_by_its_lsn() -> None:
    end = ArchiveEnd.of(None, Answers(1, QUORUM))
    known = survey([whole(n) for n in (2, 3)], [backup_at(2)], end=end)
    with pytest.raises(TargetNotRestorable, match="not certain") as refused:
        plan_restore(LATEST, known)
    assert refused.value.before is not None
    assert plan_restore(RecoveryTarget("lsn", lsn=refused.value.before.lsn), known).wal_end == seg(4)


def test_a_lagging_regions_head_is_not_the_end() -> None:
    """What was acknowledged after it is in the regions that were not asked."""
    head = fix.head_of(wal_start=seg(2), wal_end=seg(4), at=fix.at_second(500), quorum=QUORUM)
    end = ArchiveEnd.of(head, Answers(1))
    known = survey([whole(n) for n in (2, 3)], [backup_at(2)], end=end)
    for target in (LATEST, to_second(400), to_second(30)):
        with pytest.raises(TargetNotRestorable) as refused:
            plan_restore(target, known)
        assert "1 of 3 regions answered, and it takes 2 to be sure" in str(refused.value.detail)
        assert "later may be in the others" in str(refused.value.detail)
        assert f"--to lsn:{seg(4)}" in str(refused.value.hint)
    # Before a transaction that is seen nothing can be missing, and an LSN accepts the end by its name.
    assert not plan_restore(to_second(29), known).is_past_end
    assert plan_restore(RecoveryTarget("lsn", lsn=seg(4)), known).wal_end == seg(4)


@pytest.mark.parametrize(("answered", "is_certain"), [(3, True), (2, True), (1, False)])
def test_an_end_is_certain_when_no_silent_region_can_hold_more(answered: int, is_certain: bool) -> None:
    assert ArchiveEnd.of(None, Answers(answered, QUORUM)).is_certain is is_certain


def test_a_time_after_the_last_transaction_goes_to_the_end_and_says_so() -> None:
    head = fix.head_of(wal_start=seg(2), wal_end=seg(4), at=fix.at_second(500))
    plan = plan_restore(to_second(400), survey([whole(2), whole(3)], [backup_at(2)], end=ended(head)))
    assert plan.is_past_end
    assert any("last known transaction ended at 2026-11-23T12:00:30Z" in text for text in plan.warnings)


def test_the_dead_primarys_last_second_is_taken_from_the_new_timelines_copy() -> None:
    """The old timeline is archived up to 3.5, left at 3.75; the new one's segment 3 begins at 3."""
    first = fix.unit_of(seg(3), seg(3.5), fix.times(30), sequence=3)
    copied = fix.unit_of(seg(3), seg(4), fix.times(30, 38), timeline=2, sequence=4)
    known = survey(
        [whole(2), first, copied, whole(4, timeline=2)], [backup_at(2)], histories=failover(at=seg(3.75))
    )
    plan = plan_restore(LATEST, known)
    assert plan.timeline == TimelineId(2)
    assert [link.unit.key for link in plan.links] == [u.key for u in (whole(2), copied, whole(4, timeline=2))]
    assert [(s.timeline.number, s.start, s.end) for s in plan.spans] == [
        (1, LSN(1), seg(3.75)),
        (2, seg(3.75), None),
    ]


def test_a_timeline_of_which_nothing_is_archived_yet_has_no_end() -> None:
    head = fix.head_of(timeline=2)
    known = survey([whole(2), whole(3)], [backup_at(2)], end=ended(head), histories=failover(at=seg(4)))
    with pytest.raises(TargetNotRestorable):
        plan_restore(LATEST, known)
    # What the old timeline wrote before it was left is restorable all the same.
    assert plan_restore(to_second(29), known).timeline == TimelineId(2)


def test_what_a_superseded_epoch_wrote_after_the_fork_is_ignored() -> None:
    fork = EpochParent(1, TimelineId(1), seg(4))
    epochs = (epoch_record(1), epoch_record(2, fork))
    units = [whole(n) for n in (2, 3, 4, 5, 6)] + [whole(n, epoch=2) for n in (4, 5)]
    backups = [backup_at(2), backup_at(5)]
    plan = plan_restore(LATEST, survey(units, backups, epochs=epochs, archive=2))
    assert plan.backup == backup_at(2)
    assert [(link.unit.archive.epoch, link.start) for link in plan.links] == [
        (1, seg(2)),
        (1, seg(3)),
        (2, seg(4)),
        (2, seg(5)),
    ]
    old = plan_restore(LATEST, survey(units, backups, epochs=epochs, archive=1))
    assert old.wal_end == seg(7)
    assert old.backup == backup_at(5)


def test_a_timeline_is_the_newest_the_backups_own_or_the_one_that_was_asked_for() -> None:
    units = [whole(n) for n in (2, 3, 4)] + [whole(n, timeline=2) for n in (4, 5)]
    known = survey(units, [backup_at(2)], histories=failover(at=seg(4.5)))
    ends = {
        asked: (plan.timeline.number, plan.wal_end)
        for asked in ("latest", "current", TimelineId(1), TimelineId(2))
        for plan in [plan_restore(replace(LATEST, timeline=asked), known)]
    }
    old, new = (1, seg(5)), (2, seg(6))
    assert ends == {"latest": new, "current": old, TimelineId(1): old, TimelineId(2): new}


def test_a_missing_history_file_or_epoch_is_refused_and_never_guessed() -> None:
    known = survey([whole(2)], [backup_at(2)])
    with pytest.raises(TargetRefused, match="history file of timeline 00000010 is missing"):
        plan_restore(replace(LATEST, timeline=TimelineId(16)), known)
    orphan = epoch_record(2, EpochParent(1, TimelineId(1), seg(4)))
    with pytest.raises(TargetRefused, match="epoch record of archive"):
        plan_restore(LATEST, survey([whole(2)], [backup_at(2)], epochs=(orphan,), archive=2))


def test_the_wal_of_a_backup_counts_from_the_start_of_its_first_segment() -> None:
    """Recovery reads the segment's first page to learn whose WAL it is."""
    late = fix.unit_of(seg(2) + 8192, seg(3), fix.times(20), sequence=2)
    backup = fix.backup_of(seg(2) + 9000, seg(2) + 10000, stopped_at=fix.at_second(21))
    with pytest.raises(TargetNotRestorable):
        plan_restore(RecoveryTarget("immediate"), survey([late, whole(3)], [backup]))


def test_inexact_times_make_a_unit_a_candidate_and_are_said() -> None:
    doubtful = fix.unit_of(seg(3), seg(4), fix.times(5, is_exact=False), sequence=3, is_segment=True)
    plan = plan_restore(to_second(45), survey([whole(2), doubtful, whole(4), whole(5)], [backup_at(2)]))
    assert [c.unit.key for c in plan.candidates] == [u.key for u in (whole(2), doubtful, whole(5))]
    assert any("not exact" in text for text in plan.warnings)


def test_a_lagging_region_and_bad_pages_are_said() -> None:
    units = [whole(2, regions=("eu", "us")), whole(3, regions=("eu",))]
    finding = PageFinding("public.t", "base/5/16384", "main", 7, "checksum")
    plan = plan_restore(LATEST, survey(units, [replace(backup_at(2), findings=(finding,))]))
    assert "region us lacks 1 of 2 WAL objects of the plan" in plan.all_warnings
    assert any("1 pages that failed their checksum" in text for text in plan.warnings)
    assert plan.regions == ("eu",)


def test_only_the_wal_that_a_plan_uses_is_missed_in_a_region() -> None:
    units = [whole(number, regions=("eu", "us")) for number in (2, 3, 4, 5)]
    units += [whole(number, regions=("eu",)) for number in (6, 7)]
    known = survey(units, [backup_at(2)])
    # The host knows where recovery stops at the latest, the reader where exactly; neither reads further.
    for target in (to_second(45), RecoveryTarget("immediate")):
        assert plan_restore(target, known).all_warnings == ()
        assert plan_restore(target, known).regions == ("eu", "us")
    late = plan_restore(to_second(65), known)
    assert "region us lacks 2 of 6 WAL objects of the plan" in late.all_warnings
    for end, warning in (
        (LSN(seg(6).offset - 8), ()),
        (LSN(seg(6).offset + 8), ("region us lacks 1 of 5 WAL objects of the plan",)),
    ):
        stopped = late.with_stop(StopPoint(end, True, end, end))
        assert stopped.all_warnings == warning
        assert stopped.regions == (("eu",) if warning else ("eu", "us"))


def test_a_chosen_backup_is_used_or_refused_but_never_replaced() -> None:
    known = survey([whole(n) for n in (2, 3, 4)], [backup_at(2), backup_at(3)])
    assert plan_restore(LATEST, known, backup=backup_at(2).backup).backup == backup_at(2)
    with pytest.raises(TargetNotRestorable):
        plan_restore(to_second(25), known, backup=backup_at(3).backup)
    with pytest.raises(TargetNotRestorable, match="there is no backup"):
        plan_restore(LATEST, known, backup="nonsense")


def test_an_empty_archive_says_that_there_is_no_backup() -> None:
    for target in (LATEST, to_second(5), RecoveryTarget("immediate"), RecoveryTarget("xid", xid=7)):
        with pytest.raises(TargetNotRestorable) as refused:
            plan_restore(target, survey([], []))
        assert refused.value.detail == "there is no backup"


def test_the_stretches_that_can_be_restored_are_those_of_usable_backups() -> None:
    known = survey([whole(n) for n in (2, 3, 5)], [backup_at(2), backup_at(4), backup_at(5)])
    stretches = restorable_stretches(known)
    assert [s.backup for s in stretches] == [backup_at(2).backup, backup_at(5).backup]
    assert stretches[0].last.lsn == seg(4)
    assert stretches[1].last.at == fix.at_second(50) or stretches[1].last.at is None


# --- chains ------------------------------------------------------------------------------------------------


def built_on(child: BackupManifest, parent: BackupManifest) -> BackupManifest:
    return replace(child, type="incr", parent=parent.backup)


def chain_of_three() -> list[BackupManifest]:
    full = backup_at(2)
    first = built_on(backup_at(3), full)
    return [full, first, built_on(backup_at(4), first)]


FROM_TWO = [whole(n) for n in (2, 3, 4, 5)]


def test_a_plan_names_the_backups_that_the_newest_is_built_on_newest_first() -> None:
    full, first, second = chain_of_three()
    plan = plan_restore(LATEST, survey(FROM_TWO, [second, full, first]))
    assert plan.backup == second
    assert plan.parents == (first, full)
    assert not plan.skipped
    plan = plan_restore(to_second(35), survey(FROM_TWO, [second, full, first]))
    assert (plan.backup, plan.parents) == (first, (full,))
    plan = plan_restore(LATEST, survey(FROM_TWO, [full]))
    assert (plan.backup, plan.parents) == (full, ())


def test_bad_pages_of_the_backups_that_it_is_built_on_are_said_too() -> None:
    """They are restored from there, as they were read."""
    full, first, second = chain_of_three()
    bad = PageFinding("public.t", "base/5/16384", "main", 7, "checksum")
    plan = plan_restore(LATEST, survey(FROM_TWO, [replace(full, findings=(bad, bad)), first, second]))
    assert f"backup {full.backup} has 2 pages that failed their checksum" in plan.warnings


def test_parents_need_no_wal_of_their_own() -> None:
    """Only the newest backup is recovered; of the others pages are taken, and no recovery begins there."""
    full, first, second = chain_of_three()
    plan = plan_restore(LATEST, survey([whole(4), whole(5)], [full, first, second]))
    assert (plan.backup, plan.parents) == (second, (first, full))


@pytest.mark.parametrize(
    ("lost", "taken", "why"),
    [
        (1, 0, "which it is built on, is missing"),
        (0, None, "which it is built on, is missing"),
    ],
    ids=["the middle", "the full one"],
)
def test_a_chain_with_a_missing_parent_is_not_used_and_said_why(
    lost: int, taken: int | None, why: str
) -> None:
    backups = chain_of_three()
    left = [backup for backup in backups if backup is not backups[lost]]
    if taken is None:
        with pytest.raises(TargetNotRestorable) as refused:
            plan_restore(LATEST, survey(FROM_TWO, left))
        assert backups[lost].backup in str(refused.value.detail)
        assert why in str(refused.value.detail)
        return
    plan = plan_restore(LATEST, survey(FROM_TWO, left))
    assert plan.backup == backups[taken]
    assert [skipped.backup for skipped in plan.skipped] == [backups[2].backup]
    assert plan.skipped[0].reason == f"backup {backups[lost].backup}, {why}"


def test_the_next_older_backup_with_all_its_parents_is_taken() -> None:
    full, first, _second = chain_of_three()
    orphan = built_on(backup_at(4), backup_at(9))
    plan = plan_restore(LATEST, survey(FROM_TWO, [full, first, orphan]))
    assert (plan.backup, plan.parents) == (first, (full,))
    assert [skipped.backup for skipped in plan.skipped] == [orphan.backup]


def test_a_chain_that_does_not_lead_back_in_time_is_refused() -> None:
    """A signed manifest may still be wrong, and a chain in a circle has no end."""
    one, two = backup_at(2), backup_at(3)
    circle = [built_on(one, two), built_on(two, one)]
    with pytest.raises(TargetNotRestorable, match="restorable") as refused:
        plan_restore(LATEST, survey(FROM_TWO, circle))
    assert "cannot be built on" in str(refused.value.detail)
    overlapping = [replace(one, stop_lsn=two.start_lsn + 1), built_on(two, one)]
    with pytest.raises(TargetNotRestorable) as refused:
        plan_restore(LATEST, survey(FROM_TWO, overlapping), backup=two.backup)
    assert "cannot be built on" in str(refused.value.detail)


def test_a_parent_of_another_cluster_is_refused() -> None:
    full, first, _second = chain_of_three()
    alien = replace(full, archive=ArchiveId(99, 1))
    with pytest.raises(TargetNotRestorable) as refused:
        plan_restore(LATEST, survey(FROM_TWO, [alien, first]), backup=first.backup)
    assert "another cluster" in str(refused.value.detail)


def test_one_backup_by_its_name_has_its_parents_too() -> None:
    full, first, second = chain_of_three()
    plan = plan_restore(to_second(45), survey(FROM_TWO, [full, first, second]), backup=second.backup)
    assert (plan.backup, plan.parents) == (second, (first, full))
