"""The record of a signed event: something that changed what the archive promises, as a value.  Pure.

Commits that were acknowledged with less than the quorum, WAL that was let go, an end that a failover left
behind: an auditor must find these without trusting a log file.  Reference: docs/format.md §6.7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pitr.catalogue.fields import Fields
from pitr.catalogue.records import Payload, archive_fields
from pitr.errors import MalformedValue
from pitr.layout import ArchiveId
from pitr.pipeline.sign import encode_time

FACTS_MAX = 32
MESSAGE_CHARS_MAX = 2000
FACT_CHARS_MAX = 500
_FACT_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class EventKind(StrEnum):
    """What happened.  A reader takes one that it does not know for what it is: a text."""

    PROTECTION_LOWERED = "protection-lowered"
    PROTECTION_RESTORED = "protection-restored"
    COMMITS_RELEASED = "commits-released"
    COMMITS_HELD_AGAIN = "commits-held-again"
    COMMITS_WAITED = "commits-waited"
    RELEASE_LEFT = "release-left"
    WAL_LOST = "wal-lost"
    SLOT_DROPPED = "slot-dropped"
    END_ORPHANED = "end-orphaned"
    WRITERS_CONFLICT = "writers-conflict"
    ADOPTED = "adopted"


@dataclass(frozen=True, slots=True)
class Happening:
    """What happened, when, in words and in facts; not yet signed.

    ``facts`` are short texts by name: LSNs, timelines, counts.  Neither they nor the words hold a secret.
    """

    at: datetime
    event: str
    message: str
    facts: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if _FACT_NAME.fullmatch(self.event.replace("-", "_")) is None:
            raise MalformedValue(f"not an event's kind: {self.event[:80]!r}")
        if not 0 < len(self.message) <= MESSAGE_CHARS_MAX:
            raise MalformedValue(f"an event's message has 1 to {MESSAGE_CHARS_MAX} characters")
        names = [name for name, _ in self.facts]
        if len(names) > FACTS_MAX or sorted(set(names)) != names:
            raise MalformedValue(f"an event has at most {FACTS_MAX} facts, in the order of their names")
        for name, text in self.facts:
            if _FACT_NAME.fullmatch(name) is None or len(text) > FACT_CHARS_MAX:
                raise MalformedValue(f"not a fact of an event: {name[:80]!r}")

    @classmethod
    def of(cls, at: datetime, event: EventKind, message: str, **facts: object) -> Happening:
        """Return it with facts as they come; what is too long is cut, for it must not be lost."""
        texts = tuple(sorted((name, str(fact)[:FACT_CHARS_MAX]) for name, fact in facts.items()))
        return cls(at, event.value, message[:MESSAGE_CHARS_MAX], texts)

    def fact(self, name: str) -> str | None:
        """Return a fact; None if there is none of the name."""
        return dict(self.facts).get(name)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Event ``sequence`` (from 1) of an archive; ``previous`` is the SHA-256 of its predecessor's payload."""

    repository: str
    archive: ArchiveId
    sequence: int
    previous: bytes | None
    happening: Happening

    def __post_init__(self) -> None:
        if self.sequence < 1 or (self.sequence == 1) != (self.previous is None):
            raise MalformedValue(f"event {self.sequence}: only the first event has no predecessor")

    def to_payload(self) -> Payload:
        happening = self.happening
        return {
            **archive_fields("event", self.repository, self.archive),
            "sequence": self.sequence,
            "previous": None if self.previous is None else self.previous.hex(),
            "at": encode_time(happening.at),
            "event": happening.event,
            "message": happening.message,
            "facts": dict(happening.facts),
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> EventRecord:
        fields = Fields(payload, "event")
        facts = fields.mapping("facts")
        texts = sorted((name, fields.as_text("facts", value)) for name, value in facts.items())
        return cls(
            repository=fields.repository(),
            archive=fields.archive(),
            sequence=fields.integer("sequence", least=1),
            previous=fields.optional("previous", fields.digest),
            happening=Happening(
                fields.time("at"), fields.text("event"), fields.text("message"), tuple(texts)
            ),
        )
