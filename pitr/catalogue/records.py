"""Records of a repository: its identity, who writes each archive, timelines and signed ends.  Pure.

``to_payload`` gives the JSON object that is signed, ``from_payload`` reads one strictly
(MalformedValue).  A record that came through ``pitr.repository`` was verified before it was read.
WAL's records are in ``wal_records``, a backup's manifest in ``backup_record``.  The promise is
docs/format.md §6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from pitr.catalogue.fields import Fields, base64_text
from pitr.errors import MalformedValue
from pitr.layout import ArchiveId
from pitr.pipeline.sign import encode_time
from pitr.quorum import REGIONS_MAX, WriteQuorum
from pitr.wal.lsn import LSN
from pitr.wal.timeline import HISTORY_BYTES_MAX, TimelineHistory, TimelineId

_RECIPIENTS_MAX = 64

Payload: TypeAlias = dict[str, object]


def archive_fields(kind: str, repository: str, archive: ArchiveId) -> Payload:
    """Return the fields that every record of an archive begins with."""
    return {
        "kind": kind,
        "repository": repository,
        "system_identifier": str(archive.system_identifier),
        "epoch": archive.epoch,
    }


@dataclass(frozen=True, slots=True)
class RepositoryRecord:
    """What a repository is: its root key (as a claim only) and the recipients of new data keys."""

    repository: str
    created_at: datetime
    root: str
    recipients: tuple[str, ...]

    def to_payload(self) -> Payload:
        return {
            "kind": "repository",
            "repository": self.repository,
            "created_at": encode_time(self.created_at),
            "root": self.root,
            "recipients": list(self.recipients),
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> RepositoryRecord:
        fields = Fields(payload, "repository")
        recipients = fields.texts("recipients", count_max=_RECIPIENTS_MAX)
        return cls(fields.repository(), fields.time("created_at"), fields.text("root"), recipients)


@dataclass(frozen=True, slots=True)
class EpochParent:
    """Where a writer epoch left its parent: the parent's WAL from ``lsn`` on is not this epoch's past."""

    epoch: int
    timeline: TimelineId
    lsn: LSN


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """Who may write an archive, and where it comes from."""

    repository: str
    archive: ArchiveId
    created_at: datetime
    signer: str
    parent: EpochParent | None = None

    def __post_init__(self) -> None:
        # A parent with a larger number would allow a ring of epochs, and a reader that never ends.
        if self.parent is not None and not 0 < self.parent.epoch < self.archive.epoch:
            raise MalformedValue(
                f"epoch {self.archive.epoch} cannot come from epoch {self.parent.epoch}: a parent is older"
            )

    def to_payload(self) -> Payload:
        parent = self.parent
        return {
            **archive_fields("epoch", self.repository, self.archive),
            "created_at": encode_time(self.created_at),
            "signer": self.signer,
            "parent": None
            if parent is None
            else {"epoch": parent.epoch, "timeline": str(parent.timeline), "lsn": str(parent.lsn)},
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> EpochRecord:
        fields = Fields(payload, "epoch")
        parent: EpochParent | None = None
        if not fields.is_null("parent"):
            inner = fields.inner("parent")
            epoch = inner.integer("epoch", least=1, most=99_999_999)
            parent = EpochParent(epoch, inner.timeline("timeline"), inner.lsn("lsn"))
        return cls(
            fields.repository(), fields.archive(), fields.time("created_at"), fields.text("signer"), parent
        )


@dataclass(frozen=True, slots=True)
class HistoryRecord:
    """A timeline history file as the server gave it."""

    repository: str
    archive: ArchiveId
    timeline: TimelineId
    content: bytes

    def history(self) -> TimelineHistory:
        """Return the parsed file.  Raises MalformedValue."""
        return TimelineHistory.parse(self.timeline, self.content)

    def to_payload(self) -> Payload:
        return {
            **archive_fields("timeline-history", self.repository, self.archive),
            "timeline": str(self.timeline),
            "content": base64_text(self.content),
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> HistoryRecord:
        fields = Fields(payload, "timeline-history")
        content = fields.base64("content", size_bytes_max=HISTORY_BYTES_MAX)
        return cls(fields.repository(), fields.archive(), fields.timeline("timeline"), content)


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """The signed end of an archive at a time: contiguous WAL at quorum from ``wal_start`` to ``wal_end``.

    ``previous`` is the SHA-256 of head ``sequence - 1``'s payload; the first head has none.
    ``quorum`` is the writer's own; None in a head of before it was written there (docs/adr/0003).
    """

    repository: str
    archive: ArchiveId
    sequence: int
    previous: bytes | None
    at: datetime
    timeline: TimelineId
    wal_start: LSN | None
    wal_end: LSN | None
    piece_sequence: int
    piece_sha256: bytes | None
    backups_count: int
    backups_sha256: bytes
    quorum: WriteQuorum | None = None

    def __post_init__(self) -> None:
        if self.sequence < 1 or (self.sequence == 1) != (self.previous is None):
            raise MalformedValue(f"head {self.sequence}: only the first head has no predecessor")
        if (self.wal_start is None) != (self.wal_end is None):
            raise MalformedValue(f"head {self.sequence}: WAL has a start and an end, or neither")
        if self.wal_start is not None and self.wal_end is not None and self.wal_end < self.wal_start:
            raise MalformedValue(f"head {self.sequence}: WAL ends before it starts")
        if (self.piece_sequence == 0) != (self.piece_sha256 is None):
            raise MalformedValue(f"head {self.sequence}: the last piece has a digest, or there is none")

    def to_payload(self) -> Payload:
        return {
            **archive_fields("head", self.repository, self.archive),
            "sequence": self.sequence,
            "previous": None if self.previous is None else self.previous.hex(),
            "at": encode_time(self.at),
            "timeline": str(self.timeline),
            "wal_start": None if self.wal_start is None else str(self.wal_start),
            "wal_end": None if self.wal_end is None else str(self.wal_end),
            "piece_sequence": self.piece_sequence,
            "piece_sha256": None if self.piece_sha256 is None else self.piece_sha256.hex(),
            "backups": {"count": self.backups_count, "sha256": self.backups_sha256.hex()},
            "quorum": None
            if self.quorum is None
            else {"regions": self.quorum.regions, "acknowledged_by": self.quorum.acknowledged_by},
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> HeadRecord:
        fields = Fields(payload, "head")
        backups = fields.inner("backups")
        return cls(
            repository=fields.repository(),
            archive=fields.archive(),
            sequence=fields.integer("sequence", least=1),
            previous=fields.optional("previous", fields.digest),
            at=fields.time("at"),
            timeline=fields.timeline("timeline"),
            wal_start=fields.optional("wal_start", fields.lsn),
            wal_end=fields.optional("wal_end", fields.lsn),
            piece_sequence=fields.integer("piece_sequence"),
            piece_sha256=fields.optional("piece_sha256", fields.digest),
            backups_count=backups.integer("count"),
            backups_sha256=backups.digest("sha256"),
            quorum=_quorum(fields.inner("quorum")) if fields.holds("quorum") else None,
        )


def _quorum(fields: Fields) -> WriteQuorum:
    return WriteQuorum(
        fields.integer("regions", least=1, most=REGIONS_MAX),
        fields.integer("acknowledged_by", least=1, most=REGIONS_MAX),
    )
