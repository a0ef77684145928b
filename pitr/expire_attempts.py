"""Finds, by listing, attempts at backups that were abandoned: what decides is ``pitr.abandoned``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from pitr.abandoned import AbandonedAttempt, abandoned
from pitr.catalogue.lease_record import Holder
from pitr.errors import NotAuthentic
from pitr.layout import ArchiveId, backup_lease
from pitr.lease import newest_record
from pitr.lease_terms import LeaseTerms, held_until
from pitr.region_heads import NamedStore
from pitr.repository import Repository

# Whose host and place are nobody's, so that whoever holds the lease is somebody else.
_ASKING: Final = Holder("expire", 0, "0" * 16)
# More would be no attempts but an attack; the first are looked at, and go, and then the next.
_IDS_MAX: Final = 100_000


def find_abandoned(
    repository: Repository,
    archive: ArchiveId,
    regions: Sequence[NamedStore],
    *,
    before: datetime,
    now: datetime,
) -> tuple[AbandonedAttempt, ...]:
    """Return the attempts begun before ``before`` that have a manifest in none of ``regions``, which answer.

    None while a backup of the archive is being taken, or where nobody can say.  Raises StoreError.
    """
    if _is_backup_running(repository, archive, now):
        return ()
    ids: set[str] = set()
    known: set[str] = set()
    for region in regions:
        manifests = region.store.list_objects(f"manifests/{archive}/")
        known |= {info.key.rpartition("/")[2] for info in manifests}
        ids |= set(_backup_ids(region, archive, f"{before:%Y%m%dT%H%M%SZ}"))
    newest = repository.expiry.newest(archive)
    if newest is not None:
        known |= {backup for backup in ids if newest.record.names_backup(backup)}
    return abandoned(archive, ids, known, before)


def _is_backup_running(repository: Repository, archive: ArchiveId, now: datetime) -> bool:
    try:
        record = newest_record(repository, archive, backup_lease(archive))
    except NotAuthentic:
        return True
    return held_until(record, _ASKING, LeaseTerms(), now) is not None


def _backup_ids(region: NamedStore, archive: ArchiveId, until: str) -> Iterator[str]:
    """Yield the ids below which a region holds anything, those before ``until``: an id begins with its time.

    Of each only the first object is listed: a backup may have a million.
    """
    prefix = f"backups/{archive}/"
    after: str | None = None
    for _ in range(_IDS_MAX):
        info = next(iter(region.store.list_objects(prefix, start_after=after)), None)
        if info is None:
            return
        backup = info.key.removeprefix(prefix).partition("/")[0]
        if backup >= until:
            return
        yield backup
        # "0" is the character after "/".
        after = f"{prefix}{backup}0"
