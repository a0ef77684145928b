"""ReplicatedStore: one ``ObjectStore`` over N regions, of which W acknowledge a put.

    put     to all regions at once; returns when W have it and the repair queue
            has recorded which others lack it
    get     from the first region, in the order given, that has a good copy
    list    the union of at least N - W + 1 regions, which misses nothing acknowledged
    delete  from all regions

Lanes carry the puts, the repairer what is left over; see those modules.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from storage.checks import check_body, check_key, check_prefix, check_range, prove_digest
from storage.copy_faults import BAD_COPIES, CopyFault, CopyFaults, FaultKind, FaultReport
from storage.lanes import Lanes
from storage.locks import ObjectLock, lock_of
from storage.past import CopyJudge
from storage.reads import GoodCopy, RegionReader
from storage.reconcile import Reconciliation, queue_missing, with_repairs
from storage.regions import (
    BAD_COPIES_NAMED_MAX,
    COOLDOWN_S,
    Region,
    RegionHealth,
    RegionStatus,
    StoreEvent,
    StoreEventKind,
)
from storage.repair import Repair, RepairCounts, RepairQueue
from storage.repairer import Repairer
from storage.search import Search, SearchTerms
from storage.store import (
    CopyCheck,
    ObjectInfo,
    ObjectStore,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)

# One put of 64 MiB at 20 Mbit/s; a region that is slower is served by repair.
PUT_TIMEOUT_S = 30.0
WORKERS_PER_REGION = 4
_MET_BY_PUTS = {
    StoreEventKind.COPY_CONFLICTS: FaultKind.CONFLICTS,
    StoreEventKind.COPY_IN_THE_WAY: FaultKind.DAMAGED,
}


class ReplicatedStore:
    """An ``ObjectStore`` over ``regions``, the nearest first.  Close it; its threads live until then.

    Without a ``queue`` it is read-only: put and delete are refused, and no thread is started.
    ``read_only_regions_minimum`` lowers the number of regions that a listing needs, for a restore
    from what is left: such a listing may lack what was acknowledged.  ``repair_reads`` queues the
    copies that a read found missing, but for keys with ``after_all_prefixes``: those only ever follow
    everything before them.  ``on_event`` is called from any thread, and must not call the store.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        *,
        quorum: int,
        queue: RepairQueue | None = None,
        put_timeout_s: float = PUT_TIMEOUT_S,
        workers_per_region: int = WORKERS_PER_REGION,
        on_event: Callable[[StoreEvent], None] | None = None,
        repair_reads: bool = True,
        after_all_prefixes: Sequence[str] = (),
        read_only_regions_minimum: int | None = None,
        cooldown_s: float = COOLDOWN_S,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        names = [region.name for region in regions]
        if not 1 <= quorum <= len(names) or len(set(names)) != len(names):
            raise ValueError(f"a quorum of {quorum} of the regions {names} is impossible")
        self._regions = tuple(regions)
        self._quorum = quorum
        self._answers_min = read_only_regions_minimum or len(names) - quorum + 1
        self._is_part = read_only_regions_minimum is not None
        self._after_all_prefixes = tuple(after_all_prefixes)
        self._repair_reads = repair_reads
        self._put_timeout_s = put_timeout_s
        self._queue = queue
        self._healths = [RegionHealth(clock, cooldown_s) for _ in regions]
        self._tell = on_event or (lambda _: None)
        self._faults = CopyFaults()
        self._reader = RegionReader(regions, self._healths, self._tell, self._faults)
        self._lanes: Lanes | None = None
        self._repairer: Repairer | None = None
        if queue is not None:
            self._lanes = Lanes(
                regions,
                self._healths,
                queue,
                quorum=quorum,
                put_timeout_s=put_timeout_s,
                workers_per_region=workers_per_region,
                clock=clock,
                on_event=self._note_event,
            )
            self._repairer = Repairer(
                self._lanes, self._reader, queue, clock=clock, jitter=jitter, on_event=self._note_event
            )

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions, the nearest first."""
        return self._regions

    @property
    def quorum(self) -> int:
        """How many regions have an object when put returns."""
        return self._quorum

    def require(self, quorum: int) -> None:
        """Let puts return when ``quorum`` regions have the object, also those that wait now.

        Lowered, the store promises less, and a listing needs more regions to be sure; the other regions
        get their copies by repair as always.  Raises ValueError.
        """
        if not 1 <= quorum <= len(self._regions):
            raise ValueError(f"a quorum of {quorum} of {len(self._regions)} regions is impossible")
        lanes, _ = self._writable()
        with lanes.changed:
            self._quorum = lanes.quorum = quorum
            self._answers_min = len(self._regions) - quorum + 1
            lanes.changed.notify_all()

    def mark(self) -> int:
        """See ``Arriving.mark``."""
        return self._writable()[1].next_sequence()

    def has_arrived(self, mark: int) -> bool:
        """See ``Arriving.has_arrived``."""
        lanes, _ = self._writable()
        with lanes.changed:
            return sum(lanes.is_complete_before(lane, mark) for lane in lanes.lanes) >= lanes.quorum

    def view(self, region_name: str) -> ObjectStore:
        """Return one region's store alone.  Raises KeyError."""
        for region in self._regions:
            if region.name == region_name:
                return region.store
        raise KeyError(region_name)

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        """See ``ObjectStore.put``.  Returns when a quorum of regions has the object.

        Raises StoreUnavailable, naming each region's cause, when that takes longer than
        ``put_timeout_s``: some regions may have the object; the same call may be repeated.
        """
        self._put(key, body, sha256, None, after_all=after_all)

    def put_past(
        self, key: str, body: bytes, judge: CopyJudge, *, sha256: bytes | None = None, after_all: bool = False
    ) -> None:
        """See ``PutsPast.put_past``.  Else as ``put``: a region that is passed lacks the object, on record.

        It counts as failed until it answers well again, and its copy among those that are bad.
        """
        self._put(key, body, sha256, judge, after_all=after_all)

    def _put(
        self, key: str, body: bytes, sha256: bytes | None, judge: CopyJudge | None, *, after_all: bool
    ) -> None:
        check_key(key)
        check_body(key, body, sha256)
        lanes, _ = self._writable()
        # Proved once, here; no region hashes the body again.
        lanes.send(key, body, prove_digest(key, body, sha256), after_all=after_all, judge=judge)

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        """See ``ObjectStore.get``.  Raises ObjectMissing only if every region says so."""
        check_key(key)
        copy = self._reader.read(key, lambda store: store.get(key, check=check))
        self._repair_lacking(key, copy)
        return copy.body

    def get_range(self, key: str, start: int, length: int, *, check: CopyCheck | None = None) -> bytes:
        """See ``ObjectStore.get_range``.  Raises ObjectMissing only if every region says so."""
        check_key(key)
        check_range(key, start, length)
        return self._reader.read(key, lambda store: store.get_range(key, start, length, check=check)).body

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """See ``ObjectStore.list_objects``.  What any region lists is listed.

        Raises StoreUnavailable, perhaps in the middle, if fewer than N - W + 1 regions answer to the end.
        """
        check_prefix(prefix)
        copies = self._reader.list_copies(prefix, start_after, answers_min=self._answers_min)
        return (ObjectInfo(copy.key, copy.size_bytes) for copy in copies)

    def search(
        self, prefix: str, *, bad_max: int, is_lenient: bool = False, start_after: str | None = None
    ) -> Search:
        """See ``Searches.search``.  A region is left out while N - W + 1 others answer.

        Where only a part of the regions is asked, the one may be all that has an object: none is left out.
        """
        check_prefix(prefix)
        regions_min = len(self._regions) if self._is_part else self._answers_min
        terms = SearchTerms(len(self._regions), regions_min, bad_max, is_lenient)
        return self._reader.search(prefix, start_after, terms, answers_min=self._answers_min)

    def list_held(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield what a quorum of regions holds with one size, in key order: as if it had been put just now.

        As with a put, the repair queue has recorded what the other regions lack, also those that do not
        answer.  Raises StoreUnavailable if fewer than a quorum can be listed to the end.
        """
        check_prefix(prefix)
        unreached: dict[str, StoreError] = {}
        copies = self._reader.list_copies(prefix, None, answers_min=self._quorum, unreached=unreached)
        names = [region.name for region in self._regions]
        return with_repairs(copies, names, self._quorum, self._queue_repairs)

    def delete(self, key: str) -> None:
        """See ``ObjectStore.delete``.  Raises if any region failed; the others have deleted it then."""
        check_key(key)
        lanes, queue = self._writable()
        # First, so that no repair brings it back.
        queue.forget(key)
        if not lanes.wait_until(lambda: not lanes.is_busy(key), self._put_timeout_s):
            raise StoreUnavailable(f"object {key} is still being put")
        errors: dict[str, StoreError] = {}
        for region in self._regions:
            try:
                region.store.delete(key)
            except StoreError as error:
                errors[region.name] = error
            else:
                self._faults.mended(region.name, key)
        if errors:
            causes = "; ".join(f"{name}: {error}" for name, error in errors.items())
            first = next(iter(errors.values()))
            if all(isinstance(error, StoreRefused) for error in errors.values()):
                raise StoreRefused(f"object {key} is not deleted everywhere; {causes}") from first
            raise StoreUnavailable(f"object {key} is not deleted everywhere; {causes}") from first

    def lock_of(self, key: str) -> ObjectLock | None:
        """Return the lock of the copy that is locked longest; None if no region tells of one."""
        found = []
        for region in self._regions:
            with suppress(StoreError):
                found.append(lock_of(region.store, key))
        return max((one for one in found if one is not None), key=lambda one: one.until, default=None)

    def status(self) -> tuple[RegionStatus, ...]:
        """Return how each region does."""
        faults = self._faults.report()
        return tuple(
            self._region_status(region, health, faults)
            for region, health in zip(self._regions, self._healths, strict=True)
        )

    def damaged(self) -> tuple[CopyFault, ...]:
        """Return the copies that are there and are not what they must be, a bounded number.

        What was met since the start and was not made anew since.
        """
        return tuple(fault for fault in self._faults.report().faults if fault.kind in BAD_COPIES)

    def faults(self) -> FaultReport:
        """Return which copies reads fell back past, listings saw to differ and puts met as other bytes."""
        return self._faults.report()

    def reconcile(
        self, prefix: str = "", *, is_gone: Callable[[str], bool] = lambda _key: False
    ) -> Reconciliation:
        """Compare the regions' listings below ``prefix``, and queue the copies that are missing.

        For when the repair queue was lost, or a region was replaced.  Objects with one of the
        ``after_all_prefixes`` come last, in descending key order (newer heads sort first).  What ``is_gone``
        names is missing nowhere: some regions delete it later than others.  May be repeated.
        """
        check_prefix(prefix)
        _, queue = self._writable()
        unreached: dict[str, StoreError] = {}
        copies = self._reader.list_copies(prefix, None, answers_min=1, unreached=unreached)
        objects, missing = queue_missing(
            copies,
            [region.name for region in self._regions],
            unreached,
            self._queue_repairs,
            is_gone=is_gone,
            is_late=lambda key: key.startswith(self._after_all_prefixes),
        )
        if not unreached and prefix == "":
            queue.set_must_reconcile(False)
        self.retry_now()
        return Reconciliation(objects, missing, tuple(unreached))

    def retry_now(self) -> None:
        """End all cool-downs and back-offs, and try what is stuck again: a person has mended something."""
        for health in self._healths:
            health.forgive()
        if self._lanes is not None and self._queue is not None:
            self._queue.retry_stuck()
            with self._lanes.changed:
                for lane in self._lanes.lanes:
                    lane.retry_at = float("-inf")
                self._lanes.changed.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Return True once every region has everything; False after ``timeout_s``."""
        if self._lanes is None or self._queue is None:
            return True
        lanes, queue = self._lanes, self._queue
        return lanes.wait_until(
            lambda: (
                not any(
                    lane.undecided
                    or lane.repairing is not None
                    or queue.oldest_sequence(lane.region.name) is not None
                    for lane in lanes.lanes
                )
            ),
            timeout_s,
        )

    def close(self, deadline_s: float = 10.0) -> None:
        """Finish what is being sent, for at most ``deadline_s``, and end the threads.

        What a region lacks then stays in the repair queue, which the caller closes after the store.
        """
        if self._lanes is not None:
            self._lanes.close(deadline_s)
        if self._repairer is not None:
            self._repairer.close(deadline_s)

    def _note_event(self, event: StoreEvent) -> None:
        """Pass on what lanes and repairer tell; a copy that a put met is told of once."""
        if event.kind is StoreEventKind.COPY_REPAIRED and event.key is not None:
            self._faults.mended(event.region, event.key)
        fault_kind = _MET_BY_PUTS.get(event.kind)
        if fault_kind is not None and event.key is not None:
            fault = CopyFault(event.region, event.key, fault_kind, event.detail)
            if not self._faults.add(fault):
                return
        self._tell(event)

    def _writable(self) -> tuple[Lanes, RepairQueue]:
        if self._lanes is None or self._queue is None:
            raise StoreRefused("the store was opened for reading only")
        return self._lanes, self._queue

    def _repair_lacking(self, key: str, copy: GoodCopy) -> None:
        if self._queue is None or not self._repair_reads or not copy.lacking:
            return
        if key.startswith(self._after_all_prefixes):
            return
        digest = hashlib.sha256(copy.body).digest()
        try:
            self._queue_repairs(
                [Repair(name, 0, key, len(copy.body), digest, after_all=False) for name in copy.lacking]
            )
        except StoreError:
            # The read succeeded; the next one, or a reconciliation, finds the same again.
            return

    def _queue_repairs(self, repairs: Sequence[Repair]) -> None:
        lanes, queue = self._writable()
        if repairs:
            queue.record([replace(repair, sequence=queue.next_sequence()) for repair in repairs])
            lanes.wake()

    def _region_status(self, region: Region, health: RegionHealth, faults: FaultReport) -> RegionStatus:
        counts = RepairCounts(0, 0, None) if self._queue is None else self._queue.counts(region.name)
        return RegionStatus(
            name=region.name,
            is_healthy=health.is_healthy,
            pending_repairs=counts.pending,
            stuck_repairs=counts.stuck,
            oldest_pending_at=counts.oldest_at,
            last_error=health.last_error,
            put_latency_s=health.put_latency_s,
            bad_copies=faults.count(region.name, *BAD_COPIES),
            bad_copies_named=faults.named(region.name, *BAD_COPIES)[:BAD_COPIES_NAMED_MAX],
        )
