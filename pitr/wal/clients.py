"""Which transactions since a point in WAL are clients': not PostgreSQL's own care, nor pitr's.  Pure.

A client's transaction changes rows or a sequence that are no part of PostgreSQL's catalogue, removes a
relation's files, emits a logical message, or leaves nothing in WAL but its end, as one does that writes
unlogged tables alone.  What changes the catalogue only, locks, or cuts a table short is taken for care.

Reference: PostgreSQL src/include/access/rmgrlist.h, heapam_xlog.h, xact.h, replication/message.h
(xl_logical_message); the same in 15 to 18.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from pitr.wal.changes import Operation, RelationFile, changes_of, commit_parts
from pitr.wal.lsn import LSN
from pitr.wal.records import RMGR_TRANSACTION, WalRecord, iter_records
from pitr.wal.transactions import EndKind, main_data, transaction_ends
from pitr.wal.xids import nearest_xid

RMGR_MESSAGE: Final = 21
RMGR_CUSTOM_MIN: Final = 128
"""Of access methods that extensions bring: what they log is a client's."""
_MESSAGE_HEADER_BYTES: Final = 24
_LARGE_OBJECTS: Final = 2613
"""pg_largeobject is in the catalogue, and its rows are users'."""
_DATA: Final = frozenset({Operation.INSERT, Operation.UPDATE, Operation.DELETE, Operation.SEQUENCE})


@dataclass(frozen=True, slots=True)
class OwnMarks:
    """What tells pitr's transactions: the relations that are its own, and the prefix of its messages."""

    relations: frozenset[RelationFile]
    prefix: str


def client_xids(
    chunks: Iterable[tuple[LSN, bytes]], since: LSN, near: int, own: OwnMarks, *, segment_bytes: int
) -> frozenset[int]:
    """Return the 64-bit ids of clients' transactions with records since a record's end; not aborted ones.

    ``near`` is an id of these times.  A transaction that bears one of the marks ``own`` is pitr's, whatever
    else it does.  Subtransactions count as their transaction once that has ended.  ``chunks`` as in
    ``first_xid_since``; raises MalformedValue for damaged WAL.
    """
    found = _Found(own)
    for record in iter_records(chunks, segment_bytes=segment_bytes):
        if record.start >= since:
            found.see(record)
    return frozenset(nearest_xid(one, near) for one in found.clients())


@dataclass(slots=True)
class _Found:
    """32-bit ids by what they did; bounded by the WAL that is read."""

    own: OwnMarks
    changed: set[int] = field(default_factory=set)
    ours: set[int] = field(default_factory=set)
    cared: set[int] = field(default_factory=set)
    ended: set[int] = field(default_factory=set)

    def see(self, record: WalRecord) -> None:
        if record.rmid == RMGR_TRANSACTION:
            self._end(record)
        elif record.xid:
            self._kind(record).add(record.xid)

    def clients(self) -> set[int]:
        # Of what has ended without any other record nobody can say that it did nothing.
        return (self.changed | (self.ended - self.cared)) - self.ours

    def _kind(self, record: WalRecord) -> set[int]:
        if record.rmid == RMGR_MESSAGE:
            text = bytes(main_data(record)[_MESSAGE_HEADER_BYTES:])
            return self.ours if text.startswith(self.own.prefix.encode() + b"\0") else self.changed
        if record.rmid >= RMGR_CUSTOM_MIN:
            return self.changed
        files = {one.file for one in changes_of(record) if one.operation in _DATA}
        if files & self.own.relations:
            return self.ours
        return self.changed if any(_is_users(one) for one in files) else self.cared

    def _end(self, record: WalRecord) -> None:
        """Take what a transaction's subtransactions did for its own; forget what was aborted."""
        for end in transaction_ends((record,)):
            parts = commit_parts(record)
            family = {end.xid, *parts.subtransactions}
            for kind in (self.changed, self.ours, self.cared):
                is_of = not kind.isdisjoint(family)
                kind.difference_update(family)
                if is_of and end.kind is EndKind.COMMIT:
                    kind.add(end.xid)
            if end.kind is EndKind.ABORT:
                continue
            if any(_is_users(one) for one in parts.removed):
                self.changed.add(end.xid)
            if not end.is_prepared:
                self.ended.add(end.xid)


def _is_users(file: RelationFile) -> bool:
    return not file.is_catalogue or file.number == _LARGE_OBJECTS
