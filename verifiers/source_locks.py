"""Until when what a restore needs is locked in a region: the weakest lock of all of it, as the region says.

One object without a lock, or one that could not be asked for, and nothing is said: a chain that has lost a
part restores nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pitr.layout import manifest_key
from pitr.restore_plan import RestorePlan
from storage.locks import Locking, LockMode, ObjectLock
from storage.regions import Region
from storage.store import ObjectStore, StoreError

# Each is a request of some 20 ms, eight at a time: about a minute for so many.
ASKED_MAX: Final = 20_000
_READERS: Final = 8


@dataclass(frozen=True, slots=True)
class LeastLock:
    """GOVERNANCE if any is, and the earliest end of all."""

    mode: LockMode
    until: datetime


def least_locks(regions: Iterable[Region], plan: RestorePlan) -> dict[str, LeastLock]:
    """Return the weakest lock of what a plan restores from, by the name of each region that tells of one."""
    keys = needed_keys(plan)
    found = {region.name: least_lock(region.store, keys) for region in regions}
    return {name: least for name, least in found.items() if least is not None}


def needed_keys(plan: RestorePlan) -> list[str]:
    """Return the keys of all that a plan restores from: manifests, packs, indexes, WAL."""
    keys: list[str] = []
    for manifest in (plan.backup, *plan.parents):
        keys.append(manifest_key(manifest.archive, manifest.backup))
        keys += [stored.key for stored in (*manifest.packs, *manifest.indexes)]
    return list(dict.fromkeys([*keys, *(str(link.unit.key) for link in plan.links)]))


def least_lock(store: ObjectStore, keys: Sequence[str]) -> LeastLock | None:
    """Return the weakest lock; None if not every object is known to have one.  Pure but for the asking."""
    if not isinstance(store, Locking) or not keys or len(keys) > ASKED_MAX:
        return None
    locking = store

    def ask(key: str) -> ObjectLock | None:
        try:
            return locking.lock_of(key)
        except StoreError:
            return None

    # One first: where the region locks nothing, nothing else is asked.
    if ask(keys[0]) is None:
        return None
    least: LeastLock | None = None
    with ThreadPoolExecutor(_READERS, thread_name_prefix="locks") as pool:
        for lock in pool.map(ask, keys):
            if lock is None:
                pool.shutdown(cancel_futures=True)
                return None
            mode: LockMode = lock.mode
            if least is not None and "GOVERNANCE" in (least.mode, mode):
                mode = "GOVERNANCE"
            least = LeastLock(mode, lock.until if least is None else min(least.until, lock.until))
    return least
