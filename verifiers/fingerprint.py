"""Fingerprints: what the source's tables came to at one LSN, taken on a standby and signed by the verifier.

Reference: docs/verify.md, "Fingerprints"; docs/format.md §6.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final

from pitr.catalogue.fields import Fields
from pitr.errors import MalformedValue, NotAuthentic
from pitr.layout import fingerprint_key, fingerprint_lsn, fingerprint_prefix
from pitr.pipeline.sign import Signer, Verifier, encode_time, open_record, sign_record
from pitr.verified import get_verified
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.store import ObjectStore
from verifiers.table_digests import TABLES_MAX, ClusterDigests, TableDigest

_KIND: Final = "fingerprint"
_DATABASES_MAX: Final = 10_000
# As in an archive's name (docs/format.md §3).
_EPOCH_MAX: Final = 99_999_999


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a standby held when it had replayed up to ``lsn`` and nothing after it.

    ``epoch``: the newest writer epoch of its cluster when it was taken; None in records of before 2026-12.
    Two epochs may have other WAL at one LSN of one timeline.
    """

    repository: str
    system_identifier: int
    timeline: TimelineId
    lsn: LSN
    at: datetime
    server_version: int
    digests: ClusterDigests
    epoch: int | None = None

    def to_payload(self) -> dict[str, object]:
        return {
            "kind": _KIND,
            "repository": self.repository,
            "system_identifier": str(self.system_identifier),
            "timeline": str(self.timeline),
            "lsn": str(self.lsn),
            "at": encode_time(self.at),
            "server_version": self.server_version,
            "epoch": self.epoch,
            "tables": [[one.table, one.rows, one.digest] for one in self.digests.tables],
            "schemas": dict(self.digests.schemas),
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, object]) -> Fingerprint:
        """Read a verified record.  Raises MalformedValue."""
        fields = Fields(payload, _KIND)
        system = fields.text("system_identifier")
        if not system.isascii() or not system.isdigit():
            raise MalformedValue(f"not a system identifier: {system[:80]!r}")
        tables = []
        for name, rows, digest in fields.lists("tables", count_max=TABLES_MAX, least=3):
            (count,) = fields.as_integers("tables", [rows], count=1)
            tables.append(
                TableDigest(fields.as_text("tables", name), count, fields.as_text("tables", digest))
            )
        return cls(
            fields.repository(),
            int(system),
            fields.timeline("timeline"),
            fields.lsn("lsn"),
            fields.time("at"),
            fields.integer("server_version"),
            ClusterDigests(tuple(tables), fields.text_pairs("schemas", count_max=_DATABASES_MAX)),
            fields.integer("epoch", least=1, most=_EPOCH_MAX) if fields.holds("epoch") else None,
        )


def put_fingerprint(store: ObjectStore, fingerprint: Fingerprint, signer: Signer) -> str:
    """Put it, and return its key.  May be repeated.  Raises StoreError."""
    key = fingerprint_key(signer.public.key_id, fingerprint.system_identifier, fingerprint.lsn)
    store.put(key, sign_record(fingerprint.to_payload(), signer))
    return key


def open_fingerprint(body: bytes, verifier: Verifier) -> Fingerprint:
    """Return a fingerprint from its object.  Raises NotAuthentic, MalformedValue."""
    return Fingerprint.from_payload(open_record(body, verifier, _KIND))


def get_fingerprint(
    store: ObjectStore, verifier: Verifier, repository: str, system_identifier: int, lsn: LSN
) -> Fingerprint:
    """Return a verified fingerprint.  Raises ObjectMissing, NotAuthentic, StoreError."""

    def read(body: bytes) -> Fingerprint:
        found = open_fingerprint(body, verifier)
        if (found.repository, found.system_identifier, found.lsn) != (repository, system_identifier, lsn):
            raise NotAuthentic("a fingerprint lies in the place of another")
        return found

    return get_verified(store, fingerprint_key(verifier.key_id, system_identifier, lsn), read)


def next_fingerprints(
    store: ObjectStore, verifier: Verifier, system_identifier: int, lsn: LSN, *, count_max: int = 1
) -> list[LSN]:
    """Return the LSNs of the first fingerprints at or after ``lsn``, in their order."""
    prefix = fingerprint_prefix(verifier.key_id, system_identifier)
    after = f"{prefix}{lsn.offset - 1:016X}" if lsn.offset else None
    found = islice(store.list_objects(prefix, start_after=after), count_max)
    return [fingerprint_lsn(info.key) for info in found]
