"""The control file (``global/pg_control``): the little that a base backup must know of it.  Pure.

Its layout changes with every few majors; what is read here has stood at its place since 8.x: the
system identifier first, then the two version numbers and the state (DBState), of which 9.0 added the last.

Reference: PostgreSQL src/include/catalog/pg_control.h, src/common/controldata_utils.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pitr.errors import MalformedValue
from pitr.pipeline.crc import crc32c

# PG_CONTROL_MAX_SAFE_SIZE, what one disk sector writes at once, and PG_CONTROL_FILE_SIZE.
CONTROL_BYTES_MIN = 512
CONTROL_BYTES_MAX = 8192
_HEAD = struct.Struct("<QIII")
_IN_ARCHIVE_RECOVERY = 5
_CRC = struct.Struct("<I")
# The checksum is the structure's last field.  Its place differs by major (288 in 15 and 16, 296 in
# 18), so every place it could have is tried: a chance of 2**-26 that a torn file passes.
_CRC_OFFSETS = range(192, CONTROL_BYTES_MIN - _CRC.size + 1, 4)


@dataclass(frozen=True, slots=True)
class ControlFile:
    """The identity of a cluster, the format of its data, and the number of the state that it was left in."""

    system_identifier: int
    control_version: int
    catalogue_version: int
    state: int

    @property
    def is_in_archive_recovery(self) -> bool:
        """Whether a server has begun to recover it from an archive, and has not ended that."""
        return self.state == _IN_ARCHIVE_RECOVERY

    def version_directory(self, major: int) -> bytes:
        """Return the name of the server's own directory in each tablespace (TABLESPACE_VERSION_DIRECTORY)."""
        return b"PG_%d_%d" % (major, self.catalogue_version)


def parse_control_file(content: bytes) -> ControlFile:
    """Read a whole control file.  Raises MalformedValue if it is not whole: torn, cut, or no such file."""
    if not CONTROL_BYTES_MIN <= len(content) <= CONTROL_BYTES_MAX:
        raise MalformedValue(f"a control file of {len(content)} bytes")
    crc = crc32c(content[: _CRC_OFFSETS.start])
    for offset in _CRC_OFFSETS:
        if crc == _CRC.unpack_from(content, offset)[0]:
            return ControlFile(*_HEAD.unpack_from(content))
        crc = crc32c(content[offset : offset + 4], crc)
    raise MalformedValue("the control file's checksum is wrong")
