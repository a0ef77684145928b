"""Repairer: sends each region what it lacks, in order, from another region's copy.

One thread per region.  The bodies come from the regions themselves: what is in
the queue was acknowledged, so a quorum had it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

from storage.lanes import Lane, Lanes
from storage.reads import RegionReader
from storage.regions import Region, StoreEvent, StoreEventKind
from storage.repair import Repair, RepairQueue
from storage.store import (
    CopyDamaged,
    ObjectConflict,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
)

# The first pause is about one put; the last one bounds how late a region's return is noticed.
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class _Outcome:
    is_done: bool
    stuck_reason: str | None = None
    error: StoreError | None = None


class Repairer:
    """The threads that empty the repair queue."""

    def __init__(
        self,
        lanes: Lanes,
        reader: RegionReader,
        queue: RepairQueue,
        *,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        on_event: Callable[[StoreEvent], None],
    ) -> None:
        self._lanes = lanes
        self._reader = reader
        self._queue = queue
        self._clock = clock
        self._jitter = jitter
        self._on_event = on_event
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"repair-{lane.region.name}", daemon=True)
            for lane in lanes.lanes
        ]
        for thread in self._threads:
            thread.start()

    def close(self, deadline_s: float) -> None:
        """Wait for the threads, which end after the object in hand; the lanes must be closing."""
        deadline = self._clock() + deadline_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))

    def _run(self, lane: Lane) -> None:
        failures = 0
        while (repair := self._next(lane)) is not None:
            try:
                outcome = self._repair(lane, repair)
                if outcome.is_done:
                    self._queue.done(repair.region, repair.key)
                elif outcome.stuck_reason is not None:
                    self._queue.set_stuck(repair.region, repair.key, outcome.stuck_reason)
            except StoreError as error:
                # The queue's own disk: nothing is lost, the entry is still there.
                outcome = _Outcome(is_done=False, error=error)
            failures = 0 if outcome.error is None else failures + 1
            with self._lanes.changed:
                lane.repairing = None
                if failures:
                    pause_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 10))
                    lane.retry_at = self._clock() + pause_s * (0.5 + 0.5 * self._jitter())
                self._lanes.changed.notify_all()
            # An error's traceback holds the body that could not be put.
            del outcome

    def _next(self, lane: Lane) -> Repair | None:
        """Wait for the next entry whose turn it is; None when the store closes."""
        with self._lanes.changed:
            while not self._lanes.is_closing:
                if self._clock() >= lane.retry_at:
                    lane.repairing = self._find(lane)
                    if lane.repairing is not None:
                        return lane.repairing
                self._lanes.changed.wait(_POLL_S)
        return None

    def _find(self, lane: Lane) -> Repair | None:
        # Nearly always the region is only a moment behind, and the file need not be asked.
        on_their_way = sum(put.is_recorded for put in lane.in_flight.values())
        if self._queue.pending(lane.region.name) <= on_their_way:
            return None
        try:
            # What is still on its direct way is left to it.
            repair = self._first(lane, with_late=True)
            if repair is None or not repair.after_all:
                return repair
            if self._lanes.is_complete_before(lane, repair.sequence):
                return repair
            # It may wait until a person has removed what is in the way of an earlier one; others need not.
            return self._first(lane, with_late=False)
        except StoreError:
            lane.retry_at = self._clock() + BACKOFF_MAX_S
            return None

    def _first(self, lane: Lane, *, with_late: bool) -> Repair | None:
        waiting = self._queue.first(lane.region.name, len(lane.in_flight) + 1, with_late=with_late)
        return next((entry for entry in waiting if entry.sequence not in lane.in_flight), None)

    def _repair(self, lane: Lane, repair: Repair) -> _Outcome:
        try:
            body = self._fetch(lane.region, repair)
        except ObjectMissing:
            # Every other region says so: it was deleted since.
            self._tell(StoreEventKind.REPAIR_DROPPED, repair, "no region has the object any more")
            return _Outcome(is_done=True)
        except CopyDamaged as error:
            self._tell(StoreEventKind.COPY_DAMAGED, repair, f"no good copy to repair from: {error}")
            return _Outcome(is_done=False, stuck_reason=str(error))
        except StoreError as error:
            return _Outcome(is_done=False, error=error)
        started = self._clock()
        try:
            lane.region.store.put(repair.key, body, sha256=repair.sha256)
        except StoreError as error:
            self._lanes.note_answer(lane, repair.key, error, 0.0)
            if isinstance(error, ObjectConflict):
                return _Outcome(is_done=False, stuck_reason=str(error))
            return _Outcome(is_done=False, error=error)
        except Exception as error:  # noqa: BLE001 - top of a thread: the region's other entries must go on
            unknown = StoreUnavailable(f"{type(error).__name__}: {error}")
            self._lanes.note_answer(lane, repair.key, unknown, 0.0)
            return _Outcome(is_done=False, error=unknown)
        self._lanes.note_answer(lane, repair.key, None, self._clock() - started)
        self._tell(StoreEventKind.COPY_REPAIRED, repair, f"{len(body)} bytes")
        return _Outcome(is_done=True)

    def _fetch(self, region: Region, repair: Repair) -> bytes:
        """Read the body from another region.  Raises CopyDamaged if none has the bytes it must be."""

        def check(body: bytes) -> None:
            if len(body) != repair.size_bytes or (
                repair.sha256 is not None and hashlib.sha256(body).digest() != repair.sha256
            ):
                raise CopyDamaged(f"copy of {repair.key} is not what was put: {len(body)} bytes")

        if repair.sha256 is not None:
            return self._reader.read(
                repair.key, lambda store: store.get(repair.key, check=check), without=region.name
            ).body
        # Known from a listing only, so nothing says which of two copies is right: all must agree.
        bodies = self._reader.read_all(repair.key, without=region.name)
        if len(set(bodies.values())) != 1:
            raise CopyDamaged(f"the copies of {repair.key} differ: {', '.join(sorted(bodies))}")
        return next(iter(bodies.values()))

    def _tell(self, kind: StoreEventKind, repair: Repair, detail: str) -> None:
        self._on_event(StoreEvent(kind, repair.region, repair.key, detail))
