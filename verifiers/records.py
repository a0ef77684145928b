"""One region's own copy of a signed object, verified by its key alone: whatever kind the key says.

Needs the root's public key and nothing that opens anything.  Reference: docs/format.md §1.
"""

from __future__ import annotations

import hashlib

from pitr.errors import MalformedValue, PitrError
from pitr.event_reader import EventReader
from pitr.events.fence_store import FenceReader
from pitr.layout import (
    REPOSITORY_KEY,
    ArchiveId,
    event_sequence,
    expiry_sequence,
    fences_sequence,
    head_sequence,
    parse_wal_key,
)
from pitr.repository import Repository
from pitr.repository_record import read_repository_record
from pitr.wal.timeline import TimelineId
from storage.store import CopyDamaged

# Small and signed, and read in every region by each check; the others are large or many.
RECORD_PREFIXES = ("envelopes", "events", "expired", "history", "manifests")


def verify_record(repository: Repository, key: str) -> bytes:
    """Verify the object under ``key`` as ``repository``'s store has it; return what it says, as a digest.

    Signing is deterministic, so that two regions' copies of one record that say the same are the same.
    Raises CopyDamaged, and ObjectMissing and other errors of the store.
    """
    try:
        said = _read(repository, key)
    except PitrError as cause:
        raise CopyDamaged(cause.detail or cause.message) from cause
    except ValueError as cause:
        raise CopyDamaged("its name is none that the format knows") from cause
    return hashlib.sha256(repr(said).encode()).digest()


def _read(repository: Repository, key: str) -> object:
    if key == REPOSITORY_KEY:
        return read_repository_record(repository.store, repository.root)
    kind, _, rest = key.partition("/")
    if kind == "epochs":
        # Not from what is known already: this region's own copy is in question.
        fresh = Repository(repository.store, repository.repository_id, repository.root)
        return fresh.epoch(ArchiveId.parse(rest))
    system, epoch, *names = rest.split("/")
    archive, name = ArchiveId.parse(f"{system}/{epoch}"), "/".join(names)
    match kind:
        case "envelopes":
            return repository.get_envelope(archive, bytes.fromhex(name))
        case "events":
            return EventReader(repository).get(archive, event_sequence(key)).record
        case "expired":
            return repository.expiry.get(archive, expiry_sequence(key))
        case "history":
            return repository.get_history(archive, TimelineId.parse(name))
        case "manifests":
            return repository.get_manifest(archive, name)
        case "heads":
            return repository.get_head(archive, head_sequence(key))
        case "walindex":
            return repository.wal.index(key, archive)
        case "fences":
            return FenceReader(repository).verify(archive, fences_sequence(key))
        case "wal":
            return repository.wal.verify(parse_wal_key(key))
    raise MalformedValue(f"not the key of a signed object: {key!r}")
