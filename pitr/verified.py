"""Verified reads: the first copy of an object that passes, and no other.

A region may hold a flipped, swapped or renamed copy while another holds a good one, so each copy
is verified inside the store's own fallback (``CopyCheck``), never only the first answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from pitr.errors import MalformedValue, NoGoodCopy, NotAuthentic, PitrError
from storage.store import CopyCheck, CopyDamaged, ObjectMissing, ObjectStore

_T = TypeVar("_T")
BAD_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class RefusedObject:
    """An object that is listed, but of which no copy can be used; and why."""

    key: str
    reason: str


def get_verified(store: ObjectStore, key: str, read: Callable[[bytes], _T]) -> _T:
    """Return what ``read`` makes of the first copy of ``key`` that it accepts.

    ``read`` raises NotAuthentic or MalformedValue for a copy that must not be used.
    Raises NoGoodCopy if no copy passes; StoreError as the store does.
    """
    return _first_accepted(key, read, lambda check: store.get(key, check=check))


def get_start_verified(store: ObjectStore, key: str, length: int, read: Callable[[bytes], _T]) -> _T:
    """Return what ``read`` makes of the first ``length`` bytes of a copy that it accepts.

    Raises as ``get_verified``.
    """
    return _first_accepted(key, read, lambda check: store.get_range(key, 0, length, check=check))


def _first_accepted(key: str, read: Callable[[bytes], _T], ask: Callable[[CopyCheck], bytes]) -> _T:
    accepted: list[_T] = []
    refused: list[PitrError] = []

    def check(body: bytes) -> None:
        try:
            accepted.append(read(body))
        except (NotAuthentic, MalformedValue) as cause:
            refused.append(cause)
            raise CopyDamaged(f"{key}: {cause}") from cause

    try:
        ask(check)
    except CopyDamaged as cause:
        raise NoGoodCopy(
            f"no copy of {key} can be used",
            detail=refused[-1].message if refused else str(cause),
            hint="look for the damaged regions with `pitr catalogue check`",
        ) from cause
    # Each accepted copy passed the same verification, so any of them may speak for the object.
    return accepted[-1]


def check_place(key: str, expected: str, repository: str, own_repository: str) -> None:
    """Refuse a record that lies under another name, or in another repository, than it says.

    Its signature holds all the same: that is how a renamed or swapped object looks.  Raises NotAuthentic.
    """
    if repository != own_repository:
        raise NotAuthentic(f"{key} belongs to another repository: {repository}")
    if key != expected:
        raise NotAuthentic(f"{key} holds what belongs under {expected}")


def newest_that_holds(keys: Iterable[str], read: Callable[[str], _T], what: str) -> _T | None:
    """Return what ``read`` makes of the first of ``keys``, newest first, that holds; None if none does.

    ``read`` raises NotAuthentic, MalformedValue or ObjectMissing for one that must not be used.  BAD_MAX
    bad ones in a row are no rot but an attack: raises NotAuthentic then, and StoreError.
    """
    bad: list[str] = []
    for key in keys:
        try:
            return read(key)
        except (NotAuthentic, MalformedValue, ObjectMissing) as cause:
            bad.append(f"{key}: {cause}")
        if len(bad) >= BAD_MAX:
            raise NotAuthentic(
                f"the newest {BAD_MAX} {what} are all bad",
                detail=bad[0],
                hint="look at the other regions one by one with `--region`",
            )
    return None
