"""Where a stream must begin on a server with a given history, and which servers are refused."""

from __future__ import annotations

import pytest

from pitr.errors import ArchiveDiverged
from pitr.wal.follow import ReceivedEnd, first_run, next_run
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
