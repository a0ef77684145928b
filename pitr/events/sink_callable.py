"""The sink that is the owner's Python function, in the transaction of its batch.

The function is called with the events of a batch, in the order of the log, and with a ``ReplayContext``.
What it writes by the context's connection is kept or undone together with the cursor.  What it does elsewhere
may happen twice after a crash: the event's id is the same then.  To say that one event is at fault it raises
``EventsRefused``; any other exception stops the replay.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pitr.errors import MalformedValue, PitrError
from pitr.events.partition import TopicPartition
from pitr.events.replay_batch import Event
from pitr.postgres.applied_events import EventsRefused, ReplaySession
from pitr.postgres.sql_errors import is_poison


class CallableFailed(PitrError):
    """The owner's function raised something.  The batch is undone; a second run repeats it."""


@dataclass(frozen=True, slots=True)
class ReplayContext:
    """What the function is given beside the events.  ``connection`` is psycopg's."""

    replay_id: str
    is_dry_run: bool
    connection: Any


class CallableSink:
    """Calls the function."""

    is_json: Final = False

    def __init__(
        self, session: ReplaySession, function: Callable[..., object], name: str, context: ReplayContext
    ) -> None:
        self._session = session
        self._function = function
        self._name = name
        self._context = context

    def cursors(self) -> Mapping[TopicPartition, int]:
        """It has none of its own: they are in the same transaction."""
        return {}

    def apply(self, events: Sequence[Event]) -> None:
        """Call it.  Raises EventsRefused where it says so, or its statement met bad data; CallableFailed."""
        try:
            self._function(events, self._context)
        except EventsRefused:
            raise
        except Exception as cause:  # the owner's code: whatever it raises stops the run, and is told
            if is_poison(cause):
                raise
            raise CallableFailed(
                f"{self._name} raised {type(cause).__name__}: {cause}"[:500],
                hint="correct it, and run the same command again: it goes on from here",
            ) from cause

    def settle(self, _cursors: Mapping[TopicPartition, int]) -> None:
        """Nothing is left to do before the commit."""

    def close(self) -> None:
        """Nothing is open here."""


def load_callable(text: str) -> Callable[..., Any]:
    """Return the function of ``module:function``.  Raises MalformedValue where there is none."""
    module, colon, name = text.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise MalformedValue(f"not module:function: {text[:200]!r}")
    try:
        found: object = getattr(importlib.import_module(module), name)
    except Exception as cause:  # the owner's module runs here, and may raise anything
        raise MalformedValue(
            f"{text} cannot be imported", detail=f"{type(cause).__name__}: {cause}"[:500]
        ) from cause
    if not callable(found):
        raise MalformedValue(f"{text} is no function")
    return found
