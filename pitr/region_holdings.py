"""Which regions hold all of a base backup: manifest, index parts, packs and the envelope of their key.

A manifest alone in a region is no backup there.  Only names and sizes are compared; whether the bytes are
good is what ``pitr catalogue check`` looks at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pitr.catalogue.backup_record import BackupManifest
from pitr.layout import ArchiveId, envelope_key, manifest_key
from pitr.region_heads import NamedStore
from storage.store import ObjectStore, StoreError


@dataclass(frozen=True, slots=True)
class BackupHoldings:
    """Of each backup, by its id, the regions that hold all of it; ``unseen`` regions did not answer."""

    regions: Mapping[str, tuple[str, ...]]
    unseen: tuple[str, ...]


def find_holdings(backups: Sequence[BackupManifest], regions: Sequence[NamedStore]) -> BackupHoldings:
    """List each region once, a thousand names a request, and compare it with the signed manifests."""
    holders: dict[str, list[str]] = {backup.backup: [] for backup in backups}
    unseen: list[str] = []
    for region in regions:
        try:
            whole = list(_whole_backups(backups, region.store))
        except StoreError:
            unseen.append(region.name)
            continue
        for name in whole:
            holders[name].append(region.name)
    return BackupHoldings({name: tuple(held) for name, held in holders.items()}, tuple(unseen))


def _whole_backups(backups: Sequence[BackupManifest], store: ObjectStore) -> Iterator[str]:
    for archive in sorted({backup.archive for backup in backups}):
        own = {backup.backup: _objects(backup) for backup in backups if backup.archive == archive}
        # Bounded by what the manifests name, however much else a region lists.
        wanted = {key: size for objects in own.values() for key, size in objects.items()}
        held = {
            info.key
            for prefix in _prefixes(archive)
            for info in store.list_objects(prefix)
            if info.key in wanted and wanted[info.key] in (None, info.size_bytes)
        }
        yield from (name for name, objects in own.items() if objects.keys() <= held)


def _objects(backup: BackupManifest) -> dict[str, int | None]:
    """Return the keys of a backup's objects with their sizes, None where no record says it."""
    stored = (*backup.packs, *backup.indexes)
    keys = {backup.key_id, *(one.key_id for one in stored if one.key_id is not None)}
    records: dict[str, int | None] = {manifest_key(backup.archive, backup.backup): None}
    records |= {envelope_key(backup.archive, key): None for key in keys}
    return records | {one.key: one.size_bytes for one in stored}


def _prefixes(archive: ArchiveId) -> tuple[str, ...]:
    return tuple(f"{kind}/{archive}/" for kind in ("manifests", "envelopes", "backups"))
