"""Reads: one good copy out of several regions, and one listing out of several.

Never says "missing" in doubt: only when every region has answered so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from storage.checks import RequestRefused
from storage.copy_faults import CopyFault, CopyFaults, FaultKind
from storage.listing import CopyInfo, merge_listings
from storage.regions import Region, RegionHealth, StoreEvent, StoreEventKind
from storage.search import Search, SearchTerms
from storage.store import (
    CopyDamaged,
    ObjectInfo,
    ObjectMissing,
    ObjectStore,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)


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
        faults: CopyFaults,
    ) -> None:
        self._regions = list(zip(regions, healths, strict=True))
        self._on_event = on_event
        self._faults = faults

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
                self._note(region, health, error)
                errors[region.name] = error
            else:
                self._note(region, health, None)
                self._note_faults(key, region.name, lacking, errors)
                return GoodCopy(body, region.name, tuple(lacking))
        self._note_faults(key, None, (), errors)
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
                self._note(region, health, error)
                self._note_faults(key, None, (), {region.name: error})
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
        if unreached is None:
            return self._merged(self._warm(answers_min), prefix, start_after, {}, answers_min)
        return self._merged(self._regions, prefix, start_after, unreached, answers_min)

    def search(self, prefix: str, start_after: str | None, terms: SearchTerms, *, answers_min: int) -> Search:
        """Begin a search; the listing itself needs ``answers_min`` regions, as ``list_copies`` does."""
        asked, errors = self._warm(answers_min), dict[str, StoreError]()
        copies = self._merged(asked, prefix, start_after, errors, answers_min)
        return Search([region.name for region, _ in asked], copies, errors, terms)

    def _warm(self, answers_min: int) -> Sequence[tuple[Region, RegionHealth]]:
        warm = [pair for pair in self._regions if not pair[1].is_cooling]
        return warm if len(warm) >= answers_min else self._regions

    def _merged(
        self,
        asked: Sequence[tuple[Region, RegionHealth]],
        prefix: str,
        start_after: str | None,
        errors: dict[str, StoreError],
        answers_min: int,
    ) -> Iterator[CopyInfo]:
        """Merge the listings of the regions ``asked``; one that is in ``errors``, or comes into it, ends."""

        def listing(region: Region, health: RegionHealth) -> Iterator[ObjectInfo]:
            try:
                for info in region.store.list_objects(prefix, start_after=start_after):
                    yield info
                    if region.name in errors:
                        return
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

    def _note(self, region: Region, health: RegionHealth, error: StoreError | None) -> None:
        if error is None:
            if health.succeeded():
                event = StoreEvent(StoreEventKind.REGION_RECOVERED, region.name, None, "it answers again")
                self._on_event(event)
        elif not isinstance(error, CopyDamaged) and health.failed(error):
            self._on_event(StoreEvent(StoreEventKind.REGION_FAILED, region.name, None, str(error)))

    def _note_faults(
        self, key: str, read_from: str | None, lacking: Sequence[str], errors: dict[str, StoreError]
    ) -> None:
        """Note whose copy is bad, and who should have given the object that ``read_from`` gave."""
        for name in lacking:
            fault = CopyFault(name, key, FaultKind.MISSING, f"{read_from} has it", read_from)
            self._add_fault(fault, StoreEventKind.COPY_MISSING)
        for name, error in errors.items():
            if isinstance(error, CopyDamaged):
                fault = CopyFault(name, key, FaultKind.DAMAGED, str(error), read_from)
                self._add_fault(fault, StoreEventKind.COPY_DAMAGED)
            elif read_from is not None:
                self._faults.add(CopyFault(name, key, FaultKind.UNREACHABLE, str(error), read_from))

    def _note_difference(self, copy: CopyInfo, names: Sequence[str]) -> None:
        """Note the copies whose size most others do not have; all of them, if no size has a majority."""
        found = [(name, size) for name, size in zip(names, copy.sizes_bytes, strict=True) if size is not None]
        (usual, votes), *_ = Counter(size for _, size in found).most_common(1)
        detail = f"sizes in bytes differ: {', '.join(f'{name} {size}' for name, size in found)}"
        for name, size in found:
            if size != usual or votes * 2 <= len(found):
                fault = CopyFault(name, copy.key, FaultKind.DIFFERS, detail)
                self._add_fault(fault, StoreEventKind.COPY_DIFFERS)

    def _add_fault(self, fault: CopyFault, kind: StoreEventKind) -> None:
        if self._faults.add(fault):
            self._on_event(StoreEvent(kind, fault.region, fault.key, fault.detail))


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
