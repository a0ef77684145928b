"""The manifest of a base backup, as a value.  Pure.

Written last, it is what makes a backup: packs that no manifest names are only bytes.
Reference: docs/format.md §8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from pitr.catalogue.backup_signs import NO_SIGNS, BackupSigns
from pitr.catalogue.fields import Fields, base64_text
from pitr.catalogue.records import Payload, archive_fields
from pitr.errors import MalformedValue
from pitr.layout import ArchiveId, backup_prefix
from pitr.pipeline.sign import encode_time
from pitr.wal.lsn import LSN
from pitr.wal.segment import check_segment_bytes
from pitr.wal.timeline import TimelineId

_TABLESPACES_MAX = 10_000
_SETTINGS_MAX = 2_000
_PACKS_MAX = 1_000_000
# A writer stops listing bad pages here and says so in the last one.
FINDINGS_MAX = 100_000
# 1 GiB, what PostgreSQL is built with unless somebody says otherwise.
RELATION_SEGMENT_BLOCKS = 131_072
_LABEL_BYTES_MAX = 1024 * 1024
# A backup that was interrupted more often than this begins anew; each attempt has a key of its own.
KEYS_MAX = 64
_BACKUP = re.compile(r"[0-9]{8}T[0-9]{6}Z-(?:full|incr)-[0-9a-f]{8}")

BackupType: TypeAlias = Literal["full", "incr"]


@dataclass(frozen=True, slots=True)
class Tablespace:
    """A tablespace as the server names it; ``location`` is where it lay."""

    oid: int
    name: str
    location: str


@dataclass(frozen=True, slots=True)
class PageFinding:
    """A page that failed its checksum: ``relation`` is null where no catalogue named the file."""

    relation: str | None
    path: str
    fork: str
    block: int
    reason: str


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A pack or index part: its key, sealed size, SHA-256 of the sealed bytes, and number of frames.

    ``key_id``: the data key of a pack that an earlier attempt at the backup sealed; None: the backup's own.
    """

    key: str
    size_bytes: int
    sha256: bytes
    frames: int
    key_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class BackupManifest:
    """One complete base backup.  ``size_bytes`` and ``files`` count what is restored.

    It can be used from ``stop_lsn`` on (consistency) and needs all WAL from ``start_lsn``.  A full one
    that was made of a chain ``stands_for`` the chain's newest: what is built on that can be read from here.
    ``full_because`` says why it is full where an incremental one was wanted.
    """

    repository: str
    archive: ArchiveId
    backup: str
    label: str
    type: BackupType
    parent: str | None
    started_at: datetime
    stopped_at: datetime
    timeline: TimelineId
    start_lsn: LSN
    stop_lsn: LSN
    server_version: int
    segment_bytes: int
    page_checksums: bool
    key_id: bytes
    tablespaces: tuple[Tablespace, ...]
    settings: tuple[tuple[str, str], ...]
    backup_label: bytes
    tablespace_map: bytes
    files: int
    size_bytes: int
    packs: tuple[StoredObject, ...]
    indexes: tuple[StoredObject, ...]
    findings: tuple[PageFinding, ...] = ()
    relation_segment_blocks: int = RELATION_SEGMENT_BLOCKS
    stands_for: str | None = None
    signs: BackupSigns = NO_SIGNS
    full_because: str | None = None

    def __post_init__(self) -> None:
        check_backup_id(self.backup)
        if self.stop_lsn < self.start_lsn or self.stopped_at < self.started_at:
            raise MalformedValue(f"backup {self.backup} ends before it starts")
        if self.stands_for is not None and check_backup_id(self.stands_for) and self.parent is not None:
            raise MalformedValue(f"backup {self.backup}: only a full backup stands for another")
        if (self.type == "full") != (self.parent is None):
            raise MalformedValue(f"backup {self.backup}: an incremental has a parent, a full backup has none")
        if self.full_because is not None and self.parent is not None:
            raise MalformedValue(f"backup {self.backup} is incremental, and says why it is full")
        names = [name for name, _ in self.settings]
        if names != sorted(set(names)) or len(names) > _SETTINGS_MAX:
            raise MalformedValue(f"backup {self.backup}: settings must be in the order of their names")
        if len(self.findings) > FINDINGS_MAX or len(self.packs) > _PACKS_MAX:
            raise MalformedValue(f"backup {self.backup} has more findings or packs than a manifest holds")
        if any(stored.key_id is not None for stored in self.indexes):
            raise MalformedValue(f"backup {self.backup}: an index is sealed with the backup's own key")
        if len(self.key_ids) > KEYS_MAX:
            raise MalformedValue(f"backup {self.backup} has more data keys than attempts are made at one")
        prefix = backup_prefix(self.archive, self.backup)
        for stored in (*self.packs, *self.indexes):
            # A manifest that names objects elsewhere would make a restore, or the janitor, touch them.
            if not stored.key.startswith(prefix):
                raise MalformedValue(
                    f"backup {self.backup} names an object that is not its own: {stored.key}"
                )

    @property
    def key_ids(self) -> frozenset[bytes]:
        """Return all data keys that open it: its own, and those of attempts before it."""
        others = {stored.key_id for stored in self.packs if stored.key_id is not None}
        return frozenset({self.key_id, *others})

    @property
    def resumed_bytes(self) -> int:
        """Return the sealed size of the packs that earlier attempts had stored."""
        return sum(stored.size_bytes for stored in self.packs if stored.key_id is not None)

    @property
    def superuser(self) -> str:
        """Return the cluster's superuser; of a backup that does not say it, the name it mostly has."""
        return dict(self.settings).get("bootstrap_superuser", "postgres")

    @property
    def wal_start(self) -> LSN:
        """Return where the segment begins that holds ``start_lsn``: WAL is read from there on."""
        # The very first segment begins at 0, which is no LSN.
        return LSN(max(1, self.start_lsn.offset - self.start_lsn.offset % self.segment_bytes))

    @property
    def stored_bytes(self) -> int:
        """Return the sealed size of packs and index parts: what a restore fetches."""
        return sum(stored.size_bytes for stored in (*self.packs, *self.indexes))

    def to_payload(self) -> Payload:
        return {
            **archive_fields("backup", self.repository, self.archive),
            "backup": self.backup,
            "label": self.label,
            "type": self.type,
            "parent": self.parent,
            "started_at": encode_time(self.started_at),
            "stopped_at": encode_time(self.stopped_at),
            "timeline": str(self.timeline),
            "start_lsn": str(self.start_lsn),
            "stop_lsn": str(self.stop_lsn),
            "server_version": self.server_version,
            "relation_segment_blocks": self.relation_segment_blocks,
            "segment_bytes": self.segment_bytes,
            "page_checksums": "on" if self.page_checksums else "off",
            "key_id": self.key_id.hex(),
            "tablespaces": [
                {"oid": space.oid, "name": space.name, "location": space.location}
                for space in self.tablespaces
            ],
            "settings": dict(self.settings),
            "backup_label": base64_text(self.backup_label),
            "tablespace_map": base64_text(self.tablespace_map),
            "files": self.files,
            "bytes": self.size_bytes,
            "packs": [_write_stored(stored) for stored in self.packs],
            "indexes": [_write_stored(stored) for stored in self.indexes],
            "stands_for": self.stands_for,
            **({} if self.full_because is None else {"full_because": self.full_because}),
            "signs": self.signs.to_payload(),
            "findings": [
                {
                    "relation": finding.relation,
                    "path": finding.path,
                    "fork": finding.fork,
                    "block": finding.block,
                    "reason": finding.reason,
                }
                for finding in self.findings
            ],
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> BackupManifest:
        fields = Fields(payload, "backup")
        return cls(
            repository=fields.repository(),
            archive=fields.archive(),
            backup=fields.text("backup"),
            label=fields.text("label"),
            type="full" if fields.choice("type", ("full", "incr")) == "full" else "incr",
            parent=fields.optional("parent", fields.text),
            started_at=fields.time("started_at"),
            stopped_at=fields.time("stopped_at"),
            timeline=fields.timeline("timeline"),
            start_lsn=fields.lsn("start_lsn"),
            stop_lsn=fields.lsn("stop_lsn"),
            server_version=fields.integer("server_version", least=150000, most=9_999_999),
            segment_bytes=check_segment_bytes(fields.integer("segment_bytes")),
            page_checksums=fields.choice("page_checksums", ("on", "off")) == "on",
            key_id=fields.key_id("key_id"),
            tablespaces=tuple(
                Tablespace(
                    item.integer("oid", least=1, most=0xFFFF_FFFF), item.text("name"), item.text("location")
                )
                for item in fields.objects("tablespaces", count_max=_TABLESPACES_MAX)
            ),
            settings=fields.text_pairs("settings", count_max=_SETTINGS_MAX),
            backup_label=fields.base64("backup_label", size_bytes_max=_LABEL_BYTES_MAX),
            tablespace_map=fields.base64("tablespace_map", size_bytes_max=_LABEL_BYTES_MAX),
            files=fields.integer("files"),
            size_bytes=fields.integer("bytes"),
            packs=tuple(_read_stored(item) for item in fields.objects("packs", count_max=_PACKS_MAX)),
            indexes=tuple(_read_stored(item) for item in fields.objects("indexes", count_max=_PACKS_MAX)),
            findings=tuple(
                _read_finding(item) for item in fields.objects("findings", count_max=FINDINGS_MAX)
            ),
            relation_segment_blocks=fields.integer("relation_segment_blocks", least=1, most=0xFFFF_FFFF)
            if fields.holds("relation_segment_blocks")
            else RELATION_SEGMENT_BLOCKS,
            stands_for=fields.text("stands_for") if fields.holds("stands_for") else None,
            full_because=fields.text("full_because") if fields.holds("full_because") else None,
            signs=BackupSigns.from_fields(fields.inner("signs")) if fields.holds("signs") else NO_SIGNS,
        )


def taken_before(backup: BackupManifest, others: Iterable[BackupManifest]) -> list[BackupManifest]:
    """Return those of ``others`` that were read from the server before, the newest first."""
    earlier = (each for each in others if each.stop_lsn < backup.stop_lsn and each.stands_for is None)
    return sorted(earlier, key=lambda each: each.stop_lsn, reverse=True)


def check_backup_id(backup: str) -> str:
    """Return ``backup`` if it is a backup's id.  Raises MalformedValue."""
    if _BACKUP.fullmatch(backup) is None:
        raise MalformedValue(f"not a backup's id: {backup!r}")
    return backup


def _write_stored(stored: StoredObject) -> Payload:
    key_id = {} if stored.key_id is None else {"key_id": stored.key_id.hex()}
    return {
        **key_id,
        "key": stored.key,
        "bytes": stored.size_bytes,
        "sha256": stored.sha256.hex(),
        "frames": stored.frames,
    }


def _read_stored(fields: Fields) -> StoredObject:
    return StoredObject(
        fields.text("key"),
        fields.integer("bytes"),
        fields.digest("sha256"),
        fields.integer("frames"),
        fields.key_id("key_id") if fields.holds("key_id") else None,
    )


def _read_finding(fields: Fields) -> PageFinding:
    return PageFinding(
        fields.optional("relation", fields.text),
        fields.text("path"),
        fields.text("fork"),
        fields.integer("block"),
        fields.text("reason"),
    )
