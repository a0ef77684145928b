"""What is to become of the keys of each namespace after a restore.  Pure.

Redis has no clock of commits: it cannot be set back to a moment.  So whoever owns the keys declares, for
each beginning of their names, whether they are dropped, kept, got from a snapshot, or left behind by a new
epoch in the names.  A key belongs to the longest declared beginning.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pitr.errors import MalformedValue

NAMESPACES_MAX: Final = 1000
PREFIX_BYTES_MAX: Final = 200
# Without braces, so that the note of a run can be made to live in the counter's own slot.
COUNTER: Final = re.compile(r"[A-Za-z0-9:_./-]{1,250}")
_EPOCH: Final = re.compile(rb"v([0-9]{1,18}):")


class Policy(StrEnum):
    """What the owner declares of a namespace."""

    DROP = "drop"
    KEEP = "keep"
    RESTORE = "restore"
    EPOCH = "epoch"


class After(StrEnum):
    """What the database was restored for."""

    RESTORE = "restore"
    RANSOMWARE = "ransomware"


@dataclass(frozen=True, slots=True)
class Namespace:
    """The keys that begin with ``prefix``.  ``is_sessions``: they let somebody in, or tell who is.

    With ``EPOCH`` applications read ``counter`` and name their keys ``vCOUNTER:PREFIX…``.
    """

    prefix: str
    policy: Policy
    is_sessions: bool = False
    counter: str | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.prefix.encode()) <= PREFIX_BYTES_MAX:
            raise MalformedValue(f"a namespace's prefix has 1 to {PREFIX_BYTES_MAX} bytes")
        if (self.counter is not None) != (self.policy is Policy.EPOCH):
            raise MalformedValue(f"namespace {self.prefix!r}: a counter goes with the policy epoch")
        if self.counter is not None and COUNTER.fullmatch(self.counter) is None:
            raise MalformedValue(f"namespace {self.prefix!r}: not the name of a counter: {self.counter!r}")

    @property
    def run_key(self) -> str | None:
        """Return the key that says which run set the counter; it is in the counter's slot."""
        return None if self.counter is None else f"{{{self.counter}}}:run"


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is done with a namespace this time, and why where that is not what is declared."""

    namespace: Namespace
    policy: Policy
    why: str | None = None

    @property
    def removes(self) -> bool:
        """Tell whether keys go."""
        return self.policy in (Policy.DROP, Policy.EPOCH)


def treat(
    namespaces: Sequence[Namespace], after: After, keep: frozenset[str] = frozenset()
) -> tuple[Treatment, ...]:
    """Return what is done with each namespace.

    After ransomware sessions go whatever is declared, for who has stolen one is still in, unless the prefix
    is in ``keep``.  Raises MalformedValue for prefixes in ``keep`` that are not declared.
    """
    unknown = sorted(keep - {one.prefix for one in namespaces})
    if unknown:
        raise MalformedValue(
            f"no namespace is declared with the prefix {unknown[0]!r}",
            hint="name one of: " + ", ".join(repr(one.prefix) for one in namespaces),
        )
    return tuple(_treat(one, after, one.prefix in keep) for one in namespaces)


def _treat(namespace: Namespace, after: After, is_named: bool) -> Treatment:
    if is_named:
        why = None if namespace.policy is Policy.KEEP else "named with --keep"
        return Treatment(namespace, Policy.KEEP, why)
    stays = namespace.policy in (Policy.KEEP, Policy.RESTORE)
    if after is After.RANSOMWARE and namespace.is_sessions and stays:
        return Treatment(namespace, Policy.DROP, "sessions may have been stolen")
    return Treatment(namespace, namespace.policy)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key belongs; ``epoch`` None: its name has none."""

    treatment: Treatment
    epoch: int | None = None


class Matcher:
    """Finds the namespace of a key.  The counters and their notes are nobody's: they are never dropped."""

    def __init__(self, treatments: Sequence[Treatment]) -> None:
        self._by_prefix = {one.namespace.prefix.encode(): one for one in treatments}
        if len(self._by_prefix) != len(treatments):
            raise MalformedValue("two namespaces have the same prefix")
        self._lengths = sorted({len(prefix) for prefix in self._by_prefix}, reverse=True)
        names = [name for one in treatments for name in (one.namespace.counter, one.namespace.run_key)]
        self._own = frozenset(name.encode() for name in names if name is not None)

    def is_own(self, key: bytes) -> bool:
        """Tell whether a key is a counter, or the note of a run beside it."""
        return key in self._own

    def place(self, key: bytes) -> Place | None:
        """Return where a key belongs; None if it is declared nowhere."""
        head = _EPOCH.match(key)
        if head is not None:
            found = self._longest(key[head.end() :])
            if found is not None and found.namespace.policy is Policy.EPOCH:
                return Place(found, int(head[1]))
        found = self._longest(key)
        return None if found is None else Place(found)

    def _longest(self, key: bytes) -> Treatment | None:
        for length in self._lengths:
            found = self._by_prefix.get(key[:length])
            if found is not None:
                return found
        return None


def is_stale(place: Place, epochs: dict[str, int]) -> bool:
    """Tell whether a key is to go.  ``epochs``: the new epoch by prefix; of none, nothing of it is stale.

    What already has the new epoch was written by an application that has read it.
    """
    treatment = place.treatment
    if treatment.policy is Policy.DROP:
        return True
    if treatment.policy is not Policy.EPOCH:
        return False
    newest = epochs.get(treatment.namespace.prefix)
    return newest is not None and (place.epoch is None or place.epoch < newest)


def next_epoch(current: int | None, now_s: int) -> int:
    """Return an epoch above all before, also where the counter was evicted or came back from a snapshot.

    Counting from one again would bring an old epoch's keys back to life; the clock never does.
    """
    return max((current or 0) + 1, now_s)


def plan_digest(name: str, treatments: Sequence[Treatment]) -> str:
    """Return what tells two plans apart: a killed run is gone on with only by the same one."""
    rows = [
        [one.namespace.prefix, one.policy.value, one.namespace.counter or ""]
        for one in sorted(treatments, key=lambda each: each.namespace.prefix)
    ]
    return hashlib.sha256(json.dumps([name, rows]).encode()).hexdigest()
