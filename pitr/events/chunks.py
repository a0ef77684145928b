"""Records in chunks that are bounded by their number and by their bytes.  Pure.

Whoever may produce decides on the size of a record, headers and key as well as its value: so a number alone
bounds no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from pitr.events.broker import EventRecord, OffsetGone

CHUNK_RECORDS: Final = 2_000
CHUNK_BYTES: Final = 8 << 20


@dataclass(slots=True)
class Chunk:
    """Some records, at least one, and how many bytes they have."""

    records: list[EventRecord] = field(default_factory=list)
    size_bytes: int = 0


def chunks(
    records: Iterable[EventRecord], *, count_max: int = CHUNK_RECORDS, bytes_max: int = CHUNK_BYTES
) -> Iterator[Chunk]:
    """Yield records in chunks, each full once it has so many or so many bytes.

    What came before an ``OffsetGone`` is yielded first.
    """
    chunk = Chunk()
    try:
        for record in records:
            chunk.records.append(record)
            chunk.size_bytes += record.size_bytes
            if len(chunk.records) >= count_max or chunk.size_bytes >= bytes_max:
                yield chunk
                chunk = Chunk()
    except OffsetGone:
        if chunk.records:
            yield chunk
        raise
    if chunk.records:
        yield chunk
