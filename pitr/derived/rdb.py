"""The outside of an RDB file: that it is one, whole, and when its server says that it was begun.  Pure.

Reference: Redis src/rdb.c (rdbSaveInfoAuxFields, rdbLoadRio); the content is Redis' own matter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from pitr.errors import MalformedValue

# What must be at hand of the beginning: magic, version, and the auxiliary fields, which come first.
HEAD_BYTES: Final = 4096
# The opcode of the end, and a checksum of eight bytes.
TAIL_BYTES: Final = 9
_MAGIC = re.compile(rb"REDIS([0-9]{4})")
_AUX: Final = 0xFA
_EOF: Final = 0xFF
_FIELDS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class RdbHead:
    """``created_s``: when it was begun by the server's clock, seconds since 1970; None if it does not say."""

    version: int
    redis_version: str | None
    created_s: int | None


def read_head(head: bytes) -> RdbHead:
    """Read the beginning of a file, of which ``HEAD_BYTES`` are enough.  Raises MalformedValue."""
    match = _MAGIC.match(head)
    if match is None:
        raise MalformedValue("this is not an RDB file")
    fields: dict[bytes, bytes] = {}
    at = match.end()
    try:
        while head[at] == _AUX and len(fields) < _FIELDS_MAX:
            name, at = _string(head, at + 1)
            fields[name], at = _string(head, at)
    except IndexError:
        # The fields go on past what is at hand, or in a form that is not read here; those that are wanted
        # come among the first, and who misses them says so.
        pass
    created = fields.get(b"ctime", b"")
    version = fields.get(b"redis-ver")
    return RdbHead(
        int(match[1]),
        None if version is None else version.decode("ascii", "replace")[:50],
        int(created) if created.isdigit() and len(created) < 20 else None,
    )


def check_tail(tail: bytes) -> None:
    """Raise MalformedValue unless the last ``TAIL_BYTES`` of a file are an RDB's end."""
    if len(tail) != TAIL_BYTES or tail[0] != _EOF:
        raise MalformedValue("the RDB file has no end: it is cut short")


def _string(raw: bytes, at: int) -> tuple[bytes, int]:
    """Return a string as RDB has it, and where it ends: by length, or a number of 8, 16 or 32 bits.

    Raises IndexError where it is in another form, or ends past ``raw``.
    """
    first = raw[at]
    kind = first >> 6
    if kind == 3:
        width = {0: 1, 1: 2, 2: 4}.get(first & 0x3F)
        if width is None:
            raise IndexError("compressed")
        end = at + 1 + width
        raw[end - 1]
        return str(int.from_bytes(raw[at + 1 : end], "little", signed=True)).encode(), end
    if kind == 0:
        length, start = first & 0x3F, at + 1
    elif kind == 1:
        length, start = (first & 0x3F) << 8 | raw[at + 1], at + 2
    else:
        raise IndexError("too long for a field")
    end = start + length
    if length:
        raw[end - 1]
    return raw[start:end], end
