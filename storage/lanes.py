"""Lanes: the way of puts into each region, and the order that ``after_all`` asks for.

Every region has a lane: a bounded queue and a few threads.  All lanes share one
lock and one condition, so that a put wakes on whichever region answers; a lane's threads
wait on their own, so that an answer does not wake all of them.  A put's number (its
*sequence*) is taken when it begins, and it stays *undecided* in a lane until that
region has the object or the repair queue has recorded that it lacks it.  So the
earliest of both tells whether everything before a given put has arrived there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from storage.checks import RequestRefused
from storage.past import CopyJudge, judged
from storage.regions import Region, RegionHealth, StoreEvent, StoreEventKind
from storage.repair import Repair, RepairQueue
from storage.store import CopyInTheWay, ObjectConflict, StoreError, StoreRefused, StoreUnavailable

# Bodies that one slow region may hold in memory; what has no room goes the way of repair.
LANE_BYTES_MAX = 64 * 1024 * 1024
LANE_PUTS_MAX = 64
# A cool-down or a back-off ends without anyone telling; nothing else needs this.
_POLL_S = 1.0
# How long a put that has its quorum waits to learn whether a copy that differs is a second writer's.  A
# region that keeps the copy to itself must not hold up every put for as long as a request may last.
JUDGE_S = 5.0


@dataclass(eq=False, slots=True)
class PendingPut:
    """One put on its way.  All fields but the first six belong to the lanes' lock.

    ``judging``: the regions whose other copy is being read, and until when the put waits for that.
    """

    sequence: int
    key: str
    body: bytes
    sha256: bytes
    after_all: bool
    judge: CopyJudge | None
    unsent: set[str]
    stored: set[str] = field(default_factory=set)
    errors: dict[str, StoreError] = field(default_factory=dict)
    judging: dict[str, float] = field(default_factory=dict)
    is_decided: bool = False
    is_recorded: bool = False


@dataclass(eq=False, slots=True)
class Lane:
    """The way into one region.  All fields but the first two belong to the lanes' lock.

    ``is_queued`` is notified, under that lock, once for each put that a thread is to take.
    """

    region: Region
    health: RegionHealth
    is_queued: threading.Condition
    queued: deque[PendingPut] = field(default_factory=deque)
    in_flight: dict[int, PendingPut] = field(default_factory=dict)
    in_flight_bytes: int = 0
    undecided: dict[int, PendingPut] = field(default_factory=dict)
    repairing: Repair | None = None
    retry_at: float = 0.0

    def has_room(self, size_bytes: int) -> bool:
        """Whether one more put fits; an empty lane takes any."""
        return not self.in_flight or (
            len(self.in_flight) < LANE_PUTS_MAX and self.in_flight_bytes + size_bytes <= LANE_BYTES_MAX
        )

    def take(self, put: PendingPut) -> None:
        """Queue ``put`` for this region."""
        put.unsent.discard(self.region.name)
        self.queued.append(put)
        self.in_flight[put.sequence] = put
        self.in_flight_bytes += len(put.body)
        self.is_queued.notify()

    def leave(self, put: PendingPut) -> None:
        """Forget ``put``: the region has answered, or it will not be asked."""
        if self.in_flight.pop(put.sequence, None) is not None:
            self.in_flight_bytes -= len(put.body)
        if put.is_decided or self.region.name in put.stored:
            self.undecided.pop(put.sequence, None)

    def withdraw(self, is_wanted: Callable[[PendingPut], bool]) -> None:
        """Take out of the queue what is not ``is_wanted``; what is being sent goes on."""
        for put in [put for put in self.queued if not is_wanted(put)]:
            self.queued.remove(put)
            self.leave(put)


class Lanes:
    """The lanes of all regions.  ``changed`` guards their state and is notified of every change.

    ``quorum`` may be changed under that lock, also for puts that wait.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        healths: Sequence[RegionHealth],
        queue: RepairQueue,
        *,
        quorum: int,
        put_timeout_s: float,
        workers_per_region: int,
        clock: Callable[[], float],
        on_event: Callable[[StoreEvent], None],
    ) -> None:
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        self.lanes = [
            Lane(region, health, threading.Condition(lock))
            for region, health in zip(regions, healths, strict=True)
        ]
        self.is_closing = False
        self._queue = queue
        self.quorum = quorum
        self._put_timeout_s = put_timeout_s
        self._clock = clock
        self._on_event = on_event
        self._threads = [
            threading.Thread(target=self._work, args=(lane,), name=f"put-{lane.region.name}-{n}", daemon=True)
            for lane in self.lanes
            for n in range(workers_per_region)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, key: str, body: bytes, sha256: bytes, *, after_all: bool, judge: CopyJudge | None) -> None:
        """Return once a quorum of regions has the object and the others' lack of it is on record.

        Raises ObjectConflict, which without a ``judge`` is any other copy; CopyInTheWay, StoreRefused if
        that is so in too many regions, else StoreUnavailable.
        """
        with self.changed:
            if self.is_closing:
                raise StoreUnavailable("the store is closed")
            names = {lane.region.name for lane in self.lanes}
            put = PendingPut(self._queue.next_sequence(), key, body, sha256, after_all, judge, names)
            for lane in self.lanes:
                lane.undecided[put.sequence] = put
            try:
                self._await_quorum(put)
            except BaseException:
                self._decide(put, is_recorded=False)
                raise
            lacking = [lane.region.name for lane in self.lanes if lane.region.name not in put.stored]
        try:
            # Not under the lock: this waits for the disk, and other puts need not.
            if lacking:
                self._queue.record(
                    [Repair(name, put.sequence, key, len(body), sha256, after_all) for name in lacking]
                )
        except BaseException:
            with self.changed:
                self._decide(put, is_recorded=False)
            raise
        with self.changed:
            self._decide(put, is_recorded=True)
            arrived = [name for name in lacking if name in put.stored]
        for name in arrived:
            self._queue.done(name, key)
        self.wake()

    def is_complete_before(self, lane: Lane, sequence: int) -> bool:
        """Whether the region has every object put before ``sequence``.  Call it under the lock."""
        if self._queue.must_reconcile or any(number < sequence for number in lane.undecided):
            return False
        oldest = self._queue.oldest_sequence(lane.region.name)
        return oldest is None or oldest >= sequence

    def is_busy(self, key: str) -> bool:
        """Whether a put or a repair of ``key`` is being sent somewhere.  Call it under the lock."""
        return any(
            (lane.repairing is not None and lane.repairing.key == key)
            or any(put.key == key for put in lane.in_flight.values())
            for lane in self.lanes
        )

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Return True once ``condition``, asked under the lock, holds; False after ``timeout_s``."""
        deadline = self._clock() + timeout_s
        with self.changed:
            while not condition():
                remaining_s = deadline - self._clock()
                if remaining_s <= 0:
                    return False
                self.changed.wait(min(remaining_s, _POLL_S))
        return True

    def wake(self) -> None:
        """Let everyone who waits look again."""
        with self.changed:
            self.changed.notify_all()

    def close(self, deadline_s: float) -> None:
        """Refuse new puts and end the threads; those that a region holds longer are left behind."""
        deadline = self._clock() + deadline_s
        with self.changed:
            self.is_closing = True
            for lane in self.lanes:
                lane.withdraw(lambda put: not put.is_recorded)
                lane.is_queued.notify_all()
            self.changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))

    def _await_quorum(self, put: PendingPut) -> None:
        deadline = self._clock() + self._put_timeout_s
        while True:
            conflict = next((e for e in put.errors.values() if isinstance(e, ObjectConflict)), None)
            if conflict is not None:
                raise ObjectConflict(
                    _causes(f"object {put.key} already holds other bytes", put)
                ) from conflict
            now_s = self._clock()
            if len(put.stored) >= self.quorum and all(until_s <= now_s for until_s in put.judging.values()):
                return
            if len(self.lanes) - len(put.errors) < self.quorum:
                raise _too_few(put, len(self.lanes), self.quorum)
            self._hand_out(put)
            remaining_s = deadline - self._clock()
            if remaining_s <= 0:
                raise StoreUnavailable(self._late(put))
            if self.is_closing:
                raise StoreUnavailable(f"the store was closed before object {put.key} was in enough regions")
            self.changed.wait(min(remaining_s, _POLL_S))

    def _hand_out(self, put: PendingPut) -> None:
        """Queue the put wherever it may go now.  A region that just failed is spared if it is not needed."""
        answered = len(put.stored) + len(put.errors)
        sent = len(self.lanes) - answered - len(put.unsent)
        wanted = self.quorum - len(put.stored) - sent
        for lane in sorted(self.lanes, key=lambda lane: lane.health.is_cooling):
            if lane.region.name not in put.unsent or not lane.has_room(len(put.body)):
                continue
            if put.after_all and not self.is_complete_before(lane, put.sequence):
                continue
            if lane.health.is_cooling and wanted <= 0:
                continue
            lane.take(put)
            wanted -= 1

    def _decide(self, put: PendingPut, *, is_recorded: bool) -> None:
        put.is_decided = True
        put.is_recorded = is_recorded
        for lane in self.lanes:
            if not is_recorded:
                lane.withdraw(lambda queued: queued is not put)
            if put.sequence not in lane.in_flight:
                lane.leave(put)
        self.changed.notify_all()

    def _work(self, lane: Lane) -> None:
        while True:
            with self.changed:
                while not lane.queued and not self.is_closing:
                    lane.is_queued.wait()
                if not lane.queued:
                    return
                put = lane.queued.popleft()
            started = self._clock()
            error = self._judged(lane, put, _put_into(lane.region, put))
            self.note_answer(lane, put.key, error, self._clock() - started)
            self._settle(lane, put, error)
            # Each thread would hold a body of megabytes until it has the next one to send.
            del put, error

    def _judged(self, lane: Lane, put: PendingPut, error: StoreError | None) -> StoreError | None:
        """Return what a region's answer to a put comes to, where its other copy may be judged."""
        if put.judge is None or not isinstance(error, ObjectConflict):
            return error
        with self.changed:
            put.judging[lane.region.name] = self._clock() + JUDGE_S
        try:
            return judged(lane.region.store, put.key, put.judge, error)
        except Exception as failure:  # noqa: BLE001 - top of a thread: a put must not wait for a dead one
            return _unknown(failure)

    def _settle(self, lane: Lane, put: PendingPut, error: StoreError | None) -> None:
        name = lane.region.name
        with self.changed:
            put.judging.pop(name, None)
            if error is None:
                put.stored.add(name)
            else:
                put.errors[name] = error
            lane.leave(put)
            if isinstance(error, StoreUnavailable):
                # The repair queue has these; their bodies need not wait here for the region.
                lane.withdraw(lambda queued: not queued.is_recorded)
            is_recorded = put.is_recorded
            self.changed.notify_all()
        if error is None and is_recorded:
            self._queue.done(name, put.key)
            self.wake()

    def note_answer(self, lane: Lane, key: str, error: StoreError | None, elapsed_s: float) -> None:
        """Keep the region's health, and tell of a change."""
        name = lane.region.name
        if error is None:
            if lane.health.succeeded(elapsed_s):
                self._on_event(StoreEvent(StoreEventKind.REGION_RECOVERED, name, None, "it stores again"))
        elif isinstance(error, ObjectConflict):
            self._on_event(StoreEvent(StoreEventKind.COPY_CONFLICTS, name, key, str(error)))
        elif not isinstance(error, RequestRefused):
            if isinstance(error, CopyInTheWay):
                self._on_event(StoreEvent(StoreEventKind.COPY_IN_THE_WAY, name, key, str(error)))
            if lane.health.failed(error):
                self._on_event(StoreEvent(StoreEventKind.REGION_FAILED, name, None, str(error)))

    def _late(self, put: PendingPut) -> str:
        text = (
            f"object {put.key} is in {len(put.stored)} of the {self.quorum} regions it needs "
            f"after {self._put_timeout_s:g} s"
        )
        if put.after_all and self._queue.must_reconcile:
            return f"{text}; it waits until the regions are reconciled, since the repair queue was damaged"
        if put.after_all and put.unsent:
            return _causes(f"{text}; it waits for earlier objects in {', '.join(sorted(put.unsent))}", put)
        return _causes(text, put)


def _put_into(region: Region, put: PendingPut) -> StoreError | None:
    try:
        region.store.put(put.key, put.body, sha256=put.sha256)
    except StoreError as error:
        return error
    except Exception as error:  # noqa: BLE001 - top of a thread: a put must not wait for a dead one
        return _unknown(error)
    return None


def _unknown(failure: Exception) -> StoreUnavailable:
    unknown = StoreUnavailable(f"{type(failure).__name__}: {failure}")
    unknown.__cause__ = failure
    return unknown


def _too_few(put: PendingPut, regions: int, quorum: int) -> StoreError:
    refused = [error for error in put.errors.values() if isinstance(error, StoreRefused)]
    text = _causes(f"object {put.key} cannot reach {quorum} of {regions} regions", put)
    wrong = next((error for error in refused if isinstance(error, RequestRefused)), None)
    occupied = sum(isinstance(error, CopyInTheWay) for error in put.errors.values())
    error: StoreError
    if wrong is not None:
        error = RequestRefused(str(wrong))
    elif regions - occupied < quorum:
        error = CopyInTheWay(text)
    elif regions - occupied - len(refused) < quorum:
        error = StoreRefused(text)
    else:
        error = StoreUnavailable(text)
    error.__cause__ = next(iter(put.errors.values()))
    return error


def _causes(text: str, put: PendingPut) -> str:
    return "; ".join([text, *(f"{name}: {error}" for name, error in sorted(put.errors.items()))])
