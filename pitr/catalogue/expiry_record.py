"""The expire record: what the janitor has declared gone, as a value.  Pure.

Signed by the root key, for a host may not delete.  It comes first, the deletions after it: whatever it names
is gone for every reader from then on, whichever region still holds it.  Reference: docs/format.md §6.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pitr.catalogue.backup_record import check_backup_id
from pitr.catalogue.fields import Fields
from pitr.catalogue.records import Payload, archive_fields
from pitr.errors import MalformedValue
from pitr.layout import ArchiveId, PieceKey, SegmentKey, check_snapshot
from pitr.pipeline.sign import encode_time
from pitr.wal.segment import SegmentName

_NAMED_MAX = 200_000


@dataclass(frozen=True, slots=True)
class GoneBackup:
    """A backup that is no backup any more.  Its objects may be deleted from ``delete_after`` on.

    ``manifest_sha256`` and ``stopped_at`` let a reader check a head that still counts it.
    """

    backup: str
    manifest_sha256: bytes
    stopped_at: datetime
    delete_after: datetime


@dataclass(frozen=True, slots=True)
class GoneWal:
    """The segments ``first`` to ``last`` of one timeline, and the pieces that they are made of."""

    first: SegmentName
    last: SegmentName
    pieces: tuple[int, int] | None
    delete_after: datetime

    def __post_init__(self) -> None:
        if self.first.timeline != self.last.timeline or self.last < self.first:
            raise MalformedValue(f"WAL from {self.first} to {self.last} is no stretch of one timeline")
        if self.pieces is not None and not 0 < self.pieces[0] <= self.pieces[1]:
            raise MalformedValue(f"pieces from {self.pieces[0]} to {self.pieces[1]} are none")

    def holds(self, segment: SegmentName) -> bool:
        """Tell whether the segment is one of these."""
        return self.first <= segment <= self.last


@dataclass(frozen=True, slots=True)
class GoneEnvelope:
    """The envelope of a data key that nothing kept uses."""

    key_id: bytes
    delete_after: datetime


class NumberedKind(StrEnum):
    """What is kept beside an archive in numbered objects."""

    FENCES = "fences"
    SYNCS = "syncs"


@dataclass(frozen=True, slots=True)
class GoneBelow:
    """The objects of a kind whose sequence is less than ``below``."""

    kind: NumberedKind
    below: int
    delete_after: datetime

    def __post_init__(self) -> None:
        if self.below < 2:
            raise MalformedValue(f"no object of {self.kind} comes before {self.below}")


@dataclass(frozen=True, slots=True)
class GoneSnapshot:
    """A snapshot of derived state that is none any more.  Its parts may be deleted from then on."""

    snapshot: str
    delete_after: datetime


@dataclass(frozen=True, slots=True)
class GoneBeside:
    """What is gone of what is kept beside the WAL and the backups.  Records of before have none of it."""

    below: tuple[GoneBelow, ...] = ()
    snapshots: tuple[GoneSnapshot, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.below or self.snapshots)

    def first(self, kind: NumberedKind) -> int:
        """Return the first sequence of a kind that is not gone."""
        return max((each.below for each in self.below if each.kind is kind), default=1)

    def names_snapshot(self, snapshot: str) -> bool:
        """Tell whether the snapshot is gone."""
        return any(each.snapshot == snapshot for each in self.snapshots)

    def to_payload(self) -> Payload:
        """Return the fields, none where nothing is gone: a record of before has the same text."""
        fields: dict[str, object] = {}
        if self.below:
            fields["below"] = [
                {"kind": str(each.kind), "below": each.below, "delete_after": encode_time(each.delete_after)}
                for each in self.below
            ]
        if self.snapshots:
            fields["snapshots"] = [
                {"snapshot": each.snapshot, "delete_after": encode_time(each.delete_after)}
                for each in self.snapshots
            ]
        return fields

    @classmethod
    def read(cls, fields: Fields) -> GoneBeside:
        """Read what ``to_payload`` wrote.  Raises MalformedValue."""
        below = fields.objects("below", count_max=_NAMED_MAX) if fields.holds("below") else ()
        snapshots = fields.objects("snapshots", count_max=_NAMED_MAX) if fields.holds("snapshots") else ()
        return cls(
            tuple(
                GoneBelow(
                    NumberedKind(item.choice("kind", list(NumberedKind))),
                    item.integer("below", least=2),
                    item.time("delete_after"),
                )
                for item in below
            ),
            tuple(
                GoneSnapshot(check_snapshot(item.text("snapshot")), item.time("delete_after"))
                for item in snapshots
            ),
        )


@dataclass(frozen=True, slots=True)
class GoneAttempt:
    """An attempt at a backup that nobody ended: its id, under which no manifest counts any more."""

    backup: str
    delete_after: datetime


@dataclass(frozen=True, slots=True)
class ExpireRecord:
    """What is gone of one archive.  The newest record is the one that counts.

    It repeats from the one before it all WAL, and of all else what some region may still hold.
    ``window_s`` and ``minimum_full_backups`` are the policy that it was decided by.
    """

    repository: str
    archive: ArchiveId
    sequence: int
    previous: bytes | None
    at: datetime
    window_s: int
    minimum_full_backups: int
    backups: tuple[GoneBackup, ...]
    wal: tuple[GoneWal, ...]
    envelopes: tuple[GoneEnvelope, ...]
    beside: GoneBeside = GoneBeside()
    attempts: tuple[GoneAttempt, ...] = ()

    def __post_init__(self) -> None:
        if self.sequence < 1 or (self.sequence == 1) != (self.previous is None):
            raise MalformedValue(f"expire record {self.sequence}: only the first one has no predecessor")

    def names_backup(self, backup: str) -> bool:
        """Tell whether the backup is gone, or was an attempt at one that is."""
        return backup in self.deletions

    @property
    def deletions(self) -> dict[str, datetime]:
        """From when on what lies below an id may be deleted: a backup's, or an attempt's."""
        return {
            **{gone.backup: gone.delete_after for gone in self.backups},
            **{gone.backup: gone.delete_after for gone in self.attempts},
        }

    def names_wal(self, key: PieceKey | SegmentKey) -> bool:
        """Tell whether a WAL object is gone."""
        return any(gone.holds(key.segment) for gone in self.wal)

    def names_pieces(self, first: int, last: int) -> set[int]:
        """Return which of the pieces ``first`` to ``last`` are gone."""
        found: set[int] = set()
        for gone in self.wal:
            if gone.pieces is not None:
                found.update(range(max(first, gone.pieces[0]), min(last, gone.pieces[1]) + 1))
        return found

    def to_payload(self) -> Payload:
        return {
            **archive_fields("expire", self.repository, self.archive),
            "sequence": self.sequence,
            "previous": None if self.previous is None else self.previous.hex(),
            "at": encode_time(self.at),
            "window_s": self.window_s,
            "minimum_full_backups": self.minimum_full_backups,
            "backups": [
                {
                    "backup": gone.backup,
                    "manifest_sha256": gone.manifest_sha256.hex(),
                    "stopped_at": encode_time(gone.stopped_at),
                    "delete_after": encode_time(gone.delete_after),
                }
                for gone in self.backups
            ],
            "wal": [
                {
                    "first": str(gone.first),
                    "last": str(gone.last),
                    "pieces": None if gone.pieces is None else list(gone.pieces),
                    "delete_after": encode_time(gone.delete_after),
                }
                for gone in self.wal
            ],
            "envelopes": [
                {"key_id": gone.key_id.hex(), "delete_after": encode_time(gone.delete_after)}
                for gone in self.envelopes
            ],
            **self.beside.to_payload(),
            **self._attempt_fields(),
        }

    def _attempt_fields(self) -> Payload:
        # A record of before 2026-11-30 is put again as it was, byte for byte.
        named = [
            {"backup": gone.backup, "delete_after": encode_time(gone.delete_after)} for gone in self.attempts
        ]
        return {"attempts": named} if named else {}

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> ExpireRecord:
        fields = Fields(payload, "expire")
        return cls(
            repository=fields.repository(),
            archive=fields.archive(),
            sequence=fields.integer("sequence", least=1),
            previous=fields.optional("previous", fields.digest),
            at=fields.time("at"),
            window_s=fields.integer("window_s"),
            minimum_full_backups=fields.integer("minimum_full_backups"),
            backups=tuple(
                GoneBackup(
                    check_backup_id(item.text("backup")),
                    item.digest("manifest_sha256"),
                    item.time("stopped_at"),
                    item.time("delete_after"),
                )
                for item in fields.objects("backups", count_max=_NAMED_MAX)
            ),
            wal=tuple(_read_wal(item) for item in fields.objects("wal", count_max=_NAMED_MAX)),
            envelopes=tuple(
                GoneEnvelope(item.key_id("key_id"), item.time("delete_after"))
                for item in fields.objects("envelopes", count_max=_NAMED_MAX)
            ),
            beside=GoneBeside.read(fields),
            attempts=_read_attempts(fields),
        )


def _read_attempts(fields: Fields) -> tuple[GoneAttempt, ...]:
    if not fields.holds("attempts"):
        return ()
    items = fields.objects("attempts", count_max=_NAMED_MAX)
    return tuple(
        GoneAttempt(check_backup_id(item.text("backup")), item.time("delete_after")) for item in items
    )


def _read_wal(fields: Fields) -> GoneWal:
    pieces: tuple[int, int] | None = None
    if not fields.is_null("pieces"):
        numbers = fields.as_integers("pieces", fields.items("pieces", count_max=2), count=2)
        if len(numbers) != 2:
            raise MalformedValue("expire record: pieces must be two integers")
        pieces = (numbers[0], numbers[1])
    return GoneWal(
        SegmentName.parse(fields.text("first")),
        SegmentName.parse(fields.text("last")),
        pieces,
        fields.time("delete_after"),
    )
