"""The record of a snapshot of Redis: which nodes, which slots, when, and what their files came to.  Pure.

Reference: docs/format.md §11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pitr.catalogue.fields import Fields
from pitr.catalogue.records import Payload, archive_fields
from pitr.derived.topology import MASTERS_MAX, SLOTS, SlotRange
from pitr.errors import MalformedValue
from pitr.layout import ArchiveId, derived_key
from pitr.pipeline.sign import encode_time

KIND: Final = "redis-snapshot"
PARTS_MAX: Final = 1_000_000
# The name of the cluster in the configuration, the host's, and a version: none comes near.
_TEXT_CHARS_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class SnapshotPart:
    """One sealed object: its bytes in the store and their SHA-256."""

    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """One master's RDB file.  ``began_at`` and ``ended_at`` are by the clock of that server.

    What the file holds was in the server at a moment between the two: Redis says no nearer.
    """

    node_id: str
    address: str
    redis_version: str
    slots: tuple[SlotRange, ...]
    began_at: datetime
    ended_at: datetime
    keys: int
    size_bytes: int
    sha256: bytes
    parts: tuple[SnapshotPart, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.parts) <= PARTS_MAX:
            raise MalformedValue(f"a node's snapshot has 1 to {PARTS_MAX} parts")
        if max(len(text) for text in (self.node_id, self.address, self.redis_version)) > _TEXT_CHARS_MAX:
            raise MalformedValue("a node's snapshot names a node or a version that is too long")

    def to_payload(self) -> Payload:
        return {
            "node_id": self.node_id,
            "address": self.address,
            "redis_version": self.redis_version,
            "slots": [[one.first, one.last] for one in self.slots],
            "began_at": encode_time(self.began_at),
            "ended_at": encode_time(self.ended_at),
            "keys": self.keys,
            "bytes": self.size_bytes,
            "sha256": self.sha256.hex(),
            "parts": [{"bytes": one.size_bytes, "sha256": one.sha256.hex()} for one in self.parts],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> NodeSnapshot:
        slots = [
            fields.as_integers("slots", one, count=2)
            for one in fields.lists("slots", count_max=SLOTS, least=2)
        ]
        return cls(
            fields.text("node_id"),
            fields.text("address"),
            fields.text("redis_version"),
            tuple(SlotRange(first, last) for first, last in slots),
            fields.time("began_at"),
            fields.time("ended_at"),
            fields.integer("keys"),
            fields.integer("bytes", least=1),
            fields.digest("sha256"),
            tuple(
                SnapshotPart(one.integer("bytes", least=1), one.digest("sha256"))
                for one in fields.objects("parts", count_max=PARTS_MAX)
            ),
        )


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot of all masters.  ``taken_at`` and ``finished_at`` are by the host's clock."""

    repository: str
    archive: ArchiveId
    snapshot: str
    name: str
    is_cluster: bool
    taken_at: datetime
    finished_at: datetime
    key_id: bytes
    nodes: tuple[NodeSnapshot, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.nodes) <= MASTERS_MAX:
            raise MalformedValue(f"a snapshot has 1 to {MASTERS_MAX} nodes")
        if f"-{self.name}-" not in self.snapshot:
            raise MalformedValue(f"snapshot {self.snapshot} is not one of {self.name!r}")

    @property
    def key(self) -> str:
        return derived_key(self.archive, self.snapshot)

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.nodes)

    @property
    def began_at(self) -> datetime:
        """Return when the first node's file was begun; nothing in the snapshot is older than that."""
        return min(one.began_at for one in self.nodes)

    @property
    def ended_at(self) -> datetime:
        """Return when the last node's file was whole; nothing in the snapshot is newer than that."""
        return max(one.ended_at for one in self.nodes)

    def to_payload(self) -> Payload:
        return {
            **archive_fields(KIND, self.repository, self.archive),
            "snapshot": self.snapshot,
            "name": self.name,
            "cluster": self.is_cluster,
            "taken_at": encode_time(self.taken_at),
            "finished_at": encode_time(self.finished_at),
            "key_id": self.key_id.hex(),
            "nodes": [one.to_payload() for one in self.nodes],
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> SnapshotRecord:
        fields = Fields(payload, KIND)
        return cls(
            repository=fields.repository(),
            archive=fields.archive(),
            snapshot=fields.text("snapshot"),
            name=fields.text("name"),
            is_cluster=fields.boolean("cluster"),
            taken_at=fields.time("taken_at"),
            finished_at=fields.time("finished_at"),
            key_id=fields.key_id("key_id"),
            nodes=tuple(
                NodeSnapshot.from_fields(one) for one in fields.objects("nodes", count_max=MASTERS_MAX)
            ),
        )


def newest_before(records: tuple[SnapshotRecord, ...], at: datetime | None) -> SnapshotRecord | None:
    """Return the newest snapshot whose files were all whole at ``at``; without it the newest of all.

    One that was still being taken then may hold what was written later.
    """
    fitting = [one for one in records if at is None or one.ended_at <= at]
    return max(fitting, key=lambda one: (one.ended_at, one.snapshot), default=None)
