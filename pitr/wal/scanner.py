"""Scanner: the end times of the transactions in WAL as it streams by.  Pure; the archiver's side.

It does not walk record by record, which would cost more than all the rest of archiving.  It takes
candidates from ``pitr.wal.candidates``, and only the few that would be the least or the greatest
time are proved to be records.  So the result is exact, at a small part of the walk's cost.

Reference: docs/format.md §7.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pitr.errors import MalformedValue
from pitr.wal.candidates import EndCandidate, Window, find_ends
from pitr.wal.lsn import LSN
from pitr.wal.pages import PAGE_BYTES, WalGeometry
from pitr.wal.transactions import time_at

# The memory for joined WAL grows by so much, so that it seldom does.
_GROWTH_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SampledTime:
    """One transaction-end record: where it starts, and its time."""

    lsn: LSN
    at: datetime


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What the transaction-end records say whose last byte lies in the WAL just fed.

    ``min_at`` and ``max_at`` are None if there is none.  ``is_exact`` is false if one may be missing,
    because the scan began in mid-record.  ``points`` ascend by LSN, at most POINTS_MAX.
    ``content`` is what was fed, in one: the scan has to join it anyway, and it is copied only once.
    It is the scanner's own memory, and holds these bytes until the next ``feed`` only.
    """

    min_at: datetime | None
    max_at: datetime | None
    is_exact: bool
    points: tuple[SampledTime, ...]
    content: memoryview


class TransactionScanner:
    """Scans one contiguous run of WAL, fed in any cuts.

    Keeps the memory of its largest feed and uses it again: of fresh memory each page is a fault, which
    costs as much as to digest what is in it.
    """

    def __init__(self, segment_bytes: int) -> None:
        self._geometry = WalGeometry(segment_bytes)
        self._fed_to: int | None = None
        self._buffer = memoryview(bytearray())
        # From a page's start on: what is needed to read a record that later bytes complete.
        self._tail = b""
        self._open: EndCandidate | None = None
        # Where the first record begins that is known to be one; None until a page has been seen.
        self._synced_at: int | None = None

    def feed(self, start: LSN, *chunks: bytes | memoryview) -> ScanResult:
        """Return what the records say that end in ``chunks``, the WAL from ``start`` on.

        Raises MalformedValue if it does not join what was fed before.
        """
        begin, end = start.offset, start.offset + sum(len(chunk) for chunk in chunks)
        if self._fed_to not in (None, begin):
            raise MalformedValue(f"WAL does not join: {begin:016X} follows {self._fed_to:016X}")
        self._fed_to = end
        # Before a page has been seen, the bytes up to the next one say nothing.
        skipped = 0 if self._tail else min(-begin % PAGE_BYTES, end - begin)
        joined = self._join(end - begin, chunks)
        window_start = begin + skipped - len(self._tail)
        window = Window(self._geometry, window_start, joined[skipped:])
        result = self._scan(window, begin, end, joined[len(self._tail) :])
        self._tail = bytes(window.content[window.tail_offset :])
        return result

    def _join(self, size_bytes: int, chunks: tuple[bytes | memoryview, ...]) -> memoryview:
        """Return the tail and ``chunks``, in one."""
        size_bytes += len(self._tail)
        if len(self._buffer) < size_bytes:
            self._buffer = memoryview(bytearray(-(-size_bytes // _GROWTH_BYTES) * _GROWTH_BYTES))
        at = 0
        for part in (self._tail, *chunks):
            self._buffer[at : at + len(part)] = part
            at += len(part)
        return self._buffer[:size_bytes].toreadonly()

    def _scan(self, window: Window, begin: int, end: int, content: memoryview) -> ScanResult:
        if self._synced_at is None:
            self._synced_at = window.first_record(window.start)
        found = find_ends(window, begin)
        if self._open is not None and not window.is_unbroken(self._open):
            self._open = None  # a crash cut it short, and the server began anew after it
        if self._open is not None and self._open.end <= end:
            found.add_proven(self._open)
            self._open = None
        for unfinished in found.unfinished:
            # Of records only one can be unfinished; the rest of the candidates are none.
            if window.is_record(unfinished.start):
                self._open = unfinished
        low, high = found.least(), found.greatest()
        return ScanResult(
            None if low is None else time_at(low),
            None if high is None else time_at(high),
            self._synced_at is not None and begin >= self._synced_at,
            tuple(SampledTime(LSN(point.start), time_at(point.time)) for point in found.sample()),
            content,
        )
