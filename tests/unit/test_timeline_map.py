"""What the map of timelines says in the cases that operators meet, and what records tell of holes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import fix_archive as fix
import pytest

from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.expiry_record import ExpireRecord, GoneWal
from pitr.catalogue.records import EpochParent, EpochRecord
from pitr.catalogue.wal_records import WalUnit
from pitr.errors import TargetRefused
from pitr.layout import SegmentKey
from pitr.survey import ArchiveEnd, ArchiveSurvey
from pitr.timeline_causes import damaged_wal, expired_wal, unproven_past
from pitr.timeline_map import MapSources, TimelineMap, map_timelines
from pitr.timeline_spans import Cause, KnownCause, Lack
from pitr.verified import RefusedObject
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineHistory, TimelineId, TimelineSwitch
from pitr.wal_runs import Histories

SEG = fix.SEGMENT_BYTES
END = ArchiveEnd(None, True, "3 of 3 regions answered")
ALL = ("eu", "us")


def seg(number: float) -> LSN:
    return LSN(int(number * SEG))


def whole(number: int, *, epoch: int = 1, timeline: int = 1, regions: tuple[str, ...] = ALL) -> WalUnit:
    """Segment ``number``, in which a transaction ended at second ``10 * number``."""
    place = seg(number), seg(number + 1), fix.times(10 * number)
    return fix.unit_of(
        *place, epoch=epoch, timeline=timeline, sequence=number, is_segment=True, regions=regions
    )


def backup_in(number: int, *, epoch: int = 1, timeline: int = 1, stop: LSN | None = None) -> BackupManifest:
    """A backup that begins in segment ``number``, complete at second ``10 * number + 1``."""
    return fix.backup_of(
        seg(number) + 40,
        stop or seg(number) + 1000,
        stopped_at=fix.at_second(10 * number + 1),
        epoch=epoch,
        timeline=timeline,
        number=number,
    )


def made_of(
    units: list[WalUnit],
    backups: list[BackupManifest],
    *,
    known: tuple[KnownCause, ...] = (),
    expired: bool = False,
    epochs: tuple[EpochRecord, ...] = (),
    histories: Histories | None = None,
    archive: int = 1,
    holders: dict[str, tuple[str, ...]] | None = None,
) -> TimelineMap:
    records = epochs or (EpochRecord(fix.REPOSITORY, fix.archive_of(1), fix.BEGIN, "ed25519:x"),)
    survey = ArchiveSurvey(
        fix.archive_of(archive), records, histories or {}, tuple(backups), tuple(units), END
    )
    return map_timelines(
        MapSources(
            survey,
            {record.archive: END for record in records},
            ALL,
            holders or {backup.backup: ALL for backup in backups},
            known,
            frozenset({fix.archive_of(1)} if expired else ()),
        )
    )


def test_a_backup_whose_wal_ends_with_it_gives_one_moment() -> None:
    made = made_of([whole(2)], [backup_in(2, stop=seg(3))])
    assert [(span.start, span.end) for span in made.spans if span.is_restorable] == [(seg(3), seg(3))]
    assert made.is_restorable(seg(3))
    assert not made.is_restorable(LSN(seg(3).offset - 1))
    assert made.spans[-1].regions == ALL
    assert made.is_whole


def test_times_on_both_sides_of_a_hole_are_apart() -> None:
    made = made_of([whole(n) for n in (2, 3, 5, 6)], [backup_in(2), backup_in(5)])
    assert [(one.since, one.until) for one in made.times] == [
        (fix.at_second(21), fix.at_second(30) - timedelta(microseconds=1)),
        (fix.at_second(51), None),
    ]
    assert made.holds_time(fix.at_second(25))
    assert not made.holds_time(fix.at_second(30))
    assert [gap.cause for gap in made.gaps] == [Cause.WAL_MISSING, Cause.NO_BACKUP]
    hole, after = made.gaps
    assert hole.segments is not None
    assert (str(hole.segments.first), hole.segments.count) == ("000000010000000000000004", 1)
    assert (hole.first_at, hole.last_at) == (fix.at_second(30), fix.at_second(50))
    assert hole.detail == "it is in none of: eu, us"
    assert (after.start, after.end) == (seg(5), seg(5) + 1000)
    assert f"the next one is consistent from {seg(5) + 1000} on" in str(after.detail)


def test_an_archive_without_a_backup_is_no_whole_one_and_one_without_anything_is_empty() -> None:
    made = made_of([whole(2)], [])
    assert (made.is_whole, made.gaps, [span.cause for span in made.spans]) == (False, (), [Cause.NO_BACKUP])
    empty = made_of([], [])
    assert (empty.spans, empty.is_whole) == ((), False)


def test_a_backup_that_cannot_be_used_is_named_with_its_reason() -> None:
    child = replace(backup_in(3), type="incr", parent=fix.backup_id(99))
    made = made_of([whole(n) for n in (2, 3, 4)], [child])
    assert [span.cause for span in made.spans] == [Cause.NO_BACKUP, Cause.BACKUP_UNUSABLE]
    assert child.backup in str(made.spans[1].detail)
    assert "is missing" in str(made.spans[1].detail)
    assert made.gaps == made.spans[1:]


def test_what_has_expired_is_told_and_is_no_gap() -> None:
    gone = GoneWal(
        SegmentName.of(TimelineId(1), 2, SEG), SegmentName.of(TimelineId(1), 3, SEG), (1, 9), fix.BEGIN
    )
    record = ExpireRecord(fix.REPOSITORY, fix.archive_of(1), 1, None, fix.BEGIN, 60, 1, (), (gone,), ())
    known = tuple(expired_wal([record], SEG))
    made = made_of([whole(n) for n in (4, 5)], [backup_in(4)], known=known, expired=True)
    assert [(span.start, span.cause) for span in made.spans] == [
        (seg(2), Cause.EXPIRED),
        (seg(4), Cause.EXPIRED),
        (seg(4) + 1000, None),
    ]
    assert made.spans[0].detail == "expire record 1 declared it gone"
    assert made.spans[1].detail == "the backups before it have expired"
    assert made.is_whole
    # Beside a kept older backup, which an expiry never leaves so, it is still no fault.
    both = made_of([whole(n) for n in (1, 4, 5)], [backup_in(1), backup_in(4)], known=known, expired=True)
    assert [gap.cause for gap in both.gaps] == [Cause.NO_BACKUP]


def test_damaged_wal_is_told_from_missing_wal() -> None:
    key = SegmentKey(fix.archive_of(1), SegmentName.of(TimelineId(1), 3, SEG), "0a0a0a0a")
    refused = [RefusedObject(str(key), "bad signature"), RefusedObject("manifests/x", "bad")]
    made = made_of([whole(n) for n in (2, 4)], [backup_in(2)], known=tuple(damaged_wal(refused, SEG)))
    assert made.gaps[0].cause is Cause.WAL_DAMAGED
    assert "bad signature" in str(made.gaps[0].detail)


def test_wal_that_a_record_says_was_dropped_is_told_so_for_its_part_of_a_hole() -> None:
    """The record may speak of less than what is missing: the rest stays what it is."""
    dropped = KnownCause(
        fix.archive_of(1), TimelineId(1), seg(3), seg(4), Cause.WAL_LOST, "the disk was full"
    )
    made = made_of([whole(n) for n in (2, 5)], [backup_in(2), backup_in(5)], known=(dropped,))
    assert [(gap.start, gap.cause) for gap in made.gaps] == [
        (seg(3), Cause.WAL_LOST),
        (seg(4), Cause.WAL_MISSING),
        (seg(5), Cause.NO_BACKUP),
    ]
    other = replace(dropped, timeline=TimelineId(2), start=seg(2), end=seg(6))
    made = made_of([whole(n) for n in (2, 5)], [backup_in(2)], known=(other,))
    assert made.gaps[0].cause is Cause.WAL_MISSING


def test_the_end_that_a_failover_left_lies_aside_under_its_name() -> None:
    histories = {
        fix.archive_of(1): [TimelineHistory(TimelineId(2), (TimelineSwitch(TimelineId(1), seg(3.5)),))]
    }
    units = [whole(n) for n in (2, 3, 4)] + [whole(n, timeline=2) for n in (3, 4)]
    orphaned = KnownCause(
        fix.archive_of(1), TimelineId(1), seg(3.5), seg(5), Cause.ORPHANED_END, "left by a failover"
    )
    for known, aside in (((), Cause.OTHER_TIMELINE), ((orphaned,), Cause.ORPHANED_END)):
        made = made_of(units, [backup_in(2)], histories=histories, known=known)
        assert made.is_whole
        first, second = made.branches
        assert (first.left_at, second.parent and second.parent.lsn) == (seg(3.5), seg(3.5))
        tail = first.spans[-1]
        assert (tail.start, tail.end, tail.is_restorable, tail.aside) == (seg(3.5), seg(5), True, aside)
        assert [span.aside for span in second.spans] == [None]


def test_a_newer_epoch_leaves_the_older_ones_end_aside() -> None:
    parent = EpochParent(1, TimelineId(1), seg(3.5))
    epochs = (
        EpochRecord(fix.REPOSITORY, fix.archive_of(1), fix.BEGIN, "ed25519:x"),
        EpochRecord(fix.REPOSITORY, fix.archive_of(2), fix.BEGIN, "ed25519:y", parent),
    )
    units = [whole(n) for n in (2, 3, 4)] + [whole(n, epoch=2) for n in (3, 4, 5)]
    made = made_of(units, [backup_in(2)], epochs=epochs, archive=2)
    assert [branch.id.archive.epoch for branch in made.branches] == [1, 2]
    assert made.branches[0].spans[-1].aside is Cause.SUPERSEDED_EPOCH
    assert made.is_whole


def test_a_timeline_without_its_history_file_is_shown_and_the_way_to_it_is_refused() -> None:
    units = [whole(2), whole(3), whole(7, timeline=3)]
    known = made_of([*units[:2]], [backup_in(2)])
    assert known.is_whole
    survey = ArchiveSurvey(
        fix.archive_of(1),
        (EpochRecord(fix.REPOSITORY, fix.archive_of(1), fix.BEGIN, "ed25519:x"),),
        {},
        (backup_in(2),),
        tuple(units),
        END,
    )
    sources = MapSources(survey, {fix.archive_of(1): END}, ALL, {backup_in(2).backup: ALL})
    made = map_timelines(sources, TimelineId(1))
    lost = made.branches[-1].spans
    assert [(span.cause, span.start, span.regions) for span in lost] == [(Cause.HISTORY_MISSING, seg(7), ALL)]
    with pytest.raises(TargetRefused, match="history file of timeline 00000003 is missing"):
        map_timelines(sources, TimelineId(3))


def test_why_a_region_does_not_suffice_is_told() -> None:
    both, eu = ("eu", "us"), ("eu",)
    units = [whole(n, regions=regions) for n, regions in ((2, both), (3, eu), (4, both), (5, eu))]
    made = made_of(units, [backup_in(2)])
    told = [(span.start, [one.lack for one in span.lacking]) for span in made.spans if span.is_restorable]
    assert told == [
        (seg(2) + 1000, []),
        (seg(3), [Lack.WAL_MISSING]),
        (seg(4), [Lack.NO_BACKUP]),
        (seg(5), [Lack.BEHIND]),
    ]
    without = made_of(units[:1], [backup_in(2)], holders={backup_in(2).backup: eu})
    assert [(one.region, one.lack) for one in without.spans[-1].lacking] == [("us", Lack.NO_BACKUP)]


def test_a_past_that_is_not_proven_is_told_from_missing_wal() -> None:
    """Epoch 2 left epoch 1 on timeline 1, for of timeline 2, whose WAL epoch 1 has, nothing was proven."""
    two, three = TimelineId(2), TimelineId(3)
    first = EpochRecord(fix.REPOSITORY, fix.archive_of(1), fix.BEGIN, "ed25519:x")
    parent = EpochParent(1, TimelineId(1), seg(3))
    epochs = (first, EpochRecord(fix.REPOSITORY, fix.archive_of(2), fix.at_second(49), "ed25519:y", parent))
    to_two = TimelineSwitch(TimelineId(1), seg(3))
    history = TimelineHistory(three, (to_two, TimelineSwitch(two, seg(5))))
    histories = {fix.archive_of(1): [TimelineHistory(two, (to_two,))], fix.archive_of(2): [history]}
    units = [
        *(whole(n) for n in (2, 3)),
        *(whole(n, timeline=2) for n in (3, 4)),
        *(whole(n, epoch=2, timeline=3) for n in (5, 6)),
    ]
    known = tuple(unproven_past(epochs, histories, units))
    assert [(one.archive, one.timeline, one.start, one.end) for one in known] == [
        (fix.archive_of(2), two, seg(3), seg(5))
    ]
    made = made_of(units, [backup_in(2)], known=known, epochs=epochs, histories=histories, archive=2)
    assert [(gap.start, gap.end) for gap in made.gaps if gap.cause is Cause.PAST_UNPROVEN] == [
        (seg(3), seg(5))
    ]
    assert Cause.WAL_MISSING not in {gap.cause for gap in made.gaps}
    # Where the parent is all that the server has, nothing is unproven.
    whole_parent = replace(epochs[1], parent=EpochParent(1, two, seg(5)))
    assert not tuple(unproven_past((first, whole_parent), histories, units))
    # A hole in what the epoch wrote itself stays one.
    later = [one for one in units if one.archive == fix.archive_of(1)] + [whole(7, epoch=2, timeline=3)]
    assert {one.timeline for one in unproven_past(epochs, histories, later)} == {two}
