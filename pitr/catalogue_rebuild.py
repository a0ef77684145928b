"""Rebuild the catalogue from the store, or compare it with the store: a use case.

What is listed is read header by header and verified; what cannot be is reported and left out, so a
damaged object shows as a hole and never as WAL.  From too few regions the catalogue ends with their
last signed head: what lies there after it is not known to be all of it.  What an expire record names is
left out, whether it is deleted yet or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.expiry_record import ExpireRecord, GoneBackup
from pitr.catalogue.records import HeadRecord, HistoryRecord
from pitr.catalogue.sqlite import Catalogue
from pitr.catalogue.wal_records import IndexedHeader, SegmentHeader
from pitr.errors import MalformedValue, NotAuthentic
from pitr.foreign_wal import foreign_wal, under_way, unexplained_wal
from pitr.layout import ArchiveId, PieceKey, SegmentKey, parse_wal_key
from pitr.pipeline.sign import decode_payload
from pitr.quorum import Answers
from pitr.repository import ListedBackup, ListedHead, Repository, named_backups_sha256
from pitr.verified import RefusedObject
from pitr.wal.segment import SegmentName
from storage.store import ObjectStore, StoreError

# Each waits for one ranged read; more would only queue in the store's own connections.
_READERS: Final = 8
_FOREIGN: Final = "a second writer with this archive's key made it: no head and no piece leads to it"


@dataclass(frozen=True, slots=True)
class NamedRegion:
    """One region's own view, to see which copies it holds."""

    name: str
    store: ObjectStore


@dataclass(frozen=True, slots=True)
class RebuildResult:
    """What a rebuild found.  ``refused`` objects are left out; ``unseen`` regions did not answer."""

    archives: tuple[ArchiveId, ...]
    wal_objects: int
    headers_read: int
    refused: tuple[RefusedObject, ...]
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CatalogueDifference:
    """One row that only the catalogue has, or only the store gives."""

    row: str
    is_in_store: bool


@dataclass(slots=True)
class _Found:
    """What one archive holds, gathered before anything is written."""

    archive: ArchiveId
    backups: list[ListedBackup] = field(default_factory=list)
    histories: list[HistoryRecord] = field(default_factory=list)
    head: ListedHead | None = None
    wal: list[IndexedHeader] = field(default_factory=list)
    refused: list[RefusedObject] = field(default_factory=list)
    headers_read: int = 0
    gone: ExpireRecord | None = None


def rebuild(
    repository: Repository,
    catalogue: Catalogue,
    *,
    answers: Answers | None = None,
    regions: Sequence[NamedRegion] = (),
) -> RebuildResult:
    """Make the catalogue's content anew from the store, at once or not at all.  May be repeated.

    Where ``answers`` are too few, what the newest head does not speak of is left out; None: all answer.  With
    ``regions`` each is listed as well, to record who holds what.  The daemon must not be recording
    meanwhile.  Raises StoreError, NotAuthentic for a bad epoch or history; nothing has changed then.
    """
    strays: list[RefusedObject] = []
    archives = tuple(repository.archives(strays))
    found = [_gather(repository, archive, answers) for archive in archives]
    holders: dict[str, list[str]] = {}
    unseen = [region.name for region in regions if not _note_holder(region, archives, holders)]
    with catalogue.atomic():
        catalogue.clear()
        for one in found:
            _record(repository, catalogue, one, holders)
    return RebuildResult(
        archives=archives,
        wal_objects=sum(len(one.wal) for one in found),
        headers_read=sum(one.headers_read for one in found),
        refused=(*strays, *(refused for one in found for refused in one.refused)),
        unseen=tuple(unseen),
    )


def check(
    repository: Repository, catalogue: Catalogue, *, answers: Answers | None = None
) -> tuple[CatalogueDifference, ...]:
    """Compare the catalogue with what a rebuild would give.  Changes nothing.  Raises as ``rebuild``.

    Rows of what has expired since are no difference: the catalogue loses them when it is next rebuilt.  Nor
    is a backup that another host has made of a chain: the daemon learns of it with its next backup.
    """
    fresh = Catalogue(":memory:")
    try:
        archives = rebuild(repository, fresh, answers=answers).archives
        given, recorded = set(fresh.dump().splitlines()), set(catalogue.dump().splitlines())
    finally:
        fresh.close()
    left = _without_expired(repository, archives, recorded - given)
    more = (row for row in given - recorded if not _stands_for_a_chain(row))
    differences = [CatalogueDifference(row, is_in_store=True) for row in more]
    differences += [CatalogueDifference(row, is_in_store=False) for row in left]
    return tuple(sorted(differences, key=lambda difference: difference.row))


def _stands_for_a_chain(row: str) -> bool:
    """Tell whether a row of the catalogue's dump is of a backup that was made of a chain."""
    table, columns = _parse_row(row)
    if table != "backups":
        return False
    payload = decode_payload(columns["payload"].encode("ascii"))
    return BackupManifest.from_payload(payload).stands_for is not None


def _without_expired(repository: Repository, archives: Iterable[ArchiveId], rows: set[str]) -> set[str]:
    """Return the rows that no expire record names.  There is one a day: no more are read than it takes."""
    expiries = (expiry for archive in archives for expiry in repository.expiry.all(archive))
    while rows and (expiry := next(expiries, None)) is not None:
        rows = {row for row in rows if not _names_row(expiry.record, row)}
    return rows


def _names_row(record: ExpireRecord, row: str) -> bool:
    """Tell whether a row of the catalogue's dump is of something that has expired."""
    table, columns = _parse_row(row)
    if table == "wal_units":
        key = parse_wal_key(columns["key"])
        return key.archive == record.archive and record.names_wal(key)
    if table == "backups":
        place = (columns["system_identifier"], columns["epoch"])
        is_own = place == (str(record.archive.system_identifier), record.archive.epoch)
        return is_own and record.names_backup(columns["backup"])
    return False


def _parse_row(row: str) -> tuple[str, dict[str, Any]]:
    """Return the table and the columns of a row of the catalogue's dump."""
    table, _, text = row.partition(" ")
    return table, json.loads(text)


def _gather(repository: Repository, archive: ArchiveId, answers: Answers | None) -> _Found:
    found = _Found(archive)
    # A head speaks of what was put before it, so it is read first: all that it names is there then.
    search = repository.find_head(archive)
    found.head = search.newest
    found.refused += search.refused
    expiry = repository.expiry.newest(archive)
    found.gone = None if expiry is None else expiry.record
    listing = repository.manifests(archive)
    found.backups = list(listing.backups)
    found.refused += listing.refused
    last_piece: int | None = None
    head = None if found.head is None else found.head.head
    if answers is not None and not answers.are_enough(None if head is None else head.quorum):
        found.backups = _signed_backups(repository, found, head)
        last_piece = 0 if head is None else head.piece_sequence
    strays: list[RefusedObject] = []
    found.histories = repository.history_records(archive, strays)
    listed = {
        timeline: list(repository.wal.objects(archive, timeline, refused=strays))
        for timeline in repository.wal.timelines(archive, refused=strays)
    }
    found.refused += strays
    every = list(chain.from_iterable(listed.values()))
    foreign = foreign_wal(repository, archive, every, head)
    unexplained = unexplained_wal(repository, every, foreign) if foreign else ()
    found.refused += [RefusedObject(str(key), _FOREIGN) for key in sorted(unexplained, key=str)]
    left_out = foreign | under_way(repository, [key for key in every if key not in foreign], head)
    for keys in listed.values():
        _gather_timeline(repository, found, [key for key in keys if key not in left_out], last_piece)
    return found


def _signed_backups(repository: Repository, found: _Found, head: HeadRecord | None) -> list[ListedBackup]:
    """Return the backups that the head counts: without the newest, if later ones have arrived since.

    It may count more than are listed: those that have expired since it was signed, as their records say.  And
    fewer: what was made of a chain since then, which has the time of the backup that it stands for.
    """
    if head is None:
        return []
    listed = {each.manifest.backup: each for each in found.backups}
    counted = {name: (each.manifest.stopped_at, each.object_sha256) for name, each in listed.items()}
    made = [name for name, each in listed.items() if each.manifest.stands_for is not None]
    made.sort(key=lambda name: listed[name].manifest.stopped_at, reverse=True)
    # Not all at once: each record is read only where those before it do not explain the head.
    for gone in chain([()], _gone_by_record(repository, found)):
        counted |= {each.backup: (each.stopped_at, each.manifest_sha256) for each in gone}
        for count in range(len(made) + 1):
            known = [name for name in counted if name not in made[:count]]
            ordered = sorted(known, key=lambda name: counted[name][0])[: head.backups_count]
            if named_backups_sha256({name: counted[name][1] for name in ordered}) == head.backups_sha256:
                return [listed[name] for name in ordered if name in listed]
    found.refused.append(
        RefusedObject(
            f"manifests/{found.archive}/",
            f"not the {head.backups_count} backups that head {head.sequence} signs",
        )
    )
    return sorted(found.backups, key=lambda each: each.manifest.stopped_at)


def _gone_by_record(repository: Repository, found: _Found) -> Iterator[Sequence[GoneBackup]]:
    """Yield what each expire record was the first to name, the newest record first."""
    newer: ExpireRecord | None = None
    for expiry in repository.expiry.all(found.archive):
        if newer is not None:
            yield [gone for gone in newer.backups if not expiry.record.names_backup(gone.backup)]
        newer = expiry.record
    if newer is not None:
        yield newer.backups


def _gather_timeline(
    repository: Repository,
    found: _Found,
    keys: Iterable[PieceKey | SegmentKey],
    last_piece: int | None,
) -> None:
    """Read the headers that are needed: a segment's spares those of the pieces that it holds."""
    pieces: list[PieceKey] = []
    segments: list[SegmentKey] = []
    for key in keys:
        if found.gone is not None and found.gone.names_wal(key):
            continue
        if isinstance(key, SegmentKey):
            segments.append(key)
        elif last_piece is None or key.sequence <= last_piece:
            pieces.append(key)
    whole: dict[SegmentName, list[SegmentHeader]] = {}
    for entry in _headers(repository, found, segments):
        header = entry.header
        if isinstance(header, SegmentHeader) and (last_piece is None or header.last_piece <= last_piece):
            whole.setdefault(header.segment, []).append(header)
            found.wal.append(entry)
    loose = [
        key
        for key in pieces
        if not any(h.start <= key.start and key.end <= h.end for h in whole.get(key.segment, ()))
    ]
    found.wal += _headers(repository, found, loose)


def _headers(
    repository: Repository, found: _Found, keys: Sequence[PieceKey | SegmentKey]
) -> list[IndexedHeader]:
    """Return the verified headers of ``keys``: from the hourly indexes, the rest one by one."""
    wanted = {str(key) for key in keys}
    entries: dict[str, IndexedHeader] = {}
    if len(keys) > _READERS:
        entries = _indexed(repository, found, wanted)
    missing = [key for key in keys if str(key) not in entries]

    def read(key: PieceKey | SegmentKey) -> IndexedHeader | RefusedObject:
        try:
            return repository.wal.header(key)
        except (NotAuthentic, MalformedValue) as cause:
            return RefusedObject(str(key), cause.detail or cause.message)

    with ThreadPoolExecutor(max_workers=_READERS, thread_name_prefix="headers") as readers:
        for result in readers.map(read, missing):
            if isinstance(result, RefusedObject):
                found.refused.append(result)
            else:
                entries[str(result.key)] = result
    found.headers_read += len(missing)
    return [entries[str(key)] for key in keys if str(key) in entries]


def _indexed(repository: Repository, found: _Found, wanted: set[str]) -> dict[str, IndexedHeader]:
    entries: dict[str, IndexedHeader] = {}
    refused: list[RefusedObject] = []
    # An index only repeats; without it the headers themselves are asked.
    for record in repository.wal.indexes(found.archive, refused=refused):
        for entry in (*record.pieces, *record.segments):
            if str(entry.key) in wanted:
                entries[str(entry.key)] = entry
    found.refused += [one for one in refused if one not in found.refused]
    return entries


def _note_holder(region: NamedRegion, archives: Iterable[ArchiveId], holders: dict[str, list[str]]) -> bool:
    """Note which WAL a region holds; False if it does not answer."""
    seen: list[str] = []
    try:
        for archive in archives:
            seen += [info.key for info in region.store.list_objects(f"wal/{archive}/")]
    except StoreError:
        return False
    for key in seen:
        holders.setdefault(key, []).append(region.name)
    return True


def _record(
    repository: Repository, catalogue: Catalogue, found: _Found, holders: dict[str, list[str]]
) -> None:
    catalogue.record_epoch(repository.epoch(found.archive))
    for history in found.histories:
        catalogue.record_history(history)
    for listed in found.backups:
        catalogue.record_backup(listed.manifest, listed.object_sha256)
    for entry in found.wal:
        catalogue.record_wal(entry.header, entry.key, holders.get(str(entry.key), ()))
    if found.head is not None:
        catalogue.record_head(found.head.head, found.head.payload_sha256)
