"""The signed header of an object that holds fences: which ones, in which order, after which.  Pure.

What it says in the open is where in WAL and when fences were taken, as heads say it too; which topics there
are, and what offsets, is sealed.  Reference: docs/format.md §6.9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pitr.catalogue.fields import Fields
from pitr.catalogue.records import Payload, archive_fields
from pitr.errors import MalformedValue
from pitr.events.fence import Fence
from pitr.layout import ArchiveId
from pitr.pipeline.sign import encode_time
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

KIND = "fences"
COUNT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class FencePlace:
    """Where a fence's mark lies: its commit record is at or after ``lsn``, and ends by ``committed_by``."""

    number: int
    timeline: TimelineId
    lsn: LSN
    committed_by: LSN
    at: datetime

    @classmethod
    def of(cls, fence: Fence) -> FencePlace:
        """Return the place of a fence that is whole."""
        if fence.committed_by is None:
            raise MalformedValue(f"fence {fence.mark.number} does not say by where it was committed")
        mark = fence.mark
        return cls(mark.number, mark.timeline, mark.lsn, fence.committed_by, mark.at)

    def to_payload(self) -> Payload:
        return {
            "number": self.number,
            "timeline": str(self.timeline),
            "lsn": str(self.lsn),
            "committed_by": str(self.committed_by),
            "at": encode_time(self.at),
        }

    @classmethod
    def read(cls, fields: Fields) -> FencePlace:
        return cls(
            fields.integer("number", least=1),
            fields.timeline("timeline"),
            fields.lsn("lsn"),
            fields.lsn("committed_by"),
            fields.time("at"),
        )


@dataclass(frozen=True, slots=True)
class FencesHeader:
    """Object ``sequence`` (from 1) of an archive's fences; ``previous`` is the SHA-256 of the last header."""

    repository: str
    archive: ArchiveId
    sequence: int
    previous: bytes | None
    count: int
    first: FencePlace
    last: FencePlace
    key_id: bytes

    def __post_init__(self) -> None:
        if self.sequence < 1 or (self.sequence == 1) != (self.previous is None):
            raise MalformedValue(f"fences {self.sequence}: only the first object has no predecessor")
        if not 1 <= self.count <= COUNT_MAX:
            raise MalformedValue(f"fences {self.sequence}: an object holds 1 to {COUNT_MAX}")

    def to_payload(self) -> Payload:
        return {
            **archive_fields(KIND, self.repository, self.archive),
            "sequence": self.sequence,
            "previous": None if self.previous is None else self.previous.hex(),
            "count": self.count,
            "first": self.first.to_payload(),
            "last": self.last.to_payload(),
            "key_id": self.key_id.hex(),
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> FencesHeader:
        fields = Fields(payload, KIND)
        return cls(
            fields.repository(),
            fields.archive(),
            fields.integer("sequence", least=1),
            fields.optional("previous", fields.digest),
            fields.integer("count", least=1, most=COUNT_MAX),
            FencePlace.read(fields.inner("first")),
            FencePlace.read(fields.inner("last")),
            fields.key_id("key_id"),
        )
