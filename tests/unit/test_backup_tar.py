"""A server's tar archives, made by hand: what of them is refused."""

from __future__ import annotations

import io
import tarfile

import pytest
from fix_control import SYSTEM_IDENTIFIER, control_file

from pitr.backup_tally import Tally
from pitr.backup_tar import TarCopier
from pitr.errors import BackupFailed
from pitr.layout import ArchiveId
from pitr.pipeline.keys import DataKey
from pitr.pipeline.pack_writer import FileStatus, PartWriter
from pitr.pipeline.part_objects import PartKind
from pitr.pipeline.seal import Context
from pitr.postgres.base_backup_stream import Archive
from pitr.postgres.basebackup import PageRules
from pitr.wal.lsn import LSN

CRC_OFFSET = 296


def context(kind: PartKind, part: int, number: int) -> Context:
    return Context("0" * 32, ArchiveId(7, 1), kind, f"backup/{part:04d}/{number:06d}")


def copied(control: bytes, *, system_identifier: int = SYSTEM_IDENTIFIER) -> TarCopier:
    """Copy a data directory that has nothing but a control file."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as members:
        member = tarfile.TarInfo("global/pg_control")
        member.size, member.mode, member.mtime = len(control), 0o600, 1_700_000_000
        members.addfile(member, io.BytesIO(control))
    body = PartWriter(1, DataKey(bytes(32)), context, lambda _part: None)
    rules = PageRules(True, 131072, LSN(1), lambda: LSN(2))
    copier = TarCopier(
        rules, Tally(), body, lambda: None, system_identifier=system_identifier, is_incremental=False
    )
    copier.copy(iter([Archive(None), archive.getvalue()]))
    return copier


def test_a_whole_control_file_is_taken_as_it_came() -> None:
    content = bytes(control_file(CRC_OFFSET))
    assert copied(content).control == (content, FileStatus(0o600, 1_700_000_000))


def test_a_torn_control_file_ends_the_backup() -> None:
    """The server read it while it wrote it; the manifest that it sends has the sum of the torn bytes."""
    content = control_file(CRC_OFFSET)
    content[120:128] = b"newer..."
    with pytest.raises(BackupFailed, match="the server sent a torn control file") as refused:
        copied(bytes(content))
    assert refused.value.hint == "take it again"


def test_the_files_of_another_cluster_end_the_backup() -> None:
    """A DSN of several hosts may lead the second connection to another server than the first."""
    with pytest.raises(BackupFailed, match="another cluster") as refused:
        copied(bytes(control_file(CRC_OFFSET)), system_identifier=SYSTEM_IDENTIFIER + 1)
    assert refused.value.hint == "name one server in [cluster] dsn"
