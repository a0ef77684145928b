"""What is done with an event after a restore: the values of a handlers file.  Pure.

How the file is read is the shell's business (``cli.handlers_file``).  Reference: docs/events.md, "Replay".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pitr.events.quarantine import QuarantineRule, rule_mistakes
from pitr.events.upcast import Kind, Upcast, upcast_mistakes

# They would end the transaction that holds the effects, the applied ids and the cursor together.
_FORBIDDEN: Final = frozenset(
    {"begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release", "prepare", "copy"}
)
_BLANK: Final = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/)+", re.DOTALL)
_WORD: Final = re.compile(r"[A-Za-z]+")


class SinkKind(StrEnum):
    """Where events are replayed to."""

    SQL = "sql"
    """Statements of the owner, for each type and version."""
    TOPIC = "topic"
    """A topic that replay consumers read."""
    CALLABLE = "callable"
    """A Python function of the owner."""


class Choice(StrEnum):
    """What is done with events of a class that the plan leaves to the owner."""

    QUARANTINE = "quarantine"
    APPLY = "apply"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Handler:
    """What takes events of one type and version.

    ``statements`` read the rows of ``pitr_batch``.  Unless ``takes_many`` it holds at most one event of a
    key at a time, so that a set-based statement cannot meet a row twice; else many, to be taken in the order
    of ``seq``.  ``topics``: of these only; None is any.
    """

    event_type: str
    version: int
    statements: tuple[str, ...] = ()
    topics: frozenset[str] | None = None
    takes_many: bool = False

    @property
    def kind(self) -> Kind:
        """What it takes."""
        return self.event_type, self.version


@dataclass(frozen=True, slots=True)
class Handlers:
    """A whole handlers file.  ``ignored`` types need nothing; ``target`` is the topic or the function."""

    sink: SinkKind
    handlers: tuple[Handler, ...] = ()
    upcasts: tuple[Upcast, ...] = ()
    rules: tuple[QuarantineRule, ...] = ()
    ignored: frozenset[str] = frozenset()
    target: str | None = None
    unknown: Choice = Choice.QUARANTINE
    lost_branch: Choice = Choice.QUARANTINE
    tombstone: Choice = Choice.QUARANTINE
    """Records that have neither value nor headers, but those of Debezium's changes."""
    wants_headers: bool = False
    sha256: str = ""

    @property
    def known(self) -> frozenset[Kind]:
        """The types and versions that are taken as they are."""
        return frozenset(one.kind for one in self.handlers)

    @property
    def takes_all(self) -> bool:
        """Tell whether events of every type go to the sink as they are: no handler is named at all."""
        return not self.handlers and self.sink is not SinkKind.SQL


@dataclass(frozen=True, slots=True)
class HandlerIndex:
    """Finds the handler of an event."""

    handlers: Handlers
    _by_kind: dict[tuple[str | None, int], Handler] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_kind.update({one.kind: one for one in self.handlers.handlers})

    def find(self, kind: tuple[str | None, int], topic: str) -> Handler | None:
        """Return what takes a kind of a topic, None where nothing does."""
        found = self._by_kind.get(kind)
        return found if found is None or found.topics is None or topic in found.topics else None


def handler_mistakes(handlers: Handlers) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield everything that is wrong with the parts of a file together: the place, and words."""
    is_sql = handlers.sink is SinkKind.SQL
    if is_sql and not handlers.handlers:
        yield ("handler",), "a sql sink needs at least one"
    if is_sql == (handlers.target is not None):
        name = "call" if handlers.sink is SinkKind.CALLABLE else "topic"
        yield ("sink",), f"a {handlers.sink} sink " + ("has no target" if is_sql else f"needs {name}")
    seen: dict[Kind, int] = {}
    for at, one in enumerate(handlers.handlers):
        if one.kind in seen:
            yield ("handler", at), f"{one.event_type} {one.version} has one already, at [{seen[one.kind]}]"
        seen.setdefault(one.kind, at)
        if is_sql != bool(one.statements):
            yield (
                ("handler", at, "sql"),
                "this is required" if is_sql else f"a {handlers.sink} sink runs none",
            )
        if one.event_type in handlers.ignored:
            yield ("handler", at, "type"), f"{one.event_type} is under ignore as well"
        for number, statement in enumerate(one.statements):
            if (text := statement_mistake(statement)) is not None:
                yield ("handler", at, "sql", number), text
    for at, text in upcast_mistakes(handlers.upcasts, handlers.known):
        yield ("upcast", at), text
    for at, text in rule_mistakes(handlers.rules):
        yield ("quarantine", at), text


def statement_mistake(statement: str) -> str | None:
    """Say what keeps a statement from being a handler's, None if nothing is seen from its first word.

    The server alone can parse it; it is given one statement at a time, so nothing hides behind a semicolon.
    """
    blank = _BLANK.match(statement)
    word = _WORD.match(statement, blank.end() if blank else 0)
    if word is None:
        return "it does not begin with the name of a command"
    if word[0].lower() in _FORBIDDEN:
        return f"{word[0].upper()} is not for a handler: each batch is one transaction"
    return None
