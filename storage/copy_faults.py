"""CopyFaults: the copies that are known to be bad or to be missing, and the regions that did not answer.

What a read fell back past is data, not an error: the caller got its bytes, and somebody must still be told,
or the last good copy goes unnoticed as well.  Each copy counts once, however often it is met.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

# Of each kind: enough names to act on, and more digests of names than one restore reads objects (about
# 10 MB); past that a count is a lower bound, and says so.
FAULTS_NAMED_MAX = 1000
FAULTS_COUNTED_MAX = 100_000


class FaultKind(StrEnum):
    """What is wrong with a copy, the worst first."""

    DAMAGED = "damaged"
    CONFLICTS = "conflicts"
    DIFFERS = "differs"
    MISSING = "missing"
    UNREACHABLE = "unreachable"


# A copy that is there and is not what it must be.  Objects are write-once, so only a person can remove it.
BAD_COPIES = (FaultKind.DAMAGED, FaultKind.CONFLICTS, FaultKind.DIFFERS)
_RANK = {kind: rank for rank, kind in enumerate(FaultKind)}


@dataclass(frozen=True, slots=True)
class CopyFault:
    """One copy that could not be used, and why; ``UNREACHABLE`` says nothing about the copy itself.

    ``read_from`` is the region whose copy served in its place, None where none did.
    """

    region: str
    key: str
    kind: FaultKind
    detail: str
    read_from: str | None = None


@dataclass(frozen=True, slots=True)
class FaultReport:
    """All faults at a moment: the oldest by name, at most FAULTS_NAMED_MAX of each kind, and how many.

    ``is_exact`` is false where there were more than could be told apart: then counts are at least so high.
    """

    faults: tuple[CopyFault, ...] = ()
    counts: Mapping[tuple[str, FaultKind], int] = field(default_factory=dict)
    is_exact: bool = True

    def count(self, region: str, *kinds: FaultKind) -> int:
        """Return how many copies of ``region`` have one of these faults."""
        return sum(self.counts.get((region, kind), 0) for kind in kinds)

    def named(self, region: str, *kinds: FaultKind) -> tuple[CopyFault, ...]:
        """Return the faults of ``region`` that are kept by name, oldest first."""
        return tuple(fault for fault in self.faults if fault.region == region and fault.kind in kinds)


@dataclass(slots=True)
class _Kind:
    """The faults of one kind, by the digest of region and key."""

    named: dict[int, CopyFault] = field(default_factory=dict)
    regions: dict[int, str] = field(default_factory=dict)


class CopyFaults:
    """What is known of bad copies.  Thread-safe; bounded by kind, so that many of one hide no other."""

    def __init__(self, *, named_max: int = FAULTS_NAMED_MAX, counted_max: int = FAULTS_COUNTED_MAX) -> None:
        self._named_max = named_max
        self._counted_max = counted_max
        self._lock = threading.Lock()
        self._kinds = {kind: _Kind() for kind in FaultKind}
        self._is_exact = True

    def add(self, fault: CopyFault) -> bool:
        """Take a fault up; False if the copy is known for one as bad, or if there is no room.

        A worse fault takes the place of a lesser one: who did not answer at first may answer with rubbish.
        """
        number = _number(fault.region, fault.key)
        with self._lock:
            known = next((kind for kind, faults in self._kinds.items() if number in faults.regions), None)
            if known is not None and _RANK[known] <= _RANK[fault.kind]:
                return False
            if len(self._kinds[fault.kind].regions) >= self._counted_max:
                self._is_exact = False
                return False
            if known is not None:
                self._drop(known, number)
            faults = self._kinds[fault.kind]
            faults.regions[number] = fault.region
            if len(faults.named) < self._named_max:
                faults.named[number] = fault
            return True

    def mended(self, region: str, key: str) -> None:
        """Forget the copy's fault: it was made anew, or deleted."""
        number = _number(region, key)
        with self._lock:
            for kind in self._kinds:
                self._drop(kind, number)

    def report(self) -> FaultReport:
        """Return what is known now, by kind, the worst first."""
        counts: dict[tuple[str, FaultKind], int] = {}
        with self._lock:
            for kind, faults in self._kinds.items():
                for region in faults.regions.values():
                    counts[region, kind] = counts.get((region, kind), 0) + 1
            named = [fault for faults in self._kinds.values() for fault in faults.named.values()]
            return FaultReport(tuple(named), counts, self._is_exact)

    def _drop(self, kind: FaultKind, number: int) -> None:
        self._kinds[kind].regions.pop(number, None)
        self._kinds[kind].named.pop(number, None)


def _number(region: str, key: str) -> int:
    """Return what stands for one copy: eight bytes in place of a name of up to 512."""
    digest = hashlib.blake2b(f"{region}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
