"""Reconcile: which copies a comparison of the regions' listings finds missing, queued in their order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from storage.listing import CopyInfo
from storage.repair import Repair
from storage.store import ObjectInfo

# Missing copies recorded in one transaction, so that a large comparison does not sync for each.
RECONCILE_BATCH = 500


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What a comparison of the regions found.  ``unreached`` regions were not, or not wholly, compared."""

    objects: int
    missing_copies: int
    unreached: tuple[str, ...]


def queue_missing(
    copies: Iterable[CopyInfo],
    regions: Sequence[str],
    unreached: Collection[str],
    queue: Callable[[Sequence[Repair]], None],
    *,
    is_gone: Callable[[str], bool],
    is_late: Callable[[str], bool],
) -> tuple[int, int]:
    """Queue what each region lacks of ``copies``; return how many objects there are, and missing copies.

    Objects that are late come after all others, in descending key order.  ``unreached`` grows while the
    copies are listed.
    """
    late: list[Repair] = []
    batch: list[Repair] = []
    objects = missing = 0
    for copy in copies:
        objects += 1
        for region, size in zip(regions, copy.sizes_bytes, strict=True):
            if size is None and region not in unreached and not is_gone(copy.key):
                repair = Repair(region, 0, copy.key, copy.size_bytes, None, is_late(copy.key))
                (late if repair.after_all else batch).append(repair)
                missing += 1
        if len(batch) >= RECONCILE_BATCH:
            queue(batch)
            batch = []
    queue(batch)
    late.reverse()
    for start in range(0, len(late), RECONCILE_BATCH):
        queue(late[start : start + RECONCILE_BATCH])
    return objects, missing


def with_repairs(
    copies: Iterable[CopyInfo],
    regions: Sequence[str],
    quorum: int,
    queue: Callable[[Sequence[Repair]], None],
) -> Iterator[ObjectInfo]:
    """Yield what a quorum of ``regions`` holds with one size, once what the others lack of it is queued."""
    batch: list[tuple[ObjectInfo, list[Repair]]] = []

    def queued() -> Iterator[ObjectInfo]:
        queue([repair for _, lacking in batch for repair in lacking])
        return (info for info, _ in batch)

    for copy in copies:
        sizes = [size for size in copy.sizes_bytes if size is not None]
        if len(sizes) < quorum or len(set(sizes)) > 1:
            continue
        lacking = [
            Repair(region, 0, copy.key, copy.size_bytes, None, after_all=False)
            for region, size in zip(regions, copy.sizes_bytes, strict=True)
            if size is None
        ]
        batch.append((ObjectInfo(copy.key, copy.size_bytes), lacking))
        if len(batch) >= RECONCILE_BATCH:
            yield from queued()
            batch = []
    yield from queued()
