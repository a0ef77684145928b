"""The record that makes a place a repository: read with the root that is trusted, or to see whose it is.

Reference: docs/format.md §6.1.
"""

from __future__ import annotations

from collections.abc import Callable

from pitr.catalogue.records import RepositoryRecord
from pitr.errors import NotAuthentic, NotInitialised
from pitr.layout import REPOSITORY_KEY
from pitr.pipeline.sign import Verifier, decode_payload, open_record, payload_of
from pitr.verified import get_verified
from storage.store import ObjectMissing, ObjectStore


def read_repository_record(store: ObjectStore, root: Verifier) -> RepositoryRecord:
    """Return the repository's record if ``root`` signed it.

    Raises NotInitialised if there is none, NotAuthentic, StoreError.
    """

    try:
        return get_verified(store, REPOSITORY_KEY, _reader(lambda _body: root))
    except ObjectMissing as cause:
        raise NotInitialised(
            "there is no repository here",
            detail="No region has the repository's record.",
            hint="check the region's URL, or make one with `pitr init`",
        ) from cause


def find_repository_record(store: ObjectStore) -> RepositoryRecord | None:
    """Return the record of whatever repository is here, None if there is none.

    It is whole, but whoever made the repository signed it: good for telling repositories apart, never
    for trust.  Raises NotAuthentic if it is damaged, StoreError.
    """

    def claimed_root(body: bytes) -> Verifier:
        # Read before any signature holds, so of what it says only this is used: whose signature to check.
        root = decode_payload(payload_of(body)).get("root")
        if not isinstance(root, str):
            raise NotAuthentic("the repository's record names no root key")
        return Verifier.parse(root)

    try:
        return get_verified(store, REPOSITORY_KEY, _reader(claimed_root))
    except ObjectMissing:
        return None


def _reader(root_of: Callable[[bytes], Verifier]) -> Callable[[bytes], RepositoryRecord]:
    def read(body: bytes) -> RepositoryRecord:
        root = root_of(body)
        record = RepositoryRecord.from_payload(open_record(body, root, "repository"))
        if record.root != str(root):
            raise NotAuthentic("the repository's record names another root key than its signer")
        return record

    return read
