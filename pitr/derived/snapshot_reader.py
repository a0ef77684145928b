"""Snapshots of Redis, read: the records, and each node's file written out of its parts, verified.

Reference: docs/format.md §11.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pitr.datakeys import DataKeys
from pitr.derived.rdb import TAIL_BYTES, check_tail
from pitr.derived.restore_words import RECORD_NAME, rdb_name, read_me, record_text
from pitr.derived.snapshot_record import KIND, NodeSnapshot, SnapshotPart, SnapshotRecord
from pitr.errors import MalformedValue, NotAuthentic, RestoreRefused
from pitr.layout import ArchiveId, derived_key, derived_part_key, derived_prefix
from pitr.pipeline.seal import Context, iter_frames
from pitr.pipeline.sign import open_record
from pitr.repository import Repository
from pitr.verified import RefusedObject, VerifiedSearch, check_place, get_verified
from storage.store import OBJECT_BYTES_MAX
from storage.synced_file import replace_synced, sync_directory

_PARTIAL: Final = ".part"
_READ_ME: Final = "README.txt"


@dataclass(frozen=True, slots=True)
class SnapshotListing:
    """All snapshots of an archive, the oldest first, and the records that cannot be used."""

    records: tuple[SnapshotRecord, ...]
    refused: tuple[RefusedObject, ...]


def list_snapshots(repository: Repository, archive: ArchiveId) -> SnapshotListing:
    """Return the verified records of what has not expired.

    Raises NotAuthentic if they are all bad (``VerifiedSearch``), StoreError.
    """
    prefix, expired = derived_prefix(archive), repository.expiry.newest(archive)
    search = VerifiedSearch(repository.store, prefix, f"records of snapshots of archive {archive}")

    def read(key: str) -> SnapshotRecord | None:
        snapshot = key[len(prefix) :]
        if expired is not None and expired.record.beside.names_snapshot(snapshot):
            return None
        return get_snapshot(repository, archive, snapshot)

    records = tuple(record for record in search.each(read) if record is not None)
    return SnapshotListing(records, tuple(search.refused))


def get_snapshot(repository: Repository, archive: ArchiveId, snapshot: str) -> SnapshotRecord:
    """Return one verified record.  Raises ObjectMissing, NotAuthentic, MalformedValue, StoreError."""
    key, host = derived_key(archive, snapshot), repository.verifier(archive)

    def read(body: bytes) -> SnapshotRecord:
        record = SnapshotRecord.from_payload(open_record(body, host, KIND))
        check_place(key, record.key, record.repository, repository.repository_id)
        return record

    return get_verified(repository.store, key, read)


def write_snapshot(
    repository: Repository,
    keys: DataKeys,
    record: SnapshotRecord,
    into: Path,
    *,
    on_progress: Callable[[int], None] = lambda _bytes: None,
) -> tuple[Path, ...]:
    """Write each node's RDB file, the slots and a text on what to do; return the RDB files.

    A directory that an interrupted restore of the same snapshot left is gone on with: files that are what
    the record says stay.  Raises RestoreRefused if it holds anything else, NotAuthentic, StoreError.
    """
    _make_ready(record, into)
    done_bytes = 0
    paths = []
    for number, node in enumerate(record.nodes):
        path = into / rdb_name(number, node)
        if not _is_whole(path, node):
            _write_node(repository, keys, record, number, path)
        done_bytes += node.size_bytes
        on_progress(done_bytes)
        paths.append(path)
    replace_synced(into / _READ_ME, read_me(record).encode())
    sync_directory(into)
    return tuple(paths)


def _make_ready(record: SnapshotRecord, into: Path) -> None:
    """Put the record first: it says whose the directory is."""
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    place, text = into / RECORD_NAME, record_text(record).encode()
    if any(into.iterdir()) and not (place.is_file() and place.read_bytes() == text):
        raise RestoreRefused(
            f"{into} is not empty",
            detail="it holds something else than this snapshot",
            hint="choose another directory with --into",
        )
    replace_synced(place, text)


def _is_whole(path: Path, node: NodeSnapshot) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == node.sha256
    except FileNotFoundError:
        return False


def _write_node(
    repository: Repository, keys: DataKeys, record: SnapshotRecord, number: int, path: Path
) -> None:
    node, data_key = record.nodes[number], keys.get(record.archive, record.key_id)
    digest, size_bytes, tail = hashlib.sha256(), 0, b""
    staged = path.with_name(path.name + _PARTIAL)
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        for index, part in enumerate(node.parts):
            body = _get_part(repository, record, number, index, part)
            context = Context(
                record.repository, record.archive, "derived", f"{record.snapshot}/{number:04d}/{index:06d}"
            )
            for content in iter_frames(body, data_key, context):
                digest.update(content)
                size_bytes += len(content)
                tail = (tail + content[-TAIL_BYTES:])[-TAIL_BYTES:]
                file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if size_bytes != node.size_bytes or digest.digest() != node.sha256:
        raise NotAuthentic(
            f"the RDB file of {node.address} is not the one that its record names",
            detail=f"{size_bytes} of {node.size_bytes} bytes were put together.",
        )
    check_tail(tail)
    staged.replace(path)
    sync_directory(path.parent)


def _get_part(
    repository: Repository, record: SnapshotRecord, number: int, index: int, part: SnapshotPart
) -> bytes:
    key = derived_part_key(record.archive, record.snapshot, number, index)
    if part.size_bytes > OBJECT_BYTES_MAX:
        raise MalformedValue(f"{key} is said to have {part.size_bytes} bytes")

    def read(body: bytes) -> bytes:
        if len(body) != part.size_bytes or hashlib.sha256(body).digest() != part.sha256:
            raise NotAuthentic(f"{key} is not the object that the snapshot's record names")
        return body

    return get_verified(repository.store, key, read)
