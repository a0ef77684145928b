"""Where a new writer epoch leaves the past."""

from __future__ import annotations

from cli.epochs import ArchivedPast, find_parent
from pitr.catalogue.records import EpochParent
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, TimelineSwitch


def _history(timeline: int, *switches: tuple[int, int]) -> TimelineHistory:
    return TimelineHistory(
        TimelineId(timeline), tuple(TimelineSwitch(TimelineId(parent), LSN(at)) for parent, at in switches)
    )


def test_a_restored_cluster_forks_where_it_was_promoted() -> None:
    past = ArchivedPast(1, [], LSN(9000))
    parent = find_parent(_history(2, (1, 5000)), past, LSN(5000))
    assert parent == EpochParent(1, TimelineId(1), LSN(5000))


def test_the_same_number_with_another_history_is_another_timeline() -> None:
    past = ArchivedPast(3, [_history(2, (1, 7000))], LSN(9000))
    parent = find_parent(_history(2, (1, 5000)), past, LSN(5000))
    assert parent == EpochParent(3, TimelineId(1), LSN(5000))


def test_a_timeline_that_the_archive_knows_is_followed_further() -> None:
    past = ArchivedPast(1, [_history(2, (1, 7000))], LSN(9000))
    parent = find_parent(_history(3, (1, 7000), (2, 8000)), past, LSN(8000))
    assert parent == EpochParent(1, TimelineId(2), LSN(8000))


def test_promotions_after_the_fork_do_not_hide_it() -> None:
    past = ArchivedPast(1, [], LSN(9000))
    parent = find_parent(_history(4, (1, 5000), (2, 6000), (3, 6500)), past, LSN(6500))
    assert parent == EpochParent(1, TimelineId(1), LSN(5000))


def test_a_host_that_only_changed_its_key_goes_on_where_the_archive_ends() -> None:
    assert find_parent(_history(1), ArchivedPast(1, [], LSN(9000)), LSN(12000)).lsn == LSN(9000)
    assert find_parent(_history(1), ArchivedPast(1, [], LSN(9000)), LSN(8000)).lsn == LSN(8000)
    assert find_parent(_history(1), ArchivedPast(1, [], None), LSN(8000)).lsn == LSN(8000)
