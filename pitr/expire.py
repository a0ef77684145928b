"""Expire: declare gone by a signed record, then delete, in the opposite order of durability: a use case.

The record is at quorum before anything is deleted, and in a region before anything is deleted there: whoever
reads meanwhile takes what it names for gone already, so nothing that is listed is ever broken.  Then go the
manifests; what a restore that planned earlier may still read goes when its grace has passed, by this run or a
later one.  All of it may be repeated: what is to go is found by listing, from the record alone.

Reference: docs/format.md §6.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from pitr.catalogue.expiry_record import ExpireRecord, NumberedKind
from pitr.errors import AlreadyRunning, MalformedValue, NotAuthentic
from pitr.layout import (
    ArchiveId,
    backup_prefix,
    derived_key,
    derived_parts_prefix,
    derived_prefix,
    envelope_key,
    expiry_key,
    fences_key,
    fences_sequence,
    manifest_key,
    parse_wal_key,
    syncs_key,
    syncs_sequence,
    timeline_prefix,
    wal_index_range,
)
from pitr.listed import named_objects
from pitr.pipeline.sign import Verifier, open_record
from pitr.region_heads import NamedStore
from pitr.wal.segment import SegmentName
from storage.past import CopyJudge, judged
from storage.store import OBJECT_BYTES_MAX, ObjectConflict, ObjectInfo, StoreError, StoreUnavailable

_WORKERS: Final = 8
_BATCH: Final = 256
# After so many failures in a row the region is left for the next run: it refuses all, or is down.
_FAILURES_MAX: Final = 32


@dataclass(slots=True)
class RegionDeletion:
    """What was deleted in one region.  ``refused`` objects are tried again by the next run."""

    region: str
    deleted: int = 0
    deleted_bytes: int = 0
    refused: int = 0
    first_refusal: str | None = None
    is_left: bool = False
    _failures: int = field(default=0, repr=False)

    def succeeded(self, size_bytes: int) -> None:
        self.deleted += 1
        self.deleted_bytes += size_bytes
        self._failures = 0

    def failed(self, reason: str) -> None:
        self.refused += 1
        self._failures += 1
        self.first_refusal = self.first_refusal or reason
        self.is_left = self.is_left or self._failures >= _FAILURES_MAX

    def leave(self, reason: str) -> None:
        """Do nothing more in this region."""
        self.is_left, self.first_refusal = True, self.first_refusal or reason


def put_record(
    record: ExpireRecord, body: bytes, regions: Sequence[NamedStore], *, root: Verifier, quorum: int
) -> None:
    """Put a signed record in every region; return when ``quorum`` of them have it.  May be repeated.

    A region that holds what ``root`` did not sign for this name, or says so, counts as one that does not
    take it.

    Raises AlreadyRunning if another record has this number, StoreUnavailable if too few take it: in either
    case nothing has been deleted.
    """
    key = expiry_key(record.archive, record.sequence)
    errors: list[str] = []
    # In one order, whoever it is: of two that run at once, one meets the other in the first region.
    for region in sorted(regions, key=lambda one: one.name):
        try:
            region.store.put(key, body)
        except ObjectConflict as conflict:
            cause = judged(region.store, key, _rival_of(record, root), conflict)
            if cause is not conflict:
                errors.append(f"{region.name}: {cause}")
                continue
            raise AlreadyRunning(
                "another expire has just signed a record of this number",
                detail=f"region {region.name} holds another {key}",
                hint="wait until it has ended, and look at the plan again",
            ) from cause
        except StoreError as error:
            errors.append(f"{region.name}: {error}")
    if len(regions) - len(errors) < quorum:
        raise StoreUnavailable(
            f"the expire record is not in {quorum} regions, and nothing was deleted; {'; '.join(errors)}"
        )


def _rival_of(record: ExpireRecord, root: Verifier) -> CopyJudge:
    """Return who tells another run's record from what is only in the way: by the root's signature."""

    def is_rival(start: bytes) -> bool:
        try:
            payload = open_record(start, root, "expire")
        except NotAuthentic:
            return False
        except MalformedValue:
            return True
        return payload != record.to_payload()

    return CopyJudge(OBJECT_BYTES_MAX, is_rival)


def carry_out(
    record: ExpireRecord,
    body: bytes,
    regions: Sequence[NamedStore],
    *,
    now: datetime,
    workers: int = _WORKERS,
) -> tuple[RegionDeletion, ...]:
    """Delete what the record names and whose grace has passed, step by step in all regions.  May be repeated.

    ``record`` is the archive's newest, ``body`` its bytes.  What a region refuses stops nothing else.
    """
    done = {region.name: RegionDeletion(region.name) for region in regions}
    for region in regions:
        try:
            region.store.put(expiry_key(record.archive, record.sequence), body)
        except StoreError as error:
            # A reader of this region alone would find backups listed whose objects are not there.
            done[region.name].leave(f"the expire record cannot be put: {error}")
    for step in (
        _manifests,
        _snapshot_records,
        _backup_objects,
        _snapshot_parts,
        _wal,
        _wal_indexes,
        _numbered,
        _envelopes,
    ):
        for region in regions:
            outcome = done[region.name]
            if not outcome.is_left:
                _delete(region, step(record, region, now), outcome, workers)
    return tuple(done.values())


def _delete(region: NamedStore, found: Iterator[ObjectInfo], outcome: RegionDeletion, workers: int) -> None:
    def delete(info: ObjectInfo) -> StoreError | None:
        try:
            region.store.delete(info.key)
        except StoreError as error:
            return error
        return None

    try:
        with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="expire") as pool:
            for batch in _batches(found):
                for info, error in zip(batch, pool.map(delete, batch), strict=True):
                    if error is None:
                        outcome.succeeded(info.size_bytes)
                    else:
                        outcome.failed(f"{info.key}: {error}")
                if outcome.is_left:
                    return
    except StoreError as error:
        outcome.leave(str(error))


def _batches(found: Iterable[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    batch: list[ObjectInfo] = []
    for info in found:
        batch.append(info)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _manifests(record: ExpireRecord, region: NamedStore, _now: datetime) -> Iterator[ObjectInfo]:
    gone = {manifest_key(record.archive, backup) for backup in record.deletions}
    if gone:
        listing = region.store.list_objects(f"manifests/{record.archive}/")
        yield from (info for info in listing if info.key in gone)


def _backup_objects(record: ExpireRecord, region: NamedStore, now: datetime) -> Iterator[ObjectInfo]:
    """Yield index parts and packs.  Of a backup that is being taken no record names the id."""
    for backup, delete_after in record.deletions.items():
        if delete_after <= now:
            yield from region.store.list_objects(backup_prefix(record.archive, backup))


def _snapshot_records(record: ExpireRecord, region: NamedStore, _now: datetime) -> Iterator[ObjectInfo]:
    gone = {derived_key(record.archive, each.snapshot) for each in record.beside.snapshots}
    if gone:
        listing = region.store.list_objects(derived_prefix(record.archive))
        yield from (info for info in listing if info.key in gone)


def _snapshot_parts(record: ExpireRecord, region: NamedStore, now: datetime) -> Iterator[ObjectInfo]:
    for each in record.beside.snapshots:
        if each.delete_after <= now:
            yield from region.store.list_objects(derived_parts_prefix(record.archive, each.snapshot))


def _numbered(record: ExpireRecord, region: NamedStore, now: datetime) -> Iterator[ObjectInfo]:
    """Yield fences and pairs.  Newer ones sort first, so what is below a number comes after its key."""
    for kind, key_of, sequence_of in (
        (NumberedKind.FENCES, fences_key, fences_sequence),
        (NumberedKind.SYNCS, syncs_key, syncs_sequence),
    ):
        due = [e.below for e in record.beside.below if e.kind is kind and e.delete_after <= now]
        if due:
            listing = region.store.list_objects(
                f"{kind}/{record.archive}/", start_after=key_of(record.archive, max(due))
            )
            yield from (info for info, _ in named_objects(listing, sequence_of))


def _wal(record: ExpireRecord, region: NamedStore, now: datetime) -> Iterator[ObjectInfo]:
    for gone in record.wal:
        if gone.delete_after <= now:
            yield from wal_between(region, record.archive, gone.first, gone.last)


def wal_between(
    region: NamedStore, archive: ArchiveId, first: SegmentName, last: SegmentName
) -> Iterator[ObjectInfo]:
    """Yield what a region holds of the segments ``first`` to ``last``.  Raises StoreError.

    A key that is none of ours is passed over: nobody knows what it is.
    """
    prefix = timeline_prefix(archive, first.timeline)
    # Keys go on below the segment's name, so its own come after it.
    listing = region.store.list_objects(prefix, start_after=f"{prefix}{first}")
    for info, key in named_objects(listing, parse_wal_key):
        if key.segment > last:
            return
        yield info


def _wal_indexes(record: ExpireRecord, region: NamedStore, now: datetime) -> Iterator[ObjectInfo]:
    """Yield the indexes whose pieces are all gone, but for the newest, which the next one will name."""
    due = [gone.pieces for gone in record.wal if gone.pieces is not None and gone.delete_after <= now]
    if not due:
        return
    waiting: ObjectInfo | None = None
    listing = region.store.list_objects(f"walindex/{record.archive}/")
    for info, (first, last) in named_objects(listing, wal_index_range):
        if waiting is not None:
            yield waiting
        waiting = info if any(a <= first and last <= b for a, b in due) else None


def _envelopes(record: ExpireRecord, region: NamedStore, now: datetime) -> Iterator[ObjectInfo]:
    due = {envelope_key(record.archive, gone.key_id) for gone in record.envelopes if gone.delete_after <= now}
    if due:
        listing = region.store.list_objects(f"envelopes/{record.archive}/")
        yield from (info for info in listing if info.key in due)
