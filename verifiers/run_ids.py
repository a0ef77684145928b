"""Names for runs and reports: UUIDs of version 7, which sort by time.  Pure.  Reference: RFC 9562 §5.7."""

from __future__ import annotations

import uuid
from datetime import datetime


def uuid7(at: datetime, random: bytes) -> str:
    """Return the UUID of a time and ten random bytes."""
    if len(random) != 10:
        raise ValueError("a UUID of version 7 takes ten random bytes")
    milliseconds = int(at.timestamp() * 1000)
    number = (milliseconds << 80) | int.from_bytes(random, "big")
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=number))
