"""The masters of a Redis Cluster and their slots, as a node tells them.  Pure.

Reference: Redis' CLUSTER NODES; a cluster has 16,384 slots.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from pitr.errors import MalformedValue

SLOTS: Final = 16_384
# The most that Redis itself advises for a cluster.
MASTERS_MAX: Final = 1000
TEXT_BYTES_MAX: Final = 8 << 20
_ADDRESS = re.compile(r"(?P<host>.*):(?P<port>[0-9]{1,5})(?:@[0-9]{1,5})?(?:,.*)?")
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


@dataclass(frozen=True, order=True, slots=True)
class SlotRange:
    """Slots ``first`` to ``last``, both included."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last < SLOTS:
            raise MalformedValue(f"not a range of slots: {self.first} to {self.last}")

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Master:
    """A node that owns slots; of a single server ``node_id`` is empty and it has no slots."""

    node_id: str
    host: str
    port: int
    slots: tuple[SlotRange, ...] = ()
    is_failing: bool = False

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Topology:
    """Who owns which slots.  ``is_moving``: slots are on their way from one master to another."""

    masters: tuple[Master, ...]
    is_cluster: bool
    is_moving: bool = False

    @property
    def owners(self) -> dict[str, tuple[SlotRange, ...]]:
        """Return the slots by master, which is what must not change under a walk."""
        return {one.node_id: one.slots for one in self.masters}

    @property
    def missing_slots(self) -> int:
        """Return how many slots nobody owns."""
        if not self.is_cluster:
            return 0
        return SLOTS - sum(each.last - each.first + 1 for one in self.masters for each in one.slots)

    def owner(self, slot: int) -> Master | None:
        """Return who owns a slot; of a single server it is that."""
        if not self.is_cluster:
            return self.masters[0]
        return next(
            (one for one in self.masters if any(each.first <= slot <= each.last for each in one.slots)), None
        )


def single_server(host: str, port: int) -> Topology:
    """Return the topology of a server that is no cluster."""
    return Topology((Master("", host, port),), False)


def parse_nodes(text: str, *, asked_host: str) -> Topology:
    """Read what CLUSTER NODES answers.  A node that does not know its own host is at ``asked_host``.

    Raises MalformedValue, also if two masters claim a slot.
    """
    if len(text) > TEXT_BYTES_MAX:
        raise MalformedValue(f"CLUSTER NODES answers more than {TEXT_BYTES_MAX} bytes")
    masters: list[Master] = []
    is_moving = False
    for line in text.splitlines():
        words = line.split()
        if not words:
            continue
        if len(words) < 8:
            raise MalformedValue("a line of CLUSTER NODES has fewer than eight words")
        flags = set(words[2].split(","))
        if "master" not in flags:
            continue
        ranges = [word for word in words[8:] if not word.startswith("[")]
        is_moving = is_moving or len(ranges) < len(words) - 8
        if not ranges:
            continue
        host, port = _address(words[1], asked_host)
        is_failing = bool(flags & {"fail", "fail?", "noaddr", "handshake"})
        slots = tuple(sorted(_slots(word) for word in ranges))
        masters.append(Master(words[0], host, port, slots, is_failing))
    if not 0 < len(masters) <= MASTERS_MAX:
        raise MalformedValue(f"a cluster has 1 to {MASTERS_MAX} masters with slots, not {len(masters)}")
    _refuse_overlaps(masters)
    return Topology(tuple(sorted(masters, key=lambda one: one.slots)), True, is_moving)


def _address(word: str, asked_host: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(word)
    if match is None or not 0 <= int(match["port"]) < 65_536:
        raise MalformedValue("CLUSTER NODES names no address of a node")
    return match["host"].strip("[]") or asked_host, int(match["port"])


def _slots(word: str) -> SlotRange:
    match = _RANGE.fullmatch(word)
    if match is None:
        raise MalformedValue("CLUSTER NODES names no range of slots")
    return SlotRange(int(match[1]), int(match[2] or match[1]))


def _refuse_overlaps(masters: list[Master]) -> None:
    ranges = sorted(each for one in masters for each in one.slots)
    for before, after in pairwise(ranges):
        if after.first <= before.last:
            raise MalformedValue(f"two masters claim slot {after.first}")
