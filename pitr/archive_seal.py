"""Sealing WAL: from received bytes to the object of a piece, and of pieces to that of a segment.

Each piece's signed header names the digest of the one before it, so sealing is strictly one after
the other.  Nothing is put here.  Reference: docs/format.md §7.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pitr.catalogue.wal_records import POINTS_MAX, PieceHeader, SegmentHeader, TimePoint, TransactionTimes
from pitr.layout import ArchiveId, PieceKey, SegmentKey
from pitr.pipeline.compress import WAL_MATCH_BYTES_MIN
from pitr.pipeline.frames import compress_frames
from pitr.pipeline.headed import HeadedObject, write_headed
from pitr.pipeline.keys import DataKey, content_hmac
from pitr.pipeline.seal import HEADER_BYTES, container_bytes, seal_frames_into
from pitr.pipeline.sign import Signer, payload_sha256
from pitr.wal.lsn import LSN
from pitr.wal.pieces import RawPiece
from pitr.wal.scanner import ScanResult
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_reader import wal_context
from storage.digest import BodyDigest
from storage.store import OBJECT_BYTES_MAX

# Room for the signed header, the container's header, and each frame's length and tag.
_SEGMENT_FRAMES_BYTES_MAX = OBJECT_BYTES_MAX - (1 << 20) - HEADER_BYTES
_ATTEMPT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Writer:
    """Who seals: the archive, the host's keys, and where randomness comes from."""

    repository: str
    archive: ArchiveId
    segment_bytes: int
    signer: Signer
    content_key: bytes
    random: Callable[[int], bytes]

    def attempt(self) -> str:
        """Return a new attempt id for an object's name."""
        return self.random(_ATTEMPT_BYTES).hex()


@dataclass(frozen=True, slots=True)
class ArchivedPiece:
    """What is remembered of a piece of the segment being written."""

    start: LSN
    end: LSN
    sequence: int
    content_hmac: bytes
    header_sha256: bytes


@dataclass(frozen=True, slots=True)
class SealedPiece:
    """A piece as it is put, and what the steps after it need."""

    key: PieceKey
    header: PieceHeader
    header_sha256: bytes
    body: bytes
    sha256: BodyDigest
    received_s: float
    begins_gap: bool


@dataclass(frozen=True, slots=True)
class SealedSegment:
    """A whole segment as it is put."""

    key: SegmentKey
    header: SegmentHeader
    header_sha256: bytes
    body: bytes
    sha256: BodyDigest


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a stretch of WAL, and what was made of them once."""

    start: LSN
    whole: memoryview
    frames: tuple[bytes, ...]
    transactions: TransactionTimes | None
    points: tuple[TimePoint, ...]

    @classmethod
    def of(cls, start: LSN, scanned: ScanResult) -> Content:
        """Compress the bytes and take over what the scan found."""
        times = None
        if scanned.min_at is not None and scanned.max_at is not None:
            times = TransactionTimes(scanned.min_at, scanned.max_at, scanned.is_exact)
        points = tuple(TimePoint(point.lsn, point.at) for point in scanned.points)
        frames = tuple(compress_frames(scanned.content, match_bytes_min=WAL_MATCH_BYTES_MIN))
        return cls(start, scanned.content, frames, times, points)


class PieceSealer:
    """Seals pieces in the order of their chain.  Not thread-safe."""

    def __init__(self, writer: Writer, *, last_sequence: int, last_sha256: bytes | None) -> None:
        self._writer: Final = writer
        self._sequence = last_sequence
        self._previous = last_sha256

    def seal(
        self, raw: RawPiece, content: Content, data_key: DataKey, *, received_at: datetime, begins_gap: bool
    ) -> SealedPiece:
        """Return the next piece of the chain."""
        writer = self._writer
        header = PieceHeader(
            repository=writer.repository,
            archive=writer.archive,
            timeline=raw.timeline,
            segment_bytes=writer.segment_bytes,
            start=raw.start,
            end=raw.end,
            sequence=self._sequence + 1,
            previous=self._previous,
            content_hmac=content_hmac(writer.content_key, content.whole),
            key_id=data_key.key_id,
            received_at=received_at,
            transactions=content.transactions,
            points=content.points,
        )
        body, envelope = _seal(header, content.frames, data_key, writer.signer)
        digest = payload_sha256(envelope)
        self._sequence, self._previous = header.sequence, digest
        key = PieceKey(writer.archive, header.segment, raw.start, raw.end, header.sequence, writer.attempt())
        return SealedPiece(key, header, digest, body, BodyDigest.of(body), raw.received_s, begins_gap)


class SegmentBuilder:
    """Gathers the pieces of one segment as they are sealed.  Not thread-safe.

    It holds their compressed frames, so a segment costs no second compression.  One that does not
    begin at the segment's start, of which pieces are unknown, or that is too large for an object
    is never complete: it stays in pieces.
    """

    def __init__(self, writer: Writer, timeline: TimelineId, start: LSN) -> None:
        self._writer: Final = writer
        self.timeline: Final = timeline
        self.name: Final = SegmentName.holding(timeline, start, writer.segment_bytes)
        self.start: Final = start
        # Where the gathered content ends.  Pieces known from before a restart reach further at first.
        self.end = start
        self.pieces: list[ArchivedPiece] = []
        self._frames: list[bytes] = []
        self._frames_bytes = 0
        self._times: TransactionTimes | None = None
        self._points: list[TimePoint] = []

    @property
    def is_full(self) -> bool:
        """Whether the content reaches the segment's end."""
        return self.end == self.name.end(self._writer.segment_bytes)

    @property
    def is_too_large(self) -> bool:
        """Whether the segment would not fit an object."""
        return self._frames_bytes > _SEGMENT_FRAMES_BYTES_MAX

    @property
    def is_complete(self) -> bool:
        """Whether the segment can be stored whole."""
        if not self.is_full or self.is_too_large:
            return False
        at = self.name.start_offset(self._writer.segment_bytes)
        for piece in self.pieces:
            if piece.start.offset != at:
                return False
            at = piece.end.offset
        return at == self.end.offset

    def add_content(self, content: Content) -> None:
        """Add what follows; a piece of it is added on its own."""
        self.end = content.start + len(content.whole)
        self._frames_bytes += sum(len(frame) for frame in content.frames)
        if self.is_too_large:
            self._frames.clear()
        else:
            self._frames.extend(content.frames)
        self._times = _joined(self._times, content.transactions)
        self._points.extend(content.points)

    def seal(self, data_key: DataKey) -> SealedSegment:
        """Return the segment's object, and forget its content.  Call it once it ``is_complete``."""
        writer, first, last = self._writer, self.pieces[0], self.pieces[-1]
        header = SegmentHeader(
            repository=writer.repository,
            archive=writer.archive,
            timeline=self.timeline,
            segment_bytes=writer.segment_bytes,
            segment=self.name,
            start=self.start,
            end=self.end,
            first_piece=first.sequence,
            last_piece=last.sequence,
            pieces_sha256=hashlib.sha256(b"".join(piece.header_sha256 for piece in self.pieces)).digest(),
            # Of the pieces' digests, not of the content: to digest that twice would cost a fifth of all.
            content_hmac=content_hmac(
                writer.content_key, b"".join(piece.content_hmac for piece in self.pieces)
            ),
            key_id=data_key.key_id,
            transactions=self._times,
            points=_thinned(self._points),
        )
        body, envelope = _seal(header, self._frames, data_key, writer.signer)
        self._frames.clear()
        key = SegmentKey(writer.archive, self.name, writer.attempt())
        digest = payload_sha256(envelope)
        return SealedSegment(key, header, digest, body, BodyDigest.of(body))


def _seal(
    header: PieceHeader | SegmentHeader, frames: Sequence[bytes], data_key: DataKey, signer: Signer
) -> HeadedObject:
    def write(place: memoryview) -> None:
        seal_frames_into(frames, data_key, wal_context(header), place)

    return write_headed(header.to_payload(), container_bytes(frames), write, signer)


def _joined(first: TransactionTimes | None, second: TransactionTimes | None) -> TransactionTimes | None:
    if first is None or second is None:
        return first or second
    return TransactionTimes(
        min(first.min_at, second.min_at),
        max(first.max_at, second.max_at),
        first.is_exact and second.is_exact,
    )


def _thinned(points: Sequence[TimePoint]) -> tuple[TimePoint, ...]:
    """Return at most POINTS_MAX of the points, evenly."""
    step = max(-(-len(points) // POINTS_MAX), 1)
    return tuple(points[::step])
