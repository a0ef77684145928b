"""The pipeline: the threads that seal, spool and put WAL, and whole segments of it.

Each takes its work from the flow and repeats it until it succeeds: sealed bytes are put again as
they are.  An error that no repetition mends stops all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from pitr.archive_flow import Flow
from pitr.archive_intake import Intake, Sealed
from pitr.archive_resume import two_writers
from pitr.archive_retry import GivenUp, Retry
from pitr.archive_seal import SealedPiece, SealedSegment, SegmentBuilder
from pitr.archive_values import ArchiveEvent, ArchiveEventKind
from pitr.catalogue.wal_records import indexed
from pitr.judged_puts import JudgedPuts
from pitr.pipeline.keys import DataKey
from pitr.spool import Spool, SpoolFull
from pitr.wal.pieces import RawPiece
from storage.store import ObjectConflict


class WalKeys(Protocol):
    """Where the hour's data key comes from; see ``pitr.datakeys.HostKeys``."""

    def wal_key(self, now: datetime) -> DataKey:
        """Return the key for WAL that is sealed now.  Raises StoreError."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the archiver works with."""

    puts: JudgedPuts
    spool: Spool
    keys: WalKeys
    retry: Retry
    on_event: Callable[[ArchiveEvent], None]
    clock: Callable[[], datetime]
    monotonic: Callable[[], float]


class Pipeline:
    """The threads between the receiver and the store."""

    def __init__(self, parts: Parts, flow: Flow, intake: Intake, *, puts_in_flight: int) -> None:
        self._parts: Final = parts
        self._flow: Final = flow
        self._intake: Final = intake
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        works = [("wal-seal", self._seal_all), ("wal-segment", self._store_segments)]
        works += [(f"wal-put-{number}", self._put_all) for number in range(puts_in_flight)]
        self._threads = [
            threading.Thread(target=self.guard, args=(work,), name=name, daemon=True) for name, work in works
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads; one that hangs in a call is left behind."""
        deadline = self._parts.monotonic() + timeout_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(deadline - self._parts.monotonic(), 0.0))

    def stop(self) -> None:
        """End all waits and repetitions."""
        self._parts.retry.give_up()
        self._flow.stop()

    def fail(self, failure: BaseException) -> None:
        """Stop for a reason that no repetition mends; the first one counts."""
        with self._lock:
            self._failure = self._failure or failure
        self.stop()

    def check(self) -> None:
        """Raise what has stopped the pipeline, if anything has."""
        with self._lock:
            if self._failure is not None:
                raise self._failure

    def guard(self, work: Callable[[], None]) -> None:
        """Run a thread's work; whatever ends it wrongly stops the archiver."""
        try:
            work()
        except GivenUp:
            return
        except Exception as failure:  # noqa: BLE001 - the top of a thread: run() raises it again
            self.fail(failure)

    def _seal_all(self) -> None:
        while (raw := self._flow.take_raw()) is not None:
            if raw.is_known:
                self._intake.compare(raw)
                self._flow.compared(raw)
            else:
                sealed = self._seal(raw)
                # The spool's disk and the next piece may take long: what was received is not held for them.
                raw = replace(raw, chunks=())
                self._keep_piece(raw, sealed)
                del sealed

    def _seal(self, raw: RawPiece) -> Sealed:
        parts = self._parts
        data_key = parts.retry.until_done("making a data key", lambda: parts.keys.wal_key(parts.clock()))
        age = timedelta(seconds=max(parts.monotonic() - raw.received_s, 0.0))
        return self._intake.seal(raw, data_key, parts.clock() - age)

    def _keep_piece(self, raw: RawPiece, sealed: Sealed) -> None:
        piece = sealed.piece
        self._keep("spooling a piece", str(piece.key), piece.body, piece.sha256)
        self._flow.add_sealed(raw, sealed)
        if sealed.leaves_in_pieces is not None:
            self._tell_in_pieces(
                sealed.leaves_in_pieces, "not all of them are at hand, or it is too large for an object"
            )

    def _put_all(self) -> None:
        while (piece := self._flow.take_piece()) is not None:
            self._put("putting a piece", str(piece.key), piece.body, piece.sha256)
            self._flow.finish_piece(piece)
            self._forget(piece)
            # Each of the threads would hold a body of megabytes until its next one comes.
            del piece

    def _forget(self, piece: SealedPiece) -> None:
        spool = self._parts.spool
        self._parts.retry.until_done("emptying the spool", lambda: spool.remove(str(piece.key)))

    def _store_segments(self) -> None:
        while (builder := self._flow.take_segment()) is not None:
            self._store_segment(builder)

    def _store_segment(self, builder: SegmentBuilder) -> None:
        parts = self._parts
        data_key = parts.retry.until_done("making a data key", lambda: parts.keys.wal_key(parts.clock()))
        segment = builder.seal(data_key)
        key = str(segment.key)
        if not self._keep_segment(key, segment):
            self._tell_in_pieces(builder, "the spool has no room for it")
            self._flow.leave_segment()
            return
        self._put("putting a segment", key, segment.body, segment.sha256)
        self._flow.finish_segment(indexed(segment.key, segment.header, segment.header_sha256))
        parts.retry.until_done("emptying the spool", lambda: parts.spool.remove(key))

    def _keep_segment(self, key: str, segment: SealedSegment) -> bool:
        """Spool a segment; False if there is no room for it.

        There may never be: it is four times as large as a piece, and later pieces wait for it.
        """
        spool = self._parts.spool

        def keep() -> bool:
            try:
                spool.add(key, segment.body, segment.sha256)
            except SpoolFull:
                return False
            return True

        return self._parts.retry.until_done("spooling a segment", keep)

    def _tell_in_pieces(self, builder: SegmentBuilder, reason: str) -> None:
        self._parts.on_event(
            ArchiveEvent(
                ArchiveEventKind.SEGMENT_LEFT_IN_PIECES, f"segment {builder.name} stays in pieces: {reason}"
            )
        )

    def _keep(self, what: str, key: str, body: bytes, sha256: bytes) -> None:
        self._parts.retry.until_done(what, lambda: self._parts.spool.add(key, body, sha256))

    def _put(self, what: str, key: str, body: bytes, sha256: bytes) -> None:
        puts = self._parts.puts
        try:
            self._parts.retry.until_done(what, lambda: puts.put(key, body, sha256=sha256))
        except ObjectConflict as cause:
            raise two_writers(key) from cause
