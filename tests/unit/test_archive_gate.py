"""The gate as the only source: how what was handed over is given to the flow."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pitr.archive_flow import Flow
from pitr.archive_gate import GateSource
from pitr.archive_values import MIB, PIECE_BYTES_MAX, ArchiveSettings
from pitr.gate_folder import GateFolder
from pitr.wal.handed import Feed
from pitr.wal.lsn import LSN
from pitr.wal.pieces import RunStart
from pitr.wal.timeline import TimelineId

SEGMENT_BYTES = 16 * MIB
WAIT_S = 60.0


def test_a_segment_that_was_handed_over_is_one_piece(tmp_path: Path) -> None:
    settings = ArchiveSettings(slot="pitr", piece_age_s=WAIT_S, piece_bytes_max=PIECE_BYTES_MAX)
    flow = Flow(settings, segment_bytes=SEGMENT_BYTES, end=None, monotonic=lambda: 0.0)
    source = GateSource(GateFolder(tmp_path), flow, print, stopping=threading.Event(), check=lambda: None)
    content = os.urandom(MIB) * 16
    path = tmp_path / "segment"
    path.write_bytes(content)
    start, end = LSN(SEGMENT_BYTES), LSN(2 * SEGMENT_BYTES)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(1) as pool:
            # The sealer waits already, as it does when the server is idle, and takes what is ready at once.
            taken = pool.submit(flow.take_raw)
            source.feed(descriptor, Feed(RunStart(TimelineId(1), start, None, follows=False), end))
            piece = taken.result(WAIT_S)
    finally:
        os.close(descriptor)
        flow.stop()
    assert piece is not None
    assert (piece.start, piece.end) == (start, end)
    assert b"".join(piece.chunks) == content
