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

Memory: four bytes for each changed block, and 300 for each fork that changed.
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
class Fork:
    """One fork of one relation, all its segments together."""

    tablespace: int
    database: int
    filenode: int
    fork: str

    @classmethod
    def of(cls, file: RelationFile) -> Fork:
        return cls(file.tablespace, file.database, file.filenode, file.fork)


class ForkChange:
    """What changed of a fork; ``limit`` is the least length that it had, if it was made or cut."""

    __slots__ = ("_added", "_blocks", "limit")

    def __init__(self) -> None:
        self.limit: int | None = None
        self._blocks = _NONE
        self._added: list[Blocks] = []

    @property
    def blocks(self) -> Blocks:
        """The changed blocks, ascending and each once.  Not for two threads at the first time."""
        if self._added:
            self._blocks = np.unique(np.concatenate([self._blocks, *self._added]))
            self._added = []
        return self._blocks

    def add(self, limit: int | None, blocks: Blocks) -> None:
        """Go on with a later summary: its limit first, which drops older blocks; then its blocks.  Rule 4."""
        if limit is not None:
            self.limit = limit if self.limit is None else min(self.limit, limit)
            self._blocks = self.blocks[self.blocks < limit]
        self._added.append(blocks)


class Changes:
    """What changed, merged from summaries in the order of their LSNs."""

    def __init__(self) -> None:
        self._forks: dict[Fork, ForkChange] = {}
        self._databases: set[tuple[int, int]] = set()

    def add_rows(self, rows: NDArray[np.void]) -> None:
        """Merge rows (``SUMMARY_ROW``), in no order; those of one summary that are limits come first.

        Raises ValueError if they are not what PostgreSQL gives.
        """
        if not len(rows):
            return
        _check_rows(rows)
        names = ["tablespace", "database", "filenode", "fork"]
        order = np.lexsort([rows[name] for name in reversed(names)])
        rows = rows[order]
        keys = np.stack([rows[name].astype(np.int64) for name in names], axis=1)
        starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
        for first, last in zip(starts, np.r_[starts[1:], len(rows)], strict=True):
            tablespace, database, filenode, fork = (int(value) for value in keys[first])
            if filenode == 0:
                self._databases.add((tablespace, database))  # rule 3
                continue
            group = rows[first:last]
            is_limit = group["is_limit"] != 0
            limits = group["block"][is_limit]
            change = self._forks.setdefault(Fork(tablespace, database, filenode, FORKS[fork]), ForkChange())
            change.add(
                int(limits.min()) if len(limits) else None, group["block"][~is_limit].astype(np.uint32)
            )

    def finish(self) -> None:
        """Say that nothing more comes; then any thread may ask."""
        for change in self._forks.values():
            _ = change.blocks

    def of(self, file: RelationFile) -> ForkChange | None:
        """Return what changed of the file's fork; None if nothing did."""
        return self._forks.get(Fork.of(file))

    def is_database_new(self, file: RelationFile) -> bool:
        """Tell whether the file's database was made or dropped meanwhile, under whatever files."""
        return (file.tablespace, file.database) in self._databases


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
