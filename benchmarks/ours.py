"""Our side of a figure, as a process of its own: ``python -m benchmarks.ours full DSN FOLDER``."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from pitr.backup import take_backup
from pitr.backup_request import BackupRequest, BackupWriter
from pitr.catalogue.records import EpochRecord, RepositoryRecord
from pitr.layout import ArchiveId
from pitr.pipeline.keys import Identity
from pitr.pipeline.sign import Signer
from pitr.postgres.server import Server
from pitr.repository import Repository
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.local import DirectoryStore

_REPOSITORY = "be" * 16


def full(dsn: str, folder: Path) -> None:
    """Take a full backup into one directory, encrypted, with two workers.

    No WAL is archived here, as the peers are told to leave it out too.
    """
    identity, signer, now = Identity.generate(os.urandom), Signer.generate(os.urandom), datetime.now(UTC)
    root, recipient = identity.root_signer(), identity.recipient()
    store = DirectoryStore.create(folder)
    record = RepositoryRecord(_REPOSITORY, now, str(root.public), (str(recipient),))
    repository = Repository.create(store, record, root)
    with Server.connect(dsn) as server:
        archive = ArchiveId(server.facts().system_identifier, 1)
    repository.write_epoch(EpochRecord(_REPOSITORY, archive, now, str(signer.public), None), root)

    def wal_is_left_out(timeline: TimelineId, start: LSN, end: LSN, timeout_s: float) -> bool:  # noqa: ARG001
        return True

    manifest = take_backup(
        BackupRequest(dsn, archive, "benchmark"),
        BackupWriter(repository, signer, [recipient]),
        wal_is_left_out,
        clock=lambda: datetime.now(UTC),
        random=os.urandom,
    )
    stored = sum(pack.size_bytes for pack in manifest.packs)
    print(json.dumps({"bytes": manifest.size_bytes, "stored": stored, "findings": len(manifest.findings)}))


if __name__ == "__main__":
    _, figure, dsn_text, folder_text = sys.argv
    {"full": full}[figure](dsn_text, Path(folder_text))
