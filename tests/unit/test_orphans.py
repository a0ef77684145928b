"""Which WAL of an archive the way to its newest timeline does not use."""

from __future__ import annotations

from pitr.catalogue.wal_records import CoverageInterval
from pitr.layout import ArchiveId
from pitr.orphans import orphaned_ends
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, TimelineSwitch

ARCHIVE = ArchiveId(7, 1)
ONE, TWO, THREE = TimelineId(1), TimelineId(2), TimelineId(3)


def interval(timeline: TimelineId, start: int, end: int) -> CoverageInterval:
    return CoverageInterval(ARCHIVE, timeline, LSN(start), LSN(end), None, None, True, ())


def history(timeline: TimelineId, *left: tuple[TimelineId, int]) -> TimelineHistory:
    return TimelineHistory(timeline, tuple(TimelineSwitch(one, LSN(lsn)) for one, lsn in left))


def ends(newest: TimelineId, histories: list[TimelineHistory], *held: CoverageInterval) -> list[object]:
    return [
        (one.timeline, one.start.offset, one.end.offset) for one in orphaned_ends(newest, histories, held)
    ]


def test_a_timeline_that_was_left_where_its_wal_ends_has_no_orphan() -> None:
    assert not ends(TWO, [history(TWO, (ONE, 90))], interval(ONE, 16, 90), interval(TWO, 80, 120))


def test_what_is_archived_after_the_fork_is_orphaned() -> None:
    held = (interval(ONE, 16, 100), interval(TWO, 80, 120))
    assert ends(TWO, [history(TWO, (ONE, 90))], *held) == [(ONE, 90, 100)]


def test_a_timeline_that_the_newest_never_saw_is_orphaned_from_its_beginning() -> None:
    held = (interval(ONE, 16, 90), interval(TWO, 80, 120), interval(THREE, 80, 130))
    histories = [history(TWO, (ONE, 90)), history(THREE, (ONE, 85))]
    assert ends(THREE, histories, *held) == [(ONE, 85, 90), (TWO, 90, 120)]


def test_each_stretch_after_a_hole_counts() -> None:
    held = (interval(ONE, 16, 50), interval(ONE, 95, 100), interval(TWO, 80, 120))
    assert ends(TWO, [history(TWO, (ONE, 90))], *held) == [(ONE, 95, 100)]


def test_without_the_newest_history_nothing_is_said() -> None:
    assert not ends(TWO, [], interval(ONE, 16, 100), interval(TWO, 80, 120))
    assert not ends(ONE, [], interval(ONE, 16, 100))
