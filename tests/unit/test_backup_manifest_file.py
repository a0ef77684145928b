"""PostgreSQL's backup_manifest as we write it."""

from __future__ import annotations

import hashlib
import io
import json

import pytest

from pitr.errors import MalformedValue
from pitr.pipeline.crc import crc32c
from pitr.postgres.manifest import BackupManifestWriter
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId


def written(server_version: int = 170010, files: int = 2) -> bytes:
    stream = io.BytesIO()
    writer = BackupManifestWriter(stream, server_version=server_version, system_identifier=7_123)
    names = [b'base/5/"odd"\xc3\xa9', b"log/\xff"]
    for name in names[:files]:
        writer.add_content(name, b"123456789", 1_700_000_000)
    for ignored in (b"pg_wal/x", b"postgresql.auto.conf", b"recovery.signal", b"backup_manifest"):
        writer.add_content(ignored, b"", 0)
    writer.finish(TimelineId(3), LSN.parse("0/6000028"), LSN.parse("0/6000120"))
    return stream.getvalue()


def test_a_manifest_has_the_fields_that_postgresql_reads() -> None:
    fields = json.loads(written())
    assert fields["PostgreSQL-Backup-Manifest-Version"] == 2
    assert fields["System-Identifier"] == 7_123
    # E3069283 is the check value of CRC-32C, here in the order of the machine's memory.
    assert crc32c(b"123456789") == 0xE3069283
    common = {
        "Size": 9,
        "Last-Modified": "2023-11-14 22:13:20 GMT",
        "Checksum-Algorithm": "CRC32C",
        "Checksum": "839206e3",
    }
    assert fields["Files"] == [{"Path": 'base/5/"odd"é', **common}, {"Encoded-Path": "6c6f672fff", **common}]
    assert fields["WAL-Ranges"] == [{"Timeline": 3, "Start-LSN": "0/6000028", "End-LSN": "0/6000120"}]


def test_a_manifest_before_17_has_version_1_and_no_system_identifier() -> None:
    fields = json.loads(written(160009, files=0))
    assert fields["PostgreSQL-Backup-Manifest-Version"] == 1
    assert "System-Identifier" not in fields
    assert fields["Files"] == []


def test_the_last_line_is_the_checksum_of_all_before_it() -> None:
    content = written()
    before, _, last = content.rstrip(b"\n").rpartition(b"\n")
    checksum = hashlib.sha256(before + b"\n").hexdigest()
    assert last == f'"Manifest-Checksum": "{checksum}"}}'.encode()


def test_a_time_that_no_file_has_is_refused() -> None:
    writer = BackupManifestWriter(io.BytesIO(), server_version=170000, system_identifier=1)
    with pytest.raises(MalformedValue):
        writer.add_file(b"a", 1, 1 << 62, 0)
