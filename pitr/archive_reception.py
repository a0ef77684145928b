"""Reception: one stream of one timeline, message by message, and what the server is told of it.

Write is what has been received, flush what is at quorum, apply nothing.  The server hears of each
change at once, so that commits that wait for us wait no longer than the put; but of WAL from before this
connection only once it was seen that the server has the same.

While commits wait it also hears from us often when nothing has changed, for some of its own steps wait for
that.  A walsender that was not caught up yet, or whose name was not among the synchronous ones, drops what
a message would have released, and does it with the next one (``SyncRepReleaseWaiters``).  And since
PostgreSQL 16 one can miss that WAL was flushed: between its look for more and its
``ConditionVariablePrepareToSleep`` nobody wakes it (``WalSndWait``); it then sends that WAL when something
comes from us, or after ``wal_sender_timeout`` / 2.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Final

from pitr.archive_flow import Flow
from pitr.archive_values import ArchiveSettings
from pitr.errors import ServerUnavailable
from pitr.postgres.receiver import Contiguous, Keepalive, decode_message, encode_status
from pitr.postgres.replication import ReplicationConnection, StreamEnd
from pitr.wal.lsn import LSN
from pitr.wal.pieces import RunStart

# A silent server is asked for a sign of life after a quarter of the time that it may be silent.
_ASK_SHARE: Final = 0.25
# A message to the server costs as much as to receive 128 KiB from it.
_WRITTEN_STEP_BYTES: Final = 4 << 20
# While the daemon stops, deadlines are looked at this often.
_STOPPING_WAIT_S: Final = 0.2


class Reception:
    """Receives one run.  Not thread-safe; ``step`` is to be called again and again."""

    def __init__(
        self,
        connection: ReplicationConnection,
        run: RunStart,
        flow: Flow,
        settings: ArchiveSettings,
        *,
        stopping: threading.Event,
        check: Callable[[], None],
        clock: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._connection: Final = connection
        self._run: Final = run
        self._flow: Final = flow
        self._settings: Final = settings
        self._stopping: Final = stopping
        self._check: Final = check
        self._clock: Final = clock
        self._monotonic: Final = monotonic
        self._contiguous = Contiguous(run.start)
        self._told: tuple[LSN | None, LSN | None] = (None, None)
        self._told_s = self._heard_s = monotonic()
        self._owes_reply = True
        self.server_end: LSN | None = None
        self.has_received = False
        self.is_held_back = False

    def step(self) -> StreamEnd | None:
        """Take in what is here, tell the server what has changed, and wait for more.

        A StreamEnd when the stream is over, or the archiver stops and all is at quorum or given up.
        Raises ServerUnavailable, WalRemoved, and what has stopped the pipeline.
        """
        self._check()
        is_stopping = self._stopping.is_set()
        may_read = self._flow.has_room and not is_stopping
        if may_read:
            ended = self._take_messages()
            if ended is not None:
                return ended
        elif not is_stopping:
            self.is_held_back = True
            self._heard_s = self._monotonic()  # not its silence but ours
        is_over = is_stopping and (self._flow.is_empty or self._flow.is_stopped)
        self._tell()
        if is_over:
            self._connection.end_streaming()
            return StreamEnd(None, None)
        wait_s = _STOPPING_WAIT_S if is_stopping else self._status_interval_s()
        if self._connection.wait(wait_s, wake_fd=self._flow.waker.fd, is_reading=may_read):
            self._flow.waker.clear()
        return None

    def _take_messages(self) -> StreamEnd | None:
        """Take in the messages that are here; the end of the stream if it is among them."""
        while (received := self._connection.receive()) is not None:
            if isinstance(received, StreamEnd):
                return received
            self._heard_s = self._monotonic()
            message = decode_message(received)
            self.server_end = message.server_end
            if isinstance(message, Keepalive):
                self._owes_reply |= message.wants_reply
                continue
            self._contiguous.accept(message)
            self._flow.add(message.content)
            self.has_received = True
            if not self._flow.has_room or self._stopping.is_set():
                break
        return None

    def _tell(self) -> None:
        now_s, settings = self._monotonic(), self._settings
        silent_s = now_s - self._heard_s
        if silent_s > settings.silence_s_max:
            raise ServerUnavailable(f"the server was silent for {silent_s:.0f} s")
        asks = silent_s > settings.silence_s_max * _ASK_SHARE
        interval_s = min(self._status_interval_s(), settings.silence_s_max * _ASK_SHARE)
        positions = (self._written(), self._flushed())
        if self._owes_reply or now_s - self._told_s >= interval_s or self._is_worth_telling(*positions):
            self._connection.send(encode_status(*positions, now=self._clock(), wants_reply=asks))
            self._told, self._told_s, self._owes_reply = positions, now_s, False

    def _status_interval_s(self) -> float:
        is_synchronous, settings = self._flow.is_synchronous, self._settings
        return settings.sync_status_interval_s if is_synchronous else settings.status_interval_s

    def _is_worth_telling(self, written: LSN, flushed: LSN | None) -> bool:
        """Say whether the server should hear of a change now.

        While it has more to send, nobody waits for what was written: a message each would cost more
        than to receive.
        """
        told_written, told_flushed = self._told
        if flushed != told_flushed or told_written is None:
            return True
        is_level = self.server_end is not None and self.server_end <= written
        return written != told_written and (is_level or written - told_written >= _WRITTEN_STEP_BYTES)

    def _written(self) -> LSN:
        known_to = self._run.known_to
        if known_to is None or self._flow.flushed is None:
            return self._contiguous.next
        return max(known_to, self._contiguous.next)

    def _flushed(self) -> LSN | None:
        """Return what counts as flushed; None while that is before this run, or nothing has come yet.

        The server moves the slot to wherever it is told, also back to WAL that it no longer has.  An end on
        another timeline says nothing of this one: after a failover it may lie beyond the server's own.
        """
        flushed = self._flow.flushed
        if flushed is None or flushed.timeline != self._run.timeline or self.server_end is None:
            return None
        if flushed.end < self._run.start:
            return None
        return flushed.end
