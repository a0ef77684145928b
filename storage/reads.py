"""Reads: one good copy out of several regions, and one listing out of several.

Never says "missing" in doubt: only when every region has answered so.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from storage.checks import RequestRefused
from storage.listing import CopyInfo, merge_listings
from storage.regions import Region, RegionHealth, StoreEvent, StoreEventKind
from storage.store import (
    CopyDamaged,
    ObjectInfo,
    ObjectMissing,
    ObjectStore,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)

# An operator needs to know of damage, and which region; a scrub finds the rest.
DAMAGED_MAX = 1000


@dataclass(frozen=True, slots=True)
class DamagedCopy:
    """A copy that is not what it must be.  Objects are write-once, so only a person can remove it."""

    region: str
    key: str
    detail: str


@dataclass(frozen=True, slots=True)
class GoodCopy:
    """What was read, and which of the regions asked before it lack the object."""

    body: bytes
    region: str
    lacking: tuple[str, ...]


class RegionReader:
    """Reads from the regions in the order given; those that failed of late come last."""

    def __init__(
        self,
        regions: Sequence[Region],
        healths: Sequence[RegionHealth],
        on_event: Callable[[StoreEvent], None],
    ) -> None:
        self._regions = list(zip(regions, healths, strict=True))
        self._on_event = on_event
        self._lock = threading.Lock()
        self._damaged: deque[DamagedCopy] = deque(maxlen=DAMAGED_MAX)

    def read(self, key: str, ask: Callable[[ObjectStore], bytes], *, without: str | None = None) -> GoodCopy:
        """Return the first good answer to ``ask``, leaving out the region ``without``.

        Raises ObjectMissing if every region says so; CopyDamaged if only damaged copies are
        left; StoreUnavailable or StoreRefused if a region that may have a good one did not answer.
        """
        lacking: list[str] = []
        errors: dict[str, StoreError] = {}
        for region, health in sorted(self._regions, key=lambda pair: pair[1].is_cooling):
            if region.name == without:
                continue
            try:
                body = ask(region.store)
            except ObjectMissing:
                self._note(region, health, None)
                lacking.append(region.name)
            except StoreError as error:
                if isinstance(error, RequestRefused):
                    raise
                self._note(region, health, error, key)
                errors[region.name] = error
            else:
                self._note(region, health, None)
                for name in lacking:
                    self._on_event(
                        StoreEvent(StoreEventKind.COPY_MISSING, name, key, f"{region.name} has it")
                    )
                return GoodCopy(body, region.name, tuple(lacking))
        raise _no_good_copy(key, errors)

    def read_all(self, key: str, *, without: str) -> dict[str, bytes]:
        """Return every region's copy, by region.

        Raises ObjectMissing if none of them has one, and the error of a region that does not answer.
        """
        bodies: dict[str, bytes] = {}
        for region, health in self._regions:
            if region.name == without:
                continue
            try:
                bodies[region.name] = region.store.get(key)
            except ObjectMissing:
                continue
            except StoreError as error:
                self._note(region, health, error, key)
                raise
        if not bodies:
            raise ObjectMissing(f"no other region has object {key}")
        return bodies

    def list_copies(
        self,
        prefix: str,
        start_after: str | None,
        *,
        answers_min: int,
        unreached: dict[str, StoreError] | None = None,
    ) -> Iterator[CopyInfo]:
        """Merge the listings of the regions.

        With ``unreached`` all regions are asked, ``sizes_bytes`` are in their order, and those that
        fail are added to it.  Without it, regions that failed of late are left out if enough others
        are well: each page of a region that is down costs a timeout.

        Raises StoreUnavailable as soon as fewer than ``answers_min`` regions can answer to the end.
        """
        warm = [pair for pair in self._regions if not pair[1].is_cooling]
        asked = warm if unreached is None and len(warm) >= answers_min else self._regions
        errors: dict[str, StoreError] = {} if unreached is None else unreached

        def listing(region: Region, health: RegionHealth) -> Iterator[ObjectInfo]:
            try:
                yield from region.store.list_objects(prefix, start_after=start_after)
            except (StoreUnavailable, StoreRefused) as error:
                if isinstance(error, RequestRefused):
                    raise
                self._note(region, health, error)
                errors[region.name] = error
                if len(asked) - len(errors) < answers_min:
                    raise _too_few_listings(prefix, answers_min, errors) from error
            else:
                self._note(region, health, None)

        for copy in merge_listings([listing(region, health) for region, health in asked]):
            sizes = {size for size in copy.sizes_bytes if size is not None}
            if len(sizes) > 1:
                names = [region.name for region, _ in asked]
                self._note_difference(copy, names)
            yield copy

    def damaged(self) -> tuple[DamagedCopy, ...]:
        """Return the damaged copies that were met, oldest first, at most DAMAGED_MAX."""
        with self._lock:
            return tuple(self._damaged)

    def _note(
        self, region: Region, health: RegionHealth, error: StoreError | None, key: str | None = None
    ) -> None:
        if error is None:
            if health.succeeded():
                event = StoreEvent(StoreEventKind.REGION_RECOVERED, region.name, None, "it answers again")
                self._on_event(event)
        elif isinstance(error, CopyDamaged) and key is not None:
            self._add_damaged(DamagedCopy(region.name, key, str(error)), StoreEventKind.COPY_DAMAGED)
        elif health.failed(error):
            self._on_event(StoreEvent(StoreEventKind.REGION_FAILED, region.name, None, str(error)))

    def _note_difference(self, copy: CopyInfo, names: Sequence[str]) -> None:
        sizes = [
            f"{name} {size}" for name, size in zip(names, copy.sizes_bytes, strict=True) if size is not None
        ]
        first = next(name for name, size in zip(names, copy.sizes_bytes, strict=True) if size is not None)
        detail = f"sizes in bytes differ: {', '.join(sizes)}"
        self._add_damaged(DamagedCopy(first, copy.key, detail), StoreEventKind.COPY_DIFFERS)

    def _add_damaged(self, copy: DamagedCopy, kind: StoreEventKind) -> None:
        with self._lock:
            if copy in self._damaged:
                return
            self._damaged.append(copy)
        self._on_event(StoreEvent(kind, copy.region, copy.key, copy.detail))


def _no_good_copy(key: str, errors: dict[str, StoreError]) -> StoreError:
    if not errors:
        return ObjectMissing(f"no region has object {key}")
    text = "; ".join(
        [f"no good copy of object {key}", *(f"{name}: {error}" for name, error in errors.items())]
    )
    error: StoreError
    if any(isinstance(error, StoreUnavailable) for error in errors.values()):
        error = StoreUnavailable(text)
    elif any(isinstance(error, StoreRefused) for error in errors.values()):
        error = StoreRefused(text)
    else:
        error = CopyDamaged(text)
    error.__cause__ = next(iter(errors.values()))
    return error


def _too_few_listings(prefix: str, answers_min: int, errors: dict[str, StoreError]) -> StoreUnavailable:
    causes = [f"{name}: {error}" for name, error in errors.items()]
    return StoreUnavailable(
        "; ".join([f"fewer than {answers_min} regions can list {prefix!r} to the end", *causes])
    )
