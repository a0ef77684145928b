"""WAL summaries as SQL gives them: which there are, how far the summarizer is, and what one says.

Reference: PostgreSQL manual, "WAL Summarization Information Functions"; 17 and later.  Everybody may call
all three functions.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pitr.postgres.server import Server
from pitr.postgres.summaries import SUMMARY_ROW, Summary
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

# COPY's header: signature, flags, length of an extension (manual, "COPY", Binary Format).
_SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0"
_HEADER: Final = struct.Struct("!11sii")
_TRAILER: Final = b"\xff\xff"
_BATCH_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SummarizerState:
    """How far WAL is in summary files, and how far it was read for the next one; None before the first."""

    summarized: LSN | None
    pending: LSN | None


class SummarySource:
    """Asks one server.  Raises ServerUnavailable, ServerRefused as ``Server`` does."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def available(self) -> list[Summary]:
        """Return all summaries that the server has."""
        rows = self._server.rows(
            "SELECT tli::bigint, start_lsn::text, end_lsn::text FROM pg_available_wal_summaries()"
        )
        return [
            Summary(TimelineId(int(str(tli))), LSN.parse(str(start)), LSN.parse(str(end)))
            for tli, start, end in rows
        ]

    def state(self) -> SummarizerState:
        """Return how far the summarizer has come."""
        ((summarized, pending),) = self._server.rows(
            "SELECT summarized_lsn::text, pending_lsn::text FROM pg_get_wal_summarizer_state()"
        )
        return SummarizerState(_lsn_or_none(summarized), _lsn_or_none(pending))

    def rows(self, summary: Summary) -> Iterator[NDArray[np.void]]:
        """Yield the rows of one summary in batches: all its limits first, for they count before its blocks.

        Raises ValueError if they have not the form that PostgreSQL gives.
        """
        for is_limit in (True, False):
            yield from parse_rows(
                self._server.copy_out(
                    "SELECT relfilenode, reltablespace, reldatabase, relforknumber, relblocknumber,"
                    " is_limit_block FROM pg_wal_summary_contents({}::bigint, {}::pg_lsn, {}::pg_lsn)"
                    " WHERE is_limit_block = {}",
                    summary.timeline.number,
                    str(summary.start),
                    str(summary.end),
                    is_limit,
                )
            )


def parse_rows(chunks: Iterable[memoryview]) -> Iterator[NDArray[np.void]]:
    """Yield the rows of a binary COPY whose columns are of fixed width and never null, in batches.

    Raises ValueError if it is anything else.
    """
    content = bytearray()
    has_header = False
    for chunk in chunks:
        content += chunk
        if not has_header and len(content) >= _HEADER.size:
            if _HEADER.unpack_from(content) != (_SIGNATURE, 0, 0):
                raise ValueError("not a binary COPY")
            del content[: _HEADER.size]
            has_header = True
        if has_header and len(content) > _BATCH_BYTES:
            whole = (len(content) - len(_TRAILER)) // SUMMARY_ROW.itemsize * SUMMARY_ROW.itemsize
            yield np.frombuffer(bytes(content[:whole]), dtype=SUMMARY_ROW)
            del content[:whole]
    if not has_header or bytes(content[-2:]) != _TRAILER or (len(content) - 2) % SUMMARY_ROW.itemsize:
        raise ValueError("a summary has rows of another width")
    yield np.frombuffer(bytes(content[:-2]), dtype=SUMMARY_ROW)


def _lsn_or_none(text: object) -> LSN | None:
    return None if text in (None, "0/0") else LSN.parse(str(text))
