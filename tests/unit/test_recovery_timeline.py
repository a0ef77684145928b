"""Along which timeline PostgreSQL recovers: that of the stop, not that to which the way would lead."""

from __future__ import annotations

import fix_archive as fix
import pytest

from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan, StopPoint
from pitr.restore_wal import recovery_timeline
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from pitr.wal_runs import WalSpan

ONE, TWO = TimelineId(1), TimelineId(2)
LEFT_AT = LSN(0x50027D8)
PLAN = RestorePlan(
    RecoveryTarget("latest"),
    fix.archive_of(1),
    TWO,
    fix.backup_of(LSN(0x2000028), LSN(0x2000100), stopped_at=fix.at_second(1)),
    (WalSpan(fix.archive_of(1), ONE, LSN(1), LEFT_AT), WalSpan(fix.archive_of(1), TWO, LEFT_AT, None)),
    (),
    (),
    is_past_end=False,
)


@pytest.mark.parametrize(
    ("replay_end", "read_end", "timeline"),
    [
        (LSN(0x5002728), LSN(0x5002728), ONE),
        (LEFT_AT, LEFT_AT, ONE),
        # Stopped before a record that lies beyond the fork: it is read.
        (LEFT_AT, LSN(0x5002800), TWO),
        (LSN(0x5002800), LSN(0x5002800), TWO),
    ],
)
def test_recovery_goes_along_the_timeline_of_the_last_byte_that_it_reads(
    replay_end: LSN, read_end: LSN, timeline: TimelineId
) -> None:
    assert recovery_timeline(PLAN, StopPoint(replay_end, True, replay_end, read_end)) == timeline
