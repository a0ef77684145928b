"""The gate's two ways to work: beside the stream, or as the only source of WAL.

Reference: docs/wal.md, "archive_command".
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from pitr.archive_flow import Flow
from pitr.archive_handover import Handover
from pitr.archive_retry import GivenUp
from pitr.archive_stream import StreamState
from pitr.archive_values import PIECE_BYTES_MAX, ArchiveEvent, ArchiveEventKind, ArchiveEvents
from pitr.catalogue.records import HeadRecord, HistoryRecord
from pitr.catalogue.wal_records import PieceHeader, SegmentHeader
from pitr.gate_folder import GateFolder
from pitr.layout import PieceKey, SegmentKey
from pitr.wal.handed import Feed
from pitr.wal.segment import SegmentName
from storage.store import StoreError

_POLL_S: Final = 0.05
_FAILED_PAUSE_S: Final = 2.0
# A segment is all there at once, so it goes in one piece where it fits: in parts the first would be cut
# while the rest is read, and each piece costs puts, a signature and synced files of its own.
_READ_BYTES_MAX: Final = PIECE_BYTES_MAX
# What all segments are multiples of.
_SEGMENT_UNIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Gate:
    """How the gate takes part.  ``is_source``: nothing is streamed, and there is no slot."""

    folder: GateFolder
    is_source: bool = False
    gap_wait_s: float = 120.0


class AckingEvents:
    """Tells the archiver's events on, and the gate of each segment that is at quorum to its end.

    A failure of the gate's disk is told as an event: PostgreSQL asks again, and hands over.
    """

    def __init__(self, events: ArchiveEvents, folder: GateFolder) -> None:
        self._events: Final = events
        self._folder: Final = folder

    def on_history(self, history: HistoryRecord) -> None:
        self._events.on_history(history)

    def on_piece_durable(self, key: PieceKey, header: PieceHeader, header_sha256: bytes) -> None:
        self._events.on_piece_durable(key, header, header_sha256)
        # Every run begins at a segment's boundary, and pieces come in order: so all of it is there.
        if header.end.offset % header.segment_bytes == 0:
            name = SegmentName.holding(header.timeline, header.start, header.segment_bytes)
            try:
                # Bytes that are at hand are compared; only without them the name says it all.
                if not self._folder.has_handed(str(name)):
                    self._folder.acknowledge(str(name))
            except OSError as failure:
                self._events.on_event(_failed(failure))

    def on_segment_durable(self, key: SegmentKey, header: SegmentHeader, header_sha256: bytes) -> None:
        self._events.on_segment_durable(key, header, header_sha256)

    def on_head(self, head: HeadRecord, payload_sha256: bytes) -> None:
        self._events.on_head(head, payload_sha256)

    def on_event(self, event: ArchiveEvent) -> None:
        self._events.on_event(event)

    def request_full_backup(self, reason: str) -> None:
        self._events.request_full_backup(reason)


class GateBeside:
    """Answers the gate while WAL is streamed, in a thread of its own; its trouble never ends the stream."""

    def __init__(
        self,
        folder: GateFolder,
        handover: Handover,
        state: StreamState,
        on_event: Callable[[ArchiveEvent], None],
        stopping: threading.Event,
    ) -> None:
        self._folder: Final = folder
        self._handover: Final = handover
        self._state: Final = state
        self._on_event: Final = on_event
        self._stopping: Final = stopping
        self._last_failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="wal-gate", daemon=True)

    def start(self) -> None:
        """Empty the gate's folder of what an earlier daemon said, then begin."""
        self._try(self._folder.begin)
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end, after ``stopping`` was set."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        was_streaming = False
        while not self._stopping.wait(_POLL_S):
            is_streaming = self._state.is_streaming
            if is_streaming != was_streaming:
                self._try(partial(self._folder.streams, is_streaming=is_streaming))
                was_streaming = is_streaming
            if not self._try(self._handover.look):
                self._stopping.wait(_FAILED_PAUSE_S)
        self._try(self._folder.end)

    def _try(self, call: Callable[[], None]) -> bool:
        """Call; False after any failure, which is told once."""
        try:
            call()
        except GivenUp:
            return False
        except Exception as failure:  # noqa: BLE001 - the top of a thread, and the stream goes on without it
            if str(failure) != self._last_failure:
                self._on_event(_failed(failure))
            self._last_failure = str(failure)
            return False
        self._last_failure = None
        return True


class GateSource:
    """Receives WAL from the gate, in the thread that calls ``run``; stands where else the stream does."""

    def __init__(
        self,
        folder: GateFolder,
        flow: Flow,
        on_event: Callable[[ArchiveEvent], None],
        *,
        stopping: threading.Event,
        check: Callable[[], None],
    ) -> None:
        self._folder: Final = folder
        self._flow: Final = flow
        self._on_event: Final = on_event
        self._stopping: Final = stopping
        self._check: Final = check
        self._is_open = False
        self.handover: Handover | None = None
        self.state: Final = StreamState()

    def run(self) -> None:
        """Take what is handed over until told to stop.  Raises what stopped the pipeline."""
        assert self.handover is not None
        look, has_begun = self.handover.look, False
        while not self._stopping.is_set():
            self._check()
            try:
                if not has_begun:
                    self._folder.begin()
                    has_begun = True
                    self._on_event(ArchiveEvent(ArchiveEventKind.STREAMING, "WAL comes from archive_command"))
                look()
            except (StoreError, OSError) as failure:
                if self.state.last_error != str(failure):
                    self._on_event(_failed(failure))
                self.state.is_streaming, self.state.last_error = has_begun, str(failure)
                self._stopping.wait(_FAILED_PAUSE_S)
                continue
            except GivenUp:
                break
            self.state.is_streaming, self.state.last_error = True, None
            self._wait()
        self.state.is_streaming = False
        self._flow.close_run()
        try:
            self._folder.end()
        except OSError as failure:
            self._on_event(_failed(failure))

    def feed(self, descriptor: int, feed: Feed) -> None:
        """Give a file's WAL to the flow, no faster than it goes on.  Raises GivenUp when told to stop."""
        if not (feed.is_next and self._is_open):
            self._flow.begin(feed.run)
        self._is_open = True
        at, left = 0, feed.end - feed.run.start
        while left:
            while not self._flow.has_room:
                self._check()
                self._wait()
                if self._stopping.is_set():
                    raise GivenUp("taking what was handed over")
            content = os.pread(descriptor, min(left, _READ_BYTES_MAX), at)
            if not content:
                raise OSError("a file that was handed over has become shorter")
            self._flow.add(content)
            at, left = at + len(content), left - len(content)
        received = self._flow.received
        self.state.server_end = None if received is None else received.end
        if feed.end.offset % _SEGMENT_UNIT_BYTES:
            # A timeline ended inside of a segment: nothing follows that would fill a piece.
            self._flow.close_run()
            self._is_open = False

    def _wait(self) -> None:
        """Wait until something is durable, or it is time to look again."""
        if select.select([self._flow.waker.fd], [], [], _POLL_S)[0]:
            self._flow.waker.clear()


def _failed(failure: Exception) -> ArchiveEvent:
    return ArchiveEvent(ArchiveEventKind.GATE_FAILED, f"the archive_command gate does not work: {failure}")
