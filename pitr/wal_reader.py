"""The WAL of a repository, read: listings, signed headers, and the opened bytes.

A listing only says what names claim; a header is believed when its signature holds and it says
what the name says; WAL is believed when its digest is the header's and its tags open.
Reference: docs/format.md §3, §4, §7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from pitr.catalogue.wal_records import (
    IndexedHeader,
    PieceHeader,
    SegmentHeader,
    WalHeader,
    WalIndexRecord,
    check_key,
    indexed,
)
from pitr.errors import MalformedValue, NotAuthentic
from pitr.layout import (
    ArchiveId,
    PieceKey,
    SegmentKey,
    parse_wal_key,
    timeline_prefix,
    wal_index_key,
    wal_index_range,
)
from pitr.listed import Strays, read_names
from pitr.pipeline.headed import (
    ENVELOPE_BYTES_MAX,
    HEADER_READ_BYTES,
    PREFIX_BYTES,
    header_bytes,
    open_header,
    split_headed,
    verify_body,
)
from pitr.pipeline.keys import DataKey
from pitr.pipeline.seal import Context, open_container
from pitr.pipeline.sign import Verifier, open_record, payload_sha256
from pitr.verified import VerifiedSearch, check_place, get_start_verified, get_verified
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from storage.store import ObjectStore


class DataKeySource(Protocol):
    """Whoever opens envelopes; see ``pitr.datakeys.DataKeys``."""

    def get(self, archive: ArchiveId, key_id: bytes) -> DataKey:
        """Return the data key.  Raises KeyMissing, NotAuthentic, StoreError."""


def wal_context(header: WalHeader) -> Context:
    """Return the context that the WAL of this header is sealed in (docs/format.md §3.1)."""
    kind, name = (
        ("wal-piece", str(header.sequence))
        if isinstance(header, PieceHeader)
        else ("wal-segment", str(header.segment))
    )
    return Context(header.repository, header.archive, kind, name, header.timeline, header.start, header.end)


@dataclass(frozen=True, slots=True)
class _Whole:
    """An object that was read in full; ``header_sha256`` is of its header's payload, which names the body."""

    header: WalHeader
    header_sha256: bytes
    body: memoryview
    object_bytes: bytes


class WalReader:
    """Reads the WAL objects of one repository.  Thread-safe as far as the store is."""

    def __init__(
        self, store: ObjectStore, repository_id: str, verifier: Callable[[ArchiveId], Verifier]
    ) -> None:
        self._store: Final = store
        self._repository_id: Final = repository_id
        self._verifier: Final = verifier

    def timelines(self, archive: ArchiveId, *, refused: Strays = None) -> Iterator[TimelineId]:
        """Yield the timelines that have WAL here, ascending by number; one listing page for each.

        A name that is none is passed over, and told in ``refused``.
        """
        prefix = f"wal/{archive}/"

        def parse(key: str) -> TimelineId:
            name, slash, _ = key[len(prefix) :].partition("/")
            if not slash:
                raise MalformedValue(f"not a WAL object's key: {key!r}")
            return TimelineId.parse(name)

        after: str | None = None
        while True:
            listing = self._store.list_objects(prefix, start_after=after)
            timeline = next(read_names(listing, parse, refused), None)
            if timeline is None:
                return
            yield timeline
            # "0" sorts after "/", so whatever is below the timeline's name is skipped unread.
            after = f"{prefix}{timeline}0"

    def objects(
        self,
        archive: ArchiveId,
        timeline: TimelineId,
        *,
        from_segment: SegmentName | None = None,
        refused: Strays = None,
    ) -> Iterator[PieceKey | SegmentKey]:
        """Yield the keys of a timeline's WAL: by segment, in each the pieces by LSN, then whole ones.

        ``from_segment`` leaves out earlier segments.  A name that is none is passed over, and told in
        ``refused``.
        """
        prefix = timeline_prefix(archive, timeline)
        after = None if from_segment is None else f"{prefix}{from_segment}"
        yield from read_names(self._store.list_objects(prefix, start_after=after), parse_wal_key, refused)

    def header(self, key: PieceKey | SegmentKey) -> IndexedHeader:
        """Return the verified header of an object; its sampled points are left out.

        Raises NotAuthentic if no copy has one that holds for this name; StoreError.
        """

        def read(start: bytes) -> IndexedHeader:
            digest = payload_sha256(split_headed(start).envelope)
            return indexed(key, self._read_header(key, start), digest)

        def read_if_whole(start: bytes) -> IndexedHeader | None:
            is_longer = header_bytes(start) > len(start) == HEADER_READ_BYTES
            return None if is_longer else read(start)

        entry = get_start_verified(self._store, str(key), HEADER_READ_BYTES, read_if_whole)
        if entry is None:
            # Not the length that one unverified copy claims, but the most that there can be.
            entry = get_start_verified(self._store, str(key), PREFIX_BYTES + ENVELOPE_BYTES_MAX, read)
        return entry

    def read(self, key: PieceKey | SegmentKey, data_keys: DataKeySource) -> bytes:
        """Return the WAL bytes of a piece or segment, exactly from its start to its end.

        Raises NotAuthentic if no copy is genuine, KeyMissing, StoreError.
        """

        found = self._whole(key)
        header, size_bytes = found.header, found.header.end - found.header.start
        data_key = data_keys.get(header.archive, header.key_id)
        # The signed digest held, so a tag that fails now fails in every region: no fallback here.
        content = open_container(found.body, data_key, wal_context(header), content_bytes_max=size_bytes)
        if len(content) != size_bytes:
            raise NotAuthentic(f"{key} holds {len(content)} bytes of WAL, its header says {size_bytes}")
        return content

    def verify(self, key: PieceKey | SegmentKey) -> bytes:
        """Read the whole object, compare it with its signed header, and return the digest of that header.

        Opens nothing, so it needs no key.  Raises NotAuthentic, StoreError.
        """
        return self._whole(key).header_sha256

    def whole(self, key: PieceKey | SegmentKey) -> bytes:
        """Return the object's bytes, compared as ``verify`` does.  Raises NotAuthentic, StoreError."""
        return self._whole(key).object_bytes

    def indexes(self, archive: ArchiveId, *, refused: Strays = None) -> Iterator[WalIndexRecord]:
        """Yield the verified WAL indexes, ascending by piece.

        One that cannot be used is passed over and told in ``refused``: an index only repeats.  Where nobody
        wants to know, it raises NotAuthentic after the last good one.  Raises StoreError.
        """
        prefix = f"walindex/{archive}/"
        search = VerifiedSearch(self._store, prefix, f"WAL indexes of archive {archive}", is_lenient=True)

        def read(key: str) -> WalIndexRecord | None:
            try:
                first, last = wal_index_range(key)
            except MalformedValue:
                return None  # a name that is none of ours
            return self.index(wal_index_key(archive, first, last), archive)

        yield from (record for record in search.each(read) if record is not None)
        if refused is not None:
            refused += search.refused
        elif search.refused:
            bad = search.refused[0]
            raise NotAuthentic(f"WAL index {bad.key} cannot be used", detail=bad.reason)

    def index(self, key: str, archive: ArchiveId) -> WalIndexRecord:
        """Return the verified WAL index that lies under ``key``.  Raises ObjectMissing, NotAuthentic."""

        def read(body: bytes) -> WalIndexRecord:
            record = WalIndexRecord.from_payload(open_record(body, self._verifier(archive), "wal-index"))
            expected = wal_index_key(record.archive, record.first, record.last)
            check_place(key, expected, record.repository, self._repository_id)
            return record

        return get_verified(self._store, key, read)

    def _whole(self, key: PieceKey | SegmentKey) -> _Whole:
        def read_whole(whole: bytes) -> _Whole:
            header, parts = self._read_header(key, whole), split_headed(whole)
            payload = open_header(whole, self._verifier(key.archive), _kind(key))
            verify_body(payload, parts.body)
            return _Whole(header, payload_sha256(parts.envelope), parts.body, whole)

        return get_verified(self._store, str(key), read_whole)

    def _read_header(self, key: PieceKey | SegmentKey, start: bytes) -> WalHeader:
        payload = open_header(start, self._verifier(key.archive), _kind(key))
        read = PieceHeader.from_payload if isinstance(key, PieceKey) else SegmentHeader.from_payload
        header: WalHeader = read(payload)
        check_key(key, header)
        check_place(str(key), str(key), header.repository, self._repository_id)
        return header


def _kind(key: PieceKey | SegmentKey) -> str:
    return "wal-piece" if isinstance(key, PieceKey) else "wal-segment"
