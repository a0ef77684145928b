"""Finds the interrupted attempt that a backup can go on with, and clears away what is left of others.

What is not resumed here is only bytes in the store, under a backup's id that no manifest has.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from pitr.abandoned import RESUMED_MAX, begun_at
from pitr.backup_journal import JOURNAL_BYTES_MAX, JournalReader, journal_paths, remove_journals
from pitr.backup_journal_line import JournalHead
from pitr.backup_resume import Resume
from pitr.catalogue.backup_record import KEYS_MAX, BackupType
from pitr.errors import BackupFailed, MalformedValue
from pitr.layout import ArchiveId, backup_prefix, envelope_key, manifest_key
from pitr.pipeline.content_mac import ContentMac
from pitr.repository import Repository
from storage.held import list_held

# Since its last pack.  Most of an older one has changed.
AGE_MAX: Final = timedelta(days=1)
ATTEMPTS_MAX: Final = KEYS_MAX
# A journal is a little longer than its limit: the line that reached it is there.
_FILE_BYTES_MAX: Final = JOURNAL_BYTES_MAX + 64 * 1024 * 1024
_NOTES_NAME: Final = "resume.sqlite"


@dataclass(frozen=True, slots=True)
class WantedBackup:
    """What is about to be taken.  Only an attempt at the very same can be gone on with."""

    archive: ArchiveId
    type: BackupType
    parent: str | None


class JournalFolder:
    """The journals below a host's state directory, of this archive and of others that were here before."""

    def __init__(
        self, folder: Path, repository: Repository, key: bytes, mac: ContentMac, note: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._repository = repository
        self._key = key
        self._mac = mac
        self._note = note

    def find(self, wanted: WantedBackup, now: datetime) -> Resume | None:
        """Return what to go on with; None: begin anew.

        Drops the journals that are of no use any more, and notes why.  Raises StoreError.
        """
        # A killed attempt's.
        with suppress(OSError):
            (self._folder / _NOTES_NAME).unlink(missing_ok=True)
        found: Resume | None = None
        for backup, paths in sorted(journal_paths(self._folder).items(), reverse=True):
            try:
                head = self._head(backup, paths)
                if found is None and (head.type, head.parent) == (wanted.type, wanted.parent):
                    found = self._read(head, wanted, paths, now)
                else:
                    self._check(head, wanted, head.begun_at, now)
                    if head.type == wanted.type:
                        raise _Useless("another backup was begun since")
            except (_Useless, MalformedValue, BackupFailed, OSError) as reason:
                self._drop(backup, paths, reason)
        return found

    def forget(self, backup: str) -> None:
        """Remove the journals of a backup that is complete.  Raises OSError."""
        remove_journals(journal_paths(self._folder).get(backup, []))

    def _head(self, backup: str, paths: list[Path]) -> JournalHead:
        for path in paths:
            if path.stat().st_size > _FILE_BYTES_MAX:
                raise _Useless(f"{path} is larger than any journal")
        reader = JournalReader(paths[0], self._key)
        reader.close()
        if reader.head.backup != backup:
            raise _Useless(f"{paths[0]} is the journal of {reader.head.backup}")
        return reader.head

    def _check(self, head: JournalHead, wanted: WantedBackup, last_at: datetime, now: datetime) -> None:
        if (head.repository, head.archive) != (self._repository.repository_id, wanted.archive):
            raise _Useless("it was of another archive")
        if abs(now - last_at) > AGE_MAX:
            raise _Useless(f"its last pack was stored at {last_at:%Y-%m-%d %H:%M:%S}Z")
        if now - begun_at(head.backup) > RESUMED_MAX:
            # An expiry may take it a little later, while the backup runs.
            raise _Useless(f"it was begun more than {RESUMED_MAX.days} days ago")

    def _read(self, first: JournalHead, wanted: WantedBackup, paths: list[Path], now: datetime) -> Resume:
        if len(paths) >= ATTEMPTS_MAX:
            raise _Useless(f"it was interrupted {len(paths)} times")
        store = self._repository.store
        if any(True for _ in store.list_objects(manifest_key(first.archive, first.backup))):
            raise _Useless("it is complete, or nearly was")
        resume = Resume(first.backup, self._folder / _NOTES_NAME, self._mac)
        try:
            last_at = first.begun_at
            for path in paths:
                last_at = max(last_at, self._add(resume, first, path))
            self._check(first, wanted, last_at, now)
            resume.confirm(list_held(store, f"{backup_prefix(first.archive, first.backup)}pack-"))
            if resume.held_bytes == 0:
                raise _Useless("nothing of it is in the store")
        except BaseException:
            resume.close()
            raise
        return resume

    def _add(self, resume: Resume, first: JournalHead, path: Path) -> datetime:
        """Read a journal as far as it holds; return when its last pack was stored."""
        reader = JournalReader(path, self._key)
        try:
            head, last_at = reader.head, reader.head.begun_at
            if (head.archive, head.backup, head.parent) != (first.archive, first.backup, first.parent):
                raise _Useless(f"{path} is the journal of {head.backup}")
            envelope = envelope_key(head.archive, head.key_id)
            if not any(found.key == envelope for found in list_held(self._repository.store, envelope)):
                self._note(f"{path.name}: its data key is not in the store")
                return last_at
            for pack in reader.packs():
                resume.add(head.key_id, pack)
                last_at = max(last_at, pack.at)
            if reader.is_damaged:
                self._note(f"{path.name} is damaged: what it says after {last_at:%H:%M:%S}Z does not count")
        finally:
            reader.close()
        return last_at

    def _drop(self, backup: str, paths: list[Path], reason: Exception) -> None:
        self._note(f"not resuming {backup}: {reason}")
        try:
            remove_journals(paths)
        except OSError as cause:
            self._note(f"the journal of {backup} cannot be removed: {cause}")


class _Useless(Exception):
    """Nobody can go on with an attempt."""
