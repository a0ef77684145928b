"""The next expire record: a plan, joined with what the one before it named and some region still holds.

It reads which data keys the WAL that goes was sealed with, while there is WAL to ask.
Reference: docs/format.md §6.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from pitr.catalogue.expiry_record import (
    ExpireRecord,
    GoneAttempt,
    GoneBackup,
    GoneBelow,
    GoneBeside,
    GoneEnvelope,
    GoneSnapshot,
    GoneWal,
    NumberedKind,
)
from pitr.catalogue.wal_records import IndexedHeader
from pitr.errors import MalformedValue, NotAuthentic
from pitr.expiry_reader import ListedExpiry
from pitr.layout import (
    ArchiveId,
    PieceKey,
    SegmentKey,
    backup_prefix,
    derived_key,
    derived_parts_prefix,
    envelope_key,
    manifest_key,
)
from pitr.region_heads import NamedStore
from pitr.repository import Repository
from pitr.retention import ExpiredWal, ExpiryPlan
from storage.store import ObjectMissing, StoreError


@dataclass(frozen=True, slots=True)
class ExpiryPolicy:
    """By what a plan was decided, and how long its objects stay readable after it is signed."""

    window: timedelta
    minimum_full_backups: int
    grace: timedelta


@dataclass(frozen=True, slots=True)
class UsedKeys:
    """The data keys of one archive: of what goes, and of what stays.  One may be in both."""

    of_gone: frozenset[bytes]
    of_kept: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class BesidePlan:
    """What goes of one archive beside WAL and backups: of each kind what is below a number, and snapshots."""

    first: Mapping[NumberedKind, int] = field(default_factory=dict)
    snapshots: tuple[str, ...] = ()
    keys_of_gone: frozenset[bytes] = frozenset()
    keys_of_kept: frozenset[bytes] = frozenset()
    stays: tuple[str, ...] = ()
    """Why some of it stays that might go, for people."""

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing goes."""
        return not self.first and not self.snapshots


def used_keys(
    repository: Repository, archive: ArchiveId, plan: ExpiryPlan, previous: ListedExpiry | None
) -> UsedKeys:
    """Return which data keys are used, from WAL indexes and, where none speaks of an object, its header.

    ``previous`` is the newest expire record: what it names uses no key, though an index still repeats it or a
    region still holds it.  What nobody can verify is passed over: no key opens it, and an index only repeats.
    Raises StoreError.
    """
    gone_wal = [wal for wal in plan.wal if wal.archive == archive]
    of_gone = {key for each in plan.expired if each.archive == archive for key in each.key_ids}
    of_kept = {key for each in plan.kept if each.backup.archive == archive for key in each.backup.key_ids}
    indexed_pieces: list[tuple[int, int]] = []
    indexed_segments: set[str] = set()

    def was_gone(key: PieceKey | SegmentKey) -> bool:
        return previous is not None and previous.record.names_wal(key)

    def note(entry: IndexedHeader) -> None:
        if not was_gone(entry.key):
            (of_gone if _is_gone(entry.key, gone_wal) else of_kept).add(entry.header.key_id)

    for record in repository.wal.indexes(archive, refused=[]):
        indexed_pieces.append((record.first, record.last))
        indexed_segments |= {str(entry.key) for entry in record.segments}
        for entry in (*record.pieces, *record.segments):
            note(entry)
    for timeline in repository.wal.timelines(archive):
        for key in repository.wal_objects(archive, timeline):
            if isinstance(key, PieceKey):
                is_indexed = any(first <= key.sequence <= last for first, last in indexed_pieces)
            else:
                is_indexed = str(key) in indexed_segments
            if not is_indexed and not was_gone(key):
                with suppress(NotAuthentic, MalformedValue, ObjectMissing):
                    note(repository.wal.header(key))
    return UsedKeys(frozenset(of_gone), frozenset(of_kept))


def _is_gone(key: PieceKey | SegmentKey, gone: Iterable[ExpiredWal]) -> bool:
    return any(wal.first <= key.segment <= wal.last for wal in gone)


def next_record(
    repository: Repository,
    archive: ArchiveId,
    previous: ListedExpiry | None,
    plan: ExpiryPlan,
    manifests: Mapping[str, bytes],
    keys: UsedKeys,
    regions: Sequence[NamedStore],
    *,
    policy: ExpiryPolicy,
    now: datetime,
    beside: BesidePlan | None = None,
) -> ExpireRecord | None:
    """Return the record that declares gone what the plans say of one archive; None if that is nothing.

    ``manifests`` gives the SHA-256 of each manifest's object.  Raises StoreError.
    """
    beside = beside or BesidePlan()
    expired = [each for each in plan.expired if each.archive == archive]
    wal = [each for each in plan.wal if each.archive == archive]
    attempts = [each for each in plan.attempts if each.archive == archive]
    if not expired and not wal and not attempts and beside.is_empty:
        return None
    after = now + policy.grace
    old = None if previous is None else previous.record
    backups, envelopes, gone_attempts = ([], [], []) if old is None else _still_there(old, regions)
    backups += [GoneBackup(e.backup, manifests[e.backup], e.stopped_at, after) for e in expired]
    gone_attempts += [GoneAttempt(each.backup, after) for each in attempts]
    known = {each.key_id for each in envelopes}
    of_gone, of_kept = keys.of_gone | beside.keys_of_gone, keys.of_kept | beside.keys_of_kept
    envelopes += [GoneEnvelope(key, after) for key in sorted(of_gone - of_kept - known)]
    ranges = [GoneWal(each.first, each.last, each.pieces, after) for each in wal]
    return ExpireRecord(
        repository=repository.repository_id,
        archive=archive,
        sequence=1 if old is None else old.sequence + 1,
        previous=None if previous is None else previous.payload_sha256,
        at=now,
        window_s=int(policy.window.total_seconds()),
        minimum_full_backups=policy.minimum_full_backups,
        backups=tuple(sorted(backups, key=lambda each: each.backup)),
        wal=join_wal([*(() if old is None else old.wal), *ranges], now),
        envelopes=tuple(envelopes),
        beside=_join_beside(old, beside, regions, after, now),
        attempts=tuple(sorted(gone_attempts, key=lambda each: each.backup)),
    )


def _join_beside(
    old: ExpireRecord | None,
    plan: BesidePlan,
    regions: Sequence[NamedStore],
    after: datetime,
    now: datetime,
) -> GoneBeside:
    """Return what was gone before and goes now; of a kind what is due, and what is not yet."""
    before = GoneBeside() if old is None else old.beside
    snapshots = (
        [] if old is None else [each for each in before.snapshots if _has_snapshot(old, each, regions)]
    )
    below: list[GoneBelow] = []
    for kind in NumberedKind:
        mine = [each for each in before.below if each.kind is kind]
        first = plan.first.get(kind)
        if first is not None and first > before.first(kind):
            mine.append(GoneBelow(kind, first, after))
        due = [each for each in mine if each.delete_after <= now]
        below += sorted(due, key=lambda each: each.below)[-1:]
        below += [each for each in mine if each.delete_after > now]
    new = [GoneSnapshot(name, after) for name in plan.snapshots]
    return GoneBeside(tuple(below), tuple(sorted([*snapshots, *new], key=lambda each: each.snapshot)))


def _has_snapshot(old: ExpireRecord, gone: GoneSnapshot, regions: Sequence[NamedStore]) -> bool:
    """Tell whether some region still holds anything of a snapshot, or may: one that does not answer."""
    places = (derived_key(old.archive, gone.snapshot), derived_parts_prefix(old.archive, gone.snapshot))
    try:
        return any(
            next(iter(region.store.list_objects(place)), None) is not None
            for region in regions
            for place in places
        )
    except StoreError:
        return True


def _still_there(
    old: ExpireRecord, regions: Sequence[NamedStore]
) -> tuple[list[GoneBackup], list[GoneEnvelope], list[GoneAttempt]]:
    """Return what the record names and some region still holds, or may hold: one that does not answer."""
    archive = old.archive
    listed: set[str] = set()
    for region in regions:
        try:
            for prefix in (f"manifests/{archive}/", f"envelopes/{archive}/"):
                listed |= {info.key for info in region.store.list_objects(prefix)}
            for backup in old.deletions:
                if next(iter(region.store.list_objects(backup_prefix(archive, backup))), None) is not None:
                    listed.add(manifest_key(archive, backup))
        except StoreError:
            return list(old.backups), list(old.envelopes), list(old.attempts)
    return (
        [gone for gone in old.backups if manifest_key(archive, gone.backup) in listed],
        [gone for gone in old.envelopes if envelope_key(archive, gone.key_id) in listed],
        [gone for gone in old.attempts if manifest_key(archive, gone.backup) in listed],
    )


def join_wal(ranges: Iterable[GoneWal], now: datetime) -> tuple[GoneWal, ...]:
    """Return the stretches in order; those that follow each other, in WAL and in pieces, become one.

    Only once the grace of both has passed: before that each has a time of its own.
    """
    joined: list[GoneWal] = []
    for each in sorted(ranges, key=lambda gone: (gone.first, gone.last)):
        last = joined[-1] if joined else None
        if last is not None and _follow(last, each) and max(last.delete_after, each.delete_after) <= now:
            assert last.pieces is not None
            assert each.pieces is not None
            joined[-1] = replace(
                last,
                last=max(last.last, each.last),
                pieces=(min(last.pieces[0], each.pieces[0]), max(last.pieces[1], each.pieces[1])),
                delete_after=max(last.delete_after, each.delete_after),
            )
        else:
            joined.append(each)
    return tuple(joined)


def _follow(one: GoneWal, other: GoneWal) -> bool:
    if one.first.timeline != other.first.timeline or one.pieces is None or other.pieces is None:
        return False
    # Pieces are numbered as WAL came: next numbers on one timeline are next WAL.
    return other.pieces[0] <= one.pieces[1] + 1
