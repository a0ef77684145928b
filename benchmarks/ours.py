"""Our side of a comparison, as a process of its own: ``python -m benchmarks.ours DSN URL FOLDER``.

A daemon without its WAL, for the peers are told to leave that out too: it makes a repository at URL, and
takes a backup for each line that it reads, ``full`` or ``incr``.  Each answer is a line with the cost; the
first is the cost of the start.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness import peak_of
from cli.memory import settle_memory
from pitr.backup import take_backup
from pitr.backup_parent import ParentBackup, read_note
from pitr.backup_request import BackupRequest, BackupWriter
from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.records import EpochRecord, RepositoryRecord
from pitr.layout import ArchiveId
from pitr.pipeline.keys import Identity, Recipient
from pitr.pipeline.sign import Signer
from pitr.postgres.server import Server
from pitr.repository import Repository
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.url import create_store, parse_region_url

_REPOSITORY = "be" * 16
# Sets the process's memory peak to what it has now (Linux, proc(5)).
_RESET_PEAK = "5"


class Host:
    """A host that writes one archive: its key, and its notes of the last backups."""

    def __init__(self, dsn: str, url: str, folder: Path) -> None:
        self._dsn = dsn
        self._notes = folder / "notes"
        self._notes.mkdir(parents=True)
        self._last: BackupManifest | None = None
        identity, now = Identity.generate(os.urandom), datetime.now(UTC)
        signer, root = Signer.generate(os.urandom), identity.root_signer()
        self._recipient: Recipient = identity.recipient()
        record = RepositoryRecord(_REPOSITORY, now, str(root.public), (str(self._recipient),))
        repository = Repository.create(create_store(parse_region_url(url)), record, root)
        with Server.connect(dsn) as server:
            self._archive = ArchiveId(server.facts().system_identifier, 1)
        epoch = EpochRecord(_REPOSITORY, self._archive, now, str(signer.public), None)
        repository.write_epoch(epoch, root)
        self._writer = BackupWriter(repository, signer, [self._recipient])

    def back_up(self, kind: str) -> BackupManifest:
        """Take a backup with two workers, for ``incr`` built on the last one."""
        parent = None
        if kind == "incr":
            assert self._last is not None, "there is no backup to build on"
            note = read_note(self._notes, self._last.backup)
            assert note is not None, "the last backup left no note"
            parent = ParentBackup(self._last, note)
        manifest = take_backup(
            BackupRequest(self._dsn, self._archive, "benchmark", parent=parent, notes_dir=self._notes),
            self._writer,
            _wal_is_left_out,
            clock=lambda: datetime.now(UTC),
            random=os.urandom,
        )
        if manifest.type != kind:
            sys.exit(f"asked for a backup of type {kind}, and it is {manifest.type}")
        if manifest.findings:
            sys.exit(f"{len(manifest.findings)} bad pages")
        self._last = manifest
        return manifest


def _wal_is_left_out(timeline: TimelineId, start: LSN, end: LSN, timeout_s: float) -> bool:  # noqa: ARG001
    return True


def main() -> None:
    _, dsn, url, folder = sys.argv
    settle_memory()
    host = Host(dsn, url, Path(folder))
    _tell(cpu_s=time.process_time())
    for line in sys.stdin:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        cpu_s, wall_s = time.process_time(), time.monotonic()
        manifest = host.back_up(line.strip())
        _tell(
            cpu_s=time.process_time() - cpu_s,
            wall_s=time.monotonic() - wall_s,
            peak_bytes=peak_of(os.getpid()),
            size_bytes=manifest.size_bytes,
        )


def _tell(**figures: float) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
