"""Ends of transactions and restore points in WAL: the places where recovery can stop.  Pure.

Reference: PostgreSQL src/include/access/xact.h (xl_xact_commit, xl_xact_abort),
src/backend/access/rmgrdesc/xactdesc.c (ParseCommitRecord), src/include/access/xlog_internal.h
(xl_restore_point), src/backend/access/transam/xlogrecovery.c (getRecordTimestamp).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN
from pitr.wal.pages import PAGE_MAGIC_18
from pitr.wal.records import INFO_MASK, RMGR_TRANSACTION, RMGR_XLOG, WalRecord, iter_records

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# What fits a datetime; a record outside of it is damaged, for PostgreSQL's own range is smaller still.
MICROSECONDS_MIN = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND
MICROSECONDS_MAX = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // _MICROSECOND

# Block ids that stand for what is no block (xlogrecord.h).
DATA_SHORT = 255
DATA_LONG = 254
ORIGIN = 253
TOPLEVEL_XID = 252
# Record kinds of RM_XACT_ID, and the bits that hold them (XLOG_XACT_OPMASK).
TRANSACTION_MASK = 0x70
_COMMIT, _ABORT, _COMMIT_PREPARED, _ABORT_PREPARED = 0x00, 0x20, 0x30, 0x40
TRANSACTION_END_INFOS = (_COMMIT, _ABORT, _COMMIT_PREPARED, _ABORT_PREPARED)
_HAS_INFO = 0x80
_RESTORE_POINT = 0x70
_RESTORE_POINT_BYTES = 8 + 64
_INT32 = struct.Struct("<i")
_UINT32 = struct.Struct("<I")
_INT64 = struct.Struct("<q")
# xinfo bits, each with the size of what it adds before the prepared transaction's xid.
_HAS_DATABASE, _HAS_SUBXACTS, _HAS_RELATIONS, _HAS_INVALIDATIONS = 0x01, 0x02, 0x04, 0x08
_HAS_PREPARED, _HAS_DROPPED_STATS = 0x10, 0x100


class EndKind(StrEnum):
    """How a transaction ended."""

    COMMIT = "commit"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class TransactionEnd:
    """The record that ends a transaction, from its first byte to PostgreSQL's EndRecPtr.

    ``xid`` is the transaction's own, also where a prepared one was ended by another session.
    """

    start: LSN
    end: LSN
    xid: int
    kind: EndKind
    is_prepared: bool
    at: datetime


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A named restore point's record: recovery to the name stops at ``end``."""

    start: LSN
    end: LSN
    name: str
    at: datetime


def iter_transaction_ends(
    chunks: Iterable[tuple[LSN, bytes]], *, segment_bytes: int
) -> Iterator[TransactionEnd]:
    """Yield the transactions' ends in contiguous WAL, in its order; times are not monotone in it.

    See ``iter_records`` for what is left out at the edges, and what it raises.
    """
    only = frozenset({RMGR_TRANSACTION})
    return transaction_ends(iter_records(chunks, segment_bytes=segment_bytes, rmids=only))


def iter_restore_points(chunks: Iterable[tuple[LSN, bytes]], *, segment_bytes: int) -> Iterator[RestorePoint]:
    """Yield the named restore points in contiguous WAL; several may have one name.  As ``iter_records``."""
    only = frozenset({RMGR_XLOG})
    return restore_points(iter_records(chunks, segment_bytes=segment_bytes, rmids=only))


def transaction_ends(records: Iterable[WalRecord]) -> Iterator[TransactionEnd]:
    """Yield the records that end transactions.  Raises MalformedValue for a damaged one."""
    for record in records:
        if record.rmid == RMGR_TRANSACTION and record.info & TRANSACTION_MASK in TRANSACTION_END_INFOS:
            yield _transaction_end(record)


def restore_points(records: Iterable[WalRecord]) -> Iterator[RestorePoint]:
    """Yield the records of named restore points.  Raises MalformedValue for a damaged one."""
    for record in records:
        if record.rmid == RMGR_XLOG and record.info & INFO_MASK == _RESTORE_POINT:
            main = main_data(record)
            if len(main) != _RESTORE_POINT_BYTES:
                raise MalformedValue(f"restore point of {len(main)} bytes at {record.start}")
            name = bytes(main[8:]).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            yield RestorePoint(record.start, record.end, name, time_at(_INT64.unpack_from(main)[0]))


def time_at(microseconds: int) -> datetime:
    """Return the time of a TimestampTz.  Raises MalformedValue if no calendar has it."""
    if not MICROSECONDS_MIN <= microseconds <= MICROSECONDS_MAX:
        raise MalformedValue(f"not a time: {microseconds} microseconds since 2000")
    return _EPOCH + timedelta(microseconds=microseconds)


def _transaction_end(record: WalRecord) -> TransactionEnd:
    main = main_data(record)
    kind = record.info & TRANSACTION_MASK
    is_prepared = kind in (_COMMIT_PREPARED, _ABORT_PREPARED)
    try:
        at = time_at(_INT64.unpack_from(main)[0])
        xid = _prepared_xid(record, main) if is_prepared else record.xid
    except struct.error as cause:
        raise MalformedValue(f"transaction record at {record.start} is too short") from cause
    ends = EndKind.COMMIT if kind in (_COMMIT, _COMMIT_PREPARED) else EndKind.ABORT
    return TransactionEnd(record.start, record.end, xid, ends, is_prepared, at)


def _prepared_xid(record: WalRecord, main: memoryview) -> int:
    """Step over what stands before it (ParseCommitRecord, ParseAbortRecord)."""
    offset = _INT64.size
    xinfo = _UINT32.unpack_from(main, offset)[0] if record.info & _HAS_INFO else 0
    offset += _UINT32.size
    if not xinfo & _HAS_PREPARED:
        raise MalformedValue(f"the end of a prepared transaction at {record.start} does not say of which")
    if xinfo & _HAS_DATABASE:
        offset += 8
    # xl_xact_stats_item has grown by the upper half of an object id in 18.
    stats_bytes = 16 if record.page_magic >= PAGE_MAGIC_18 else 12
    counted = (
        (_HAS_SUBXACTS, 4),
        (_HAS_RELATIONS, 12),
        (_HAS_DROPPED_STATS, stats_bytes),
        (_HAS_INVALIDATIONS, 16),
    )
    for bit, item_bytes in counted:
        if xinfo & bit:
            offset += _INT32.size + _INT32.unpack_from(main, offset)[0] * item_bytes
    return int(_UINT32.unpack_from(main, offset)[0])


def main_data(record: WalRecord) -> memoryview:
    """Return the main data of a record that names no block.  Raises MalformedValue if it does."""
    view = memoryview(record.data)
    offset = 0
    while offset < len(view):
        block_id = view[offset]
        if block_id == ORIGIN:
            offset += 3
        elif block_id == TOPLEVEL_XID:
            offset += 5
        elif block_id == DATA_SHORT and offset + 2 <= len(view):
            return _exactly(record, view[offset + 2 :], view[offset + 1])
        elif block_id == DATA_LONG and offset + 5 <= len(view):
            return _exactly(record, view[offset + 5 :], _UINT32.unpack_from(view, offset + 1)[0])
        else:
            break
    raise MalformedValue(f"record at {record.start} has no main data where it must")


def _exactly(record: WalRecord, main: memoryview, size_bytes: int) -> memoryview:
    if len(main) != size_bytes:
        raise MalformedValue(f"record at {record.start} has {len(main)} bytes of main data, not {size_bytes}")
    return main
