"""Comparing a file that was handed over with what is archived under its name.

The host cannot open what it has archived; the keyed digests in the pieces' signed headers say whether the
file holds the same bytes.  Reference: docs/format.md §7.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import StrEnum

from pitr.archive_seal import Writer
from pitr.catalogue.wal_records import PieceHeader
from pitr.errors import NotAuthentic
from pitr.layout import PieceKey
from pitr.pipeline.keys import ContentHmac
from pitr.repository import Repository
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from storage.store import ObjectMissing

_READ_BYTES = 1 << 20


class Comparison(StrEnum):
    """What a comparison found.  ``ABSENT``: not all of it is archived, and what is, is equal.

    ``COVERED``: all of it is archived, the last of it in a piece that goes on beyond the end: the digest of a
    whole piece says nothing of a part of it.
    """

    EQUAL = "equal"
    COVERED = "covered"
    DIFFERENT = "different"
    ABSENT = "absent"


def compare_segment(
    descriptor: int, segment: SegmentName, end: LSN, repository: Repository, writer: Writer
) -> Comparison:
    """Compare a segment's file with its pieces, from its start up to ``end``.  Raises StoreError, OSError."""
    start = segment.start_offset(writer.segment_bytes)
    covered, goes_beyond = start, False
    for header in sorted(_pieces(segment, repository, writer), key=lambda piece: (piece.start, piece.end)):
        if header.end > end:
            goes_beyond = goes_beyond or header.start.offset <= covered
            continue
        if _digest(descriptor, header, start, writer.content_key) != header.content_hmac:
            return Comparison.DIFFERENT
        if header.start.offset <= covered:
            covered = max(covered, header.end.offset)
    if covered >= end.offset:
        return Comparison.EQUAL
    return Comparison.COVERED if goes_beyond else Comparison.ABSENT


def _pieces(segment: SegmentName, repository: Repository, writer: Writer) -> Iterator[PieceHeader]:
    """Yield the pieces of a segment that this host signed."""
    for key in repository.wal.objects(writer.archive, segment.timeline, from_segment=segment):
        if key.segment != segment:
            return
        if not isinstance(key, PieceKey):
            continue
        try:
            entry = repository.wal.header(key)
        except (NotAuthentic, ObjectMissing):
            continue
        assert isinstance(entry.header, PieceHeader)
        yield entry.header


def _digest(descriptor: int, piece: PieceHeader, start: int, content_key: bytes) -> bytes:
    digest = ContentHmac(content_key)
    at, left = piece.start.offset - start, piece.end - piece.start
    while left:
        content = os.pread(descriptor, min(left, _READ_BYTES), at)
        if not content:
            return b""
        digest.update(content)
        at, left = at + len(content), left - len(content)
    return digest.digest()
