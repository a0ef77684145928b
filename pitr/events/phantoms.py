"""Phantoms: events that were published, but whose transaction is not in the restored database.  Pure.

Consumers have acted on them; only a replay, or a person, can make both agree again.  Counted without limit,
listed up to one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pitr.events.classify import Classified, EventClass
from pitr.events.partition import TopicPartition
from pitr.wal.timeline import TimelineId

LISTED_MAX = 100


@dataclass(frozen=True, slots=True)
class Phantom:
    """One such event."""

    at: TopicPartition
    offset: int
    event_id: str | None
    type: str | None
    timeline: TimelineId | None
    xid: int | None


@dataclass(frozen=True, slots=True)
class PhantomList:
    """How many there are, and the first of them."""

    count: int = 0
    first: tuple[Phantom, ...] = ()


@dataclass(slots=True)
class PhantomCounter:
    """Counts the events of one class.  Bounded: it keeps ``LISTED_MAX``."""

    event_classes: frozenset[EventClass]
    _count: int = 0
    _first: list[Phantom] = field(default_factory=list)

    def see(self, one: Classified) -> None:
        """Count an event of a db-first topic, if it is of the class."""
        if one.event_class not in self.event_classes:
            return
        self._count += 1
        if len(self._first) < LISTED_MAX:
            facts, record = one.facts, one.record
            self._first.append(
                Phantom(record.at, record.offset, facts.event_id, facts.type, facts.timeline, facts.xid)
            )

    def found(self) -> PhantomList:
        """Return what was counted so far."""
        return PhantomList(self._count, tuple(self._first))


def all_phantoms() -> PhantomCounter:
    """Return a counter of all events whose transaction is not in the database."""
    return PhantomCounter(frozenset({EventClass.NOT_IN_DATABASE, EventClass.LOST_BRANCH}))


def lost_events() -> PhantomCounter:
    """Return a counter of events whose commit a failover lost."""
    return PhantomCounter(frozenset({EventClass.LOST_BRANCH}))
