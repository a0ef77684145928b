"""What the archiver is told, and what it tells: settings, status, events, results.  Values only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from pitr.catalogue.records import HeadRecord, HistoryRecord
from pitr.catalogue.wal_records import PieceHeader, SegmentHeader
from pitr.errors import MalformedValue
from pitr.layout import PieceKey, SegmentKey
from pitr.quorum import WriteQuorum
from pitr.wal.follow import ArchiveFork
from pitr.wal.lsn import LSN
from pitr.wal.pacing import PUTS_MAX
from pitr.wal.pieces import RunStart
from pitr.wal.timeline import TimelineId

MIB = 1 << 20
PIECE_BYTES_MAX = 16 * MIB


@dataclass(frozen=True, slots=True)
class ArchiveSettings:
    """How WAL is streamed and shipped.  A piece is put at ``piece_bytes`` or ``piece_age_s``.

    While more waits than that, a piece takes it along up to ``piece_bytes_max`` (None: ``piece_bytes``):
    each piece costs a signature, files or requests in each region, and a row, whatever its size.
    While commits wait, ``sync_puts_in_flight`` are put at a time, ``sync_spacing_s`` apart at least, and the
    server hears from us every ``sync_status_interval_s``, else every ``status_interval_s``.
    ``quorum`` is what heads say of the regions, None for a store that is one place; see ``Acknowledgement``.
    ``backlog_bytes_max`` bounds what is received and not yet at quorum: at that point the socket is
    no longer read, and the slot keeps the WAL.  ``silence_s_max``: a server that says nothing for so
    long is gone.
    """

    slot: str
    piece_bytes: int = 4 * MIB
    piece_age_s: float = 1.0
    piece_bytes_max: int | None = None
    puts_in_flight: int = 3
    sync_puts_in_flight: int = 8
    sync_spacing_s: float = 0.005
    backlog_bytes_max: int = 64 * MIB
    head_interval_s: float = 30.0
    status_interval_s: float = 10.0
    sync_status_interval_s: float = 0.5
    silence_s_max: float = 60.0
    retry_pause_s_max: float = 5.0
    quorum: WriteQuorum | None = None

    def __post_init__(self) -> None:
        # More frames than 16 MiB of incompressible WAL must never meet the limit of an object.
        largest_bytes = self.piece_bytes if self.piece_bytes_max is None else self.piece_bytes_max
        is_sized = 8192 <= self.piece_bytes <= largest_bytes <= PIECE_BYTES_MAX
        puts = (self.puts_in_flight, self.sync_puts_in_flight)
        if not is_sized or not 1 <= min(puts) <= max(puts) <= PUTS_MAX:
            raise MalformedValue("pieces have 8 KiB to 16 MiB, and 1 to 16 of them are put at a time")
        if self.backlog_bytes_max < 2 * self.piece_bytes:
            raise MalformedValue("the backlog must have room for two pieces")
        statuses = (self.status_interval_s, self.sync_status_interval_s)
        times = (self.head_interval_s, *statuses, self.silence_s_max, self.retry_pause_s_max)
        if min(self.piece_age_s, self.sync_spacing_s) < 0 or min(times) <= 0:
            raise MalformedValue("intervals must be positive")

    @property
    def puts_in_flight_max(self) -> int:
        """How many puts a crash may leave half done."""
        return max(self.puts_in_flight, self.sync_puts_in_flight)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What the server is told is flushed, and what heads say of it.

    ``is_synchronous``: commits wait for us, so what comes is cut at once.  ``counts_spooled``: what lies
    fsynced in the spool counts, not only what is at quorum.  ``quorum`` is the one in force.
    """

    is_synchronous: bool = False
    counts_spooled: bool = False
    quorum: WriteQuorum | None = None


@dataclass(frozen=True, slots=True)
class DurableEnd:
    """The contiguous WAL at quorum that ends at ``end``, and the last piece of the chain.

    ``start`` and ``end`` are None before the first piece.
    """

    timeline: TimelineId
    start: LSN | None
    end: LSN | None
    piece_sequence: int
    piece_sha256: bytes | None

    def on(self, run: RunStart | None) -> DurableEnd:
        """Return the end as far as it is in the past of the run that is received now.

        That of another timeline may be one that the server has left below it.
        """
        if self.end is None or run is None or run.timeline == self.timeline:
            return self
        return replace(self, end=min(self.end, run.start))


@dataclass(frozen=True, slots=True)
class ArchiveStatus:
    """The archiver at a moment.  Ages are in seconds, None where nothing waits.

    ``received`` is in memory, ``sealed`` in the spool as well, ``durable`` at quorum; all are
    exclusive ends.  ``durable_since`` is where the WAL begins that reaches ``durable`` without a hole.
    ``oldest_unshipped_age_s`` is that of the first byte not yet at quorum.  ``acknowledged`` is what the
    server is told is flushed: ``durable``, or more where the owner's policy says so.  ``puts``: objects.
    ``is_handed_over``: WAL comes from ``archive_command``, so what the server has beyond it is unknown.
    """

    is_streaming: bool
    timeline: TimelineId | None
    received: LSN | None
    sealed: LSN | None
    durable: LSN | None
    server_end: LSN | None
    received_bytes: int
    durable_bytes: int
    backlog_bytes: int
    spool_bytes: int
    pieces_waiting: int
    segments_waiting: int
    oldest_unshipped_age_s: float | None
    last_head_at: datetime | None
    last_error: str | None
    durable_since: LSN | None = None
    oldest_unflushed_age_s: float | None = None
    acknowledged: LSN | None = None
    is_synchronous: bool = False
    puts: int = 0
    is_handed_over: bool = False


@dataclass(frozen=True, slots=True)
class DrainResult:
    """What was and was not durable at the end.  Equal LSNs mean that nothing is left to be sent again."""

    timeline: TimelineId | None
    received: LSN | None
    durable: LSN | None

    @property
    def is_complete(self) -> bool:
        """Whether all that had arrived is at quorum."""
        return self.received == self.durable

    def __str__(self) -> str:
        if self.received is None or self.is_complete:
            return f"all WAL received is durable: up to {self.durable or 'nothing yet'}"
        durable = "nothing" if self.durable is None else f"up to {self.durable}"
        return f"WAL is durable {durable}; received up to {self.received}, the slot keeps what lies between"


class ArchiveEventKind(StrEnum):
    """What an operator or a metric may want to know; the archiver has already acted on it."""

    STREAMING = "streaming"
    SERVER_LOST = "server-lost"
    STORE_FAILED = "store-failed"
    STORE_RECOVERED = "store-recovered"
    SPOOL_FULL = "spool-full"
    SPOOL_DAMAGED = "spool-damaged"
    BACKLOG_FULL = "backlog-full"
    TIMELINE_SWITCHED = "timeline-switched"
    SLOT_CREATED = "slot-created"
    SLOT_DROPPED = "slot-dropped"
    WAL_LOST = "wal-lost"
    SEGMENT_LEFT_IN_PIECES = "segment-left-in-pieces"
    DIVERGED = "diverged"
    ORPHANED = "orphaned"
    SLOT_AHEAD = "slot-ahead"
    HANDED_DIFFERS = "handed-over-differs"
    HANDED_REFUSED = "handed-over-refused"
    HANDED_OUTSIDE = "handed-over-outside"
    GATE_FAILED = "gate-failed"


@dataclass(frozen=True, slots=True)
class ArchiveEvent:
    """Something that happened, in words that never hold a secret, and in facts: short texts by name."""

    kind: ArchiveEventKind
    message: str
    facts: tuple[tuple[str, str], ...] = ()
    fork: ArchiveFork | None = None


class ForkJudge(Protocol):
    """Whoever can say that a server took over in a failover: its past is the archive's from then on."""

    def why_failover(self, fork: ArchiveFork) -> str | None:
        """Return in words who says that this fork is a failover's; None if nobody does.

        Raises ServerUnavailable if it cannot be known now.
        """


class NoJudge:
    """Nobody says so: each fork is left to a person."""

    def why_failover(self, fork: ArchiveFork) -> str | None:  # noqa: ARG002
        return None


class ArchiveEvents(Protocol):
    """Who is told.  Calls come from the archiver's threads, each method from one at a time; keep them short.

    What is durable is told after it is at quorum, pieces in the order of their sequence: store
    first, record second.  An exception ends the archiver.
    """

    def on_history(self, history: HistoryRecord) -> None:
        """A timeline's history file is at quorum; none of its WAL is yet."""

    def on_piece_durable(self, key: PieceKey, header: PieceHeader, header_sha256: bytes) -> None:
        """A piece is at quorum, and all before it are.  ``header`` is without its sampled points."""

    def on_segment_durable(self, key: SegmentKey, header: SegmentHeader, header_sha256: bytes) -> None:
        """A whole segment is at quorum."""

    def on_head(self, head: HeadRecord, payload_sha256: bytes) -> None:
        """A signed head is at quorum."""

    def on_event(self, event: ArchiveEvent) -> None:
        """Something happened."""

    def request_full_backup(self, reason: str) -> None:
        """WAL is missing, so no backup from before reaches beyond the hole."""
