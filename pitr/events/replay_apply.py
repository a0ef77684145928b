"""One batch into the restored database: effects, applied ids, quarantine and cursor in one transaction.

An event that the sink cannot take is found by halving, and held back with the later ones of its key; the
others are applied.  In a dry run the same is done in one transaction for all batches, which is undone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from pitr.errors import PitrError
from pitr.events.partition import TopicPartition
from pitr.events.quarantine import Reason
from pitr.events.replay_batch import Batch, Event, Held, Judge, held_by, json_fault
from pitr.postgres.applied_events import Cursor, EventsRefused, ReplaySession
from pitr.postgres.held_events import HeldRow, hold, keep_holding, mark_released

POISON_MAX: Final = 1_000
"""Where so many events fail, the handler is wrong and not they; it is better corrected than worked around."""


class HandlerWrong(PitrError):
    """So many events failed that no single one is at fault.  What was committed stays."""


class Sink(Protocol):
    """Where events go.  It is called between the start of a transaction and its commit."""

    @property
    def is_json(self) -> bool:
        """Tell whether it takes JSON only."""
        ...

    def cursors(self) -> Mapping[TopicPartition, int]:
        """Return how far it is by its own account; nothing if that is in the same transaction."""
        ...

    def apply(self, events: Sequence[Event]) -> None:
        """Apply events, in the order of the log.  Raises EventsRefused where one of them is at fault."""
        ...

    def settle(self, cursors: Mapping[TopicPartition, int]) -> None:
        """Make last what was applied, right before the commit.  Not called in a dry run."""
        ...

    def close(self) -> None: ...


class RowWatch(Protocol):
    """Watches which rows a dry run changes."""

    def unwatched(self) -> Sequence[str]:
        """Return the tables of which rows were changed in this transaction unwatched."""
        ...

    def watch(self, tables: Sequence[str]) -> None:
        """Watch tables from now on, until the transaction is undone."""
        ...


@dataclass(frozen=True, slots=True)
class Released:
    """How many events were applied now, and how many are settled: those, and what was applied before."""

    applied: int
    settled: int


@dataclass(slots=True)
class Applier:
    """Applies batch after batch.  ``counts`` are of each partition, since the replay's first run."""

    session: ReplaySession
    sink: Sink
    judge: Judge
    replay_id: str
    watch: RowWatch | None = None
    """Given in a dry run only."""
    counts: dict[TopicPartition, Counter[str]] = field(default_factory=dict)
    poison: int = 0

    def apply(self, batch: Batch) -> None:
        """Do one batch, or nothing.  Raises HandlerWrong, and what session and sink raise."""
        counts = {at: Counter(found) for at, found in self.counts.items()}
        if self.watch is not None:
            self._move(batch, self._apply_watched(batch, self.watch), counts)
        else:
            with self.session.transaction():
                self._move(batch, self._apply(batch), counts)
                self.sink.settle(batch.cursors)
        self.counts = counts

    def release(self, batch: Batch) -> Released:
        """Do one batch of events out of quarantine: no cursor moves.  Raises as ``apply``."""
        with self.session.transaction():
            done = self._apply(batch)
            self.sink.settle({})
        return Released(len(done.applied), len(done.settled))

    def _apply_watched(self, batch: Batch, watch: RowWatch) -> _Done:
        """Apply, and again from the start where rows of a table were changed that nobody watched."""
        stopped, held, poison = self.judge.stopped_copy(), len(batch.held), self.poison
        while True:
            with self.session.retraceable() as go_back:
                done = self._apply(batch)
                tables = watch.unwatched()
                if not tables:
                    return done
                go_back()
            watch.watch(tables)
            self.judge.restore(stopped)
            del batch.held[held:]
            self.poison = poison

    def _apply(self, batch: Batch) -> _Done:
        done = _Done()
        self._settle_events(batch, batch.events, done)
        fresh = [one for one in batch.held if one.quarantine_id is None]
        hold(self.session, [_held_row(self.replay_id, one) for one in fresh])
        keep_holding(
            self.session,
            [(one.quarantine_id, str(one.reason), one.detail) for one in batch.held if one.quarantine_id],
        )
        mark_released(self.session, [one.quarantine_id for one in done.settled if one.quarantine_id])
        return done

    def _settle_events(self, batch: Batch, events: Sequence[Event], done: _Done) -> None:
        if not events:
            return
        try:
            with self.session.attempt():
                fresh = self._claim(events)
                if fresh:
                    self.sink.apply(fresh)
        except EventsRefused as refused:
            readable = list(self._readable(batch, events))
            if len(readable) < len(events):
                self._settle_events(batch, readable, done)
                return
            if len(events) == 1:
                self._hold_poison(batch, events[0], refused)
                return
            middle = len(events) // 2
            self._settle_events(batch, events[:middle], done)
            self._settle_events(batch, list(self._not_behind(batch, events[middle:])), done)
            return
        done.applied += fresh
        done.settled += events

    def _claim(self, events: Sequence[Event]) -> list[Event]:
        """Return the events that were not applied yet, each id once."""
        ids: dict[str, list[str]] = {}
        for one in events:
            ids.setdefault(one.record.at.topic, []).append(one.event_id)
        fresh = {topic: self.session.claim(self.replay_id, topic, own) for topic, own in ids.items()}
        found = []
        for one in events:
            left = fresh[one.record.at.topic]
            if one.event_id in left:
                left.remove(one.event_id)
                found.append(one)
        return found

    def _hold_poison(self, batch: Batch, event: Event, refused: EventsRefused) -> None:
        self.poison += 1
        if self.poison > POISON_MAX:
            raise HandlerWrong(
                f"more than {POISON_MAX} events fail",
                detail=f"the last one: {event.record.at} offset {event.record.offset}: {refused.message}",
                hint="correct the handler, and run the same command again: it goes on from here",
            )
        self.judge.hold(batch, held_by(event, Reason.POISON, refused.message))

    def _readable(self, batch: Batch, events: Sequence[Event]) -> Iterator[Event]:
        """Hold back what is no JSON: looked for where the server refused a batch, and not in each event."""
        if not self.sink.is_json:
            yield from events
            return
        for event in self._not_behind(batch, events):
            if (fault := json_fault(event.value)) is not None:
                self.judge.hold(batch, held_by(event, Reason.UNREADABLE, fault))
            else:
                yield event

    def _not_behind(self, batch: Batch, events: Sequence[Event]) -> Iterator[Event]:
        for event in events:
            if self.judge.is_stopped(event.stop_key):
                text = "an earlier event of this key is held back"
                self.judge.hold(batch, held_by(event, Reason.BEHIND, text))
            else:
                yield event

    def _move(self, batch: Batch, done: _Done, counts: dict[TopicPartition, Counter[str]]) -> None:
        applied = Counter(one.record.at for one in done.applied)
        settled = Counter(one.record.at for one in done.settled)
        held = Counter(one.record.at for one in batch.held)
        for at in batch.cursors:
            tally = counts.setdefault(at, Counter())
            tally.update(batch.skipped.get(at, {}))
            tally["read"] += batch.read.get(at, 0)
            tally["applied"] += applied[at]
            tally["duplicate"] += settled[at] - applied[at]
            tally["held"] += held[at]
        self.session.move(
            self.replay_id,
            [Cursor(at.topic, at.partition, end, counts[at]) for at, end in batch.cursors.items()],
        )


@dataclass(slots=True)
class _Done:
    """What became of a batch's events: ``applied`` now; ``settled`` are those applied before, too."""

    applied: list[Event] = field(default_factory=list)
    settled: list[Event] = field(default_factory=list)


def _held_row(replay_id: str, held: Held) -> HeldRow:
    record = held.record
    return HeldRow(
        number=0,
        replay_id=replay_id,
        topic=record.at.topic,
        partition=record.at.partition,
        offset=record.offset,
        event_id=held.event_id,
        event_type=held.event_type,
        version=held.version,
        key=record.key,
        value=record.value,
        headers=record.headers,
        timestamp_ms=record.timestamp_ms,
        is_append_time=record.is_append_time,
        reason=str(held.reason),
        detail=held.detail,
        stops_key=held.stops_key,
    )
