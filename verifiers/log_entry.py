"""Entries of a verifier's log: what it is about to do, and what came of it, as values.  Pure.

Reference: docs/format.md §10; docs/audit.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pitr.catalogue.fields import Fields
from pitr.errors import MalformedValue
from pitr.pipeline.sign import (
    Signer,
    Verifier,
    decode_payload,
    encode_payload,
    encode_time,
    open_typed,
    record_type,
    sign_typed,
)
from verifiers.merkle import leaf_hash

ENTRY_TYPE = record_type("log-entry")
# The digests of a thousand backups' manifests; a log is read whole by whoever audits it.
ENTRY_BYTES_MAX = 256 * 1024
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_KIND = re.compile(r"[a-z][a-z0-9-]{0,62}")


class EntryKind(StrEnum):
    """What an entry tells.  A reader takes one that it does not know for what it is: a text."""

    VERIFICATION_INTENDED = "verification-intended"
    VERIFICATION_ENDED = "verification-ended"
    VERIFICATION_MISSED = "verification-missed"
    DRILL_INTENDED = "drill-intended"
    DRILL_ENDED = "drill-ended"
    DRILL_MISSED = "drill-missed"
    REPORT_CERTIFIED = "report-certified"
    OBSERVED = "observed"
    KEY_EVENT = "key-event"
    PERIOD_REPORT = "period-report"
    CONSOLIDATED = "backup-consolidated"


INTENTS = {
    EntryKind.VERIFICATION_INTENDED: EntryKind.VERIFICATION_ENDED,
    EntryKind.DRILL_INTENDED: EntryKind.DRILL_ENDED,
}
"""What is intended, and the kind of the entry that says what came of it."""

ABANDONED = "ABANDONED"
"""The outcome of a run that never came to a report: it was killed, or could not begin."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Entry ``sequence`` (from 0) of the log ``log``; ``facts`` is JSON without floats, and has no secret."""

    log: str
    sequence: int
    at: datetime
    kind: str
    run_id: str
    facts: Mapping[str, object]

    def __post_init__(self) -> None:
        if self.sequence < 0 or _KIND.fullmatch(self.kind) is None or _RUN_ID.fullmatch(self.run_id) is None:
            raise MalformedValue(
                f"not an entry of a log: {self.sequence} {self.kind[:80]!r} {self.run_id[:80]!r}"
            )

    def content(self) -> bytes:
        """Return the entry's one text, which its leaf is the hash of.  Raises MalformedValue if too long."""
        content = encode_payload(
            {
                "log": self.log,
                "sequence": self.sequence,
                "at": encode_time(self.at),
                "kind": str(self.kind),
                "run_id": self.run_id,
                "facts": self.facts,
            }
        )
        if len(content) > ENTRY_BYTES_MAX:
            raise MalformedValue(f"log entry has {len(content)} bytes; the limit is {ENTRY_BYTES_MAX}")
        return content

    def leaf(self) -> bytes:
        """Return the hash of the entry's leaf in the tree."""
        return leaf_hash(self.content())

    def text(self, fact: str) -> str | None:
        """Return a fact that is a text; None if there is no such one."""
        value = self.facts.get(fact)
        return value if isinstance(value, str) else None

    @classmethod
    def parse(cls, content: bytes) -> LogEntry:
        """Read an entry's text, in its one spelling.  Raises MalformedValue."""
        if len(content) > ENTRY_BYTES_MAX:
            raise MalformedValue("log entry is too long")
        fields = Fields(decode_payload(content), "log entry", checked=True)
        entry = cls(
            fields.text("log"),
            fields.integer("sequence"),
            fields.time("at"),
            fields.text("kind"),
            fields.text("run_id"),
            fields.mapping("facts"),
        )
        if entry.content() != content:
            raise MalformedValue("log entry has fields that it must not have")
        return entry


def sign_entry(entry: LogEntry, signer: Signer) -> bytes:
    """Return the entry's object: always the same for the same entry."""
    return sign_typed(entry.content(), ENTRY_TYPE, signer)


def open_entry(body: bytes, verifier: Verifier) -> LogEntry:
    """Return an entry from its object.  Raises NotAuthentic, MalformedValue."""
    return LogEntry.parse(open_typed(body, verifier, ENTRY_TYPE))
