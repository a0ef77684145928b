"""A mirror's pairs in the store: sealed, signed, each object naming the one before.

The host that kept them may be gone with the source's region, and without them a fence cannot be translated.
Objects hold what is new, and every so often all of it, so a reader reads a bounded number.
Reference: docs/format.md §6.10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pitr.errors import MalformedValue, NotAuthentic
from pitr.events.partition import TopicPartition
from pitr.events.sync_book import SyncBook
from pitr.events.sync_pairs import KnownPairs
from pitr.events.sync_record import (
    KIND,
    WHOLE_EVERY,
    WHOLE_LIFE,
    SyncsHeader,
    SyncsLine,
    decode_lines,
    encode_lines,
    fold,
    journal_lines,
    whole_lines,
)
from pitr.judged_puts import HEADER_BYTES_MAX, Place, SignedKind
from pitr.layout import ArchiveId, syncs_key, syncs_sequence
from pitr.pipeline.headed import encode_headed, open_header, split_headed, verify_body
from pitr.pipeline.keys import DataKey
from pitr.pipeline.seal import open_container, seal
from pitr.pipeline.sign import Signer, payload_sha256
from pitr.repository import Repository
from pitr.verified import BAD_MAX, VerifiedSearch, check_place, get_verified
from pitr.wal_reader import DataKeySource
from storage.store import ObjectConflict, ObjectMissing

CONTENT_BYTES_MAX: Final = 64 << 20
ENTRIES_MAX: Final = 50_000
"""Of the journal, in one object."""


@dataclass(frozen=True, slots=True)
class ListedSyncs:
    """A verified header and the SHA-256 of its payload, which the next one names."""

    header: SyncsHeader
    payload_sha256: bytes


def _place(payload: dict[str, object], _key: str) -> Place:
    header = SyncsHeader.from_payload(payload)
    return Place(header.repository, syncs_key(header.archive, header.sequence))


_SIGNED: Final = SignedKind(KIND, _place, HEADER_BYTES_MAX, is_headed=True)


class SyncWriter:
    """Puts the pairs of one archive's mirror.  Not thread-safe; ``data_key`` is that of the hour's WAL."""

    def __init__(
        self,
        repository: Repository,
        archive: ArchiveId,
        signer: Signer,
        data_key: Callable[[datetime], DataKey],
        alias: str,
    ) -> None:
        self._repository: Final = repository
        self._archive: Final = archive
        self._signer: Final = signer
        self._data_key: Final = data_key
        self._alias: Final = alias
        self._last: ListedSyncs | None = None
        self._knows_last = False
        self._waiting: tuple[SyncsHeader, bytes] | None = None

    def ship(self, book: SyncBook, now: datetime) -> int:
        """Put what the store does not have yet as one object; return its sequence, 0 if there is nothing.

        Raises StoreError, NotAuthentic, BookFailed; then it is repeated, and what was sealed is sent again.
        """
        if not self._knows_last:
            self._last = SyncReader(self._repository, self._archive).newest()
            self._knows_last = True
            if self._last is not None and self._last.header.book == book.book:
                # A run that was killed after a put did not say so in the book.
                header = self._last.header
                book.shipped(header.upto, is_whole=header.is_whole)
        if self._waiting is None:
            self._waiting = self._next(book, now)
        if self._waiting is None:
            return 0
        header, body = self._waiting
        try:
            self._repository.puts.put(syncs_key(self._archive, header.sequence), body, kind=_SIGNED)
        except ObjectConflict:
            self._waiting, self._knows_last = None, False
            raise
        self._last = ListedSyncs(header, payload_sha256(split_headed(body).envelope))
        self._waiting = None
        book.shipped(header.upto, is_whole=header.is_whole)
        return header.sequence

    def _next(self, book: SyncBook, now: datetime) -> tuple[SyncsHeader, bytes] | None:
        last = self._last
        sequence = 1 if last is None else last.header.sequence + 1
        is_whole = (
            last is None
            or book.is_whole_due
            or last.header.book != book.book
            or sequence - last.header.whole > WHOLE_EVERY
            or now - last.header.whole_at >= WHOLE_LIFE
        )
        lines: tuple[SyncsLine, ...]
        if is_whole:
            upto, known = book.whole()
            lines = whole_lines(known)
        else:
            entries = book.journal(ENTRIES_MAX)
            upto = entries[-1].number if entries else 0
            lines = journal_lines(entries)
        if not lines:
            return None
        key = self._data_key(now)
        header = SyncsHeader(
            self._repository.repository_id,
            self._archive,
            sequence,
            None if last is None else last.payload_sha256,
            sequence if is_whole or last is None else last.header.whole,
            now if is_whole or last is None else last.header.whole_at,
            book.book,
            upto,
            key.key_id,
        )
        sealed = seal(encode_lines(self._alias, lines), key, header.context)
        return header, encode_headed(header.to_payload(), sealed, self._signer)


class StoredPairs:
    """What the store's objects say of a mirror's pairs; a ``PairSource``.  ``faults`` were left out."""

    def __init__(self, known: dict[TopicPartition, KnownPairs], faults: tuple[str, ...]) -> None:
        self._known: Final = known
        self.faults: Final = faults

    def known(self, at: TopicPartition) -> KnownPairs | None:
        return self._known.get(at)

    def partitions(self) -> tuple[TopicPartition, ...]:
        return tuple(sorted(self._known))


class SyncReader:
    """Reads the pairs of one archive's mirror."""

    def __init__(self, repository: Repository, archive: ArchiveId) -> None:
        self._repository: Final = repository
        self._archive: Final = archive

    def newest(self) -> ListedSyncs | None:
        """Return the newest object that holds; None if there is none.

        Raises NotAuthentic if they are all bad (``VerifiedSearch``), StoreError.
        """
        store, what = self._repository.store, f"objects of pairs of archive {self._archive}"
        search = VerifiedSearch(store, f"syncs/{self._archive}/", what)
        return search.first(lambda key: self._whole_object(syncs_sequence(key))[0])

    def header(self, sequence: int) -> SyncsHeader:
        """Return the header of one object.  Raises ObjectMissing, NotAuthentic, StoreError."""
        return self._whole_object(sequence)[0].header

    def read(self, alias: str, data_keys: DataKeySource) -> StoredPairs:
        """Return the pairs of the mirror whose source is called ``alias``.

        An object that is bad or missing voids what came before it: it may have said so itself.  Then less is
        known, and nothing that is wrong.  Raises NotAuthentic, KeyMissing, StoreError.
        """
        newest = self.newest()
        known: dict[TopicPartition, KnownPairs] = {}
        faults: list[str] = []
        before: ListedSyncs | None = None
        for sequence in () if newest is None else range(newest.header.whole, newest.header.sequence + 1):
            try:
                listed, body = self._whole_object(sequence)
                content = open_container(
                    body,
                    data_keys.get(self._archive, listed.header.key_id),
                    listed.header.context,
                    content_bytes_max=CONTENT_BYTES_MAX,
                )
                lines = decode_lines(content, alias)
            except (NotAuthentic, MalformedValue, ObjectMissing) as cause:
                faults.append(f"pairs {sequence} cannot be used: {cause}")
                known.clear()
                before = None
                continue
            if before is not None and listed.header.previous != before.payload_sha256:
                faults.append(f"pairs {sequence} do not go on from pairs {sequence - 1} as they are stored")
                known.clear()
            fold(known, lines)
            before = listed
        return StoredPairs(known, tuple(faults[:BAD_MAX]))

    def _whole_object(self, sequence: int) -> tuple[ListedSyncs, memoryview]:
        key, repository = syncs_key(self._archive, sequence), self._repository

        def read(whole: bytes) -> tuple[ListedSyncs, memoryview]:
            payload = open_header(whole, repository.verifier(self._archive), KIND)
            header = SyncsHeader.from_payload(payload)
            check_place(
                key, syncs_key(header.archive, header.sequence), header.repository, repository.repository_id
            )
            parts = split_headed(whole)
            verify_body(payload, parts.body)
            return ListedSyncs(header, payload_sha256(parts.envelope)), parts.body

        return get_verified(repository.store, key, read)
