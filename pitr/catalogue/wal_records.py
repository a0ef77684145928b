"""Records of WAL: the signed headers of pieces and segments, and their hourly index.  Pure.

Beside them stand the two values that the catalogue and the planner share: one stored object as
a ``WalUnit``, and what several cover together as a ``CoverageInterval``.  Reference:
docs/format.md §7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import TypeAlias

from pitr.catalogue.fields import Fields
from pitr.catalogue.records import Payload, archive_fields
from pitr.errors import MalformedValue
from pitr.layout import ArchiveId, PieceKey, SegmentKey, parse_wal_key
from pitr.pipeline.sign import decode_time, encode_time
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName, check_segment_bytes
from pitr.wal.timeline import TimelineId

POINTS_MAX = 64
# An index is written each hour, or earlier before it would hold more pieces than this: some 10 MB.
INDEX_PIECES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class TransactionTimes:
    """Least and greatest end time of the transactions that end in a stretch of WAL.

    Not monotone from one stretch to the next.  ``is_exact`` is false where a record may be missing.
    """

    min_at: datetime
    max_at: datetime
    is_exact: bool

    def __post_init__(self) -> None:
        if self.min_at > self.max_at:
            raise MalformedValue(f"transaction times run backwards: {self.min_at} to {self.max_at}")


@dataclass(frozen=True, slots=True)
class TimePoint:
    """One transaction-end record of the sample: where it starts, and its time."""

    lsn: LSN
    at: datetime


def _write_times(times: TransactionTimes | None) -> Payload | None:
    if times is None:
        return None
    exact = times.is_exact
    return {"min_at": encode_time(times.min_at), "max_at": encode_time(times.max_at), "is_exact": exact}


def _read_times(fields: Fields) -> TransactionTimes | None:
    if fields.is_null("transactions"):
        return None
    inner = fields.inner("transactions")
    return TransactionTimes(inner.time("min_at"), inner.time("max_at"), inner.boolean("is_exact"))


def _read_points(fields: Fields) -> tuple[TimePoint, ...]:
    points = []
    for item in fields.items("points", count_max=POINTS_MAX):
        if not isinstance(item, list) or len(item) != 2 or not all(isinstance(part, str) for part in item):
            raise MalformedValue("a sampled point must be a list of LSN and time")
        points.append(TimePoint(LSN.parse(item[0]), decode_time(item[1])))
    if any(later.lsn <= earlier.lsn for earlier, later in pairwise(points)):
        raise MalformedValue("sampled points must ascend by LSN")
    return tuple(points)


@dataclass(frozen=True, slots=True)
class PieceHeader:
    """The signed header of a WAL piece; ``encode_headed`` adds size and digest of the body."""

    repository: str
    archive: ArchiveId
    timeline: TimelineId
    segment_bytes: int
    start: LSN
    end: LSN
    sequence: int
    previous: bytes | None
    content_hmac: bytes
    key_id: bytes
    received_at: datetime
    transactions: TransactionTimes | None = None
    points: tuple[TimePoint, ...] = ()

    def __post_init__(self) -> None:
        _check_span(self.start, self.end, self.segment_bytes)
        # H of no header is null; a later piece without one would let a chain be begun anew unseen.
        if (self.sequence == 1) != (self.previous is None) or self.sequence < 1:
            raise MalformedValue(f"piece {self.sequence}: only the first piece has no predecessor")

    @property
    def segment(self) -> SegmentName:
        """Return the segment that the piece is part of."""
        return SegmentName.holding(self.timeline, self.start, self.segment_bytes)

    def to_payload(self) -> Payload:
        return {
            **archive_fields("wal-piece", self.repository, self.archive),
            **_span_fields(self),
            "sequence": self.sequence,
            "previous": None if self.previous is None else self.previous.hex(),
            "received_at": encode_time(self.received_at),
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> PieceHeader:
        fields = Fields(payload, "wal-piece")
        return cls(
            repository=fields.repository(),
            archive=fields.archive(),
            timeline=fields.timeline("timeline"),
            segment_bytes=check_segment_bytes(fields.integer("segment_bytes")),
            start=fields.lsn("start"),
            end=fields.lsn("end"),
            sequence=fields.integer("sequence", least=1, most=10**16 - 1),
            previous=fields.optional("previous", fields.digest),
            content_hmac=fields.digest("content_hmac"),
            key_id=fields.key_id("key_id"),
            received_at=fields.time("received_at"),
            transactions=_read_times(fields),
            points=_read_points(fields),
        )


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The signed header of a whole WAL segment, made of the pieces ``first_piece`` to ``last_piece``."""

    repository: str
    archive: ArchiveId
    timeline: TimelineId
    segment_bytes: int
    segment: SegmentName
    start: LSN
    end: LSN
    first_piece: int
    last_piece: int
    pieces_sha256: bytes
    content_hmac: bytes
    key_id: bytes
    transactions: TransactionTimes | None = None
    points: tuple[TimePoint, ...] = ()

    def __post_init__(self) -> None:
        _check_span(self.start, self.end, self.segment_bytes)
        if SegmentName.holding(self.timeline, self.start, self.segment_bytes) != self.segment:
            raise MalformedValue(f"segment {self.segment} does not hold {self.start} of {self.timeline}")
        if not 0 < self.first_piece <= self.last_piece:
            raise MalformedValue(f"segment {self.segment}: pieces {self.first_piece} to {self.last_piece}")

    def to_payload(self) -> Payload:
        return {
            **archive_fields("wal-segment", self.repository, self.archive),
            **_span_fields(self),
            "segment": str(self.segment),
            "pieces": [self.first_piece, self.last_piece],
            "pieces_sha256": self.pieces_sha256.hex(),
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> SegmentHeader:
        fields = Fields(payload, "wal-segment")
        pieces = fields.items("pieces", count_max=2)
        first, last = pieces if len(pieces) == 2 else (None, None)
        if type(first) is not int or type(last) is not int:
            raise MalformedValue("wal-segment record: pieces must be two integers")
        return cls(
            repository=fields.repository(),
            archive=fields.archive(),
            timeline=fields.timeline("timeline"),
            segment_bytes=check_segment_bytes(fields.integer("segment_bytes")),
            segment=SegmentName.parse(fields.text("segment")),
            start=fields.lsn("start"),
            end=fields.lsn("end"),
            first_piece=first,
            last_piece=last,
            pieces_sha256=fields.digest("pieces_sha256"),
            content_hmac=fields.digest("content_hmac"),
            key_id=fields.key_id("key_id"),
            transactions=_read_times(fields),
            points=_read_points(fields),
        )


WalHeader: TypeAlias = PieceHeader | SegmentHeader


def _check_span(start: LSN, end: LSN, segment_bytes: int) -> None:
    check_segment_bytes(segment_bytes)
    if not start < end or start.offset // segment_bytes != (end.offset - 1) // segment_bytes:
        raise MalformedValue(f"{start} to {end} is no stretch within one segment of {segment_bytes} bytes")


def _span_fields(header: WalHeader) -> Payload:
    return {
        "timeline": str(header.timeline),
        "segment_bytes": header.segment_bytes,
        "start": str(header.start),
        "end": str(header.end),
        "content_hmac": header.content_hmac.hex(),
        "key_id": header.key_id.hex(),
        "transactions": _write_times(header.transactions),
        "points": [[str(point.lsn), encode_time(point.at)] for point in header.points],
    }


@dataclass(frozen=True, slots=True)
class IndexedHeader:
    """One entry of a WAL index: the object's key, the digest of its header's payload, and the header.

    The header comes without ``points``: they are only a sample, and half of its size.
    """

    key: PieceKey | SegmentKey
    header_sha256: bytes
    header: WalHeader


@dataclass(frozen=True, slots=True)
class WalIndexRecord:
    """The headers of the pieces ``first`` to ``last`` and of segments completed meanwhile, repeated.

    It spares a rebuild one request per piece.  At most INDEX_PIECES_MAX pieces.
    """

    repository: str
    archive: ArchiveId
    first: int
    last: int
    previous: bytes | None
    pieces: tuple[IndexedHeader, ...]
    segments: tuple[IndexedHeader, ...]

    def __post_init__(self) -> None:
        numbers = []
        for entry in self.pieces:
            if not isinstance(entry.key, PieceKey) or not isinstance(entry.header, PieceHeader):
                raise MalformedValue(f"wal-index {self.first}-{self.last}: {entry.key} is no piece")
            numbers.append(entry.header.sequence)
        if any(not isinstance(entry.header, SegmentHeader) for entry in self.segments):
            raise MalformedValue(f"wal-index {self.first}-{self.last}: a segment's header is none")
        if not 0 < self.first <= self.last or numbers != list(range(self.first, self.last + 1)):
            raise MalformedValue(f"wal-index {self.first}-{self.last} does not hold exactly these pieces")
        for entry in (*self.pieces, *self.segments):
            check_key(entry.key, entry.header)
            if entry.header.archive != self.archive or entry.header.repository != self.repository:
                raise MalformedValue(
                    f"wal-index {self.first}-{self.last} names another archive's {entry.key}"
                )

    def to_payload(self) -> Payload:
        return {
            **archive_fields("wal-index", self.repository, self.archive),
            "first": self.first,
            "last": self.last,
            "previous": None if self.previous is None else self.previous.hex(),
            "pieces": [_write_entry(entry) for entry in self.pieces],
            "segments": [_write_entry(entry) for entry in self.segments],
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> WalIndexRecord:
        fields = Fields(payload, "wal-index")
        return cls(
            repository=fields.repository(),
            archive=fields.archive(),
            first=fields.integer("first", least=1),
            last=fields.integer("last", least=1),
            previous=fields.optional("previous", fields.digest),
            pieces=tuple(
                _read_entry(entry, PieceHeader)
                for entry in fields.objects("pieces", count_max=INDEX_PIECES_MAX)
            ),
            segments=tuple(
                _read_entry(entry, SegmentHeader)
                for entry in fields.objects("segments", count_max=INDEX_PIECES_MAX)
            ),
        )


def _write_entry(entry: IndexedHeader) -> Payload:
    header = entry.header.to_payload()
    del header["points"]
    return {"key": str(entry.key), "header_sha256": entry.header_sha256.hex(), "header": header}


def _read_entry(fields: Fields, header_type: type[PieceHeader] | type[SegmentHeader]) -> IndexedHeader:
    header = header_type.from_payload({**fields.mapping("header"), "points": []})
    return IndexedHeader(parse_wal_key(fields.text("key")), fields.digest("header_sha256"), header)


def indexed(key: PieceKey | SegmentKey, header: WalHeader, header_sha256: bytes) -> IndexedHeader:
    """Return the entry for a WAL index: the header without its sampled points."""
    return IndexedHeader(key, header_sha256, replace(header, points=()))


def check_key(key: PieceKey | SegmentKey, header: WalHeader) -> None:
    """Refuse a header that is not that of the object with this name: a renamed or swapped one.

    Raises MalformedValue.
    """
    is_same = False
    if isinstance(key, PieceKey) and isinstance(header, PieceHeader):
        claims = (key.archive, key.segment, key.start, key.end, key.sequence)
        is_same = claims == (header.archive, header.segment, header.start, header.end, header.sequence)
    elif isinstance(key, SegmentKey) and isinstance(header, SegmentHeader):
        is_same = (key.archive, key.segment) == (header.archive, header.segment)
    if not is_same:
        raise MalformedValue(f"the object is not what its name says: {key}")


@dataclass(frozen=True, slots=True)
class WalUnit:
    """One stored piece or segment: the WAL from ``start`` to ``end`` of one archive and timeline.

    ``regions`` are those known to hold it; empty means not known region by region.  ``pieces``: the first and
    the last piece that a segment is made of, None where that is not known.
    """

    key: PieceKey | SegmentKey
    start: LSN
    end: LSN
    segment_bytes: int
    transactions: TransactionTimes | None = None
    regions: tuple[str, ...] = ()
    pieces: tuple[int, int] | None = None

    @property
    def archive(self) -> ArchiveId:
        """Return the archive that holds it."""
        return self.key.archive

    @property
    def timeline(self) -> TimelineId:
        """Return the timeline that it is of."""
        return self.key.segment.timeline

    @classmethod
    def of(cls, key: PieceKey | SegmentKey, header: WalHeader, regions: tuple[str, ...] = ()) -> WalUnit:
        """Return the unit of a verified header.  Raises MalformedValue if key and header disagree."""
        check_key(key, header)
        return cls(
            key,
            header.start,
            header.end,
            header.segment_bytes,
            header.transactions,
            regions,
            piece_numbers(header),
        )


def piece_numbers(header: WalHeader) -> tuple[int, int]:
    """Return the first and the last piece that an object is made of."""
    if isinstance(header, PieceHeader):
        return header.sequence, header.sequence
    return header.first_piece, header.last_piece


@dataclass(frozen=True, slots=True)
class CoverageInterval:
    """Unbroken WAL of one archive and timeline, with the times of the transactions that end in it.

    The times are None where none ends there.  ``regions`` hold the whole of it.
    """

    archive: ArchiveId
    timeline: TimelineId
    start: LSN
    end: LSN
    min_at: datetime | None = None
    max_at: datetime | None = None
    is_exact: bool = True
    regions: tuple[str, ...] = ()
