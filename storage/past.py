"""Past: puts that go on past a region in which something else lies under the name.

Objects are create-only, and some of their names can be foreseen.  Were every "other bytes" a conflict, one
region that is hostile, or in which a bit has flipped, could stop whoever writes to all of them.  So where
the caller can tell, the other copy is judged: what a second writer of the same archive put is a conflict as
ever, and all else is the fault of that region alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from storage.store import (
    CopyDamaged,
    CopyInTheWay,
    ObjectConflict,
    ObjectStore,
    StoreError,
    StoreUnavailable,
)


@dataclass(frozen=True, slots=True)
class CopyJudge:
    """Tells what a second writer put from what is only in the way.

    ``is_rival`` gets the first ``bytes_max`` bytes of the other copy, of which nothing is known, in any
    thread.  In doubt it says True, and raises nothing.
    """

    bytes_max: int
    is_rival: Callable[[bytes], bool]


@runtime_checkable
class PutsPast(Protocol):
    """A store of several regions that can go on without one of them."""

    def put_past(
        self, key: str, body: bytes, judge: CopyJudge, *, sha256: bytes | None = None, after_all: bool = False
    ) -> None:
        """Put as ``ObjectStore.put`` does, past the regions where a copy is in the way.

        Raises ObjectConflict if any copy is a rival's, CopyInTheWay if too few regions are left.
        """
        ...


def put_past(
    store: ObjectStore,
    key: str,
    body: bytes,
    judge: CopyJudge,
    *,
    sha256: bytes | None = None,
    after_all: bool = False,
) -> None:
    """Do that with any store.  One that has a single copy cannot go past it: it is CopyInTheWay then."""
    if isinstance(store, PutsPast):
        store.put_past(key, body, judge, sha256=sha256, after_all=after_all)
        return
    try:
        store.put(key, body, sha256=sha256, after_all=after_all)
    except ObjectConflict as conflict:
        raise judged(store, key, judge, conflict) from conflict


def judged(store: ObjectStore, key: str, judge: CopyJudge, conflict: ObjectConflict) -> StoreError:
    """Return what a conflict in one region's ``store`` comes to: that conflict, if the copy is a rival's.

    A copy that is told of and cannot be read leaves its region out like any other failure of it, for
    whoever may answer a put with "other bytes" could say so of each.
    """
    try:
        start = store.get_range(key, 0, judge.bytes_max)
        is_rival = judge.is_rival(start)
    except CopyDamaged:
        # Not even an object: of a kind or a size that none has.
        is_rival = False
    except StoreError as error:
        unread = StoreUnavailable(f"object {key} holds other bytes, which cannot be read: {error}")
        unread.__cause__ = error
        return unread
    if is_rival:
        return conflict
    found = CopyInTheWay(f"object {key} holds bytes that no writer put there; puts go past it")
    found.__cause__ = conflict
    return found
