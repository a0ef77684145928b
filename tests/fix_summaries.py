"""WAL summaries as a server would give them, made by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pitr.postgres.datadir import PG_DEFAULT_OID, DataFile, parse_relation_path
from pitr.postgres.page import PAGE_BYTES
from pitr.postgres.summaries import FORKS, SUMMARY_ROW

# Tablespace, database, file node, fork, block, is it a limit.
Row = tuple[int, int, int, str, int, bool]
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_END = b"\xff\xff"


def row(filenode: int, block: int, *, limit: bool = False, fork: str = "main", database: int = 5) -> Row:
    """Return one row of ``pg_wal_summary_contents``."""
    return PG_DEFAULT_OID, database, filenode, fork, block, limit


def rows_of(rows: Iterable[Row]) -> NDArray[np.void]:
    """Return rows as ``parse_rows`` yields them."""
    return np.array(
        [
            (6, 4, filenode, 4, tablespace, 4, database, 2, FORKS.index(fork), 8, block, 1, limit)
            for tablespace, database, filenode, fork, block, limit in rows
        ],
        dtype=SUMMARY_ROW,
    )


def copied(rows: NDArray[np.void]) -> bytes:
    """Return what a binary COPY of the rows is."""
    return COPY_HEADER + rows.tobytes() + COPY_END


def in_chunks(content: bytes, size: int) -> Iterator[memoryview]:
    for start in range(0, len(content), size):
        yield memoryview(content)[start : start + size]


def relation(path: str, blocks: int, *, rest_bytes: int = 0) -> DataFile:
    """Return a relation file of so many blocks."""
    found = parse_relation_path(path.encode())
    assert found is not None, path
    return DataFile(path.encode(), blocks * PAGE_BYTES + rest_bytes, found)
