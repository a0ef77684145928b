"""Search: the names of several regions one after the other, for whoever looks for the first that holds.

A region may list what nobody put: junk under foreseeable names, or names that lead to nothing.  So what is
found bad counts against the regions that list it, and one that has listed too much of it is left out, as if
it did not answer.  What a quorum of regions has is found all the same: the regions that are left are as many
as a listing needs.  Reading is bounded by that too, however much one region lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from storage.checks import RequestRefused
from storage.listing import CopyInfo
from storage.store import (
    CopyDamaged,
    ObjectInfo,
    ObjectMissing,
    ObjectStore,
    StoreError,
    StoreUnavailable,
)


class AllBad(StoreError):
    """So many of the objects that were looked at are bad that too few regions are left to believe."""


@dataclass(frozen=True, slots=True)
class SearchTerms:
    """When a region is left out: after ``bad_max`` bad objects, if then ``regions_min`` are left."""

    regions: int
    regions_min: int
    bad_max: int
    # Go on with all that are listed, where too few regions would be left.
    is_lenient: bool = False


class Search:
    """One search.  Iterate it once; say of each object that cannot be used so, before the next one.

    ``copies`` have sizes in the order of ``names``.  ``errors`` are the regions that do not count any more,
    shared with whoever makes ``copies``: it ends the listing of one that is added.
    """

    def __init__(
        self,
        names: Sequence[str],
        copies: Iterator[CopyInfo],
        errors: dict[str, StoreError],
        terms: SearchTerms,
    ) -> None:
        self._names: Final = tuple(names)
        self._copies: Final = copies
        self._errors: Final = errors
        self._terms: Final = terms
        self._bad = dict.fromkeys(self._names, 0)
        self._junk: set[str] = set()
        self._holders: tuple[str, ...] = ()

    @property
    def holders(self) -> tuple[str, ...]:
        """The regions that list what was yielded last, without those that were left out."""
        return self._holders

    @property
    def left_out(self) -> tuple[str, ...]:
        """The regions that were left out for what they listed."""
        return tuple(name for name in self._names if name in self._junk)

    def counts(self, holders: Sequence[str]) -> bool:
        """Tell whether any of these regions was not left out."""
        return any(name not in self._errors for name in holders)

    def __iter__(self) -> Iterator[ObjectInfo]:
        """Yield what any region lists that still counts, in key order.  Raises StoreUnavailable."""
        for copy in self._copies:
            self._holders = tuple(
                name
                for name, size in zip(self._names, copy.sizes_bytes, strict=True)
                if size is not None and name not in self._errors
            )
            if self._holders:
                yield ObjectInfo(copy.key, copy.size_bytes)

    def refuse(self, error: StoreError, holders: Sequence[str] | None = None) -> None:
        """Say that what was yielded last cannot be used: damaged, missing, or not to be had.

        ``holders``: it is not the last one, but one that these regions list.  A region that lists what it
        does not give is left out at once.

        Raises ``error`` then if too few regions are left, AllBad if they are too few for what they listed,
        StoreUnavailable if others were silent before.
        """
        if isinstance(error, RequestRefused):
            raise error
        holders = [name for name in holders or self._holders if name not in self._errors]
        if not isinstance(error, ObjectMissing | CopyDamaged):
            if not self._is_enough_without(holders):
                raise error
            self._errors.update(dict.fromkeys(holders, error))
            return
        for name in holders:
            self._bad[name] += 1
        full = [name for name in holders if self._bad[name] >= self._terms.bad_max]
        if not full or self._leave_out(full, error) or self._terms.is_lenient:
            return
        if self._terms.regions - len(self._junk.union(full)) < self._terms.regions_min:
            raise AllBad(f"{max(self._bad.values())} objects in one region are bad: {error}") from error
        silent = "; ".join(f"{name}: {cause}" for name, cause in self._errors.items())
        raise StoreUnavailable(
            f"too few regions answer to look past what {full[0]} lists; {silent or 'others failed of late'}"
        ) from error

    def _leave_out(self, names: Sequence[str], error: StoreError) -> bool:
        if not self._is_enough_without(names):
            return False
        self._junk.update(names)
        self._errors.update(dict.fromkeys(names, error))
        return True

    def _is_enough_without(self, names: Sequence[str]) -> bool:
        left = sum(1 for name in self._names if name not in self._errors and name not in names)
        return left >= self._terms.regions_min


@runtime_checkable
class Searches(Protocol):
    """A store of several regions that can leave one of them out."""

    def search(
        self, prefix: str, *, bad_max: int, is_lenient: bool = False, start_after: str | None = None
    ) -> Search:
        """Return a search of what is below ``prefix``; see ``search``."""
        ...


def search(
    store: ObjectStore,
    prefix: str,
    *,
    bad_max: int,
    is_lenient: bool = False,
    start_after: str | None = None,
) -> Search:
    """Begin to search any store.  In one that is a single copy ``bad_max`` bad objects are the end of it.

    ``is_lenient`` is for whoever wants each good object and stops at none: bad ones never end the search.
    """
    if isinstance(store, Searches):
        return store.search(prefix, bad_max=bad_max, is_lenient=is_lenient, start_after=start_after)
    found = store.list_objects(prefix, start_after=start_after)
    listing = (CopyInfo(info.key, (info.size_bytes,)) for info in found)
    return Search(("",), listing, {}, SearchTerms(1, 1, bad_max, is_lenient))
