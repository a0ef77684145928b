"""The walk over every master: count what belongs to which namespace, remove what is to go, count again.

Nothing is claimed of a master that was not walked to its end, nor where slots moved under the walk.
Every step may be repeated: an epoch is raised once for a run, and a key that is gone is gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pitr.derived.policy import Matcher, Policy, Treatment, is_stale
from pitr.derived.redis_nodes import BATCH_KEYS, Node, key_slot
from pitr.derived.site import Deadline, Look, Site
from pitr.derived.topology import Master
from pitr.errors import DerivedRefused, DerivedUnavailable

# A name may hold a token, so of undeclared keys only a plain first word is told, and not many of these.
_WORD: Final = re.compile(rb"([A-Za-z][A-Za-z_-]{0,31}):")
_WORDS_MAX: Final = 50
OTHER: Final = "(other)"
_REPLICA_LOOKS_MAX: Final = 10
_REPLICA_PAUSE_S: Final = 0.5

# Called with the keys that were looked at so far.
OnProgress = Callable[[int], None]


@dataclass(slots=True)
class Count:
    """Keys of one namespace: how many there were, are to go, went, and are still there afterwards."""

    found: int = 0
    stale: int = 0
    removed: int = 0
    left: int = 0

    def add(self, other: Count) -> None:
        self.found += other.found
        self.stale += other.stale
        self.removed += other.removed
        self.left += other.left


@dataclass(slots=True)
class MasterWalk:
    """What was found on one master.  ``problem``: why it was not walked to the end."""

    master: Master
    keys: int = 0
    counts: dict[str, Count] = field(default_factory=dict)
    undeclared: dict[str, int] = field(default_factory=dict)
    clients: int = 0
    replicas_behind: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class SiteWalk:
    """What was found, and done, on all masters.  With ``problems`` it does not speak for the whole site."""

    look: Look
    masters: tuple[MasterWalk, ...]
    epochs: dict[str, int]
    problems: tuple[str, ...]

    @property
    def totals(self) -> dict[str, Count]:
        totals: dict[str, Count] = {}
        for master in self.masters:
            for prefix, count in master.counts.items():
                totals.setdefault(prefix, Count()).add(count)
        return totals

    @property
    def undeclared(self) -> dict[str, int]:
        totals: dict[str, int] = {}
        for master in self.masters:
            for word, count in master.undeclared.items():
                totals[word] = totals.get(word, 0) + count
        return totals

    @property
    def clients(self) -> int:
        return max((one.clients for one in self.masters), default=0)


def survey(
    site: Site, treatments: Sequence[Treatment], *, now_s: int, deadline: Deadline, on_progress: OnProgress
) -> SiteWalk:
    """Count, and change nothing.  Raises DerivedUnavailable, DerivedRefused if no node answers."""
    epochs = {one.namespace.prefix: now_s for one in treatments if one.policy is Policy.EPOCH}
    return _walk(site, site.look(), treatments, epochs, (), False, deadline, on_progress)


def invalidate(
    site: Site,
    treatments: Sequence[Treatment],
    *,
    run: str,
    now_s: int,
    deadline: Deadline,
    on_progress: OnProgress,
) -> SiteWalk:
    """Raise the epochs, then remove what is stale on every master.  May be repeated, with the same ``run``.

    Raises as ``survey``; what then was done stays done.
    """
    look = site.look()
    # First: from here on applications look for other names, whatever the walk comes to.
    epochs: dict[str, int] = {}
    problems: list[str] = []
    for one in treatments:
        namespace = one.namespace
        if one.policy is not Policy.EPOCH or namespace.counter is None or namespace.run_key is None:
            continue
        owner = look.topology.owner(key_slot(namespace.counter) if look.topology.is_cluster else 0)
        if owner is None:
            problems.append(f"nobody owns the slot of the counter of {namespace.prefix!r}")
            continue
        try:
            with site.connect(owner) as node:
                epochs[namespace.prefix] = node.raise_epoch(namespace.counter, namespace.run_key, run, now_s)
        except (DerivedUnavailable, DerivedRefused) as error:
            why = error.detail or error.message
            problems.append(f"the epoch of {namespace.prefix!r} was not raised: {owner.address}: {why}")
    return _walk(site, look, treatments, epochs, problems, True, deadline, on_progress)


def _walk(
    site: Site,
    look: Look,
    treatments: Sequence[Treatment],
    epochs: dict[str, int],
    problems: Sequence[str],
    acts: bool,
    deadline: Deadline,
    on_progress: OnProgress,
) -> SiteWalk:
    matcher = Matcher(treatments)
    walker = _Walker(matcher, epochs, acts, deadline, on_progress)
    masters = tuple(walker.walk(site, master) for master in look.topology.masters)
    found = [*look.problems, *problems]
    found += [
        f"master {one.master.address}: {one.problem}"
        for one in masters
        if one.problem and not any(one.master.address in text for text in look.problems)
    ]
    if acts:
        behind = [one.master.address for one in masters if one.replicas_behind]
        found += [f"a replica of {address} does not have yet what was done" for address in behind]
    if look.topology.is_cluster:
        found += _changes(site, look)
    return SiteWalk(look, masters, epochs, tuple(dict.fromkeys(found)))


def _changes(site: Site, before: Look) -> list[str]:
    """Say what is not as it was before the walk: a key may have gone from where nobody had looked yet."""
    try:
        after = site.look()
    except (DerivedUnavailable, DerivedRefused) as error:
        return [f"the cluster could not be looked at afterwards: {error.message}"]
    if after.topology.owners != before.topology.owners:
        return ["slots changed their masters during the walk"]
    return [text for text in after.problems if text not in before.problems]


class _Walker:
    """Walks one master after the other."""

    def __init__(
        self,
        matcher: Matcher,
        epochs: dict[str, int],
        acts: bool,
        deadline: Deadline,
        on_progress: OnProgress,
    ) -> None:
        self._matcher = matcher
        self._epochs = epochs
        self._acts = acts
        self._deadline = deadline
        self._on_progress = on_progress
        self._seen = 0

    def walk(self, site: Site, master: Master) -> MasterWalk:
        found = MasterWalk(master)
        try:
            with site.connect(master) as node:
                clients = node.info("clients").get("connected_clients", "1")
                found.clients = max(0, int(clients) - 1 if clients.isdigit() else 0)
                databases = node.databases()
                for database in databases:
                    self._first(node, database, found)
                if self._acts:
                    for database in databases:
                        self._again(node, database, found)
                    found.replicas_behind = self._replicas_behind(node)
        except (DerivedUnavailable, DerivedRefused) as error:
            found.problem = error.detail or error.message
        return found

    def _first(self, node: Node, database: int, found: MasterWalk) -> None:
        for keys in node.scan(database):
            self._deadline.check(f"the walk over {node.address}")
            stale: dict[bytes, Count] = {}
            for key in keys:
                if self._matcher.is_own(key):
                    continue
                found.keys += 1
                place = self._matcher.place(key)
                if place is None:
                    _tell(found.undeclared, key)
                    continue
                count = found.counts.setdefault(place.treatment.namespace.prefix, Count())
                count.found += 1
                if is_stale(place, self._epochs):
                    count.stale += 1
                    stale[key] = count
            if self._acts and stale:
                self._remove(node, database, stale)
            self._seen += len(keys)
            self._on_progress(self._seen)

    def _replicas_behind(self, node: Node) -> int:
        """Wait a while for the replicas: one that lacks a removal brings the key back at a failover."""
        offset = node.replication_offset()
        for _ in range(_REPLICA_LOOKS_MAX):
            if not (behind := node.replicas_behind(offset)):
                return 0
            self._deadline.pause(_REPLICA_PAUSE_S)
        return behind

    def _remove(self, node: Node, database: int, stale: dict[bytes, Count]) -> None:
        """Remove a batch, each namespace's keys by themselves, so that the count is of what really went."""
        by_count: dict[int, list[bytes]] = {}
        counts = {id(count): count for count in stale.values()}
        for key, count in stale.items():
            by_count.setdefault(id(count), []).append(key)
        for which, keys in by_count.items():
            assert len(keys) <= BATCH_KEYS
            counts[which].removed += node.unlink(database, keys)

    def _again(self, node: Node, database: int, found: MasterWalk) -> None:
        """Count what is there of that which was to go: applications that still run may have put it there."""
        for keys in node.scan(database):
            self._deadline.check(f"the second walk over {node.address}")
            for key in keys:
                if self._matcher.is_own(key):
                    continue
                place = self._matcher.place(key)
                if place is not None and is_stale(place, self._epochs):
                    found.counts.setdefault(place.treatment.namespace.prefix, Count()).left += 1


def _tell(undeclared: dict[str, int], key: bytes) -> None:
    match = _WORD.match(key)
    word = OTHER if match is None else f"{match[1].decode()}:"
    if word not in undeclared and len(undeclared) >= _WORDS_MAX:
        word = OTHER
    undeclared[word] = undeclared.get(word, 0) + 1
