"""Verified reads: the first copy of an object that passes, and no other.

A region may hold a flipped, swapped or renamed copy while another holds a good one, so each copy
is verified inside the store's own fallback (``CopyCheck``), never only the first answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from pitr.errors import MalformedValue, NoGoodCopy, NotAuthentic, PitrError
from storage.search import AllBad, search
from storage.store import CopyCheck, CopyDamaged, ObjectStore, StoreError

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


class VerifiedSearch:
    """The objects below a prefix that hold, in key order: newest first, where numbers count down in names.

    BAD_MAX bad ones of one region are no rot but an attack: it is left out where enough others are left
    (``storage.search``), and else the search ends.  One that ``is_lenient`` never ends for that: whoever
    wants each good object is not helped by losing them all.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        what: str,
        *,
        bad_max: int = BAD_MAX,
        is_lenient: bool = False,
    ) -> None:
        self._what: Final = what
        self._bad_max: Final = bad_max
        self._found: Final = search(store, prefix, bad_max=bad_max, is_lenient=is_lenient)
        # What could not be used among what was looked at: in regions that were left out since, and in others.
        self.passed: Final[list[RefusedObject]] = []
        self.kept: Final[list[RefusedObject]] = []

    @property
    def refused(self) -> list[RefusedObject]:
        """All that could not be used, in the order of the names."""
        return sorted(self.passed + self.kept, key=lambda one: one.key)

    def each(self, read: Callable[[str], _T]) -> Iterator[_T]:
        """Yield what ``read`` makes of each object that holds; once.

        ``read`` raises NotAuthentic or MalformedValue for one that must not be used, and StoreError.
        Raises NotAuthentic after ``bad_max`` bad ones, StoreError.
        """
        for info in self._found:
            yield from self._read(info.key, read, self._found.holders)

    def first(self, read: Callable[[str], _T]) -> _T | None:
        """Return the first of them, None if none holds.  Raises as ``each``."""
        return next(self.each(read), None)

    def last(self, read: Callable[[str], _T], is_wanted: Callable[[str], bool]) -> _T | None:
        """Return the last one of the names that are wanted, None if none holds.  Raises as ``each``.

        Of each region's names only the last ``bad_max`` are looked at.
        """
        newest: dict[str, deque[str]] = {}
        for info in self._found:
            if is_wanted(info.key):
                for region in self._found.holders:
                    newest.setdefault(region, deque(maxlen=self._bad_max)).append(info.key)
        for key in sorted({key for keys in newest.values() for key in keys}, reverse=True):
            holders = [region for region, keys in newest.items() if key in keys]
            if not self._found.counts(holders):
                continue
            for value in self._read(key, read, holders):
                return value
        return None

    def _read(self, key: str, read: Callable[[str], _T], holders: Sequence[str]) -> tuple[_T, ...]:
        """Return what ``read`` makes of one object; nothing if it is refused."""
        error: StoreError
        try:
            return (read(key),)
        except (NotAuthentic, MalformedValue) as cause:
            reason, error = cause.detail or cause.message, CopyDamaged(str(cause))
        except StoreError as cause:
            reason, error = str(cause), cause
        try:
            self._found.refuse(error, holders)
        except AllBad as cause:
            raise NotAuthentic(
                f"the newest {self._bad_max} {self._what} are all bad",
                detail=(self.refused or [RefusedObject(key, reason)])[0].reason,
                hint="look at the other regions one by one with `--region`",
            ) from cause
        where = self.kept if self._found.counts(holders) else self.passed
        where.append(RefusedObject(key, reason))
        return ()
