"""What an attempt at a backup takes over from those before it, and notes for one after it.

Without a place for notes there is nothing of either.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from pitr.backup_adopt import adopt_packs
from pitr.backup_file_copy import FileCopier
from pitr.backup_interrupted import JournalFolder, WantedBackup
from pitr.backup_journal import JournalWriter, next_journal_path
from pitr.backup_journal_line import JournaledPack, JournalHead
from pitr.backup_parts import BackupParts
from pitr.backup_request import BackupWriter
from pitr.backup_resume import Resume
from pitr.catalogue.backup_record import BackupType, StoredObject
from pitr.layout import ArchiveId
from pitr.pipeline.content_mac import ContentMac
from pitr.pipeline.keys import content_key
from pitr.pipeline.pack_writer import PartWriter
from pitr.pipeline.part_objects import SealedPart
from pitr.postgres.basebackup import FileReader

_MIB: Final = 1024 * 1024


class Continuation:
    """One attempt's.  ``note`` is told what a person should see.  Close it."""

    def __init__(
        self,
        folder: Path | None,
        writer: BackupWriter,
        archive: ArchiveId,
        *,
        clock: Callable[[], datetime],
        random: Callable[[int], bytes],
        note: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._repository = writer.repository
        self._archive = archive
        self._clock = clock
        self._note = note
        self._key = content_key(writer.signer, writer.repository.repository_id)
        self._mac = ContentMac(self._key, random)
        self._journal: JournalWriter | None = None
        self._backup = ""
        self.phase = "copying"
        self.resume: Resume | None = None
        self.adopted: list[StoredObject] = []

    def begin(self, parts: BackupParts, kind: BackupType, parent: str | None, started_at: datetime) -> None:
        """Give the backup its id: that of an interrupted attempt at the same, or a new one.

        Raises StoreError.
        """
        if self._folder is not None:
            found = self._journals(self._folder).find(WantedBackup(self._archive, kind, parent), started_at)
            if found is not None:
                self.resume = found
                parts.resume(found.backup)
                self.phase = f"resuming {found.backup}: {_size(found.held_bytes)} are stored already"
                self._note(self.phase)
        if self.resume is None:
            parts.name(started_at, kind)
        self._backup = parts.backup
        if self._folder is not None:
            head = JournalHead(
                self._repository.repository_id,
                self._archive,
                parts.backup,
                kind,
                parent,
                parts.key.key_id,
                started_at,
            )
            path = next_journal_path(self._folder, parts.backup)
            self._journal = JournalWriter(path, head, self._key, note=self._note)

    @property
    def mac(self) -> ContentMac | None:
        """What the packs' contents are noted by; None: they are not."""
        return None if self._journal is None or not self._journal.is_open else self._mac

    @property
    def first_part(self) -> int:
        """The number of the first part that is new but for part 0."""
        return 1 if self.resume is None else self.resume.next_part

    def note_pack(self, part: SealedPart, stored: StoredObject) -> None:
        """Note a pack for the next attempt; from any thread."""
        if self._journal is not None and part.contents is not None:
            self._journal.add(JournaledPack(stored, part.part, part.number, part.contents, self._clock()))

    def adopt(
        self, copier: FileCopier, reader: FileReader, parts: BackupParts, watch: Callable[[], None]
    ) -> None:
        """List what the files still have in common with what is stored."""
        if self.resume is None:
            return

        def part(number: int, first_pack: int) -> PartWriter:
            # Not noted: of these packs the next attempt would find only the ends of files.
            return parts.part(number, first_pack=first_pack)

        self.adopted = adopt_packs(self.resume, copier, reader, part, watch)
        stored_bytes = sum(stored.size_bytes for stored in self.adopted)
        self._note(
            f"resumed {self._backup}: {_size(self.resume.taken_bytes)} of its files are as they were,"
            f" and {_size(stored_bytes)} were not sent again"
        )

    def forget(self) -> None:
        """Drop the journals: the manifest is put next, and nobody must go on with this backup then."""
        self.close()
        if self._folder is not None:
            try:
                self._journals(self._folder).forget(self._backup)
            except OSError as cause:
                # Whoever finds it asks the store for the manifest first.
                self._note(f"the journal of {self._backup} cannot be removed: {cause}")

    def close(self) -> None:
        """Leave what the next attempt needs, and nothing else.  May be repeated."""
        if self._journal is not None:
            self._journal.close()
        if self.resume is not None:
            self.resume.close()

    def _journals(self, folder: Path) -> JournalFolder:
        return JournalFolder(folder, self._repository, self._key, self._mac, self._note)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:,.1f} MiB"
