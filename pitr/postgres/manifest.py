"""PostgreSQL's ``backup_manifest``: written at restore, from what was read at the backup.

The file checksums come from the index, where they were noted as the bytes were read from the server,
so ``pg_verifybackup`` judges the restored files by the server's, and the restore does not certify itself.

Reference: PostgreSQL manual, "Backup Manifest Format"; src/common/parse_manifest.c.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import BinaryIO, Final

from pitr.errors import MalformedValue
from pitr.pipeline.crc import crc32c
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

# Version 2 names the system identifier; before 17 pg_verifybackup knows version 1 only.
_SECOND_VERSION_SINCE: Final = 170000
# pg_verifybackup looks at neither: WAL is checked by replay, and the settings are changed at restore.
_UNLISTED: Final = re.compile(
    rb"pg_wal(?:/.*)?|postgresql\.auto\.conf|backup_manifest|(?:recovery|standby)\.signal"
)


class BackupManifestWriter:
    """Writes one ``backup_manifest``, file by file, and holds none of it.

    ``stream`` is written from its start.  ``finish`` must be called, or the file is no manifest.
    """

    def __init__(self, stream: BinaryIO, *, server_version: int, system_identifier: int) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._files = 0
        if server_version >= _SECOND_VERSION_SINCE:
            head = f'{{ "PostgreSQL-Backup-Manifest-Version": 2,\n"System-Identifier": {system_identifier},\n'
        else:
            head = '{ "PostgreSQL-Backup-Manifest-Version": 1,\n'
        self._write(head + '"Files": [')

    def add_file(self, path: bytes, size_bytes: int, mtime: int, crc: int) -> None:
        """List a file by its path below the data directory; ``mtime`` in seconds since 1970.

        A file that ``pg_verifybackup`` ignores is left out.
        """
        if _UNLISTED.fullmatch(path):
            return
        try:
            name = f'"Path": {json.dumps(path.decode("utf-8"))}'
        except UnicodeDecodeError:
            name = f'"Encoded-Path": "{path.hex()}"'
        # PostgreSQL reads the checksum as the bytes of a pg_crc32c in memory: little-endian.
        checksum = crc.to_bytes(4, "little").hex()
        self._write(
            f"{',' if self._files else ''}\n"
            f'{{ {name}, "Size": {size_bytes}, "Last-Modified": "{_gmt(mtime)}", '
            f'"Checksum-Algorithm": "CRC32C", "Checksum": "{checksum}" }}'
        )
        self._files += 1

    def add_content(self, path: bytes, content: bytes, mtime: int) -> None:
        """List a file that the index does not have: ``backup_label`` or ``tablespace_map``."""
        self.add_file(path, len(content), mtime, crc32c(content))

    def finish(self, timeline: TimelineId, start: LSN, end: LSN) -> None:
        """End the manifest with the WAL that the backup needs and the checksum of all before it."""
        self._write(
            f'\n],\n"WAL-Ranges": [\n{{ "Timeline": {timeline.number}, "Start-LSN": "{start}", '
            f'"End-LSN": "{end}" }}\n],\n'
        )
        self._stream.write(f'"Manifest-Checksum": "{self._digest.hexdigest()}"}}\n'.encode("ascii"))

    def _write(self, text: str) -> None:
        content = text.encode("ascii")
        self._digest.update(content)
        self._stream.write(content)


def _gmt(mtime: int) -> str:
    try:
        return datetime.fromtimestamp(mtime, UTC).strftime("%Y-%m-%d %H:%M:%S GMT")
    except (ValueError, OverflowError, OSError) as cause:
        raise MalformedValue(f"not a file's time: {mtime}") from cause
