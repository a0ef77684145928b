"""The recorder: tells what has become durable, in order, and signs where the archive ends.

Store first, record second: nothing is told, indexed or signed before it is at quorum.
"""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Final

from pitr.archive_flow import Flow
from pitr.archive_flow_values import Recorded
from pitr.archive_heads import BackupList, HeadWriter, IndexWriter
from pitr.archive_pipeline import Parts
from pitr.archive_values import ArchiveEvents, DurableEnd
from pitr.catalogue.wal_records import PieceHeader
from pitr.layout import PieceKey
from pitr.quorum import WriteQuorum
from pitr.repository import ListedHead
from pitr.wal.timeline import TimelineId
from storage.arrivals import Arriving
from storage.store import StoreUnavailable

# After a head that could not be put; the next regular one may be far off.
_RETRY_S: Final = 5.0
_IDLE_WAIT_S: Final = 60.0
# While regions lack what a head speaks of: how soon to look again, and how long that may last untold.
_LOOK_AGAIN_S: Final = 0.5
_LACKING_S_MAX: Final = 30.0


class Recorder:
    """One thread's work.  ``request_head`` and ``end`` may be called from any thread."""

    def __init__(
        self,
        parts: Parts,
        flow: Flow,
        events: ArchiveEvents,
        *,
        heads: HeadWriter,
        index: IndexWriter,
        backups: BackupList,
        head_interval_s: float,
    ) -> None:
        self._parts: Final = parts
        self._flow: Final = flow
        self._events: Final = events
        self._heads: Final = heads
        self._index: Final = index
        self._backups: Final = backups
        self._head_interval_s: Final = head_interval_s
        self._end: DurableEnd | None = None
        self._head_timeline: TimelineId | None = None
        self._lock = threading.Lock()
        self._head_due_s = parts.monotonic()
        self._is_ending = False
        # What the next head waits for, and since when.
        self._awaited: tuple[int, float] | None = None
        self._last_head_at: datetime | None = None

    @property
    def last_head_at(self) -> datetime | None:
        """The time of the last head that is at quorum."""
        with self._lock:
            return self._last_head_at

    def request_head(self) -> None:
        """Write a head soon, with the backups as they are then."""
        with self._lock:
            self._backups.forget()
            self._head_due_s = self._parts.monotonic()
        self._flow.nudge()

    def set_quorum(self, quorum: WriteQuorum | None) -> None:
        """Let heads say another quorum, the next one soon."""
        if self._heads.quorum != quorum:
            self._heads.quorum = quorum
            self._hasten_head()
            self._flow.nudge()

    def end(self) -> None:
        """Record what is left, write the last index and head, and return from ``run``."""
        with self._lock:
            self._is_ending = True
        self._flow.nudge()

    def run(self) -> None:
        """Record until ``end`` is called and nothing is left, or the flow is stopped."""
        self._end = self._flow.durable
        while not self._flow.is_stopped:
            with self._lock:
                due_s = max(self._head_due_s - self._parts.monotonic(), 0.0)
                # The flow nudges when a server was accepted; until then no head is due.
                wait_s = min(due_s, _IDLE_WAIT_S) if self._flow.is_accepted else _IDLE_WAIT_S
                is_ending = self._is_ending
            recorded = self._flow.take_recorded(0.0 if is_ending else wait_s)
            if recorded is not None:
                self._record(recorded)
            elif is_ending:
                self._finish()
                return
            elif self._is_head_due():
                self._try_head()

    def _record(self, recorded: Recorded) -> None:
        key, header = recorded.entry.key, recorded.entry.header
        if isinstance(key, PieceKey) and isinstance(header, PieceHeader):
            self._end = recorded.end
            self._index.add_piece(recorded.entry)
            self._events.on_piece_durable(key, header, recorded.entry.header_sha256)
            if self._head_timeline not in (None, header.timeline):
                self._hasten_head()
        elif not isinstance(key, PieceKey) and not isinstance(header, PieceHeader):
            self._index.add_segment(recorded.entry)
            self._events.on_segment_durable(key, header, recorded.entry.header_sha256)
        # A busy archive must not put its heads off for ever.
        if self._is_head_due():
            self._try_head()

    def _is_head_due(self) -> bool:
        """A head of ours would stop the archive's right writer, if this were not it."""
        with self._lock:
            return self._head_due_s <= self._parts.monotonic() and self._flow.is_accepted

    def _hasten_head(self) -> None:
        with self._lock:
            self._head_due_s = self._parts.monotonic()

    def _try_head(self) -> None:
        """Write index and head if that works now; else soon."""
        if not self._has_arrived():
            with self._lock:
                self._head_due_s = self._parts.monotonic() + min(self._head_interval_s, _LOOK_AGAIN_S)
            return
        is_written = self._parts.retry.once("putting a head", self._write)
        with self._lock:
            pause_s = self._head_interval_s if is_written else min(self._head_interval_s, _RETRY_S)
            self._head_due_s = self._parts.monotonic() + pause_s

    def _has_arrived(self) -> bool:
        """Tell whether enough regions have what a head speaks of.

        Else its put would wait for that, and all that is durable meanwhile would wait to be recorded: at a
        bound of that nothing more is sealed.
        """
        store, now_s = self._parts.puts.store, self._parts.monotonic()
        if not isinstance(store, Arriving):
            return True
        mark, since_s = self._awaited or (store.mark(), now_s)
        if store.has_arrived(mark):
            self._awaited = None
            return True
        self._awaited = (mark, since_s)
        if now_s - since_s >= _LACKING_S_MAX:
            self._parts.retry.once("putting a head", self._tell_lacking)
        return False

    def _tell_lacking(self) -> None:
        raise StoreUnavailable("too few regions have all that it speaks of")

    def _write(self) -> None:
        self._index.put_pending()
        self._note_head(self._heads.finish_pending())
        if self._end is None:
            # Before the first run not even the timeline is known.
            self._end = self._flow.durable
        if self._end is not None and self._flow.is_accepted:
            self._note_head(self._heads.write(self._end, self._backups.get(), self._parts.clock()))

    def _note_head(self, written: ListedHead | None) -> None:
        if written is None:
            return
        self._head_timeline = written.head.timeline
        with self._lock:
            self._last_head_at = written.head.at
        self._events.on_head(written.head, written.payload_sha256)

    def _finish(self) -> None:
        self._index.close()
        self._parts.retry.until_done("putting the last head", self._write)
