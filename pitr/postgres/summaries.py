"""Which blocks changed since an earlier backup, by the server's WAL summaries (17 and later).  Pure.

The eight rules that make an incremental backup right (PostgreSQL src/backend/backup/basebackup_incremental.c,
src/backend/postmaster/walsummarizer.c), and where each is kept:

1. *Coverage.*  The summaries reach from the parent's **start** to the new start, without a hole:
   ``choose_summaries``.
2. *Lineage.*  The parent's timeline is in the server's history, and it ended before the new start:
   ``way_from``.
3. *Databases.*  A row with file node 0 means that a database was made or dropped: all of it is whole:
   ``Changes``.
4. *Limits.*  A truncation or new file sets a limit; no older block at or above it is taken: ``Changes``,
   ``plan_file``.
5. *Whole files.*  What is no relation, is new, odd in size, mostly changed, or a map: ``plan_file``.  Free
   space maps are not logged.  Of visibility maps only the setting of bits names their blocks in WAL; the
   clearing is logged with the heap's block alone (heapam.c, XLH_DELETE_ALL_VISIBLE_CLEARED), and an old map
   would hide that rows are gone.
6. *Unlogged.*  Only the _init fork is copied, and the control file last: ``pitr.postgres.datadir``,
   ``pitr.backup``.
7. *Torn pages.*  Replay from the new start mends them, so that WAL must be archived: ``pitr.backup``.
8. *Hint bits.*  With checksums they are logged as page images, and count as changes: nothing is left out
   for them.

Memory: four bytes for each changed block and 24 for each fork; five times that for a moment, while they are
merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pitr.postgres.datadir import DataFile, RelationFile
from pitr.postgres.page import PAGE_BYTES, Blocks
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId

FORKS: Final = ("main", "fsm", "vm", "init")
# Forks whose changes WAL does not tell (rule 5); they are small: a map has 2 bits for each page of the heap.
MAP_FORKS: Final = frozenset(["fsm", "vm"])
# More than that changed, and a whole file is read in one go and compresses better (GetFileBackupMethod).
WHOLE_SHARE: Final = 0.9
_BLOCK_MAX: Final = 0xFFFF_FFFF
_NO_LIMIT: Final = 1 << 32
# A fork's key: the number of its database and tablespace, 32 bits of file node, 2 of fork.
_FORK_BITS: Final = 2
_PLACE_SHIFT: Final = 32 + _FORK_BITS
_PLACES_MAX: Final = 1 << 28
# So many blocks are merged at once: 12 MB.
_WAITING_ROWS_MAX: Final = 1_000_000
_NONE: Final = np.empty(0, np.uint32)
# As ``COPY … (FORMAT binary)`` gives a row of ``pg_wal_summary_contents``: the number of columns, then each
# column's length before it.
_COLUMNS: Final = (
    ("filenode", ">u4"),
    ("tablespace", ">u4"),
    ("database", ">u4"),
    ("fork", ">i2"),
    ("block", ">i8"),
    ("is_limit", "u1"),
)
SUMMARY_ROW: Final = np.dtype(
    [("columns", ">i2")]
    + [pair for name, kind in _COLUMNS for pair in ((f"{name}_bytes", ">i4"), (name, kind))]
)


@dataclass(frozen=True, slots=True)
class Summary:
    """One summary file: the WAL of ``timeline`` from ``start`` to ``end``."""

    timeline: TimelineId
    start: LSN
    end: LSN


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of one timeline on the way from the parent's start to the new one's."""

    timeline: TimelineId
    start: LSN
    end: LSN


class NotIncremental(Exception):
    """The server cannot tell what changed; the message says why, and a full backup is what helps."""


def way_from(
    parent_timeline: TimelineId,
    parent_start: LSN,
    parent_stop: LSN,
    history: TimelineHistory,
    start: LSN,
) -> tuple[Stretch, ...]:
    """Return the way from the parent's start to the new ``start``.  Rule 2.  Raises NotIncremental.

    ``history`` is the server's, whose timeline the new backup is on.
    """
    if start < parent_stop:
        raise NotIncremental(f"the parent ended at {parent_stop}, after this backup starts at {start}")
    begins = LSN(1)
    stretches: list[Stretch] = []
    has_parent = False
    ends = [(switch.timeline, switch.lsn) for switch in history.switches] + [(history.timeline, start)]
    for timeline, end in ends:
        if timeline == parent_timeline:
            has_parent = True
            if parent_start < begins:
                raise NotIncremental(
                    f"the parent starts at {parent_start}, before its timeline {timeline} began at {begins}"
                )
            if end < parent_stop:
                raise NotIncremental(
                    f"the server left timeline {timeline} at {end}, before the parent's end at {parent_stop}"
                )
        first, last = max(begins, parent_start), min(end, start)
        if has_parent and first < last:
            stretches.append(Stretch(timeline, first, last))
        begins = end
    if not has_parent:
        raise NotIncremental(f"the parent's timeline {parent_timeline} is not in the server's history")
    return tuple(stretches)


def choose_summaries(way: Sequence[Stretch], available: Iterable[Summary]) -> tuple[Summary, ...]:
    """Return the summaries that cover the way, in its order.  Rule 1.  Raises NotIncremental at a hole.

    A span of ``wal_level = minimal`` has none, and so is a hole.
    """
    chosen: list[Summary] = []
    by_timeline: dict[TimelineId, list[Summary]] = {}
    for summary in available:
        by_timeline.setdefault(summary.timeline, []).append(summary)
    for stretch in way:
        at = stretch.start
        for summary in sorted(by_timeline.get(stretch.timeline, ()), key=lambda each: (each.start, each.end)):
            if summary.end <= at or summary.start >= stretch.end:
                continue
            if summary.start > at:
                break
            chosen.append(summary)
            at = summary.end
        if at < stretch.end:
            raise NotIncremental(
                f"the WAL summaries of timeline {stretch.timeline} have a hole at {at},"
                f" and are needed from {stretch.start} to {stretch.end}"
            )
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class ForkChange:
    """What changed of a fork: its ``blocks``, ascending and each once, all segments together.

    ``limit`` is the least length that it had, if it was made or cut.
    """

    limit: int | None
    blocks: Blocks


class Changes:
    """What changed, merged from summaries in the order of their LSNs.

    In columns, for a cluster may have a million forks: a fork's key, its limit, and where its blocks begin.
    """

    def __init__(self) -> None:
        self._databases: set[tuple[int, int]] = set()
        # Databases, each in one tablespace, by a number that is short enough to be a part of a fork's key.
        self._places: dict[int, int] = {}
        self._keys = np.empty(0, np.uint64)
        self._limits = np.empty(0, np.int64)
        self._starts = np.zeros(1, np.int64)
        self._blocks = _NONE
        # Blocks that are not merged yet, each with its fork's key.
        self._waiting: list[tuple[NDArray[np.uint64], Blocks]] = []
        self._waiting_rows = 0

    def add_rows(self, rows: NDArray[np.void]) -> None:
        """Merge rows (``SUMMARY_ROW``), in no order; those of one summary that are limits come first.

        Raises ValueError if they are not what PostgreSQL gives.
        """
        _check_rows(rows)
        is_database = rows["filenode"] == 0
        for made in np.unique(rows[is_database][["tablespace", "database"]]):
            self._databases.add((int(made["tablespace"]), int(made["database"])))  # rule 3
        rows = rows[~is_database]
        keys = self._keys_of(rows)
        is_limit = rows["is_limit"] != 0
        if is_limit.any():
            # They drop what earlier summaries, and only those, have behind them: rule 4.
            self._merge_waiting()
            self._merge_limits(keys[is_limit], rows["block"][is_limit].astype(np.int64))
        if not is_limit.all():
            self._waiting.append((keys[~is_limit], rows["block"][~is_limit].astype(np.uint32)))
            self._waiting_rows += len(rows)
            if self._waiting_rows >= _WAITING_ROWS_MAX:
                self._merge_waiting()

    def finish(self) -> None:
        """Say that nothing more comes; only then, but from any thread, may be asked what changed."""
        self._merge_waiting()

    def of(self, file: RelationFile) -> ForkChange | None:
        """Return what changed of the file's fork; None if nothing did."""
        place = self._places.get(file.tablespace << 32 | file.database)
        if place is None:
            return None
        key = np.uint64(place << _PLACE_SHIFT | file.filenode << _FORK_BITS | FORKS.index(file.fork))
        at = int(np.searchsorted(self._keys, key))
        if at == len(self._keys) or self._keys[at] != key:
            return None
        limit = int(self._limits[at])
        blocks = self._blocks[self._starts[at] : self._starts[at + 1]]
        return ForkChange(None if limit == _NO_LIMIT else limit, blocks)

    def is_database_new(self, file: RelationFile) -> bool:
        """Tell whether the file's database was made or dropped meanwhile, under whatever files."""
        return (file.tablespace, file.database) in self._databases

    def _keys_of(self, rows: NDArray[np.void]) -> NDArray[np.uint64]:
        """Return each row's fork as a number."""
        pairs = rows["tablespace"].astype(np.uint64) << np.uint64(32) | rows["database"].astype(np.uint64)
        found, inverse = np.unique(pairs, return_inverse=True)
        numbers = np.array(
            [self._places.setdefault(int(pair), len(self._places)) for pair in found], np.uint64
        )
        if len(self._places) > _PLACES_MAX:
            raise ValueError("a WAL summary has more databases than a server can have")
        keys: NDArray[np.uint64] = numbers[inverse]
        keys <<= np.uint64(_PLACE_SHIFT)
        keys |= rows["filenode"].astype(np.uint64) << np.uint64(_FORK_BITS)
        keys |= rows["fork"].astype(np.uint64)
        return keys

    def _merge_waiting(self) -> None:
        if not self._waiting:
            return
        keys = np.concatenate([keys for keys, _ in self._waiting])
        blocks = np.concatenate([blocks for _, blocks in self._waiting])
        self._waiting, self._waiting_rows = [], 0
        self._add_forks(np.unique(keys))
        added = np.searchsorted(self._keys, keys).astype(np.uint64) << np.uint64(32) | blocks
        added.sort()
        pairs = np.concatenate([self._owners() << np.uint64(32) | self._blocks, added])
        # Two runs that are in order: a stable sort merges them.
        pairs.sort(kind="stable")
        pairs = pairs[np.r_[True, pairs[1:] != pairs[:-1]]]
        edges = np.arange(len(self._keys) + 1, dtype=np.uint64) << np.uint64(32)
        self._starts = np.searchsorted(pairs, edges)
        self._blocks = (pairs & np.uint64(_BLOCK_MAX)).astype(np.uint32)

    def _merge_limits(self, keys: NDArray[np.uint64], limits: NDArray[np.int64]) -> None:
        self._add_forks(np.unique(keys))
        now = np.full(len(self._keys), _NO_LIMIT, np.int64)
        np.minimum.at(now, np.searchsorted(self._keys, keys), limits)
        self._limits = np.minimum(self._limits, now)
        if len(self._blocks):
            owners = self._owners()
            is_kept = self._blocks < now[owners]
            counts = np.bincount(owners[is_kept].astype(np.int64), minlength=len(self._keys))
            self._starts = np.r_[0, np.cumsum(counts)]
            self._blocks = self._blocks[is_kept]

    def _add_forks(self, keys: NDArray[np.uint64]) -> None:
        """Make room for forks that are new."""
        merged = np.union1d(self._keys, keys)
        at = np.searchsorted(merged, self._keys)
        limits = np.full(len(merged), _NO_LIMIT, np.int64)
        limits[at] = self._limits
        counts = np.zeros(len(merged), np.int64)
        counts[at] = np.diff(self._starts)
        self._keys, self._limits, self._starts = merged, limits, np.r_[0, np.cumsum(counts)]

    def _owners(self) -> NDArray[np.uint64]:
        """Return for each block the place of its fork."""
        return np.repeat(np.arange(len(self._keys), dtype=np.uint64), np.diff(self._starts))


@dataclass(frozen=True, slots=True)
class ChangedPart:
    """Of a relation file: the changed ``blocks``, counted from the file's start, and what the parent keeps.

    ``parent_blocks``: blocks below it that are not in ``blocks`` are as the parent has them.
    """

    blocks: Blocks
    parent_blocks: int


def plan_file(
    file: DataFile, changes: Changes, *, is_in_parent: bool, relation_segment_blocks: int
) -> ChangedPart | None:
    """Return what of a file must be read; None for all of it.  Rules 3, 4 and 5."""
    relation, size = file.relation, file.size_bytes
    if relation is None or not is_in_parent or relation.fork in MAP_FORKS:
        return None
    if size == 0 or size % PAGE_BYTES or size > relation_segment_blocks * PAGE_BYTES:
        return None
    if changes.is_database_new(relation):
        return None
    blocks_now = size // PAGE_BYTES
    change = changes.of(relation)
    if change is None:
        return ChangedPart(_NONE, blocks_now)
    first = relation.segment * relation_segment_blocks
    if change.limit is not None and change.limit <= first:
        return None
    low, high = np.searchsorted(change.blocks, (first, first + blocks_now))
    blocks = (change.blocks[low:high] - np.uint32(first)).astype(np.uint32)
    if len(blocks) > blocks_now * WHOLE_SHARE:
        return None
    kept = blocks_now if change.limit is None else min(blocks_now, change.limit - first)
    return ChangedPart(blocks, kept)


def _check_rows(rows: NDArray[np.void]) -> None:
    """Raise ValueError if rows have a null, another width, or a number that PostgreSQL never has."""
    widths_fit = all((rows[f"{name}_bytes"] == np.dtype(kind).itemsize).all() for name, kind in _COLUMNS)
    if not widths_fit or (rows["columns"] != len(_COLUMNS)).any():
        raise ValueError("not the rows of a WAL summary")
    for name, most in (("fork", len(FORKS) - 1), ("block", _BLOCK_MAX), ("is_limit", 1)):
        if (rows[name] < 0).any() or (rows[name] > most).any():
            raise ValueError(f"a WAL summary has an impossible {name}")
