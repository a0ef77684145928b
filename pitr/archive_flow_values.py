"""What the flow holds and tells: values only."""

from __future__ import annotations

from dataclasses import dataclass

from pitr.archive_seal import SealedPiece, SegmentBuilder
from pitr.archive_values import DurableEnd
from pitr.catalogue.wal_records import IndexedHeader
from pitr.wal.follow import ReceivedEnd
from pitr.wal.lsn import LSN


@dataclass(frozen=True, slots=True)
class Recorded:
    """A piece or a segment that is at quorum; ``end`` is the archive's with the piece, None for a segment."""

    entry: IndexedHeader
    end: DurableEnd | None


@dataclass(frozen=True, slots=True)
class FlowStatus:
    """The flow at a moment; times are monotonic."""

    received: ReceivedEnd | None
    sealed: LSN | None
    durable: DurableEnd | None
    received_bytes: int
    durable_bytes: int
    backlog_bytes: int
    pieces_waiting: int
    segments_waiting: int
    oldest_s: float | None
    oldest_unflushed_s: float | None
    flushed: LSN | None
    is_synchronous: bool
    puts: int


@dataclass(frozen=True, slots=True)
class WaitingPiece:
    """A sealed piece until it is at quorum; ``finishes`` is the segment that is whole with it."""

    piece: SealedPiece
    size_bytes: int
    finishes: SegmentBuilder | None
    since_s: float
