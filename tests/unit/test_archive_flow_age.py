"""The age of what is not flushed: it is what the ladder goes by, so nothing in hand may be left out."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pitr.archive_flow import Flow
from pitr.archive_values import Acknowledgement, ArchiveSettings
from pitr.quorum import WriteQuorum
from pitr.wal.lsn import LSN
from pitr.wal.pieces import RunStart
from pitr.wal.timeline import TimelineId

SEGMENT_BYTES = 1 << 20


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("counts_spooled", [False, True])
def test_a_piece_that_waits_for_room_in_the_spool_is_as_old_as_its_first_byte(counts_spooled: bool) -> None:
    clock = Clock()
    settings = ArchiveSettings(slot="pitr", piece_age_s=1.0)
    flow = Flow(settings, segment_bytes=SEGMENT_BYTES, end=None, monotonic=clock)
    flow.acknowledge(
        Acknowledgement(is_synchronous=True, counts_spooled=counts_spooled, quorum=WriteQuorum(3, 2))
    )
    flow.begin(RunStart(TimelineId(1), LSN(SEGMENT_BYTES), None, follows=False))
    flow.add(bytes(8192))
    clock.now_s += 5
    # The sealer has it now, and tries again and again to spool it.
    assert flow.take_raw() is not None
    assert flow.status().oldest_unflushed_s == 100.0
    clock.now_s += 5
    flow.add(bytes(8192))
    assert flow.status().oldest_unflushed_s == 100.0
    assert flow.status().oldest_s == 100.0
