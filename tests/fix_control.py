"""A control file made by hand, for tests that need no server."""

from __future__ import annotations

import struct

from pitr.pipeline.crc import crc32c

SYSTEM_IDENTIFIER = 7_000_000_000_000_000_001


def control_file(crc_offset: int, size_bytes: int = 8192, *, state: int = 6) -> bytearray:
    """Return one whose checksum stands at ``crc_offset``, which differs by major version; in production."""
    content = bytearray(size_bytes)
    struct.pack_into("<QIII", content, 0, SYSTEM_IDENTIFIER, 1300, 202406281, state)
    content[100:140] = bytes(range(40))
    struct.pack_into("<I", content, crc_offset, crc32c(bytes(content[:crc_offset])))
    return content
