"""Quarantine: which events are held back, and why.  Pure.

A *rule* names events that must not be replayed, such as an attacker's: all that it says must be true of one.
What comes after them is replayed, unless the rule says that it stops the key.  An event that cannot be
applied (*poison*), read or upcast always stops its key: later events of the key are held behind it, in their
order, until they are released.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Protocol

from pitr.events.broker import EventRecord
from pitr.wal.lsn import LSN

KEYS_STOPPED_MAX: Final = 100_000
"""More than this many keys at a stand is no accident of single events; each costs about 200 bytes."""


class Reason(StrEnum):
    """Why an event is held back."""

    RULE = "rule"
    POISON = "poison"
    UNREADABLE = "unreadable"
    UNKNOWN_VERSION = "unknown version"
    UNKNOWN_TYPE = "unknown type"
    NO_ID = "no event id"
    UPCAST = "upcast failed"
    BEHIND = "behind a held event"
    LOST_BRANCH = "lost branch"
    UNCLASSIFIED = "unknown transaction"
    DROPPED = "dropped"
    """Somebody decided that it is never applied; its key waits for it no longer."""


STOPPING: Final = frozenset(
    {
        Reason.POISON,
        Reason.UNREADABLE,
        Reason.UNKNOWN_VERSION,
        Reason.UNKNOWN_TYPE,
        Reason.NO_ID,
        Reason.UPCAST,
        Reason.BEHIND,
        Reason.UNCLASSIFIED,
    }
)
"""What lies behind such an event must wait: its own effect may rest on this one's."""


class Described(Protocol):
    """What an event says of itself (``event_facts``); None where it says nothing."""

    @property
    def event_id(self) -> str | None: ...

    @property
    def type(self) -> str | None: ...

    @property
    def version(self) -> int: ...

    @property
    def principal(self) -> str | None: ...

    @property
    def commit_lsn(self) -> LSN | None: ...

    @property
    def is_tombstone(self) -> bool: ...

    @property
    def problem(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class OffsetSpan:
    """Offsets of a topic, of one partition or of all: ``first <= offset < end``; None is without bound."""

    topic: str
    partition: int | None = None
    first: int | None = None
    end: int | None = None

    def holds(self, record: EventRecord) -> bool:
        """Tell whether a record is in it."""
        return (
            record.at.topic == self.topic
            and (self.partition is None or record.at.partition == self.partition)
            and (self.first is None or record.offset >= self.first)
            and (self.end is None or record.offset < self.end)
        )


@dataclass(frozen=True, slots=True)
class QuarantineRule:
    """Events to hold back: those of which everything given here is true.  Texts may hold ``*`` and ``?``.

    ``since`` and ``until`` compare the record's timestamp, which may be the producer's claim.
    ``after_lsn`` is the corruption point: events whose commit is at or after it; one that does not say where
    its commit is counts as after it, for nothing proves that it is not.
    """

    name: str
    principals: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    offsets: tuple[OffsetSpan, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    after_lsn: LSN | None = None
    stops_key: bool = False

    @property
    def is_empty(self) -> bool:
        """Tell whether it says nothing, and so would hold back everything."""
        return not any((self.principals, self.keys, self.types, self.schemas, self.offsets)) and (
            self.since,
            self.until,
            self.after_lsn,
        ) == (None, None, None)

    def holds(self, record: EventRecord, described: Described) -> bool:
        """Tell whether this event is to be held back."""
        if self.offsets and not any(span.holds(record) for span in self.offsets):
            return False
        if not (
            _fits(self.principals, described.principal)
            and _fits(self.types, described.type)
            and (not self.schemas or _fits(self.schemas, schema_of(record)))
            and (not self.keys or _fits(self.keys, shown_key(record.key)))
        ):
            return False
        if self.after_lsn is not None and (
            described.commit_lsn is not None and described.commit_lsn < self.after_lsn
        ):
            return False
        if self.since is None and self.until is None:
            return True
        at = record.timestamp_ms
        return (self.since is None or at >= _ms(self.since)) and (self.until is None or at < _ms(self.until))


def first_rule(
    rules: Sequence[QuarantineRule], record: EventRecord, described: Described
) -> QuarantineRule | None:
    """Return the first rule that holds an event back."""
    for rule in rules:
        if rule.holds(record, described):
            return rule
    return None


def rule_mistakes(rules: Sequence[QuarantineRule]) -> Iterator[tuple[int, str]]:
    """Yield what is wrong with rules: the index of one, and words."""
    names = [one.name for one in rules]
    for at, one in enumerate(rules):
        if one.name in names[:at]:
            yield at, f"the name {one.name!r} is given twice"
        if one.is_empty:
            yield at, "it says nothing, and would hold back every event"
        if one.since is not None and one.until is not None and one.since >= one.until:
            yield at, "since is not before until, so it holds back nothing"
        for span in one.offsets:
            if span.first is not None and span.end is not None and span.first >= span.end:
                yield at, f"offsets of {span.topic}: first is not below end, so it holds back nothing"


def shown_key(key: bytes | None) -> str | None:
    """Return a key as people read it; bytes that are no UTF-8 as ``\\xNN``."""
    return None if key is None else key.decode("utf-8", "backslashreplace")


def schema_of(record: EventRecord) -> str | None:
    """Return the name or number of a record's schema, from its header or from a registry's frame.

    A registry's serialisers put a zero byte and a 32-bit number before the value.
    """
    named = record.header("schema") or record.header("schema-id")
    if named is not None:
        return named[:256].decode("utf-8", "backslashreplace")
    value = record.value
    return str(int.from_bytes(value[1:5], "big")) if value and value[0] == 0 and len(value) >= 5 else None


def _fits(patterns: Sequence[str], text: str | None) -> bool:
    return not patterns or (
        text is not None and any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)
    )


def _ms(moment: datetime) -> int:
    # Whole milliseconds: a float of microseconds since 1970 would be off by one at times.
    passed = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (passed.days * 86_400 + passed.seconds) * 1000 + passed.microseconds // 1000
