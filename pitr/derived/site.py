"""A site: one Redis Cluster, or one server; its masters found, and asked whether they agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pitr.derived.access import RedisAccess
from pitr.derived.redis_nodes import Node
from pitr.derived.topology import Master, Topology
from pitr.errors import DerivedRefused, DerivedUnavailable

ADDRESSES_MAX: Final = 64


class Deadline:
    """When a walk must have ended; it is asked between batches."""

    def __init__(
        self, monotonic: Callable[[], float], limit_s: float, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.pause: Final = pause
        self._monotonic: Final = monotonic
        self._limit_s: Final = limit_s
        self._end_s: Final = monotonic() + limit_s

    @property
    def left_s(self) -> float:
        return max(0.0, self._end_s - self._monotonic())

    def check(self, what: str) -> None:
        """Raise DerivedUnavailable if the time is up."""
        if self.left_s == 0.0:
            raise DerivedUnavailable(
                f"{what} did not end in time",
                detail=f"the deadline of {self._limit_s:g} s is over",
                hint="repeat the command, which goes on; deadline of [[redis]] sets the limit",
            )


@dataclass(frozen=True, slots=True)
class Look:
    """The masters, and what speaks against taking them for the whole of the site."""

    topology: Topology
    problems: tuple[str, ...]


class Site:
    """Where a site's nodes are asked for, and how they are spoken to."""

    def __init__(self, name: str, addresses: Sequence[tuple[str, int]], access: RedisAccess) -> None:
        self.name: Final = name
        self.access: Final = access
        self._addresses: Final = tuple(addresses[:ADDRESSES_MAX])

    def connect(self, master: Master) -> Node:
        """Return a connection to a master, to be closed."""
        return Node(self.access, master.host, master.port)

    def look(self) -> Look:
        """Find the masters, and ask each for its own view.

        Raises DerivedUnavailable if none of the configured addresses answers, DerivedRefused.
        """
        topology = self._topology()
        problems: list[str] = []
        if topology.missing_slots:
            problems.append(f"{topology.missing_slots} slots of the cluster have no master")
        if topology.is_moving:
            problems.append("slots are moving between masters")
        for master in topology.masters if topology.is_cluster else ():
            if master.is_failing:
                problems.append(f"master {master.address} fails, as the cluster says")
            problem = self._disagreement(master, topology)
            if problem is not None:
                problems.append(problem)
        return Look(topology, tuple(problems))

    def _topology(self) -> Topology:
        failures: list[DerivedUnavailable] = []
        for host, port in self._addresses:
            try:
                with Node(self.access, host, port) as node:
                    topology = node.topology()
            except DerivedUnavailable as error:
                failures.append(error)
                continue
            if not topology.is_cluster and len(self._addresses) > 1:
                raise DerivedRefused(
                    f"{node.address} is a server by itself, and [[redis]] {self.name} has several addresses",
                    hint="give each server that is no part of a cluster a [[redis]] of its own",
                )
            return topology
        raise failures[0]

    def _disagreement(self, master: Master, topology: Topology) -> str | None:
        try:
            with self.connect(master) as node:
                if node.node_id() != master.node_id:
                    return f"{master.address} is another node than the cluster says"
                seen = node.topology()
        except (DerivedUnavailable, DerivedRefused) as error:
            return f"master {master.address}: {error.detail or error.message}"
        if seen.owners != topology.owners:
            return f"{master.address} does not agree with the others about who owns which slots"
        return None
