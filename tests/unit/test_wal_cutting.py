"""Group commit: what waits is cut at once, several puts are under way, and they are spread evenly."""

from __future__ import annotations

import pytest

from pitr.errors import MalformedValue
from pitr.wal.cutting import Cutting
from pitr.wal.lsn import LSN
from pitr.wal.pacing import GroupCommit
from pitr.wal.pieces import PieceCutter, RunStart
from pitr.wal.timeline import TimelineId

SEGMENT = 1 << 20
RUN = RunStart(TimelineId(1), LSN(SEGMENT), None, follows=False)


def cutting(*, spacing_s: float = 0.005, puts_max: int = 4) -> Cutting:
    cutter = PieceCutter(segment_bytes=SEGMENT, piece_bytes=1 << 16, piece_age_s=1.0)
    cutter.begin(RUN)
    return Cutting(cutter, GroupCommit(puts_max=puts_max, spacing_s=spacing_s), piece_age_s=1.0, now_s=0.0)


def test_age_decides_while_nobody_waits_and_nothing_but_room_while_commits_do() -> None:
    one = cutting()
    one.cutter.add(b"x" * 8, 10.0)
    assert one.take(10.0, 0).wait_s == pytest.approx(1.0)
    one.set_synchronous(is_synchronous=True)
    assert one.take(10.0, 4) == (cut := one.take(10.0, 4))
    assert cut.piece is None
    assert cut.wait_s is None
    assert not cut.is_empty
    piece = one.take(10.0, 3).piece
    assert piece is not None
    assert piece.end - piece.start == 8
    assert one.take(10.0, 0).is_empty
    one.cutter.add(b"y" * 8, 10.001)
    assert one.take(10.001, 1).wait_s == pytest.approx(0.004)
    assert one.take(10.006, 1).piece is not None
    one.set_synchronous(is_synchronous=False)
    one.cutter.add(b"z" * 8, 11.0)
    assert one.take(11.5, 0).piece is None
    assert one.take(12.0, 9).piece is not None


def test_puts_are_spread_the_more_the_fewer_places_are_left() -> None:
    pacing = GroupCommit(puts_max=8, spacing_s=0.002)
    assert pacing.spacing_s(7) == 0.002
    for _ in range(100):
        pacing.note_put(0.080)
    assert pacing.spacing_s(0) == 0.002
    assert pacing.spacing_s(4) == pytest.approx(0.005)
    assert pacing.spacing_s(8) == pytest.approx(0.010)
    assert pacing.wait_s(1.0, 7) == 0.0
    assert pacing.wait_s(1.0, 8) is None
    for _ in range(100):
        pacing.note_put(0.008)
    assert pacing.spacing_s(8) == pytest.approx(0.002)


def test_what_is_no_group_commit_is_refused() -> None:
    for puts_max, spacing_s in ((0, 0.0), (17, 0.0), (1, -1.0), (1, 61.0)):
        with pytest.raises(MalformedValue):
            GroupCommit(puts_max=puts_max, spacing_s=spacing_s)
