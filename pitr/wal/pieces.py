"""Pieces: where received WAL is cut, and in which order it counts as durable.  Pure.

No bytes are copied to cut: the chunks as they came are handed on.  Nothing here knows how a piece
is sealed or where it goes.  Reference: docs/format.md §7.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN
from pitr.wal.segment import check_segment_bytes
from pitr.wal.timeline import TimelineId


@dataclass(frozen=True, slots=True)
class RunStart:
    """Where contiguous WAL begins: a stream was (re)started here, on a segment's boundary.

    ``known_to``: WAL before it was received earlier and is only compared; None if none was.
    ``follows`` says whether the run goes on with the one before it, so that nothing lies between.
    """

    timeline: TimelineId
    start: LSN
    known_to: LSN | None
    follows: bool


@dataclass(frozen=True, slots=True)
class RawPiece:
    """WAL as received, ready to be sealed; ``received_s`` is when its first byte came (monotonic).

    ``begins`` is set on the first piece of a run; ``is_known`` means it lies before ``known_to``.
    """

    timeline: TimelineId
    start: LSN
    end: LSN
    chunks: tuple[bytes | memoryview, ...]
    received_s: float
    begins: RunStart | None
    is_known: bool


@dataclass(slots=True)
class _Chunk:
    content: memoryview
    received_s: float


@dataclass(slots=True)
class _Run:
    begin: RunStart
    next: LSN
    is_fresh: bool = True
    chunks: deque[_Chunk] = field(default_factory=deque)
    held_bytes: int = 0
    # Cut even where it is neither large nor old: the stream ended here.
    is_closed: bool = False

    @property
    def end(self) -> LSN:
        return self.next + self.held_bytes


class PieceCutter:
    """Takes WAL as it comes, gives it out in pieces.  Not thread-safe.

    A piece is ready when it has ``piece_bytes``, when its first byte is ``piece_age_s`` old, when it
    reaches a segment's end, where known WAL ends, or when its run was closed.  One that is ready takes
    all that waits with it, up to ``piece_bytes_max``: whoever is behind pays for fewer pieces.
    """

    def __init__(
        self, *, segment_bytes: int, piece_bytes: int, piece_age_s: float, piece_bytes_max: int | None = None
    ) -> None:
        most_bytes = piece_bytes if piece_bytes_max is None else piece_bytes_max
        if not 1 <= piece_bytes <= most_bytes or piece_age_s < 0:
            raise MalformedValue(
                f"pieces of {piece_bytes} to {most_bytes} bytes and {piece_age_s} s cannot be cut"
            )
        self._segment_bytes = check_segment_bytes(segment_bytes)
        self._piece_bytes = piece_bytes
        self._piece_bytes_max = most_bytes
        self._piece_age_s = piece_age_s
        self._runs: deque[_Run] = deque()

    @property
    def held_bytes(self) -> int:
        """How many bytes wait to be cut."""
        return sum(run.held_bytes for run in self._runs)

    @property
    def received(self) -> LSN | None:
        """Where the newest run ends; None before the first."""
        return self._runs[-1].end if self._runs else None

    @property
    def oldest_s(self) -> float | None:
        """When the first byte came that waits to be cut; None if none waits."""
        return next((run.chunks[0].received_s for run in self._runs if run.chunks), None)

    def begin(self, run: RunStart) -> None:
        """Start a new run; the one before is closed."""
        if run.start.offset % self._segment_bytes:
            raise MalformedValue(f"a run begins at {run.start}, which is no segment's boundary")
        self.close()
        if any(last.is_fresh and not last.held_bytes and not last.begin.follows for last in self._runs):
            # A run of which nothing came is forgotten, but not the hole before it.
            run = replace(run, follows=False)
        self._runs.append(_Run(run, run.start))

    def add(self, content: bytes | memoryview, received_s: float) -> None:
        """Take what follows in the newest run."""
        run = self._runs[-1]
        run.chunks.append(_Chunk(memoryview(content), received_s))
        run.held_bytes += len(content)

    def close(self) -> None:
        """Make all that is held ready at once: nothing follows it for now."""
        if self._runs:
            self._runs[-1].is_closed = True

    def hasten(self, piece_age_s: float) -> None:
        """Cut at another age from now on, 0 for at once."""
        self._piece_age_s = piece_age_s

    def ready_at(self) -> float | None:
        """Return when the next piece is ready (monotonic), ``-inf`` for now; None if nothing is held."""
        for run in self._runs:
            if run.held_bytes:
                if run.is_closed or run.held_bytes >= min(self._piece_bytes, self._limit(run)):
                    return float("-inf")
                return run.chunks[0].received_s + self._piece_age_s
        return None

    def take(self, now_s: float) -> RawPiece | None:
        """Return the next piece if one is ready."""
        while len(self._runs) > 1 and not self._runs[0].held_bytes:
            self._runs.popleft()
        ready_at = self.ready_at()
        if ready_at is None or now_s < ready_at:
            return None
        return self._cut(self._runs[0])

    def _limit(self, run: _Run) -> int:
        """Return the most bytes that the next piece of a run may have."""
        to_boundary = self._segment_bytes - run.next.offset % self._segment_bytes
        known_to = run.begin.known_to
        if known_to is not None and run.next < known_to:
            to_boundary = min(to_boundary, known_to - run.next)
        return min(self._piece_bytes_max, to_boundary)

    def _cut(self, run: _Run) -> RawPiece:
        size_bytes = min(self._limit(run), run.held_bytes)
        received_s = run.chunks[0].received_s
        parts, missing = [], size_bytes
        while missing:
            chunk = run.chunks[0]
            if len(chunk.content) <= missing:
                parts.append(chunk.content)
                run.chunks.popleft()
            else:
                parts.append(chunk.content[:missing])
                chunk.content = chunk.content[missing:]
            missing -= len(parts[-1])
        begin, start = run.begin, run.next
        piece = RawPiece(
            timeline=begin.timeline,
            start=start,
            end=start + size_bytes,
            chunks=tuple(parts),
            received_s=received_s,
            begins=begin if run.is_fresh else None,
            is_known=begin.known_to is not None and start < begin.known_to,
        )
        run.is_fresh = False
        run.next = piece.end
        run.held_bytes -= size_bytes
        return piece


class AcknowledgeWindow:
    """Lets a few pieces be put at a time, and counts them as durable strictly in order.  Not thread-safe.

    A piece may be put only while fewer than ``size`` pieces from the oldest one on are not durable:
    so after a crash at most that many need to be looked at.
    """

    def __init__(self, size: int, first: int) -> None:
        if size < 1:
            raise MalformedValue(f"no piece can be put at a time: {size}")
        self._size = size
        self._next = first
        self._done: set[int] = set()

    @property
    def next(self) -> int:
        """The sequence of the oldest piece that is not durable."""
        return self._next

    def admits(self, sequence: int, at_once: int | None = None) -> bool:
        """Say whether the piece may be put now, with at most ``at_once`` on their way (default: ``size``)."""
        return sequence < self._next + min(self._size, at_once or self._size)

    def finish(self, sequence: int) -> range:
        """Note that a piece is at quorum; return the sequences that thereby become durable, in order."""
        if not self._next <= sequence or sequence in self._done:
            raise MalformedValue(f"piece {sequence} was finished before")
        self._done.add(sequence)
        first = self._next
        while self._next in self._done:
            self._done.discard(self._next)
            self._next += 1
        return range(first, self._next)
