"""Release: events out of quarantine, to the sink after all, in their keys' order.

Rules and classes no longer count: a person has decided.  An event that still cannot be applied stays where it
is, and those of its key behind it.  For a key that is at a stand, an event can only go with all that were
held before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pitr.errors import PitrError
from pitr.events.broker import EventRecord
from pitr.events.classify import EventClass
from pitr.events.debezium import read_facts
from pitr.events.flows import EventFormat
from pitr.events.handlers import Handlers
from pitr.events.partition import TopicPartition
from pitr.events.quarantine import Reason
from pitr.events.replay_apply import Applier, Sink
from pitr.events.replay_batch import Batch, Judge, StopKey
from pitr.events.upcast import Change
from pitr.postgres.applied_events import ReplaySession
from pitr.postgres.held_events import HeldRow, held_rows, mark_dropped

_PAGE: Final = 1_000


class ReleaseRefused(PitrError):
    """What was named cannot be released as it was named.  Nothing was done."""


@dataclass(frozen=True, slots=True)
class ReleaseChoice:
    """Which events: by their numbers, or all with this reason or this topic, or everything."""

    numbers: tuple[int, ...] = ()
    reason: str | None = None
    topic: str | None = None
    everything: bool = False

    def takes(self, row: HeldRow) -> bool:
        """Tell whether an event is meant."""
        if self.numbers:
            return row.number in self.numbers
        named = self.reason is not None or self.topic is not None
        return (named or self.everything) and (
            self.reason in (None, row.reason) and self.topic in (None, row.topic)
        )


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """How many were applied, had been before, and are held still."""

    applied: int = 0
    duplicate: int = 0
    held: int = 0


def release(
    session: ReplaySession,
    sink: Sink,
    handlers: Handlers,
    replay_id: str,
    choice: ReleaseChoice,
    *,
    formats: Mapping[str, EventFormat] | None = None,
    calls: Mapping[str, Change] | None = None,
) -> ReleaseResult:
    """Apply what is chosen; may be repeated.  ``formats`` are those of topics that are not ``headers``.

    Raises ReleaseRefused, and what the session and the sink raise.
    """
    session.lock()
    session.prepare()
    _check(session, replay_id, choice)
    judge = Judge(handlers, set(), calls=calls, obeys_rules=False)
    applier = Applier(session, sink, judge, replay_id)
    applied = duplicate = held = 0
    for rows in _pages(session, replay_id, is_whole=True):
        batch = Batch()
        for row in rows:
            if choice.takes(row):
                record = _record(row)
                form = (formats or {}).get(row.topic, EventFormat.HEADERS)
                facts = read_facts(record, form)
                judge.judge(batch, record, facts, EventClass.NOT_IN_DATABASE, row.number)
        if batch.events or batch.held:
            done = applier.release(batch)
            applied += done.applied
            duplicate += done.settled - done.applied
            held += len(batch.held)
    return ReleaseResult(applied, duplicate, held)


def drop(session: ReplaySession, replay_id: str, choice: ReleaseChoice) -> int:
    """Give up what is chosen, for good: it stays in the table, and its key waits for it no longer.

    Return how many that were.  For what can never be applied: what is held behind it could not be released
    else.  Raises ReleaseRefused, and what the session raises.
    """
    session.lock()
    session.prepare()
    _check(session, replay_id, choice, keeps_order=False)
    count = 0
    for rows in _pages(session, replay_id, is_whole=False):
        numbers = [row.number for row in rows if choice.takes(row)]
        with session.transaction():
            mark_dropped(session, numbers, str(Reason.DROPPED))
        count += len(numbers)
    return count


def _check(
    session: ReplaySession, replay_id: str, choice: ReleaseChoice, *, keeps_order: bool = True
) -> None:
    """Refuse numbers that are not held, and events before which others of their key are held."""
    missing = set(choice.numbers)
    left: dict[StopKey, int] = {}
    for rows in _pages(session, replay_id, is_whole=False):
        for row in rows:
            key = None if row.key is None else (row.topic, row.key)
            if not choice.takes(row):
                if row.stops_key and key is not None:
                    left.setdefault(key, row.number)
                continue
            missing.discard(row.number)
            if keeps_order and key is not None and key in left:
                raise ReleaseRefused(
                    f"event {row.number} cannot go alone",
                    detail=f"event {left[key]} of the same key was held before it, and stays",
                    hint="release both, or all; drop what can never be applied",
                )
    if missing:
        raise ReleaseRefused(
            f"event {min(missing)} is not held in replay {replay_id}",
            detail="it was released before, or never was there",
            hint="pitr events quarantine list",
        )


def _pages(session: ReplaySession, replay_id: str, *, is_whole: bool) -> Iterator[Sequence[HeldRow]]:
    after = 0
    while rows := held_rows(session, replay_id=replay_id, after=after, limit=_PAGE, is_whole=is_whole):
        after = rows[-1].number
        yield rows


def _record(row: HeldRow) -> EventRecord:
    return EventRecord(
        TopicPartition(row.topic, row.partition),
        row.offset,
        row.timestamp_ms,
        row.is_append_time,
        row.key,
        row.value,
        row.headers,
    )
