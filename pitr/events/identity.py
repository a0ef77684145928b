"""Who a record is, wherever it is mirrored to: mirrors keep its key, value, headers and timestamp.  Pure.

Not its offset: that is another one on each cluster.  Two records may be alike in all of these (a producer
that is not idempotent sends a batch again), so whoever searches takes the first that is alike.
"""

from __future__ import annotations

import hashlib
from typing import Final

from pitr.events.broker import EventRecord
from pitr.events.fence import Identity

_LENGTH_BYTES: Final = 8
_ABSENT: Final = (-1).to_bytes(_LENGTH_BYTES, "big", signed=True)


def identity_of(record: EventRecord) -> Identity:
    """Return a record's identity: each length stands before its bytes, so none can move to the next."""
    digest = hashlib.sha256()
    parts: list[bytes | None] = [record.key, record.value]
    for name, value in record.headers:
        parts += [name.encode("utf-8", "surrogatepass"), value]
    if record.unreadable is not None:
        # It has headers that nobody saw: it must not look like one that has none.
        parts.append(record.unreadable.encode())
    for part in parts:
        digest.update(_ABSENT if part is None else len(part).to_bytes(_LENGTH_BYTES, "big", signed=True))
        digest.update(part or b"")
    return Identity(record.timestamp_ms, digest.digest())
