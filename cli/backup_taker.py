"""Takes one base backup for the daemon: chooses its kind, waits for WAL, records what was made."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cli.chain_keeper import ChainKeeper
from cli.lease_holder import own_holder
from cli.settings import Settings
from pitr.backup import take_backup
from pitr.backup_choice import BackupKind, choose
from pitr.backup_parent import ParentBackup, read_note
from pitr.backup_request import BackupRequest, BackupWriter
from pitr.backup_tally import full_note
from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import BackupFailed, MalformedValue
from pitr.layout import backup_lease
from pitr.lease import check_free, newest_record
from pitr.lease_terms import LeaseTerms

if TYPE_CHECKING:
    from cli.catalogue_keeper import CatalogueKeeper
    from pitr.archive import WalArchiver
    from pitr.backup_pace import Pace
    from pitr.backup_tally import BackupProgress
    from pitr.catalogue.lease_record import Holder
    from pitr.layout import ArchiveId
    from pitr.postgres.address import ServerAddress

# The archiver tries the server and the regions again every 5 s at most, so where nothing is streamed by then
# something lasts: whoever waits for the backup is told, and the timetable tries again within minutes.
STREAMING_WAIT_S: Final = 60.0
_POLL_S: Final = 0.5


class BackupTaker:
    """One backup at a time, of this archive; ``chains`` knows what it may be built on."""

    def __init__(
        self,
        settings: Settings,
        archive: ArchiveId,
        writer: BackupWriter,
        archiver: WalArchiver,
        address: ServerAddress,
        keeper: CatalogueKeeper,
        pace: Pace,
    ) -> None:
        self._pace = pace
        self._settings = settings
        self._archive = archive
        self._writer = writer
        self._archiver = archiver
        self._address = address
        self._keeper = keeper
        self.chains = ChainKeeper(writer.repository, archive, keeper.record)

    def take(
        self,
        label: str,
        kind: BackupKind,
        cancel: threading.Event,
        progress: Callable[[BackupProgress], None],
        note: Callable[[str], None],
    ) -> BackupManifest:
        """Take a backup; it is good once its manifest and all of its WAL are at quorum.

        ``note`` is told why it is full where an incremental one was asked for.
        """
        settings = self._settings
        holder = own_holder(settings.daemon.state_dir)
        # Told at once: where another host takes one, it has the slot too, and no WAL would come.
        held = newest_record(self._writer.repository, self._archive, backup_lease(self._archive))
        check_free(held, holder, LeaseTerms(), datetime.now(UTC))
        self._wait_for_streaming(cancel)
        self.chains.look_for_others()
        choice = choose(
            kind,
            self.chains.newest,
            now=datetime.now(UTC),
            full_every_s=settings.backup.full_every_s,
            wal_since=self._archiver.status().durable_since,
            has_increments=settings.backup.incr_every_s is not None,
        )
        reason = choice.reason
        parent = None
        if choice.parent is not None and settings.backup.source == "files":
            parent, reason = self._parent(choice.parent)
        if reason is not None:
            note(full_note(reason))
        if settings.backup.source == "protocol":
            manifest = self._take_remote(label, choice.parent, reason, holder, cancel, progress)
        else:
            manifest = self._take_local(label, parent, reason, holder, cancel, progress)
        self.chains.follow(manifest)
        listed = self._writer.repository.get_manifest(self._archive, manifest.backup)
        self._keeper.record(lambda catalogue: catalogue.record_backup(manifest, listed.object_sha256))
        self._archiver.request_head()
        return manifest

    def _take_local(
        self,
        label: str,
        parent: ParentBackup | None,
        full_because: str | None,
        holder: Holder,
        cancel: threading.Event,
        progress: Callable[[BackupProgress], None],
    ) -> BackupManifest:
        settings = self._settings
        request = BackupRequest(
            dsn=self._address.session(),
            archive=self._archive,
            label=label,
            workers=settings.backup.workers,
            parent=parent,
            full_because=full_because,
            notes_dir=settings.daemon.backup_notes_dir,
            holder=holder,
            pace=self._pace,
            priority=settings.backup.priority,
            strain=settings.backup.strain,
            pause_max_s=settings.backup.deadline_s,
        )
        return take_backup(
            request,
            self._writer,
            self._archiver.wait_durable,
            clock=lambda: datetime.now(UTC),
            random=os.urandom,
            progress=progress,
            cancel=cancel,
        )

    def _take_remote(
        self,
        label: str,
        parent: BackupManifest | None,
        full_because: str | None,
        holder: Holder,
        cancel: threading.Event,
        progress: Callable[[BackupProgress], None],
    ) -> BackupManifest:
        from pitr.backup_remote import RemoteRequest, take_remote_backup

        settings = self._settings
        return take_remote_backup(
            RemoteRequest(
                self._address.session(),
                self._archive,
                label,
                settings.daemon.backup_notes_dir,
                parent,
                holder,
                full_because=full_because,
                pace=self._pace,
            ),
            self._writer,
            self._archiver.wait_durable,
            clock=lambda: datetime.now(UTC),
            random=os.urandom,
            progress=progress,
            cancel=cancel,
        )

    def _parent(self, manifest: BackupManifest) -> tuple[ParentBackup | None, str | None]:
        """Return the backup to build on with this host's note of it, or why it cannot be built on."""
        try:
            found = read_note(self._settings.daemon.backup_notes_dir, manifest.backup)
        except (OSError, MalformedValue) as cause:
            return None, f"this host's note of backup {manifest.backup} cannot be read: {cause}"
        if found is None:
            return None, f"this host has no note of what backup {manifest.backup} holds"
        return ParentBackup(manifest, found), None

    def _wait_for_streaming(self, cancel: threading.Event) -> None:
        """Wait until WAL is streamed: the backup needs it from its own start on."""
        deadline = time.monotonic() + STREAMING_WAIT_S
        while not self._archiver.status().is_streaming:
            if cancel.wait(_POLL_S) or time.monotonic() > deadline:
                raise BackupFailed(
                    "no WAL is streamed, so no base backup can be good",
                    detail=self._archiver.status().last_error,
                    hint="pitr status",
                )
