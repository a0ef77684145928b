"""What a backup waits for: WAL of a timeline that the archive has left is complete, or never will be."""

from __future__ import annotations

import pytest

from pitr.archive_flow import Flow
from pitr.archive_values import ArchiveSettings, DurableEnd
from pitr.errors import WalMissing
from pitr.wal.lsn import LSN
from pitr.wal.pieces import RunStart
from pitr.wal.timeline import TimelineId

MIB = 1 << 20
ONE, TWO, THREE = TimelineId(1), TimelineId(2), TimelineId(3)
LEFT_AT = LSN(5 * MIB)


def flow_after_restart(left: dict[TimelineId, LSN]) -> Flow:
    """Return the flow of a daemon that begins anew, on an archive that ends on timeline 3."""
    end = DurableEnd(THREE, LSN(MIB), LSN(9 * MIB), 7, bytes(32))
    settings = ArchiveSettings(slot="pitr")
    return Flow(settings, segment_bytes=MIB, end=end, left=left, monotonic=lambda: 0.0)


def test_wal_that_an_earlier_run_left_out_is_missing_at_once_after_a_restart() -> None:
    flow = flow_after_restart({ONE: LEFT_AT})
    assert flow.wait_durable(ONE, LSN(2 * MIB), LEFT_AT, 0.01)
    with pytest.raises(WalMissing, match=f"to {LEFT_AT + 1} of timeline {ONE} will never be complete"):
        flow.wait_durable(ONE, LSN(2 * MIB), LEFT_AT + 1, 0.01)
    flow.waker.close()


def test_wal_of_a_timeline_that_nobody_knows_of_is_not_complete_for_lying_below_the_end() -> None:
    flow = flow_after_restart({ONE: LEFT_AT})
    assert not flow.wait_durable(TWO, LSN(2 * MIB), LSN(6 * MIB), 0.01)
    assert flow.wait_durable(THREE, LSN(2 * MIB), LSN(6 * MIB), 0.01)
    flow.waker.close()


def test_a_timeline_that_is_left_while_the_flow_runs_is_known_as_well() -> None:
    flow = flow_after_restart({})
    flow.begin(RunStart(TimelineId(4), LSN(9 * MIB), None, follows=True))
    assert flow.wait_durable(THREE, LSN(2 * MIB), LSN(9 * MIB), 0.01)
    with pytest.raises(WalMissing, match="will never be complete"):
        flow.wait_durable(THREE, LSN(2 * MIB), LSN(9 * MIB + 1), 0.01)
    flow.waker.close()
