"""Judged puts: objects of an archive put past what lies under their names in one region and is no writer's.

Names are create-only, and heads, histories and indexes have names that anybody can foresee; a region may
also just claim that a name is taken.  What lies there stops the writer only if the archive's own key signed
it for this very name: then there is a second writer, and the two must never both win.  All else (junk, a
record of elsewhere, our own object with a bit flipped) is that region's fault, and others take the object.

What is not in ``_KINDS``, and comes with no kind, is put strictly, any other bytes being a conflict: leases,
epochs, logs and reports, whose whole meaning is who came first.  Reference: docs/format.md §1, docs/adr/0018.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.event_record import EventRecord
from pitr.catalogue.records import HeadRecord, HistoryRecord
from pitr.catalogue.wal_records import PieceHeader, SegmentHeader, WalIndexRecord
from pitr.errors import MalformedValue, NameTaken, NotAuthentic
from pitr.layout import (
    ArchiveId,
    PieceKey,
    SegmentKey,
    envelope_key,
    event_key,
    head_key,
    history_key,
    manifest_key,
    parse_wal_key,
    wal_index_key,
)
from pitr.pipeline.envelope import EnvelopeRecord
from pitr.pipeline.headed import ENVELOPE_BYTES_MAX, PREFIX_BYTES, split_headed
from pitr.pipeline.sign import Verifier, open_record, payload_sha256, record_key_id
from pitr.wal.timeline import HISTORY_BYTES_MAX
from storage.past import CopyJudge, put_past
from storage.store import OBJECT_BYTES_MAX, CopyInTheWay, ObjectStore

# The largest of the small ones is a history file, base64 in the record and again in its envelope.
_RECORD_BYTES_MAX: Final = 2 * HISTORY_BYTES_MAX
HEADER_BYTES_MAX: Final = PREFIX_BYTES + ENVELOPE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Place:
    """Where a signed record says that it belongs."""

    repository: str
    key: str


@dataclass(frozen=True, slots=True)
class SignedKind:
    """How to know a record of one kind, or an object whose header is one.

    ``place`` makes of a payload, and of the name that the object was found under, the place that it speaks
    of; it raises MalformedValue.  ``bytes_max`` is the most that such a record or header has.
    """

    kind: str
    place: Callable[[dict[str, object], str], Place]
    bytes_max: int = _RECORD_BYTES_MAX
    is_headed: bool = False
    is_roots_too: bool = False


def _wal_place(payload: dict[str, object], key: str) -> Place:
    found = parse_wal_key(key)
    # The attempt is not signed: of two objects that differ in it alone, either has the other's place.
    if isinstance(found, PieceKey):
        piece = PieceHeader.from_payload(payload)
        name = PieceKey(piece.archive, piece.segment, piece.start, piece.end, piece.sequence, found.attempt)
        return Place(piece.repository, str(name))
    segment = SegmentHeader.from_payload(payload)
    return Place(segment.repository, str(SegmentKey(segment.archive, segment.segment, found.attempt)))


def _head_place(payload: dict[str, object], _key: str) -> Place:
    head = HeadRecord.from_payload(payload)
    return Place(head.repository, head_key(head.archive, head.sequence))


def _history_place(payload: dict[str, object], _key: str) -> Place:
    history = HistoryRecord.from_payload(payload)
    return Place(history.repository, history_key(history.archive, history.timeline))


def _index_place(payload: dict[str, object], _key: str) -> Place:
    index = WalIndexRecord.from_payload(payload)
    return Place(index.repository, wal_index_key(index.archive, index.first, index.last))


def _envelope_place(payload: dict[str, object], _key: str) -> Place:
    envelope = EnvelopeRecord.from_payload(payload)
    return Place(envelope.repository, envelope_key(envelope.archive, envelope.key_id))


def _manifest_place(payload: dict[str, object], _key: str) -> Place:
    manifest = BackupManifest.from_payload(payload)
    return Place(manifest.repository, manifest_key(manifest.archive, manifest.backup))


def _event_place(payload: dict[str, object], _key: str) -> Place:
    event = EventRecord.from_payload(payload)
    return Place(event.repository, event_key(event.archive, event.sequence))


_PIECE: Final = SignedKind("wal-piece", _wal_place, HEADER_BYTES_MAX, is_headed=True)
_SEGMENT: Final = SignedKind("wal-segment", _wal_place, HEADER_BYTES_MAX, is_headed=True)
# By the first part of the name.
_KINDS: Final = {
    "heads": SignedKind("head", _head_place),
    "history": SignedKind("timeline-history", _history_place),
    "walindex": SignedKind("wal-index", _index_place, OBJECT_BYTES_MAX),
    "envelopes": SignedKind("envelope", _envelope_place, is_roots_too=True),
    "events": SignedKind("event", _event_place),
    "manifests": SignedKind("backup", _manifest_place, OBJECT_BYTES_MAX, is_roots_too=True),
}
# Packs and index parts: nothing in them is signed, and two random numbers are in each name.
_NOBODY_ELSES: Final = CopyJudge(0, lambda _start: False)


class Puts(Protocol):
    """Where objects are put: a store, or the judged puts of one."""

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        """See ``ObjectStore.put``."""


class JudgedPuts:
    """Puts the objects of one repository.  Thread-safe as far as the store is."""

    def __init__(
        self,
        store: ObjectStore,
        repository_id: str,
        root: Verifier,
        verifier: Callable[[ArchiveId], Verifier],
    ) -> None:
        self.store: Final = store
        self._repository_id: Final = repository_id
        self._root: Final = root
        self._verifier: Final = verifier

    def put(
        self,
        key: str,
        body: bytes,
        *,
        sha256: bytes | None = None,
        after_all: bool = False,
        kind: SignedKind | None = None,
    ) -> None:
        """Put as ``ObjectStore.put``; ``kind`` is for objects of which this module knows nothing.

        Raises ObjectConflict if a second writer has put another object there; NameTaken if something else
        lies there in so many regions that too few are left; StoreError.
        """
        judge = self._judge(key, body, kind)
        if judge is None:
            self.store.put(key, body, sha256=sha256, after_all=after_all)
            return
        try:
            put_past(self.store, key, body, judge, sha256=sha256, after_all=after_all)
        except CopyInTheWay as cause:
            raise NameTaken(
                f"too few regions can take {key}",
                detail=f"{cause}.",
                hint="Look at what lies under that name in the regions named, remove it there by hand, and"
                " start again; docs/config-regions.md says how.",
            ) from cause

    def _judge(self, key: str, body: bytes, kind: SignedKind | None) -> CopyJudge | None:
        first = key.partition("/")[0]
        if first == "backups":
            return _NOBODY_ELSES
        if kind is None and first == "wal":
            kind = _PIECE if isinstance(parse_wal_key(key), PieceKey) else _SEGMENT
        known = kind or _KINDS.get(first)
        if known is None:
            return None
        return CopyJudge(known.bytes_max, lambda start: self._is_rival(known, key, body, start))

    def _is_rival(self, kind: SignedKind, key: str, ours: bytes, start: bytes) -> bool:
        """Tell whether this archive's own key signed what begins so, for ``key``, and it is not ``ours``."""
        archive = ArchiveId.parse("/".join(key.split("/")[1:3]))
        try:
            record = split_headed(start).envelope if kind.is_headed else start
            is_roots = kind.is_roots_too and record_key_id(record) == self._root.key_id
            payload = open_record(record, self._root if is_roots else self._verifier(archive), kind.kind)
        except NotAuthentic:
            return False
        except MalformedValue:
            # Signed, and in a form that this version does not know: somebody newer writes with our key.
            return True
        if payload_sha256(record) == _own_payload_sha256(kind, ours):
            # The same header and another body: ours, damaged.
            return False
        try:
            place = kind.place(payload, key)
        except MalformedValue:
            return True
        return place == Place(self._repository_id, key)


def _own_payload_sha256(kind: SignedKind, ours: bytes) -> bytes | None:
    try:
        return payload_sha256(split_headed(ours).envelope if kind.is_headed else ours)
    except NotAuthentic:
        return None
