"""What a period report is made of, as values: what the log tells, and what the store has.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pitr.catalogue.event_record import EventRecord
from pitr.expiry_reader import ListedExpiry
from pitr.repository import ListedBackup
from verifiers.log_entry import LogEntry
from verifiers.log_reader import SignedCheckpoint
from verifiers.report_series import LoggedReport
from verifiers.statement import Predicate


@dataclass(frozen=True, slots=True)
class Period:
    """From ``start`` until before ``end``, of one cluster."""

    start: datetime
    end: datetime
    system_identifier: int

    def holds(self, at: datetime) -> bool:
        """Tell whether a moment is in it."""
        return self.start <= at < self.end


@dataclass(frozen=True, slots=True)
class Run:
    """A report, as the log and as the report itself have it; ``ended`` is the entry that tells of it."""

    logged: LoggedReport
    predicate: Predicate
    ended: LogEntry


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """Something that happened to a key: the verifier's, a person's or the host's."""

    at: datetime
    event: str
    detail: str


@dataclass(frozen=True, slots=True)
class HostRecord:
    """What the host and the root signed of the cluster, all archives; ``faults`` is what cannot be used.

    ``expired`` has each record with the one before it, which says what is new in it.
    """

    backups: Sequence[ListedBackup]
    refused: int
    expired: Sequence[tuple[ListedExpiry, ListedExpiry | None]]
    events: Sequence[EventRecord]
    keys: Sequence[KeyEvent]
    root_key_id: str
    faults: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the configuration says, for where no report does, and who makes the report."""

    organisation: str
    system_name: str
    policy_id: str
    policy_sha256: str
    every_ms: int | None
    rto_ms: int | None
    rpo_ms: int | None
    verifier_name: str
    product_version: str


@dataclass(frozen=True, slots=True)
class PeriodFacts:
    """All that a period report says.  ``entries`` are what ``checkpoint`` covers, ``runs`` those in them."""

    report_id: str
    repository: str
    origin: str
    key_id: str
    created_at: datetime
    period: Period
    entries: Sequence[LogEntry]
    checkpoint: SignedCheckpoint
    runs: Sequence[Run]
    host: HostRecord
    wanted: Wanted
