"""Chains of backups taken by hand: a server, its archive, and the notes that the host keeps."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fix_backup import BackupHouse
from fix_postgres import RunningPostgres, table_digests
from fix_restore import HandArchiver, RestoreHouse, archive_of

from pitr.backup_pace import Pace
from pitr.backup_parent import ParentBackup, read_note
from pitr.backup_remote import RemoteRequest, take_remote_backup
from pitr.backup_request import BackupWriter
from pitr.catalogue.backup_record import BackupManifest
from pitr.layout import ArchiveId
from pitr.postgres.server_user import ServerUser
from pitr.recovery import RecoveryTarget
from pitr.wal.lsn import LSN
from storage.local import DirectoryStore
from storage.store import ObjectStore

SUMMARIES = {"summarize_wal": "on", "wal_keep_size": "4GB", "autovacuum": "off"}


@dataclass(frozen=True)
class Moment:
    """What the tables were at an LSN, and the newest backup then."""

    backup: BackupManifest
    at: LSN
    tables: dict[str, str]


@dataclass
class Chain:
    """A server whose backups are each built on the one before."""

    server: RunningPostgres
    store: ObjectStore
    user: ServerUser | None
    notes_dir: Path
    compare_pages: bool = False
    # Where the files are read, if not on the server itself.
    source: RunningPostgres | None = None
    moments: list[Moment] = field(default_factory=list)

    @classmethod
    def below(cls, folder: Path, server: RunningPostgres, user: ServerUser | None) -> Chain:
        """Return one with its store and its notes in ``folder``."""
        return cls(server, DirectoryStore.create(folder / "store"), user, folder / "notes")

    def __post_init__(self) -> None:
        self.house = BackupHouse(self.store, archive_of(self.server))
        self.archiver = HandArchiver(self.house, self.server)
        self.archiver.begin()

    @property
    def restores(self) -> RestoreHouse:
        return RestoreHouse(self.house, self.user)

    def parent(self) -> ParentBackup | None:
        """Return the newest backup with its note, to build on."""
        if not self.moments:
            return None
        manifest = self.moments[-1].backup
        note = read_note(self.notes_dir, manifest.backup)
        assert note is not None
        return ParentBackup(manifest, note)

    def back_up(self, **options: object) -> BackupManifest:
        """Take the next backup and note what the tables are."""
        options = {"parent": self.parent(), "compare_pages": self.compare_pages, **options}
        manifest = self.house.back_up(
            (self.source or self.server).dsn,
            wait_for_wal=self.archiver.gate,
            notes_dir=self.notes_dir,
            **options,
        )
        return self._note(manifest)

    def take_remote(
        self, parent: BackupManifest | None, archive: ArchiveId | None = None, pace: Pace | None = None
    ) -> BackupManifest:
        """Take a backup over the replication protocol."""
        house = self.house
        request = RemoteRequest(
            self.server.dsn, archive or house.archive, "from afar", self.notes_dir, parent, pace=pace
        )
        return take_remote_backup(
            request,
            BackupWriter(house.repository, house.signer, [house.identity.recipient()]),
            self.archiver.gate,
            clock=lambda: datetime.now(UTC),
            random=os.urandom,
            progress=house.progress.append,
        )

    def back_up_remote(self) -> BackupManifest:
        """Take the next backup over the replication protocol and note what the tables are."""
        return self._note(self.take_remote(self.moments[-1].backup if self.moments else None))

    def _note(self, manifest: BackupManifest) -> BackupManifest:
        self.server.execute("SELECT pg_switch_wal()")
        tables = table_digests(self.server.dsn)
        at = LSN.parse(str(self.server.value("SELECT pg_current_wal_insert_lsn()")))
        self.server.execute("CHECKPOINT")
        self.archiver.ship()
        self.moments.append(Moment(manifest, at, tables))
        return manifest

    def target(self, moment: Moment) -> RecoveryTarget:
        return RecoveryTarget("lsn", lsn=moment.at)

    def stored_bytes(self, manifest: BackupManifest) -> int:
        return sum(stored.size_bytes for stored in manifest.packs)
