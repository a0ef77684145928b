"""Knows the newest chain of the daemon's archive, also after somebody else has made a full backup of it.

Nobody tells the daemon of what the verifier consolidates: it looks before each backup of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pitr.backup_choice import NewestChain, followed_by, newest_chain
from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import MalformedValue, NotAuthentic
from pitr.layout import ArchiveId, manifest_key
from storage.store import ObjectMissing

if TYPE_CHECKING:
    from pitr.catalogue.sqlite import Catalogue
    from pitr.repository import ListedBackup, Repository


class ChainKeeper:
    """``record`` is given what belongs into the catalogue."""

    def __init__(
        self,
        repository: Repository,
        archive: ArchiveId,
        record: Callable[[Callable[[Catalogue], None]], None],
    ) -> None:
        self._repository = repository
        self._archive = archive
        self._record = record
        self._seen: set[str] = set()
        self.newest: NewestChain | None = None

    def remember(self, manifests: Iterable[BackupManifest]) -> None:
        """Learn what there is."""
        found = list(manifests)
        self._seen |= {each.backup for each in found}
        self.newest = newest_chain(found)

    def follow(self, manifest: BackupManifest) -> None:
        """Learn of a backup that this host has taken."""
        self._seen.add(manifest.backup)
        self.newest = followed_by(self.newest, manifest)

    def look_for_others(self) -> None:
        """Learn of full backups that were made of chains since.  May be repeated.  Raises StoreError.

        The next full one is due by the newest of them, and a chain is only as long as what comes after it.
        """
        prefix = manifest_key(self._archive, "")
        listed = [info.key[len(prefix) :] for info in self._repository.store.list_objects(prefix)]
        unseen = [name for name in listed if name not in self._seen]
        made = [one for one in map(self._find, unseen) if one is not None]
        for one in made:
            self._record_made(one)
        if made:
            self.remember(one.manifest for one in self._repository.manifests(self._archive).backups)
        # At the end: what an error came before is looked at again.
        self._seen.update(unseen)

    def _find(self, name: str) -> ListedBackup | None:
        """Return a backup that was made of a chain; None for all that is not."""
        try:
            found = self._repository.get_manifest(self._archive, name)
        except (NotAuthentic, MalformedValue, ObjectMissing):
            # Anybody may have put it there, or it has expired: it is no reason to take no backup.
            return None
        return found if found.manifest.stands_for is not None else None

    def _record_made(self, made: ListedBackup) -> None:
        self._record(lambda catalogue: catalogue.record_backup(made.manifest, made.object_sha256))
