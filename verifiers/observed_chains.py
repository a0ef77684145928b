"""What the verifier saw of the host's own signed chains: in its log, a later rewrite of them shows.

The host signs heads and events, the root expire records, each naming the one before.  Who has the host's key
could sign them all again; the verifier's log then still says what they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pitr.event_reader import EventReader
from pitr.layout import ArchiveId
from pitr.repository import Repository

# The newest; older ones were named by earlier entries.
_BACKUPS_MAX: Final = 500


def observed_facts(repository: Repository, archive: ArchiveId) -> Mapping[str, object]:
    """Return the newest of each chain, and the digests of the manifests.  Raises PitrError, StoreError."""
    head = repository.find_head(archive).newest
    event = EventReader(repository).newest(archive)
    expiry = repository.expiry.newest(archive)
    backups = repository.manifests(archive).backups[-_BACKUPS_MAX:]
    return {
        "system_identifier": str(archive.system_identifier),
        "archive": str(archive),
        "head_sequence": None if head is None else head.head.sequence,
        "head_sha256": None if head is None else head.payload_sha256.hex(),
        "event_sequence": None if event is None else event.record.sequence,
        "event_sha256": None if event is None else event.payload_sha256.hex(),
        "expiry_sequence": None if expiry is None else expiry.record.sequence,
        "expiry_sha256": None if expiry is None else expiry.payload_sha256.hex(),
        "backups": [[one.manifest.backup, one.object_sha256.hex()] for one in backups],
    }
