"""What of an archive's fences, of its mirror's pairs and of its snapshots of Redis no kept restore needs.

It reads signed headers alone, so it needs no key, and a bounded number of them.  Where something cannot be
told, because headers are bad, that kind stays, and it is said.  Reference: docs/format.md §6.6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Final

from pitr.catalogue.expiry_record import GoneBeside, NumberedKind
from pitr.derived.snapshot_reader import list_snapshots
from pitr.errors import MalformedValue, NotAuthentic
from pitr.events.fence_sieve import FENCES_READ_MAX
from pitr.events.fence_store import FenceReader
from pitr.events.sync_store import SyncReader
from pitr.expire_record import BesidePlan
from pitr.layout import ArchiveId
from pitr.repository import Repository
from pitr.retention_beside import (
    FencesAt,
    KeptObjects,
    Position,
    SnapshotAt,
    expired_snapshots,
    first_not_below,
    kept_fences,
    keys_between,
)
from pitr.verified import BAD_MAX
from storage.store import ObjectMissing

_WORKERS: Final = 8
_BATCH: Final = 64
_BAD: Final = (NotAuthentic, MalformedValue, ObjectMissing)


def plan_beside(
    repository: Repository,
    archive: ArchiveId,
    gone: GoneBeside,
    position: Position | None,
    moment: datetime,
    *,
    read_max: int = FENCES_READ_MAX,
) -> BesidePlan:
    """Return what goes of one archive.  ``gone`` is what has gone already.

    ``position`` is the first that a restore which stays looks for fences below of (None: the end), ``moment``
    the first that anything can be restored to.  Raises StoreError.
    """
    first: dict[NumberedKind, int] = {}
    keys: set[bytes] = set()
    stays: list[str] = []
    for kind in NumberedKind:
        oldest = gone.first(kind)
        try:
            if kind is NumberedKind.FENCES:
                kept = _fences(repository, archive, oldest, position, read_max)
            else:
                kept = _syncs(repository, archive, oldest)
        except _BAD as cause:
            stays.append(f"{kind} of archive {archive} stay: {cause}")
            continue
        if kept is not None:
            keys |= kept.key_ids
            if kept.first > oldest:
                first[kind] = kept.first
    try:
        snapshots = [
            SnapshotAt(one.snapshot, one.name, one.ended_at, one.key_id)
            for one in list_snapshots(repository, archive).records
        ]
        goes = list(expired_snapshots(snapshots, moment))
    except _BAD as cause:
        stays.append(f"snapshots of archive {archive} stay: {cause}")
        snapshots, goes = [], []
    of_gone = {one.key_id for one in goes}
    keys |= {one.key_id for one in snapshots if one not in goes}
    names = tuple(one.snapshot for one in goes)
    return BesidePlan(first, names, frozenset(of_gone), frozenset(keys), tuple(stays))


def _fences(
    repository: Repository, archive: ArchiveId, oldest: int, position: Position | None, read_max: int
) -> KeptObjects | None:
    reader = FenceReader(repository)
    newest = reader.newest(archive)
    if newest is None:
        return None
    last = newest.header.sequence

    def header(sequence: int) -> FencesAt | None:
        try:
            found = reader.header(archive, sequence).header
        except _BAD:
            return None
        at = (found.last.timeline.number, found.last.committed_by)
        return FencesAt(sequence, found.count, at, found.key_id)

    def at_or_after(sequence: int) -> FencesAt:
        # If a later one lies below, so does this one.
        for number in range(sequence, min(sequence + BAD_MAX, last + 1)):
            if (found := header(number)) is not None:
                return found
        raise NotAuthentic(f"{BAD_MAX} objects of fences from {sequence} on cannot be used")

    above = last + 1 if position is None else first_not_below(oldest, last, position, at_or_after)
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="fences") as pool:
        below = _in_batches(pool, header, range(above - 1, oldest - 1, -1))
        kept = kept_fences(oldest, below, above, read_max=read_max)
        # A key of what stays may seal WAL that goes, where an archiver was behind, however far.
        keys = keys_between(above, last, lambda some: pool.map(at_or_after, some))
    return KeptObjects(kept.first, kept.key_ids | keys | {newest.header.key_id})


def _in_batches(
    pool: ThreadPoolExecutor, header: Callable[[int], FencesAt | None], sequences: range
) -> Iterator[FencesAt | None]:
    for at in range(0, len(sequences), _BATCH):
        yield from pool.map(header, sequences[at : at + _BATCH])


def _syncs(repository: Repository, archive: ArchiveId, oldest: int) -> KeptObjects | None:
    """Keep what a reader begins with, and the book before that, should the newest one be bad."""
    reader = SyncReader(repository, archive)
    newest = reader.newest()
    if newest is None:
        return None
    whole = newest.header.whole
    before = None if whole <= oldest else reader.header(whole - 1)
    first = oldest if before is None else max(oldest, before.whole)
    keys = {newest.header.key_id}
    for sequence in range(first, newest.header.sequence):
        try:
            keys.add(reader.header(sequence).key_id)
        except _BAD:
            continue
    return KeptObjects(first, frozenset(keys))
