"""Expire records, read and put: what of an archive is gone, whatever a region still lists.

Reference: docs/format.md §6.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pitr.catalogue.expiry_record import ExpireRecord
from pitr.errors import MalformedValue, NotAuthentic
from pitr.layout import ArchiveId, expiry_key, expiry_sequence
from pitr.pipeline.sign import Signer, Verifier, open_record, payload_sha256, sign_record
from pitr.verified import VerifiedSearch, check_place, get_verified
from storage.store import ObjectStore


@dataclass(frozen=True, slots=True)
class ListedExpiry:
    """A verified expire record and the SHA-256 of its payload, which the next one names."""

    record: ExpireRecord
    payload_sha256: bytes


class ExpiryReader:
    """Reads the expire records of one repository.  Thread-safe as far as the store is."""

    def __init__(self, store: ObjectStore, repository_id: str, root: Verifier) -> None:
        self._store: Final = store
        self._repository_id: Final = repository_id
        self._root: Final = root

    def newest(self, archive: ArchiveId) -> ListedExpiry | None:
        """Return the newest record whose signature holds, None if there is none: it alone says what is gone.

        A bad record hides no older one.  Raises NotAuthentic if they are all bad (``VerifiedSearch``);
        StoreError.
        """
        return next(self.all(archive), None)

    def all(self, archive: ArchiveId) -> Iterator[ListedExpiry]:
        """Yield the records, the newest first.  Raises as ``newest``."""
        search = VerifiedSearch(self._store, f"expired/{archive}/", f"expire records of archive {archive}")
        return search.each(lambda key: self.get(archive, expiry_sequence(key)))

    def get(self, archive: ArchiveId, sequence: int) -> ListedExpiry:
        """Return one verified record.  Raises ObjectMissing, NotAuthentic, StoreError."""
        key = expiry_key(archive, sequence)

        def read(body: bytes) -> ListedExpiry:
            record = ExpireRecord.from_payload(open_record(body, self._root, "expire"))
            expected = expiry_key(record.archive, record.sequence)
            check_place(key, expected, record.repository, self._repository_id)
            return ListedExpiry(record, payload_sha256(body))

        return get_verified(self._store, key, read)

    def sign(self, record: ExpireRecord, root_signer: Signer) -> bytes:
        """Return the bytes of a record, to be put in every region.  Raises NotAuthentic, MalformedValue."""
        if root_signer.public != self._root:
            raise NotAuthentic("only the root key expires", hint="use this repository's identity")
        if record.repository != self._repository_id:
            raise MalformedValue(f"a record of repository {record.repository} does not belong here")
        return sign_record(record.to_payload(), root_signer)
