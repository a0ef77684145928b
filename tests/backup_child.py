"""A base backup in a process of its own that kills itself when so many packs are stored, as a power cut does.

Its standard input is JSON: store (folder), identity, signer, archive, dsn, notes, packs, parent (null or an
id), and options for the request.  The next pack's put does not even begin, nor that of
an index.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path


def main() -> None:
    here = Path(__file__).parent
    sys.path[:0] = [str(here.parent), str(here)]
    from fix_stores import FaultyStore

    from pitr.backup import take_backup
    from pitr.backup_parent import ParentBackup, read_note
    from pitr.backup_request import BackupRequest, BackupWriter
    from pitr.catalogue.lease_record import Holder
    from pitr.layout import ArchiveId
    from pitr.pipeline.keys import Identity
    from pitr.pipeline.sign import Signer
    from pitr.repository import Repository
    from storage.local import DirectoryStore

    asked = json.load(sys.stdin)
    left = asked["packs"]

    class DyingStore(FaultyStore):
        def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
            nonlocal left
            left -= "/pack-" in key
            if left < 0 or "/index-" in key:
                os.kill(os.getpid(), signal.SIGKILL)
            super().put(key, body, sha256=sha256, after_all=after_all)

    identity, archive = Identity.parse(asked["identity"]), ArchiveId.parse(asked["archive"])
    store = DyingStore(DirectoryStore(Path(asked["store"])))
    repository = Repository.open(store, identity.root_signer().public)
    notes, parent = Path(asked["notes"]), None
    if asked["parent"] is not None:
        note = read_note(notes, asked["parent"])
        assert note is not None
        parent = ParentBackup(repository.get_manifest(archive, asked["parent"]).manifest, note)
    take_backup(
        BackupRequest(
            asked["dsn"],
            archive,
            "a child's",
            parent=parent,
            notes_dir=notes,
            holder=Holder.of_host("host", os.getpid(), "5e" * 8),
            **asked["options"],
        ),
        BackupWriter(repository, Signer.parse(asked["signer"]), [identity.recipient()]),
        lambda _timeline, _start, _end, _timeout_s: True,
        clock=lambda: datetime.now(UTC),
        random=os.urandom,
    )


if __name__ == "__main__":
    main()
