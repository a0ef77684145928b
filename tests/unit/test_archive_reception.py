"""What a server is told that connects again: nothing of WAL that it has not shown to be the archive's."""

from __future__ import annotations

import struct
import threading
from collections import deque
from datetime import UTC, datetime
from typing import cast

from pitr.archive_flow import Flow
from pitr.archive_reception import Reception
from pitr.archive_values import ArchiveSettings, DurableEnd
from pitr.postgres.replication import ReplicationConnection
from pitr.wal.lsn import LSN
from pitr.wal.pieces import RunStart
from pitr.wal.timeline import TimelineId

SEGMENT_BYTES = 1 << 20
START = LSN(4 * SEGMENT_BYTES)
# What was archived of the segment before.
KNOWN_BYTES = 5000
END = START + KNOWN_BYTES


class Server:
    """The other end of a stream, as far as a reception asks it: WAL in messages, and what it was told."""

    def __init__(self) -> None:
        self.messages: deque[memoryview] = deque()
        self.told: list[tuple[int, int, int]] = []

    def sends(self, start: LSN, content: bytes) -> None:
        end = start.offset + len(content)
        self.messages.append(memoryview(b"w" + struct.pack("!QQq", start.offset, end, 0) + content))

    def receive(self) -> memoryview | None:
        return self.messages.popleft() if self.messages else None

    def send(self, message: bytes) -> None:
        self.told.append(struct.unpack_from("!QQQ", message, 1))

    def wait(self, _timeout_s: float, *, wake_fd: int, is_reading: bool) -> bool:
        return bool(wake_fd) and is_reading


def test_a_server_is_told_nothing_of_wal_that_it_has_not_sent_again() -> None:
    """A primary that was set back, and has come past the archive's end since, has other WAL there.

    Told at once how far the archive reaches, it would let go commits that wait and that no region has.
    """
    settings = ArchiveSettings(slot="pitr")
    durable = DurableEnd(TimelineId(1), START, END, 1, bytes(32))
    flow = Flow(settings, segment_bytes=SEGMENT_BYTES, end=durable, monotonic=lambda: 0.0)
    run, server = RunStart(TimelineId(1), START, END, follows=True), Server()
    flow.begin(run)
    reception = Reception(
        cast("ReplicationConnection", server),
        run,
        flow,
        settings,
        stopping=threading.Event(),
        check=lambda: None,
        clock=lambda: datetime(2026, 11, 30, tzinfo=UTC),
        monotonic=lambda: 0.0,
    )
    content = bytes(KNOWN_BYTES + 100)
    server.sends(START, content[:1000])
    reception.step()
    assert server.told[-1] == (START.offset + 1000, 0, 0)
    server.sends(START + 1000, content[1000:])
    reception.step()
    assert server.told[-1] == (END.offset + 100, 0, 0)
    raw = flow.take_raw()
    assert raw is not None
    assert raw.is_known
    # It was the same.
    flow.compared(raw)
    reception.step()
    assert server.told[-1] == (END.offset + 100, END.offset, 0)
    flow.stop()
    flow.waker.close()
