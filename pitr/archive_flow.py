"""The flow: what the archiver's threads share, under one lock.

    receiver → cutter → [seal] → to put → [put] → window → recorded → [record]
                                                     └→ finished segments → [segment]

The threads in brackets are ``pitr.archive_pipeline`` and ``pitr.archive_recorder``; they work outside of
the lock.  Everything is bounded by the backlog: what was received and is not yet at quorum.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from pitr.archive_flow_values import (
    FlowStatus,
    LeftTimelines,
    Recorded,
    WaitingPiece,
    cutting_of,
    may_seal_more,
)
from pitr.archive_intake import Sealed
from pitr.archive_seal import SealedPiece, SegmentBuilder
from pitr.archive_values import Acknowledgement, ArchiveSettings, DurableEnd
from pitr.catalogue.wal_records import IndexedHeader, indexed
from pitr.wake_pipe import WakePipe
from pitr.wal.flushed import FlushedEnd
from pitr.wal.follow import ReceivedEnd
from pitr.wal.lsn import LSN
from pitr.wal.pieces import AcknowledgeWindow, RawPiece, RunStart
from pitr.wal.timeline import TimelineId

# Segments that wait for their put hold their compressed frames.
_SEGMENTS_WAITING_MAX: Final = 3
# What is still to be recorded: headers only.
_RECORDED_WAITING_MAX: Final = 4096


class Flow:
    """Thread-safe.  A ``take_`` method waits for work, and returns None when there will be no more."""

    def __init__(
        self,
        settings: ArchiveSettings,
        *,
        segment_bytes: int,
        end: DurableEnd | None,
        left: Mapping[TimelineId, LSN] | None = None,
        monotonic: Callable[[], float],
    ) -> None:
        self._settings: Final = settings
        self._monotonic: Final = monotonic
        self._lock = threading.Lock()
        # One condition per kind of waiter: a message of 128 KiB must not wake every thread.
        self._conditions = tuple(threading.Condition(self._lock) for _ in range(5))
        self._cut_changed, self._put_changed, self._segment_changed = self._conditions[:3]
        self._record_changed, self._shipped_changed = self._conditions[3:]
        self._cutting: Final = cutting_of(settings, segment_bytes=segment_bytes, now_s=monotonic())
        self._cutter: Final = self._cutting.cutter
        self._received = ReceivedEnd(end.timeline, end.end) if end and end.end else None
        self._left: Final = LeftTimelines(left or {})
        self._run: RunStart | None = None
        self._is_accepted, self._is_compared = False, True
        self._durable = end
        self._window = AcknowledgeWindow(
            settings.puts_in_flight_max, 1 if end is None else end.piece_sequence + 1
        )
        self._flushed: Final = FlushedEnd(self._received)
        # Of the piece that the sealer has in hand, which waits there while the spool is full.
        self._sealing_s: float | None = None
        self._puts = 0
        self._to_put: deque[SealedPiece] = deque()
        self._waiting: dict[int, WaitingPiece] = {}
        self._waiting_bytes = 0
        self._segments: deque[SegmentBuilder] = deque()
        self._segments_open = 0
        self._recorded: deque[Recorded] = deque()
        self._backlog_bytes = self._received_bytes = self._durable_bytes = 0
        self._is_draining = self._is_stopped = self._is_cut = False
        self._wants_record = False
        # Wakes the receiver: WAL has become durable, or the flow is stopped.
        self.waker: Final = WakePipe()

    # The receiver's side.

    def begin(self, run: RunStart) -> None:
        """Start a run of WAL; what was received before is cut where it ends."""
        with self._lock:
            self._cutter.begin(run)
            self._left.note(self._received, run.timeline)
            self._run, self._is_compared = run, False
            if run.known_to is None:
                self._accept()
            self._received = ReceivedEnd(run.timeline, run.known_to or run.start)
            if self._durable is None:
                self._durable = DurableEnd(run.timeline, None, None, 0, None)
            self._cut_changed.notify()

    def add(self, content: bytes | memoryview) -> None:
        """Take WAL that follows in the run; the sealer is woken once, and looks again after each piece."""
        with self._lock:
            held = self._cutter.held_bytes
            self._cutter.add(content, self._monotonic())
            self._backlog_bytes += len(content)
            self._received_bytes += len(content)
            end, before = self._cutter.received, self._received
            if end is not None and before is not None and before.end < end:
                self._received = ReceivedEnd(before.timeline, end)
            if not held or held < self._settings.piece_bytes <= held + len(content):
                self._cut_changed.notify()

    def _accept(self) -> None:
        self._is_accepted = self._is_compared = self._wants_record = True
        self._record_changed.notify()

    def close_run(self) -> None:
        """Cut what has been received, however young: the stream has ended here."""
        with self._lock:
            self._cutter.close()
            self._cut_changed.notify()

    @property
    def has_room(self) -> bool:
        """Whether the receiver may read on."""
        with self._lock:
            return self._backlog_bytes < self._settings.backlog_bytes_max

    @property
    def received(self) -> ReceivedEnd | None:
        """Where the WAL ends that was received without a gap."""
        with self._lock:
            return self._received

    @property
    def is_accepted(self) -> bool:
        """Whether a server was seen to go on from the archive: before that nothing is signed."""
        with self._lock:
            return self._is_accepted

    @property
    def durable(self) -> DurableEnd | None:
        """Where the WAL ends that is at quorum; None before the first run."""
        with self._lock:
            return self._durable

    # The sealer's side.

    def take_raw(self) -> RawPiece | None:
        """Wait for the next piece to be compared or sealed."""
        with self._lock:
            while not self._is_stopped:
                timeout_s: float | None = None
                if self._has_room_for_sealed():
                    under_way = 0 if self._flushed.counts_spooled else len(self._waiting)
                    cut = self._cutting.take(self._monotonic(), under_way)
                    if cut.piece is not None:
                        self._sealing_s = cut.piece.received_s
                        return cut.piece
                    if cut.is_empty and self._is_draining:
                        break
                    timeout_s = cut.wait_s
                self._cut_changed.wait(timeout_s)
            self._is_cut = True
            self._put_changed.notify_all()
            return None

    def _has_room_for_sealed(self) -> bool:
        """When puts do not keep up, WAL waits uncut: so that it then goes in larger pieces."""
        counts_spooled, puts_max = self._flushed.counts_spooled, self._settings.puts_in_flight_max
        return (
            may_seal_more(counts_spooled, puts_max, len(self._waiting), self._waiting_bytes)
            and self._segments_open < _SEGMENTS_WAITING_MAX
            and len(self._recorded) < _RECORDED_WAITING_MAX
        )

    def compared(self, raw: RawPiece) -> None:
        """Note that known WAL was the same."""
        with self._lock:
            self._sealing_s = None
            if self._run is not None and raw.end == self._run.known_to:
                self._accept()
            self._backlog_bytes -= raw.end - raw.start
            self._shipped_changed.notify_all()
        self.waker.wake()

    def add_sealed(self, raw: RawPiece, sealed: Sealed) -> None:
        """Note that a piece is sealed and in the spool."""
        with self._lock:
            piece = sealed.piece
            self._sealing_s = None
            self._waiting[piece.header.sequence] = WaitingPiece(
                piece, raw.end - raw.start, sealed.finishes, self._monotonic()
            )
            self._waiting_bytes += len(piece.body)
            self._to_put.append(piece)
            self._flushed.note_sealed(ReceivedEnd(raw.timeline, raw.end))
            if self._flushed.counts_spooled:
                self.waker.wake()
            self._put_changed.notify_all()

    # The putters' and the segment thread's side.

    def take_piece(self) -> SealedPiece | None:
        """Wait for the next piece to be put; no more than the window admits are under way."""
        with self._lock:
            while not self._is_stopped:
                if self._to_put and self._window.admits(self._to_put[0].header.sequence, self._puts_max()):
                    return self._to_put.popleft()
                if self._is_cut and not self._to_put:
                    return None
                self._put_changed.wait()
            return None

    def _puts_max(self) -> int:
        settings = self._settings
        return settings.sync_puts_in_flight if self._cutting.is_synchronous else settings.puts_in_flight

    def finish_piece(self, piece: SealedPiece) -> None:
        """Note that a piece is at quorum, and count as durable what is so in order."""
        with self._lock:
            for sequence in self._window.finish(piece.header.sequence):
                self._count(self._waiting.pop(sequence))
            self._put_changed.notify_all()
            self._cut_changed.notify()
            self._shipped_changed.notify_all()
        self.waker.wake()

    def _count(self, waiting: WaitingPiece) -> None:
        piece, before = waiting.piece, self._durable
        self._waiting_bytes -= len(piece.body)
        self._puts += 1
        self._cutting.pacing.note_put(self._monotonic() - waiting.since_s)
        start = None if before is None or piece.begins_gap else before.start
        self._durable = DurableEnd(
            piece.header.timeline,
            start or piece.header.start,
            piece.header.end,
            piece.header.sequence,
            piece.header_sha256,
        )
        self._flushed.note_durable(ReceivedEnd(piece.header.timeline, piece.header.end))
        self._backlog_bytes -= waiting.size_bytes
        self._durable_bytes += waiting.size_bytes
        self._recorded.append(Recorded(indexed(piece.key, piece.header, piece.header_sha256), self._durable))
        self._record_changed.notify()
        if waiting.finishes is not None:
            self._segments.append(waiting.finishes)
            self._segments_open += 1
            self._segment_changed.notify()

    def take_segment(self) -> SegmentBuilder | None:
        """Wait for the next segment whose pieces are all at quorum."""
        with self._lock:
            while not self._is_stopped:
                if self._segments:
                    return self._segments.popleft()
                if self._is_cut and not self._waiting:
                    return None
                # finish_piece wakes no one here unless a segment is finished; a drain ends by stop.
                self._segment_changed.wait()
            return None

    def finish_segment(self, entry: IndexedHeader) -> None:
        """Note that a segment is at quorum."""
        with self._lock:
            self._segments_open -= 1
            self._puts += 1
            self._recorded.append(Recorded(entry, None))
            self._record_changed.notify()
            self._cut_changed.notify()
            self._shipped_changed.notify_all()

    def leave_segment(self) -> None:
        """Note that a segment is not stored whole: its pieces, which are at quorum, stay."""
        with self._lock:
            self._segments_open -= 1
            self._cut_changed.notify()
            self._shipped_changed.notify_all()

    # The recorder's side.

    def take_recorded(self, timeout_s: float) -> Recorded | None:
        """Wait for the next thing to be recorded, in order; None after a time or a ``nudge``."""
        with self._lock:
            if not self._recorded and not self._wants_record and not self._is_stopped:
                self._record_changed.wait(timeout_s)
            self._wants_record = False
            if not self._recorded:
                return None
            if len(self._recorded) == _RECORDED_WAITING_MAX:
                self._cut_changed.notify()
            return self._recorded.popleft()

    def nudge(self) -> None:
        """Let ``take_recorded`` return at once."""
        with self._lock:
            self._wants_record = True
            self._record_changed.notify()

    # Control.

    def acknowledge(self, how: Acknowledgement) -> None:
        """Change what counts as flushed, and how soon it does."""
        with self._lock:
            self._cutting.set_synchronous(is_synchronous=how.is_synchronous)
            self._flushed.count_spooled(counts=how.counts_spooled)
            self._cut_changed.notify()
            self._put_changed.notify_all()
        self.waker.wake()

    @property
    def is_synchronous(self) -> bool:
        """Whether commits wait for us."""
        return self._cutting.is_synchronous

    @property
    def flushed(self) -> ReceivedEnd | None:
        """What the server may be told is flushed; it does not go back when only the quorum counts again."""
        with self._lock:
            # Until it has sent again what its run repeats, it may have other WAL there.
            return self._flushed.end if self._is_compared else None

    def drain(self) -> None:
        """Cut and ship what has arrived; nothing is added from now on."""
        with self._lock:
            self._is_draining = True
            self._cutter.close()
            self._cut_changed.notify()

    def stop(self) -> None:
        """Let every wait end now."""
        with self._lock:
            self._is_stopped = True
            for changed in self._conditions:
                changed.notify_all()
        self.waker.wake()

    @property
    def is_stopped(self) -> bool:
        """Whether ``stop`` was called."""
        with self._lock:
            return self._is_stopped

    @property
    def is_empty(self) -> bool:
        """Whether all that was received is at quorum."""
        with self._lock:
            return not self._backlog_bytes

    def wait_shipped(self, timeout_s: float) -> bool:
        """Wait until pieces and segments are at quorum; False if that takes longer or the flow is stopped."""
        with self._lock:
            self._shipped_changed.wait_for(lambda: self._is_shipped or self._is_stopped, timeout_s)
            return self._is_shipped

    def wait_durable(self, timeline: TimelineId, start: LSN, end: LSN, timeout_s: float) -> bool:
        """Wait until WAL is at quorum; False after ``timeout_s``.  Raises WalMissing if it has a hole."""

        def is_over() -> bool:
            if self._is_stopped or self._durable is None:
                return self._is_stopped
            return self._left.is_complete(self._durable, timeline, start, end)

        with self._lock:
            return self._shipped_changed.wait_for(is_over, timeout_s) and not self._is_stopped

    @property
    def _is_shipped(self) -> bool:
        return not (self._backlog_bytes or self._segments_open)

    def status(self) -> FlowStatus:
        """Return the flow at this moment."""
        with self._lock:
            waiting_s = [waiting.piece.received_s for waiting in self._waiting.values()]
            unsealed_s = self._cutter.oldest_s if self._sealing_s is None else self._sealing_s
            oldest_s = min(waiting_s) if waiting_s else unsealed_s
            flushed, sealed = self._flushed.end, self._flushed.sealed
            return FlowStatus(
                self._received,
                None if sealed is None else sealed.end,
                None if self._durable is None else self._durable.on(self._run),
                self._received_bytes,
                self._durable_bytes,
                self._backlog_bytes,
                len(self._waiting),
                self._segments_open,
                oldest_s,
                unsealed_s if self._flushed.counts_spooled else oldest_s,
                None if flushed is None else flushed.end,
                self._cutting.is_synchronous,
                self._puts,
            )
