"""Where a new writer epoch leaves the past."""

from __future__ import annotations

import pytest

from cli.epochs import ArchivedPast, Compare, Sameness, find_parent, leaves_all
from pitr.catalogue.records import EpochParent
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, TimelineSwitch


def _history(timeline: int, *switches: tuple[int, int]) -> TimelineHistory:
    return TimelineHistory(
        TimelineId(timeline), tuple(TimelineSwitch(TimelineId(parent), LSN(at)) for parent, at in switches)
    )


def _told(**sameness: Sameness) -> Compare:
    """Compare as the test says: ``t2=…`` for timeline 2; what is not named is the same."""
    return lambda timeline, until: sameness.get(f"t{timeline.number}", Sameness.SAME)


SAME = _told()


def test_a_restored_cluster_forks_where_it_was_promoted() -> None:
    past = ArchivedPast(1, [], LSN(9000))
    parent = find_parent(_history(2, (1, 5000)), past, LSN(5000), SAME)
    assert parent == EpochParent(1, TimelineId(1), LSN(5000))


def test_the_same_number_with_another_history_is_another_timeline() -> None:
    past = ArchivedPast(3, [_history(2, (1, 7000))], LSN(9000))
    parent = find_parent(_history(2, (1, 5000)), past, LSN(5000), SAME)
    assert parent == EpochParent(3, TimelineId(1), LSN(5000))


@pytest.mark.parametrize("sameness", [Sameness.DIFFERENT, Sameness.UNKNOWN])
def test_the_same_number_and_history_with_other_wal_is_another_timeline(sameness: Sameness) -> None:
    past = ArchivedPast(2, [_history(2, (1, 5000))], LSN(9000), TimelineId(2))
    parent = find_parent(_history(2, (1, 5000)), past, LSN(7000), _told(t2=sameness))
    assert parent == EpochParent(2, TimelineId(1), LSN(5000))
    assert find_parent(_history(2, (1, 5000)), past, LSN(7000), SAME) == EpochParent(
        2, TimelineId(2), LSN(7000)
    )


def test_an_ancestor_whose_wal_is_not_seen_to_be_the_same_is_left_before_it_began() -> None:
    past = ArchivedPast(4, [_history(2, (1, 5000)), _history(3, (1, 5000), (2, 6000))], LSN(9000))
    server = _history(4, (1, 5000), (2, 6000), (3, 7000))
    assert find_parent(server, past, LSN(8000), _told(t3=Sameness.UNKNOWN)) == EpochParent(
        4, TimelineId(2), LSN(6000)
    )
    unknown = _told(t3=Sameness.UNKNOWN, t2=Sameness.UNKNOWN, t1=Sameness.UNKNOWN)
    assert find_parent(server, past, LSN(8000), unknown) == EpochParent(4, TimelineId(1), LSN(5000))


def test_an_ancestor_whose_history_no_server_had_is_known_by_its_descendants() -> None:
    past = ArchivedPast(1, [_history(3, (1, 5000), (2, 6000))], LSN(9000), TimelineId(3))
    server = _history(4, (1, 5000), (2, 6000), (3, 7000))
    assert find_parent(server, past, LSN(8000), SAME) == EpochParent(1, TimelineId(3), LSN(7000))
    assert find_parent(server, past, LSN(8000), _told(t3=Sameness.UNKNOWN)) == EpochParent(
        1, TimelineId(2), LSN(6000)
    )


def test_a_cluster_whose_first_timeline_differs_has_no_past_here() -> None:
    different = _told(t1=Sameness.DIFFERENT)
    assert find_parent(_history(1), ArchivedPast(1, [], LSN(9000)), LSN(8000), different) is None
    assert find_parent(_history(2, (1, 5000)), ArchivedPast(1, [], LSN(9000)), LSN(8000), different) is None


def test_what_an_epoch_left_itself_is_not_its_wal() -> None:
    # Epoch 2 came from timeline 1 at 4000; this server left the same timeline later, where only epoch 1 was.
    past = ArchivedPast(2, [_history(2, (1, 4000))], LSN(9000), TimelineId(2))
    server = _history(3, (1, 5000))
    parent = find_parent(server, past, LSN(5000), SAME)
    assert parent == EpochParent(2, TimelineId(1), LSN(4000))
    assert not leaves_all(server, parent)
    first = find_parent(server, ArchivedPast(1, [], LSN(9000), TimelineId(1)), LSN(5000), SAME)
    assert first == EpochParent(1, TimelineId(1), LSN(5000))
    assert leaves_all(server, first)


def test_a_timeline_that_the_archive_knows_is_followed_further() -> None:
    past = ArchivedPast(1, [_history(2, (1, 7000))], LSN(9000))
    parent = find_parent(_history(3, (1, 7000), (2, 8000)), past, LSN(8000), SAME)
    assert parent == EpochParent(1, TimelineId(2), LSN(8000))


def test_promotions_after_the_fork_do_not_hide_it() -> None:
    past = ArchivedPast(1, [], LSN(9000))
    parent = find_parent(_history(4, (1, 5000), (2, 6000), (3, 6500)), past, LSN(6500), SAME)
    assert parent == EpochParent(1, TimelineId(1), LSN(5000))


@pytest.mark.parametrize("sameness", [Sameness.SAME, Sameness.UNKNOWN])
def test_a_host_that_only_changed_its_key_goes_on_where_the_archive_ends(sameness: Sameness) -> None:
    for start, end, expected in ((12000, 9000, 9000), (8000, 9000, 8000), (8000, None, 8000)):
        past = ArchivedPast(1, [], None if end is None else LSN(end))
        assert find_parent(_history(1), past, LSN(start), _told(t1=sameness)) == EpochParent(
            1, TimelineId(1), LSN(expected)
        )
