"""From records to what the sink does: each event is applied, held back or passed over, in its key's order.

Pure.  A *step* is what one handler is given at once.  Steps are done one after the other, and events of one
key are never in an order other than the log's: neither within a step nor between two.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pitr.errors import PitrError
from pitr.events.broker import EventRecord
from pitr.events.classify import EventClass
from pitr.events.handlers import Choice, Handler, HandlerIndex, Handlers
from pitr.events.partition import TopicPartition
from pitr.events.quarantine import KEYS_STOPPED_MAX, STOPPING, Described, Reason, first_rule
from pitr.events.upcast import Change, Kind, Upcasters, UpcastFailed, read_exactly

VALUE_BYTES_MAX: Final = 64 << 20
"""No broker of sane settings takes a larger record; PostgreSQL's text ends at 1 GiB."""


class TooManyStopped(PitrError):
    """So many keys are at a stand that the handlers file is wrong, and not the events."""


StopKey = tuple[str, bytes]
"""Topic and key: what order is kept for.  A record without a key has no order, and stops nothing."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event that is to be applied.  ``value`` is what the handler gets: upcast, if it had to be."""

    record: EventRecord
    event_id: str
    event_type: str
    version: int
    value: bytes | None
    handler: Handler | None = None
    quarantine_id: int | None = None
    """The row from which it is released."""

    @property
    def stop_key(self) -> StopKey | None:
        """What its order is kept for."""
        return stop_key(self.record)


@dataclass(frozen=True, slots=True)
class Held:
    """An event that is held back."""

    record: EventRecord
    reason: Reason
    detail: str
    stops_key: bool
    event_id: str | None = None
    event_type: str | None = None
    version: int = 1
    quarantine_id: int | None = None

    @property
    def stop_key(self) -> StopKey | None:
        """What it stops, None where it stops nothing."""
        return stop_key(self.record) if self.stops_key else None


@dataclass(slots=True)
class Batch:
    """What is done in one transaction.  ``cursors``: where each partition is when it is done.

    ``skipped`` counts by words what needs nothing done, ``read`` all records, both per partition.
    """

    events: list[Event] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    skipped: dict[TopicPartition, Counter[str]] = field(default_factory=dict)
    read: Counter[TopicPartition] = field(default_factory=Counter)
    cursors: dict[TopicPartition, int] = field(default_factory=dict)
    size_bytes: int = 0


def stop_key(record: EventRecord) -> StopKey | None:
    """Return what a record's order is kept for."""
    return None if record.key is None else (record.at.topic, record.key)


def held_by(event: Event, reason: Reason, detail: str) -> Held:
    """Return an event that was to be applied as one that is held back."""
    return Held(
        event.record,
        reason,
        detail,
        reason in STOPPING,
        event.event_id,
        event.event_type,
        event.version,
        event.quarantine_id,
    )


class Judge:
    """Decides on events one after the other.  Keeps which keys are stopped; not thread-safe."""

    def __init__(
        self,
        handlers: Handlers,
        stopped: set[StopKey],
        *,
        calls: Mapping[str, Change] | None = None,
        obeys_rules: bool = True,
    ) -> None:
        """``stopped``: the keys that are at a stand already; it is changed."""
        self._handlers = handlers
        self._index = HandlerIndex(handlers)
        self._upcasters = Upcasters(handlers.upcasts, handlers.known, calls)
        self._stopped = stopped
        self._rules = handlers.rules if obeys_rules else ()
        self._takes_all = handlers.takes_all and not handlers.upcasts

    def judge(
        self,
        batch: Batch,
        record: EventRecord,
        described: Described,
        fate: EventClass,
        quarantine_id: int | None = None,
    ) -> None:
        """Put one record where it belongs: among the events, the held ones or what is counted only."""
        found: Event | Held | str
        if fate is EventClass.IN_DATABASE:
            found = "in database"
        elif fate is EventClass.NOT_IN_DATABASE and (handler := self._plain(record, described)) is not None:
            # What nearly all of them are.
            kind = handler.event_type, handler.version
            batch.events.append(
                Event(record, described.event_id or "", *kind, record.value, handler, quarantine_id)
            )
            return
        else:
            found = self._decide(_Case(record, described, quarantine_id), fate)
        if isinstance(found, Event):
            batch.events.append(found)
        elif isinstance(found, str):
            batch.skipped.setdefault(record.at, Counter())[found] += 1
        else:
            self.hold(batch, found)

    def hold(self, batch: Batch, held: Held) -> None:
        """Hold an event back, and with it the later ones of its key if it stops that."""
        batch.held.append(held)
        if (key := held.stop_key) is not None:
            self._stopped.add(key)
            if len(self._stopped) > KEYS_STOPPED_MAX:
                raise TooManyStopped(
                    f"more than {KEYS_STOPPED_MAX} keys are at a stand",
                    detail=f"the last one: {held.record.at} offset {held.record.offset}: {held.reason}",
                    hint="correct the handlers file, and run the same command again: it goes on from here",
                )

    def is_stopped(self, key: StopKey | None) -> bool:
        """Tell whether events of a key are held back."""
        return key is not None and key in self._stopped

    def stopped_copy(self) -> frozenset[StopKey]:
        """Return which keys are stopped, to come back to."""
        return frozenset(self._stopped)

    def restore(self, stopped: frozenset[StopKey]) -> None:
        """Go back to what was stopped before."""
        self._stopped.intersection_update(stopped)
        self._stopped.update(stopped)

    def _plain(self, record: EventRecord, described: Described) -> Handler | None:
        """Return the handler of an event that nothing speaks against, None where more must be looked at."""
        if described.problem is not None or not described.event_id or self._rules or self._stopped:
            return None
        return self._index.find((described.type, described.version), record.at.topic)

    def _decide(self, case: _Case, fate: EventClass) -> Event | Held | str:
        described, record = case.described, case.record
        is_bare = record.value is None and described.event_id is described.type is described.problem is None
        # Of a topic of state it may be the only word of a deletion: then it is held, and not passed over.
        if is_bare and (described.is_tombstone or self._handlers.tombstone is Choice.SKIP):
            return "tombstone"
        if self._rules and (rule := first_rule(self._rules, record, described)) is not None:
            return case.held(Reason.RULE, rule.name, stops=rule.stops_key)
        if described.type in self._handlers.ignored:
            return "ignored"
        if self._stopped and self.is_stopped(stop_key(record)):
            return case.held(Reason.BEHIND, "an earlier event of this key is held back")
        if described.problem is not None:
            return case.held(Reason.UNREADABLE, described.problem)
        if fate is not EventClass.NOT_IN_DATABASE:
            is_lost = fate is EventClass.LOST_BRANCH
            choice = self._handlers.lost_branch if is_lost else self._handlers.unknown
            if choice is Choice.SKIP:
                return "lost branch" if is_lost else "unknown"
            if choice is Choice.QUARANTINE:
                if is_lost:
                    return case.held(Reason.LOST_BRANCH, "a failover lost its transaction")
                return case.held(Reason.UNCLASSIFIED, "nothing proves whether it is in the database")
        return self._event(case)

    def _event(self, case: _Case) -> Event | Held:
        described, value = case.described, case.record.value
        if not described.event_id:
            return case.held(Reason.NO_ID, "nothing would keep it from being applied twice")
        if self._takes_all:
            return case.event((described.type or "", described.version), value, None)
        if described.type is None:
            return case.held(Reason.UNKNOWN_TYPE, "it does not say its type")
        kind = (described.type, described.version)
        handler = self._index.find(kind, case.record.at.topic)
        return self._upcast(case, kind) if handler is None else case.event(kind, value, handler)

    def _upcast(self, case: _Case, kind: Kind) -> Event | Held:
        chain = self._upcasters.chain(kind)
        target = None if not chain else (kind[0], chain[-1].to_version)
        handler = None if target is None else self._index.find(target, case.record.at.topic)
        if not chain or target is None or handler is None:
            is_known = any(one.event_type == kind[0] for one in self._handlers.handlers)
            reason = Reason.UNKNOWN_VERSION if is_known else Reason.UNKNOWN_TYPE
            return case.held(reason, f"no handler takes {kind[0]} {kind[1]}")
        try:
            payload = self._upcasters.apply(chain, read_exactly(case.record.value or b"null"))
            value = json.dumps(payload, ensure_ascii=False).encode()
        except UpcastFailed as failed:
            return case.held(Reason.UPCAST, failed.message)
        except (ValueError, TypeError, RecursionError) as failed:
            # Of no JSON, of half a surrogate, or of what the owner's function returned.
            return case.held(Reason.UPCAST, f"{type(failed).__name__}: {failed}"[:300])
        return case.event(target, value, handler)


@dataclass(frozen=True, slots=True)
class _Case:
    """One record, with what it says of itself, and the row that it is released from."""

    record: EventRecord
    described: Described
    quarantine_id: int | None

    def event(self, kind: Kind, value: bytes | None, handler: Handler | None) -> Event:
        event_id = self.described.event_id or ""
        return Event(self.record, event_id, *kind, value, handler, self.quarantine_id)

    def held(self, reason: Reason, detail: str, *, stops: bool | None = None) -> Held:
        described = self.described
        return Held(
            self.record,
            reason,
            detail,
            reason in STOPPING if stops is None else stops,
            described.event_id,
            described.type,
            described.version,
            self.quarantine_id,
        )


def json_fault(value: bytes | None) -> str | None:
    """Say why a value is no JSON that PostgreSQL's jsonb holds, as far as is seen cheaply; None if it may be.

    None and nothing are a tombstone.  Looked at only where the server refused a batch: each event costs
    microseconds.  What passes here and fails there is poison, found by halving.
    """
    if not value:
        return None
    if len(value) > VALUE_BYTES_MAX:
        return f"it has {len(value)} bytes"
    try:
        json.loads(value)
    except UnicodeDecodeError:
        return "it is no UTF-8"
    except (ValueError, RecursionError) as error:
        return f"it is no JSON: {error}"[:300]
    return None


@dataclass(slots=True)
class Step:
    """Events that one handler is given at once, in the order of the log."""

    handler: Handler | None
    events: list[Event] = field(default_factory=list)


def steps_of(events: Sequence[Event]) -> list[Step]:
    """Split events into as few steps as a greedy look finds, each for one handler.

    An event goes to the first step of its handler that is not before, and unless the handler takes many of a
    key at once, after, the step of the key's event before.  Events without a key have no order.
    """
    steps: list[Step] = []
    of_handler: dict[int, list[int]] = {}
    last: dict[StopKey, int] = {}
    for event in events:
        handler = event.handler
        key = event.stop_key
        least = 0
        if key is not None and key in last:
            least = last[key]
            if not (handler is None or handler.takes_many):
                least += 1
        numbers = of_handler.setdefault(id(handler), [])
        at = _first_from(numbers, least)
        if at is None:
            at = len(steps)
            steps.append(Step(handler))
            numbers.append(at)
        steps[at].events.append(event)
        if key is not None:
            last[key] = at
    return steps


def _first_from(numbers: Sequence[int], least: int) -> int | None:
    at = bisect_left(numbers, least)
    return numbers[at] if at < len(numbers) else None
