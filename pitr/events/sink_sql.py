"""The sink that is PostgreSQL itself: the owner's statements over a staged batch.

A batch is copied into a temporary table at once, and each step's handler runs over its rows: at ten thousand
events a batch, statement by statement would be twenty times slower.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pitr.events.partition import TopicPartition
from pitr.events.replay_batch import Event, Step, steps_of
from pitr.postgres.applied_events import EventsRefused, ReplaySession

# psycopg's COPY writes None as NULL.
_Row = tuple[object, ...]


class SqlSink:
    """Runs handlers in the session's own transaction."""

    is_json: Final = True

    def __init__(self, session: ReplaySession, *, wants_headers: bool = False) -> None:
        self._session = session
        self._wants_headers = wants_headers

    def cursors(self) -> Mapping[TopicPartition, int]:
        """It has none of its own: they are in the same transaction."""
        return {}

    def apply(self, events: Sequence[Event]) -> None:
        """Apply events in their keys' order.  What was done before an error is for the caller to undo."""
        steps = steps_of(events)
        self._session.stage(self._rows(steps))
        for number, step in enumerate(steps):
            assert step.handler is not None, "a sql sink has a handler for each event"
            self._session.run_handler(number, step.handler.statements)

    def settle(self, _cursors: Mapping[TopicPartition, int]) -> None:
        """Nothing is left to do before the commit."""

    def close(self) -> None:
        """Nothing is open here: the session is the caller's."""

    def _rows(self, steps: Sequence[Step]) -> Iterator[_Row]:
        seq = 0
        for number, step in enumerate(steps):
            for event in step.events:
                seq += 1
                record = event.record
                yield (
                    number,
                    seq,
                    event.event_id,
                    event.event_type,
                    event.version,
                    record.at.topic,
                    record.at.partition,
                    record.offset,
                    record.timestamp_ms,
                    _text(record.key),
                    record.key,
                    _payload(event.value),
                    headers_json(record.headers) if self._wants_headers else None,
                )


def headers_json(headers: Sequence[tuple[str, bytes | None]]) -> str:
    """Return headers as a JSON object; what is no text as ``{"base64": …}``, of a name the last."""
    return json.dumps({name: _header(value) for name, value in headers})


def _header(value: bytes | None) -> object:
    text = _text(value)
    return {"base64": base64.b64encode(value).decode("ascii")} if value is not None and text is None else text


def _text(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
    # PostgreSQL's text has no NUL.
    return None if "\x00" in text else text


def _payload(value: bytes | None) -> str | None:
    # An empty value and none are both a tombstone.
    if not value:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise EventsRefused("a value is no UTF-8") from cause
