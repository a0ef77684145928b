"""Transaction ids that were taken since a point in WAL: which is the first.  Pure.

Whoever wants to know which ids a promoted server has handed out asks both, in this order: its snapshot, then
all WAL from the fork to behind that snapshot.  An id that has ended has a commit or abort record with its
number in the header, also if it wrote nothing else; one that has not is in the snapshot.  A subtransaction's
id is greater than that of its transaction, so that it is never the first.

A transaction that was prepared before the fork is not of these: it is in the snapshot while it waits, and the
record of its end names it in its body only.

Reference: PostgreSQL src/backend/access/transam/xloginsert.c (XLogRecordAssemble), xact.c
(RecordTransactionCommit, RecordTransactionAbort, AssignTransactionId), twophase.c (EndPrepare,
FinishPreparedTransaction), src/include/access/transam.h; the same in 15 to 18.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN
from pitr.wal.pages import PAGE_BYTES, WalGeometry
from pitr.wal.records import iter_records
from pitr.wal.transactions import transaction_ends

# FirstNormalTransactionId: smaller ones, and 0 for none, are no transaction's.
_FIRST_NORMAL_XID: Final = 3


@dataclass(frozen=True, slots=True)
class RunningIds:
    """A snapshot, in 64-bit ids: ``xmax`` is one more than the greatest that has ended.

    ``running`` are those that have not, prepared ones among them.  ``prepared`` may have been asked after the
    snapshot, and so lack some that have ended in between.
    """

    xmax: int
    running: frozenset[int]
    prepared: frozenset[int]


def nearest_xid(xid: int, near: int) -> int:
    """Return the 64-bit transaction id of a 32-bit one: that which is nearest to ``near``.

    Half a round either way: PostgreSQL itself cannot tell ids apart that lie further from each other.
    """
    distance = (xid - near + (1 << 31)) % (1 << 32) - (1 << 31)
    widened = near + distance
    return widened if widened >= 0 else widened + (1 << 32)


def first_xid_since(
    chunks: Iterable[tuple[LSN, bytes]], since: LSN, end: LSN, ids: RunningIds, *, segment_bytes: int
) -> int:
    """Return the first transaction id that was taken since a record's end; the next one if none was.

    ``chunks``: contiguous WAL from the start of the page that holds ``since`` to ``end``, where a record ends
    that was written when the snapshot was taken, or later.

    Raises MalformedValue if WAL is damaged, or its records do not reach ``end``.
    """
    first, reached, finished = ids.xmax, since, set[int]()
    for record in iter_records(chunks, segment_bytes=segment_bytes):
        if record.start < since:
            continue
        reached = record.end
        if record.xid >= _FIRST_NORMAL_XID:
            first = min(first, nearest_xid(record.xid, ids.xmax))
        finished.update(
            nearest_xid(one.xid, ids.xmax) for one in transaction_ends((record,)) if one.is_prepared
        )
    if reached < end:
        raise MalformedValue(f"WAL from {since} has no record from {reached} on, and must reach {end}")
    return min(first, *ids.running - ids.prepared - finished, ids.xmax)


def page_start(at: LSN) -> LSN:
    """Return where the page begins that holds ``at``."""
    return LSN(at.offset - at.offset % PAGE_BYTES)


def written_end(insert: LSN, segment_bytes: int) -> LSN:
    """Return where the last record ends, given where the next one is to begin: the header between is none."""
    in_page = insert.offset % PAGE_BYTES
    is_begun = in_page > WalGeometry(segment_bytes).header_bytes(insert.offset)
    return insert if is_begun else page_start(insert)
