"""The manifest of a base backup, whichever way it was taken.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from pitr.backup_parts import BackupParts
from pitr.backup_tally import Tally
from pitr.catalogue.backup_record import BackupManifest, PageFinding, StoredObject, Tablespace
from pitr.layout import ArchiveId
from pitr.postgres.server import ServerFacts, StoppedBackup
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId


@dataclass(frozen=True, slots=True)
class TakenBackup:
    """What a way of taking backups knows at the end.  ``parent``: the id of what it builds on, None if full.

    ``findings`` are named, and ``tablespaces`` and ``packs`` in any order.
    """

    repository: str
    archive: ArchiveId
    label: str
    parent: str | None
    started_at: datetime
    stopped_at: datetime
    timeline: TimelineId
    start_lsn: LSN
    stopped: StoppedBackup
    tablespaces: Iterable[Tablespace]
    packs: Iterable[StoredObject]
    findings: tuple[PageFinding, ...]


def manifest_of(taken: TakenBackup, facts: ServerFacts, parts: BackupParts, tally: Tally) -> BackupManifest:
    """Return the manifest of a backup, once all its parts are stored.  Raises MalformedValue.

    A clock that was set back while it was taken makes it end when it started.
    """
    return BackupManifest(
        repository=taken.repository,
        archive=taken.archive,
        backup=parts.backup,
        label=taken.label,
        type="full" if taken.parent is None else "incr",
        parent=taken.parent,
        started_at=taken.started_at,
        stopped_at=max(taken.stopped_at, taken.started_at),
        timeline=taken.timeline,
        start_lsn=taken.start_lsn,
        stop_lsn=taken.stopped.stop_lsn,
        server_version=facts.version_num,
        segment_bytes=facts.segment_bytes,
        relation_segment_blocks=facts.relation_segment_blocks,
        page_checksums=facts.has_checksums,
        key_id=parts.key.key_id,
        tablespaces=tuple(sorted(taken.tablespaces, key=lambda space: space.oid)),
        settings=facts.settings,
        backup_label=taken.stopped.backup_label,
        tablespace_map=taken.stopped.tablespace_map,
        files=tally.progress.files_done,
        size_bytes=tally.progress.restored_bytes,
        packs=tuple(sorted(taken.packs, key=lambda pack: pack.key)),
        indexes=parts.stored("index"),
        signs=tally.signs,
        full_because=tally.full_because,
        findings=taken.findings,
    )
