"""Intake: what becomes of each cut of received WAL, in order: compared, or sealed as the next piece.

A stream always restarts at a segment's boundary, so its first bytes are archived already.  They are
compared by their keyed digests with what was archived: a difference means that this is another
history under the same name, and nothing more is archived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pitr.archive_seal import ArchivedPiece, Content, PieceSealer, SealedPiece, SegmentBuilder, Writer
from pitr.errors import ArchiveDiverged
from pitr.pipeline.keys import ContentHmac, DataKey
from pitr.wal.pieces import RawPiece, RunStart
from pitr.wal.scanner import TransactionScanner
from pitr.wal.timeline import TimelineId


@dataclass(frozen=True, slots=True)
class KnownWal:
    """What is archived of the segment in which the archive ended when the daemon started."""

    timeline: TimelineId
    pieces: tuple[ArchivedPiece, ...]


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed piece; ``finishes`` is the segment that is complete with it."""

    piece: SealedPiece
    finishes: SegmentBuilder | None
    leaves_in_pieces: SegmentBuilder | None


class Intake:
    """Takes the cuts of the stream in order.  Not thread-safe."""

    def __init__(self, writer: Writer, sealer: PieceSealer, known: KnownWal | None) -> None:
        self._writer: Final = writer
        self._sealer: Final = sealer
        self._known = known
        self._builder: SegmentBuilder | None = None
        self._scanner: TransactionScanner | None = None
        self._comparison: Comparison | None = None
        self._begins_gap = False

    def compare(self, raw: RawPiece) -> None:
        """Take WAL that was archived before.  Raises ArchiveDiverged if it is not the same."""
        self._begin(raw)
        assert self._builder is not None
        assert self._comparison is not None
        self._comparison.feed(raw)
        if raw.start == self._builder.end:
            # After a restart of the daemon the frames are gone, and made again of what has come again.
            self._builder.add_content(self._read(raw))

    def seal(self, raw: RawPiece, data_key: DataKey, received_at: datetime) -> Sealed:
        """Take new WAL: seal it as the next piece."""
        self._begin(raw)
        builder = self._builder
        if builder is None or builder.is_full or builder.end != raw.start:
            builder = self._builder = SegmentBuilder(self._writer, raw.timeline, raw.start)
        content = self._read(raw)
        piece = self._sealer.seal(
            raw, content, data_key, received_at=received_at, begins_gap=self._begins_gap
        )
        self._begins_gap = False
        builder.add_content(content)
        builder.pieces.append(
            ArchivedPiece(
                raw.start, raw.end, piece.header.sequence, piece.header.content_hmac, piece.header_sha256
            )
        )
        is_complete = builder.is_complete
        left = builder if builder.is_full and not is_complete else None
        return Sealed(piece, builder if is_complete else None, left)

    def _begin(self, raw: RawPiece) -> None:
        run = raw.begins
        if run is None:
            return
        self._begins_gap = self._begins_gap or not run.follows
        builder = self._builder
        is_same = builder is not None and builder.timeline == run.timeline and builder.start == run.start
        if builder is None or not is_same or builder.end != run.known_to:
            pieces = builder.pieces if builder is not None and is_same else self._known_pieces(run)
            builder = self._builder = SegmentBuilder(self._writer, run.timeline, run.start)
            builder.pieces.extend(pieces)
            self._scanner = None
        self._comparison = Comparison(self._writer.content_key, run.timeline, builder.pieces)

    def _known_pieces(self, run: RunStart) -> Sequence[ArchivedPiece]:
        known, self._known = self._known, None
        if known is None or known.timeline != run.timeline or run.known_to is None:
            return ()
        return known.pieces

    def _read(self, raw: RawPiece) -> Content:
        if self._scanner is None:
            self._scanner = TransactionScanner(self._writer.segment_bytes)
        return Content.of(raw.start, self._scanner.feed(raw.start, *raw.chunks))


class Comparison:
    """Compares contiguous WAL with the pieces that were made of it, by their keyed digests."""

    def __init__(self, content_key: bytes, timeline: TimelineId, pieces: Sequence[ArchivedPiece]) -> None:
        self._content_key: Final = content_key
        self._timeline: Final = timeline
        self._left = list(reversed(pieces))
        self._digest = ContentHmac(content_key)

    def feed(self, raw: RawPiece) -> None:
        """Compare what follows; a piece is judged when all of it has come.  Raises ArchiveDiverged."""
        at = raw.start
        while self._left and self._left[-1].end <= at:
            self._left.pop()
        for chunk in raw.chunks:
            view = memoryview(chunk)
            while view and self._left:
                piece = self._left[-1]
                taken = max(min((piece.start if at < piece.start else piece.end) - at, len(view)), 0)
                if at >= piece.start:
                    self._digest.update(view[:taken])
                view, at = view[taken:], at + taken
                if at == piece.end:
                    self._judge(self._left.pop())

    def _judge(self, piece: ArchivedPiece) -> None:
        found, self._digest = self._digest.digest(), ContentHmac(self._content_key)
        if found != piece.content_hmac:
            raise ArchiveDiverged(
                f"the server's WAL differs from the archive's on timeline {self._timeline}",
                detail=f"Piece {piece.sequence}, {piece.start} to {piece.end}, holds other bytes.",
                hint="Two servers write one archive, or this one was restored or set back: stop the daemon of"
                " the wrong one; for the right one `pitr adopt --as restore --identity FILE`.",
            )
