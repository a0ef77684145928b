"""What the flow holds and tells: values, and how a flow cuts by its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pitr.archive_seal import SealedPiece, SegmentBuilder
from pitr.archive_values import MIB, ArchiveSettings, DurableEnd
from pitr.catalogue.wal_records import IndexedHeader
from pitr.errors import WalMissing
from pitr.wal.cutting import Cutting
from pitr.wal.follow import ReceivedEnd
from pitr.wal.lsn import LSN
from pitr.wal.pacing import GroupCommit
from pitr.wal.pieces import PieceCutter
from pitr.wal.timeline import TimelineId

# Pieces that lie in the spool alone while no region answers and commits must not wait: a few KiB each.
_SPOOLED_WAITING_MAX: Final = 4096
# What is sealed is in memory twice, as the piece and for its segment.  WAL that does not compress waits
# unsealed beyond two of the largest pieces; of other WAL there are more of them in so many bytes.
_SEALED_WAITING_BYTES_MAX: Final = 32 * MIB


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


def may_seal_more(counts_spooled: bool, puts_max: int, waiting: int, waiting_bytes: int) -> bool:
    """Tell whether one more piece may be sealed beside those that are and wait for the quorum."""
    if counts_spooled:
        return waiting < _SPOOLED_WAITING_MAX
    return waiting < 2 * puts_max and waiting_bytes < _SEALED_WAITING_BYTES_MAX


def cutting_of(settings: ArchiveSettings, *, segment_bytes: int, now_s: float) -> Cutting:
    """Return how received WAL is cut by these settings, with nothing received yet."""
    cutter = PieceCutter(
        segment_bytes=segment_bytes,
        piece_bytes=settings.piece_bytes,
        piece_age_s=settings.piece_age_s,
        piece_bytes_max=settings.piece_bytes_max,
    )
    pacing = GroupCommit(puts_max=settings.sync_puts_in_flight, spacing_s=settings.sync_spacing_s)
    return Cutting(cutter, pacing, piece_age_s=settings.piece_age_s, now_s=now_s)


class LeftTimelines:
    """Where the archive's WAL ends of each timeline that it has left: a server changes it seldom.

    ``known`` are those that were left before this flow began.  Not thread-safe.
    """

    def __init__(self, known: Mapping[TimelineId, LSN]) -> None:
        self._ends = dict(known)

    def note(self, received: ReceivedEnd | None, timeline: TimelineId) -> None:
        """Note that what was received goes on with ``timeline``."""
        if received is not None and received.timeline != timeline:
            self._ends[received.timeline] = received.end

    def is_complete(self, durable: DurableEnd, timeline: TimelineId, start: LSN, end: LSN) -> bool:
        """Tell whether WAL of a timeline is at quorum.  Raises WalMissing if it never will be.

        Of an earlier timeline of which nobody knows where it was left, nothing is said to be complete.
        """
        if durable.start is None or durable.end is None:
            return False
        left_at = self._ends.get(timeline)
        if start < durable.start:
            why = f"After a hole the archive begins at {durable.start}."
        elif left_at is not None and left_at < end:
            why = f"The archive left it at {left_at}, with a server that took over."
        else:
            is_known = timeline == durable.timeline or (timeline < durable.timeline and left_at is not None)
            return is_known and end <= durable.end
        raise WalMissing(
            f"WAL from {start} to {end} of timeline {timeline} will never be complete in the archive",
            detail=why,
            hint="Take a new base backup.",
        )
