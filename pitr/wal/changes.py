"""What a WAL record changed: which relations' files, and for tables how many rows in which way.  Pure.

Reference: PostgreSQL src/include/access/xlogrecord.h (XLogRecordBlockHeader), heapam_xlog.h, xact.h
(xl_xact_commit), src/backend/access/transam/xlogreader.c (DecodeXLogRecord); the same in 15 to 18.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pitr.errors import MalformedValue
from pitr.wal.records import RMGR_TRANSACTION, WalRecord
from pitr.wal.transactions import DATA_LONG, DATA_SHORT, ORIGIN, TOPLEVEL_XID

RMGR_HEAP2, RMGR_HEAP, RMGR_SEQUENCE = 9, 10, 15
# Objects that every cluster has from the beginning have smaller ids (FirstNormalObjectId, transam.h).
FIRST_NORMAL_ID = 16384
_BLOCK_ID_MAX = 32
_HAS_IMAGE, _HAS_DATA, _SAME_RELATION = 0x10, 0x20, 0x80
_HAS_HOLE, _COMPRESSED = 0x01, 0x04 | 0x08 | 0x10
_HEAP_KIND = 0x70
_MULTI_INSERT = 0x50
_BLOCK = struct.Struct("<BBH")
_IMAGE = struct.Struct("<HHB")
_LOCATOR = struct.Struct("<III")
_UINT16 = struct.Struct("<H")
_UINT32 = struct.Struct("<I")
_INT32 = struct.Struct("<i")
_COMMIT_HAS_INFO = 0x80
_HAS_DATABASE, _HAS_SUBXACTS, _HAS_RELATIONS = 0x01, 0x02, 0x04


class Operation(StrEnum):
    """What happened to rows, or to a relation as a whole."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    LOCK = "lock"
    # PostgreSQL's own counters in a row of its catalogue; no transaction decides whether it counts.
    IN_PLACE = "in place"
    # The files of the relation went: DROP, TRUNCATE, or a rewrite of the table.
    FILES = "files removed"
    SEQUENCE = "sequence"
    # Indexes, visibility, storage that another access method keeps.
    OTHER = "other"


_HEAP_OPERATIONS = {
    0x00: Operation.INSERT,
    0x10: Operation.DELETE,
    0x20: Operation.UPDATE,
    0x40: Operation.UPDATE,
    0x60: Operation.LOCK,
    0x70: Operation.IN_PLACE,
}


@dataclass(frozen=True, slots=True)
class RelationFile:
    """Where a relation's bytes are: the numbers of tablespace, database (0: shared) and file."""

    tablespace: int
    database: int
    number: int

    @property
    def is_catalogue(self) -> bool:
        """Tell whether it is one of PostgreSQL's own relations, as long as that was never rewritten."""
        return self.number < FIRST_NORMAL_ID or self.database == 0


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a record did to a relation; ``rows`` is 0 where it is not about rows."""

    file: RelationFile
    operation: Operation
    rows: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What a database was made of when it answered a query: ``seen`` are the relations that this looked at.

    ``unseen``: known ones that it did not, PostgreSQL's own left out.  ``next_xid``: whatever began
    before has a smaller one.  ``names`` are those of all relations.
    """

    database: int
    next_xid: int
    seen: frozenset[RelationFile]
    unseen: frozenset[RelationFile]
    names: Mapping[RelationFile, str]


@dataclass(frozen=True, slots=True)
class CommitParts:
    """What a commit record lists beside its time: subtransactions, and the files that go with it."""

    subtransactions: tuple[int, ...]
    removed: tuple[RelationFile, ...]


def files_of(record: WalRecord) -> list[RelationFile]:
    """Return the relations of the record's blocks, in their order.  Raises MalformedValue."""
    try:
        return _parse(record)[0]
    except struct.error as cause:
        raise MalformedValue(f"WAL record at {record.start} ends in its headers") from cause


def changes_of(record: WalRecord) -> Iterator[Change]:
    """Yield what the record did; nothing for one that names no relation.  Raises MalformedValue."""
    try:
        files, main = _parse(record)
        if not files:
            return
        if record.rmid == RMGR_HEAP:
            operation = _HEAP_OPERATIONS.get(record.info & _HEAP_KIND, Operation.OTHER)
            is_row = operation not in (Operation.OTHER, Operation.IN_PLACE)
            yield Change(files[0], operation, 1 if is_row else 0)
        elif record.rmid == RMGR_HEAP2 and record.info & _HEAP_KIND == _MULTI_INSERT:
            # xl_heap_multi_insert: flags, a byte of padding, the number of rows.
            yield Change(files[0], Operation.INSERT, _UINT16.unpack_from(main, 2)[0])
        else:
            operation = Operation.SEQUENCE if record.rmid == RMGR_SEQUENCE else Operation.OTHER
            for file in dict.fromkeys(files):
                yield Change(file, operation, 0)
    except struct.error as cause:
        raise MalformedValue(f"WAL record at {record.start} ends in its headers") from cause


def commit_parts(record: WalRecord) -> CommitParts:
    """Return what the record of a transaction's end lists.  Raises MalformedValue."""
    if record.rmid != RMGR_TRANSACTION or not record.info & _COMMIT_HAS_INFO:
        return CommitParts((), ())
    try:
        main = _parse(record)[1]
        xinfo, offset = _UINT32.unpack_from(main, 8)[0], 12
        if xinfo & _HAS_DATABASE:
            offset += 8
        subtransactions: tuple[int, ...] = ()
        removed: tuple[RelationFile, ...] = ()
        if xinfo & _HAS_SUBXACTS:
            count = _INT32.unpack_from(main, offset)[0]
            subtransactions = struct.unpack_from(f"<{count}I", main, offset + 4)
            offset += 4 + 4 * count
        if xinfo & _HAS_RELATIONS:
            count = _INT32.unpack_from(main, offset)[0]
            offset += 4
            removed = tuple(
                RelationFile(*_LOCATOR.unpack_from(main, offset + number * _LOCATOR.size))
                for number in range(count)
            )
        return CommitParts(subtransactions, removed)
    except struct.error as cause:
        raise MalformedValue(f"transaction record at {record.start} is too short") from cause


def _parse(record: WalRecord) -> tuple[list[RelationFile], memoryview]:
    """Return the relations of the blocks, and the main data, which is last.

    All headers come first; together with what they announce they make up the record.
    """
    view = memoryview(record.data)
    files: list[RelationFile] = []
    offset, announced = 0, 0
    file: RelationFile | None = None
    # xlogreader.c: headers go on as long as more is left than was announced.
    while len(view) - offset > announced:
        block_id = view[offset]
        if block_id == DATA_SHORT:
            return files, view[len(view) - view[offset + 1] :]
        if block_id == DATA_LONG:
            return files, view[len(view) - _UINT32.unpack_from(view, offset + 1)[0] :]
        if block_id == ORIGIN:
            offset += 3
        elif block_id == TOPLEVEL_XID:
            offset += 5
        elif block_id <= _BLOCK_ID_MAX:
            _, flags, data_bytes = _BLOCK.unpack_from(view, offset)
            offset += _BLOCK.size
            announced += data_bytes if flags & _HAS_DATA else 0
            if flags & _HAS_IMAGE:
                image_bytes, _, info = _IMAGE.unpack_from(view, offset)
                offset += _IMAGE.size + (2 if info & _HAS_HOLE and info & _COMPRESSED else 0)
                announced += image_bytes
            if not flags & _SAME_RELATION:
                file = RelationFile(*_LOCATOR.unpack_from(view, offset))
                offset += _LOCATOR.size
            if file is None:
                raise MalformedValue(f"WAL record at {record.start} names no relation for its block")
            files.append(file)
            offset += 4
        else:
            raise MalformedValue(f"WAL record at {record.start} has a block id {block_id}")
    return files, view[len(view) :]
