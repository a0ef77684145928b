"""Where a stream must begin on a server with a given history, and which servers are refused."""

from __future__ import annotations

import pytest

from pitr.errors import ArchiveDiverged
from pitr.wal.follow import (
    ArchiveFork,
    LostStretch,
    ReceivedEnd,
    find_fork,
    first_run,
    lost_stretches,
    next_run,
    run_after,
)
from pitr.wal.lsn import LSN
from pitr.wal.pieces import RunStart
from pitr.wal.timeline import TimelineHistory, TimelineId, TimelineSwitch

MIB = 1 << 20
ONE, TWO, THREE = TimelineId(1), TimelineId(2), TimelineId(3)
FAR = LSN(100 * MIB)


def at(mib: float) -> LSN:
    return LSN(int(mib * MIB))


def follow(received: ReceivedEnd, history: TimelineHistory, flushed: LSN = FAR) -> RunStart | None:
    return next_run(received, history, flushed, segment_bytes=MIB)


def test_an_archive_begins_with_the_segment_that_the_slot_keeps() -> None:
    assert first_run(TWO, at(7.5), segment_bytes=MIB) == RunStart(TWO, at(7), None, follows=False)


def test_a_stream_restarts_at_the_segments_start_and_compares_what_is_known() -> None:
    run = follow(ReceivedEnd(ONE, at(7.5)), TimelineHistory(ONE))
    assert run == RunStart(ONE, at(7), at(7.5), follows=True)


def test_on_a_boundary_there_is_nothing_to_compare() -> None:
    assert follow(ReceivedEnd(ONE, at(7)), TimelineHistory(ONE)) == RunStart(ONE, at(7), None, follows=True)


def test_a_server_that_is_not_there_yet_gives_no_run() -> None:
    assert follow(ReceivedEnd(ONE, at(7.5)), TimelineHistory(ONE), at(7.4)) is None


def test_an_old_timeline_is_followed_to_its_end_first() -> None:
    history = TimelineHistory(TWO, (TimelineSwitch(ONE, at(9.25)),))
    run = follow(ReceivedEnd(ONE, at(7.5)), history)
    assert run == RunStart(ONE, at(7), at(7.5), follows=True)


def test_after_the_end_of_a_timeline_the_next_one_begins_with_the_segment_of_the_switch() -> None:
    history = TimelineHistory(THREE, (TimelineSwitch(ONE, at(9.25)), TimelineSwitch(TWO, at(9.5))))
    assert follow(ReceivedEnd(ONE, at(9.25)), history) == RunStart(TWO, at(9), None, follows=True)
    assert follow(ReceivedEnd(TWO, at(9.5)), history) == RunStart(THREE, at(9), None, follows=True)


def test_a_history_that_left_the_archives_below_its_end_is_refused() -> None:
    history = TimelineHistory(TWO, (TimelineSwitch(ONE, at(7.25)),))
    with pytest.raises(ArchiveDiverged, match="below its end"):
        follow(ReceivedEnd(ONE, at(7.5)), history)


def test_a_history_without_the_archives_timeline_is_refused() -> None:
    history = TimelineHistory(THREE, (TimelineSwitch(ONE, at(7.25)),))
    with pytest.raises(ArchiveDiverged, match="not the archive's"):
        follow(ReceivedEnd(TWO, at(7.5)), history)


FOUR = TimelineId(4)


def history(timeline: TimelineId, *left: tuple[TimelineId, float]) -> TimelineHistory:
    return TimelineHistory(timeline, tuple(TimelineSwitch(one, at(mib)) for one, mib in left))


OWN_ONE = TimelineHistory(ONE)
OWN_TWO = history(TWO, (ONE, 5.5))


@pytest.mark.parametrize(
    ("received", "own", "server"),
    [
        (ReceivedEnd(ONE, at(7.5)), OWN_ONE, OWN_ONE),
        (ReceivedEnd(ONE, at(7.5)), OWN_ONE, history(TWO, (ONE, 7.5))),
        (ReceivedEnd(ONE, at(7.5)), OWN_ONE, history(TWO, (ONE, 9))),
        (ReceivedEnd(TWO, at(7.5)), OWN_TWO, OWN_TWO),
        (ReceivedEnd(TWO, at(7.5)), OWN_TWO, history(THREE, (ONE, 5.5), (TWO, 7.5))),
    ],
)
def test_a_server_that_goes_on_from_the_archives_end_has_no_fork(
    received: ReceivedEnd, own: TimelineHistory, server: TimelineHistory
) -> None:
    assert find_fork(received, own, server) is None


def test_a_failover_that_lost_wal_is_a_fork_that_names_what_was_lost() -> None:
    server = history(THREE, (ONE, 6.25), (TWO, 8))
    fork = find_fork(ReceivedEnd(ONE, at(7.5)), OWN_ONE, server)
    assert fork == ArchiveFork(ONE, at(6.25), ONE, at(7.5), TWO, at(6.25))
    run = run_after(fork, at(2), segment_bytes=MIB)
    assert run == RunStart(TWO, at(6), None, follows=True)


def test_a_server_that_never_saw_the_archives_last_timeline_forks_where_they_part() -> None:
    """A leader for a minute: another member took over that had less, or more, of the timeline before."""
    received = ReceivedEnd(TWO, at(7.5))
    less = find_fork(received, OWN_TWO, history(THREE, (ONE, 4.25)))
    assert less == ArchiveFork(ONE, at(4.25), TWO, at(7.5), THREE, at(4.25))
    more = find_fork(received, OWN_TWO, history(FOUR, (ONE, 5.75), (THREE, 6)))
    assert more == ArchiveFork(ONE, at(5.5), TWO, at(7.5), THREE, at(5.75))
    assert run_after(more, at(2), segment_bytes=MIB).follows
    far = find_fork(received, OWN_TWO, history(THREE, (ONE, 6.75)))
    assert far is not None
    # Between the fork and the segment where the new timeline begins there is WAL that the archive lacks.
    assert run_after(far, at(2), segment_bytes=MIB) == RunStart(THREE, at(6), None, follows=False)


def test_after_a_hole_the_wal_before_a_fork_is_not_known_to_join() -> None:
    fork = find_fork(ReceivedEnd(ONE, at(7.5)), OWN_ONE, history(TWO, (ONE, 6.25)))
    assert fork is not None
    assert not run_after(fork, at(6.5), segment_bytes=MIB).follows
    assert not run_after(fork, None, segment_bytes=MIB).follows


@pytest.mark.parametrize(
    ("server", "words"),
    [
        # The old primary, forgotten: it goes on where the archive has gone on with another one.
        (TimelineHistory(ONE), "which the archive has left"),
        # Another timeline 2, which began elsewhere: no name is left for its WAL here.
        (history(TWO, (ONE, 5.25)), "not the archive's of that number"),
        (TimelineHistory(THREE), "whose past is not the archive's"),
    ],
)
def test_what_no_failover_explains_is_refused(server: TimelineHistory, words: str) -> None:
    with pytest.raises(ArchiveDiverged, match=words) as refused:
        find_fork(ReceivedEnd(TWO, at(7.5)), OWN_TWO, server)
    assert "pitr adopt --as restore" in str(refused.value.hint)


def test_timelines_up_to_1f_are_followed_one_after_the_other() -> None:
    """Failovers one after the other, a fork at each: numbers are hexadecimal, and order is theirs."""
    switches: list[tuple[TimelineId, float]] = []
    for number in range(1, 0x1F):
        own = history(TimelineId(number), *switches)
        received = ReceivedEnd(own.timeline, at(number + 1.5))
        switches.append((own.timeline, number + 1.25))
        server = history(TimelineId(number + 1), *switches)
        fork = find_fork(received, own, server)
        assert fork is not None
        assert (fork.timeline, fork.left_at) == (own.timeline, at(number + 1.25))
        assert run_after(fork, at(1), segment_bytes=MIB).timeline == server.timeline
    assert str(server.timeline) == "0000001F"


def test_a_hole_is_told_timeline_by_timeline_and_no_more_of_it_than_is_lacking() -> None:
    history = TimelineHistory(THREE, (TimelineSwitch(ONE, at(5.5)), TimelineSwitch(TWO, at(7.5))))
    assert lost_stretches(ReceivedEnd(ONE, at(5)), history, at(9)) == (
        LostStretch(ONE, at(5), at(5.5)),
        LostStretch(TWO, at(5.5), at(7.5)),
        LostStretch(THREE, at(7.5), at(9)),
    )
    # All of timeline 1 is there; the run on timeline 2 began with its segment, and nothing came.
    for received in (ReceivedEnd(ONE, at(5.5)), ReceivedEnd(TWO, at(5))):
        assert lost_stretches(received, history, at(7)) == (LostStretch(TWO, at(5.5), at(7)),)
    assert lost_stretches(ReceivedEnd(ONE, at(5)), TimelineHistory(ONE), at(6)) == (
        LostStretch(ONE, at(5), at(6)),
    )
    assert lost_stretches(ReceivedEnd(THREE, at(9)), history, at(8)) == ()
