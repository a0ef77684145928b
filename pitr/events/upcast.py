"""Upcasters: from the version in which an event was written to the one that a handler takes.  Pure.

Each takes one version to a higher one, so a chain of them always ends.  They change JSON objects only; what
has another form is the business of a callable sink.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from pitr.errors import MalformedValue

VERSION_MAX: Final = 1_000_000

Kind = tuple[str, int]
"""An event's type and version."""
Payload = dict[str, Any]
Change = Callable[[Payload], Payload]


class UpcastFailed(MalformedValue):
    """An event has not the form that its version says: it is held back, and its key with it."""


@dataclass(frozen=True, slots=True)
class Upcast:
    """One step.  Names at the top of the object are changed in this order: rename, remove, defaults.

    ``call`` names the owner's own function instead, which is given the object and returns another one.
    """

    event_type: str
    version: int
    to_version: int
    rename: Mapping[str, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    call: str | None = None

    @property
    def kind(self) -> Kind:
        """What it takes."""
        return self.event_type, self.version

    def apply(self, payload: Payload) -> Payload:
        """Return a changed copy.  Raises UpcastFailed where a name is missing, or two would be one."""
        changed = dict(payload)
        for old, new in self.rename.items():
            if old not in changed:
                raise UpcastFailed(f"{self.event_type} {self.version} has no field {old!r}")
            if new in changed:
                raise UpcastFailed(f"{self.event_type} {self.version} has {old!r} and {new!r}")
            changed[new] = changed.pop(old)
        for name in self.remove:
            changed.pop(name, None)
        for name, value in self.defaults.items():
            changed.setdefault(name, value)
        return changed


def read_exactly(value: bytes) -> object:
    """Return JSON's value.  Raises ValueError, RecursionError, and UpcastFailed for a number with more digits
    than Python's floats keep: what is written again would be another number, and nobody would see it.
    """
    return json.loads(value, parse_float=_exact)


def _exact(text: str) -> float:
    found = float(text)
    try:
        is_kept = Decimal(repr(found)) == Decimal(text)
    except ArithmeticError:  # an exponent that no number has
        is_kept = False
    if not is_kept:
        raise UpcastFailed("it has a number that an upcaster cannot keep in all its digits")
    return found


class Upcasters:
    """All upcasters of one replay, as chains.

    ``known`` are the kinds that a handler takes; ``calls`` holds the owner's functions by their names.
    """

    def __init__(
        self, upcasts: Sequence[Upcast], known: frozenset[Kind], calls: Mapping[str, Change] | None = None
    ) -> None:
        self._steps = {one.kind: one for one in upcasts}
        self._known = known
        self._calls = dict(calls or {})

    def chain(self, kind: Kind) -> tuple[Upcast, ...] | None:
        """Return the steps to the first version that a handler takes, none if it takes this; None: no way."""
        steps: list[Upcast] = []
        while kind not in self._known:
            step = self._steps.get(kind)
            if step is None:
                return None
            steps.append(step)
            kind = (kind[0], step.to_version)
        return tuple(steps)

    def apply(self, chain: Sequence[Upcast], payload: object) -> Payload:
        """Take an event through a chain.  Raises UpcastFailed, also for what the owner's function raises."""
        if not isinstance(payload, dict):
            raise UpcastFailed("it is no JSON object")
        for step in chain:
            if step.call is None:
                payload = step.apply(payload)
                continue
            try:
                payload = self._calls[step.call](payload)
            except Exception as cause:  # the owner's code: whatever it raises is about this event
                raise UpcastFailed(f"{step.call} raised {type(cause).__name__}: {cause}"[:500]) from cause
            if not isinstance(payload, dict):
                raise UpcastFailed(f"{step.call} returned no JSON object")
        return payload


def upcast_mistakes(upcasts: Sequence[Upcast], known: frozenset[Kind]) -> Iterator[tuple[int, str]]:
    """Yield what is wrong with steps together: the index of one, and words."""
    seen: dict[Kind, int] = {}
    for at, one in enumerate(upcasts):
        if one.to_version <= one.version:
            yield at, f"it leads from version {one.version} to {one.to_version}: only upwards"
        if one.kind in seen:
            yield at, f"there is another one from {one.event_type} {one.version}, at [{seen[one.kind]}]"
        seen.setdefault(one.kind, at)
        if one.kind in known:
            yield at, f"a handler takes {one.event_type} {one.version} as it is, so this is never used"
        if one.call is not None and (one.rename or one.remove or one.defaults):
            yield at, "give either call, or rename, remove and defaults"
    for at, one in enumerate(upcasts):
        target = (one.event_type, one.to_version)
        if target not in known and target not in seen:
            yield at, f"it leads to {one.event_type} {one.to_version}, which no handler and no upcaster takes"
