"""What S3 says in the headers of its answers.  Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Which bytes of an object an answer holds from."""

    start: int
    object_bytes: int


def range_of(header: str) -> ByteRange | None:
    """Read ``bytes 5-9/100``."""
    span, _, total = header.removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    return ByteRange(int(start), int(total)) if start.isdecimal() and total.isdecimal() else None
