"""What a second writer with the archive's key has put there: found by its numbers, and used by no reader.

Costs nothing but a look at names where each number has one piece.  Reference: docs/format.md §7.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pitr.catalogue.records import HeadRecord
from pitr.catalogue.wal_records import IndexedHeader, PieceHeader, SegmentHeader
from pitr.errors import MalformedValue, NotAuthentic
from pitr.layout import ArchiveId, PieceKey, SegmentKey
from pitr.repository import Repository
from pitr.wal.pacing import PUTS_MAX
from pitr.wal_chain import (
    doubtful,
    foreign_pieces,
    is_foreign_segment,
    left_by_crash,
    needed_numbers,
    unacknowledged,
)
from storage.store import ObjectMissing

_READERS: Final = 8
# Of segments that nobody signed so many are passed over to find the newest one.
_SEGMENTS_MAX: Final = 16


def unexplained_wal(
    repository: Repository, keys: Sequence[PieceKey | SegmentKey], foreign: Collection[PieceKey | SegmentKey]
) -> frozenset[PieceKey | SegmentKey]:
    """Return those of the ``foreign`` ones among ``keys`` that no crash of the one writer explains.

    Raises StoreError.
    """
    pieces = {key for key in foreign if isinstance(key, PieceKey)}
    numbers = {key.sequence - before for key in pieces for before in range(PUTS_MAX + 1)}
    near = [key for key in keys if isinstance(key, PieceKey) and key.sequence in numbers]
    return frozenset(foreign) - left_by_crash(_headers(repository, near), pieces)


def foreign_wal(
    repository: Repository,
    archive: ArchiveId,
    keys: Sequence[PieceKey | SegmentKey],
    head: HeadRecord | None = None,
) -> frozenset[PieceKey | SegmentKey]:
    """Return those of an archive's ``keys`` that are not of its chain.

    ``head`` is the newest one, if it is known.  Raises StoreError, NotAuthentic.
    """
    if not doubtful(keys, None):
        return frozenset()
    head = head or repository.latest_head(archive)
    # Which one is right may be told by a piece that is not on the way, such as of the next timeline.
    timelines = repository.wal.timelines(archive)
    every = {*keys, *(key for one in timelines for key in repository.wal_objects(archive, one))}
    pieces = [key for key in every if isinstance(key, PieceKey)]
    numbers = doubtful(pieces, head)
    near = needed_numbers(numbers)
    headers = _headers(repository, [key for key in pieces if key.sequence in near])
    foreign = foreign_pieces(headers, head, numbers)
    suspect = {key.segment for key in pieces if key.sequence in numbers}
    segments = [key for key in keys if isinstance(key, SegmentKey) and key.segment in suspect]
    wholes = _headers(repository, segments)
    own = [key for key in pieces if key.segment in suspect and key not in foreign]
    digests = {_number(entry): entry.header_sha256 for entry in _headers(repository, own)}
    made = frozenset(
        entry.key
        for entry in wholes
        if isinstance(entry.header, SegmentHeader) and is_foreign_segment(entry.header, digests)
    )
    return (foreign | made).intersection(keys)


def under_way(
    repository: Repository, keys: Sequence[PieceKey | SegmentKey], head: HeadRecord | None
) -> frozenset[PieceKey]:
    """Return the pieces that were never acknowledged, ``wal_chain.unacknowledged``.  Raises StoreError."""
    if not unacknowledged(keys, head):
        return frozenset()
    wholes = sorted((key for key in keys if isinstance(key, SegmentKey)), key=str, reverse=True)
    stored_to = 0
    for entry in _headers(repository, wholes[:_SEGMENTS_MAX]):
        if isinstance(entry.header, SegmentHeader):
            stored_to = max(stored_to, entry.header.last_piece)
    return unacknowledged(keys, head, stored_to=stored_to)


def _number(entry: IndexedHeader) -> int:
    assert isinstance(entry.header, PieceHeader)
    return entry.header.sequence


def _headers(repository: Repository, keys: Iterable[PieceKey | SegmentKey]) -> list[IndexedHeader]:
    """Return the headers that are this archive's writer's; others are believed by nobody."""

    def read(key: PieceKey | SegmentKey) -> IndexedHeader | None:
        try:
            return repository.wal.header(key)
        except (NotAuthentic, MalformedValue, ObjectMissing):
            return None

    with ThreadPoolExecutor(_READERS, "chain-header") as readers:
        return [entry for entry in readers.map(read, keys) if entry is not None]
