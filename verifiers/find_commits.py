"""Transactions between two states: which may have changed an answer, and what one of them did.  Pure.

A transaction cannot change what a query returns if all that it changed are relations of which is known that
the query does not read them.  PostgreSQL's own relations, and those that nobody knows yet, may always matter.
That only says where to look first: what is found is proved by looking at both sides of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from pitr.wal.changes import Change, Operation, RelationFile, Standing, changes_of, commit_parts
from pitr.wal.lsn import LSN
from pitr.wal.records import RMGR_TRANSACTION, WalRecord
from pitr.wal.transactions import EndKind, TransactionEnd, transaction_ends

# 21 bytes each; the records of more are read in parts, with a look in between.
COMMITS_MAX: Final = 2_000_000
_OPEN_MAX: Final = 1_000_000
# What removes a whole table, or changes the schema, is worth as much as so many rows.
_SCHEMA_ROWS: Final = 100.0
_FILES_SHOWN_MAX: Final = 200
_HARMFUL: Final = frozenset({Operation.DELETE, Operation.UPDATE})


class TooManyCommits(Exception):
    """More transactions than are held at once."""


@dataclass(slots=True)
class Candidates:
    """Commits in the order of WAL, by the LSN of their record; ``suspicion`` counts what they destroyed.

    ``is_followed`` says of each whether others ended between it and the next candidate, or the end, which
    were passed over; ``is_preceded`` whether such ended before the first.  ``all_commits`` counts them all.
    """

    starts: array[int] = field(default_factory=lambda: array("Q"))
    suspicion: array[float] = field(default_factory=lambda: array("d"))
    is_followed: bytearray = field(default_factory=bytearray)
    is_preceded: bool = False
    all_commits: int = 0

    def __len__(self) -> int:
        return len(self.starts)

    def add(self, start: LSN, suspicion: float, *, is_relevant: bool) -> None:
        """Add the next commit; one that is not relevant is counted only.  Raises TooManyCommits."""
        self.all_commits += 1
        if is_relevant:
            if len(self.starts) >= COMMITS_MAX:
                raise TooManyCommits
            self.starts.append(start.offset)
            self.suspicion.append(suspicion)
            self.is_followed.append(False)
        elif self.is_followed:
            self.is_followed[-1] = True
        else:
            self.is_preceded = True


def read_candidates(
    records: Iterable[WalRecord], since: LSN, until: LSN, standing: Standing | None
) -> Candidates:
    """Return what may have changed the answer between two states; without ``standing`` every commit.

    ``standing`` is what the database was at ``since``.  Raises TooManyCommits, MalformedValue.
    """
    found = Candidates()
    # By transaction id: how much it did to what matters; absent where that is nothing.
    open_ones: dict[int, float] = {}
    next_xid = None if standing is None else standing.next_xid
    for record in records:
        if record.start >= until:
            break
        if record.start < since:
            # A snapshot does not tell of those that run and are newer than the last one that ended.
            if next_xid is not None and record.xid and not is_before(record.xid, next_xid):
                next_xid = (record.xid + 1) & 0xFFFF_FFFF
        elif record.rmid == RMGR_TRANSACTION:
            for end in transaction_ends([record]):
                _end(found, open_ones, record, end, standing, next_xid)
        elif record.xid and standing is not None:
            weight = sum(_weight(change, standing) for change in changes_of(record))
            if weight:
                open_ones[record.xid] = open_ones.get(record.xid, 0.0) + weight
                if len(open_ones) > _OPEN_MAX:
                    raise TooManyCommits
    return found


def _end(
    found: Candidates,
    open_ones: dict[int, float],
    record: WalRecord,
    end: TransactionEnd,
    standing: Standing | None,
    next_xid: int | None,
) -> None:
    parts = commit_parts(record)
    xids = (end.xid, *parts.subtransactions)
    done = [open_ones.pop(xid) for xid in xids if xid in open_ones]
    if end.kind is not EndKind.COMMIT:
        return
    if standing is None or next_xid is None:
        found.add(end.start, 0.0, is_relevant=True)
        return
    removed = sum(_SCHEMA_ROWS for file in parts.removed if concerns(file, standing))
    # What it did before the first state was not read.
    is_older = any(is_before(xid, next_xid) for xid in xids)
    is_relevant = bool(done) or removed > 0 or is_older
    found.add(end.start, sum(done) + removed, is_relevant=is_relevant)


def concerns(file: RelationFile, standing: Standing) -> bool:
    """Tell whether the query may read a relation: it did, or nobody knows that it does not."""
    return file.database in (0, standing.database) and file not in standing.unseen


def is_before(xid: int, next_xid: int) -> bool:
    """Tell whether a transaction id was given before another; ids go round."""
    return (xid - next_xid) & 0xFFFF_FFFF >= 1 << 31


def _weight(change: Change, standing: Standing) -> float:
    if change.operation is Operation.IN_PLACE or not concerns(change.file, standing):
        return 0.0
    if change.file.is_catalogue:
        return _SCHEMA_ROWS if change.rows else 0.01
    return float(change.rows) if change.operation in _HARMFUL else 0.01


@dataclass(frozen=True, slots=True)
class Touched:
    """What a transaction did to one relation; ``rows`` by operation, 0 where it is not about rows."""

    file: RelationFile
    rows: dict[Operation, int]


@dataclass(frozen=True, slots=True)
class Deed:
    """One transaction: its end, and what it touched, tables of users first.

    ``is_complete`` is false if it began before the WAL that was read, or touched more than is listed.
    """

    end: TransactionEnd
    touched: tuple[Touched, ...]
    subtransactions: int
    is_complete: bool
    began_at: LSN | None = None

    @property
    def at(self) -> datetime:
        """When it committed."""
        return self.end.at


def find_commit(records: Iterable[WalRecord], start: LSN) -> tuple[TransactionEnd, tuple[int, ...]]:
    """Return the commit whose record begins at ``start``, and its subtransactions' ids."""
    for record in records:
        if record.start == start:
            for end in transaction_ends([record]):
                return end, commit_parts(record).subtransactions
        if record.start > start:
            break
    raise AssertionError("a commit was read there before")


def read_deed(
    records: Iterable[WalRecord], since: LSN, end: TransactionEnd, subtransactions: tuple[int, ...]
) -> Deed:
    """Return what a transaction did, from the WAL since ``since``.  Raises MalformedValue."""
    xids = frozenset({end.xid, *subtransactions})
    rows: dict[RelationFile, dict[Operation, int]] = {}
    began_at: LSN | None = None
    is_complete = True

    def count(change: Change) -> None:
        nonlocal is_complete
        if change.file not in rows and len(rows) >= _FILES_SHOWN_MAX:
            is_complete = False
            return
        counts = rows.setdefault(change.file, {})
        counts[change.operation] = counts.get(change.operation, 0) + change.rows

    for record in _between(records, since, end.end):
        if record.xid in xids and record.start < end.start:
            began_at = began_at or record.start
            for change in changes_of(record):
                count(change)
        elif record.start == end.start:
            for file in commit_parts(record).removed:
                count(Change(file, Operation.FILES, 0))
    # Of an index or a map there is nothing to tell beside its table.
    touched = []
    for file, counts in rows.items():
        told: dict[Operation, int] = {}
        told |= {name: count for name, count in counts.items() if name != Operation.OTHER}
        if told:
            touched.append(Touched(file, told))
    touched.sort(key=lambda one: (one.file.is_catalogue, -sum(one.rows.values())))
    return Deed(end, tuple(touched), len(subtransactions), is_complete, began_at)


def _between(records: Iterable[WalRecord], since: LSN, until: LSN) -> Iterator[WalRecord]:
    for record in records:
        if record.start >= until:
            return
        if record.start >= since:
            yield record
