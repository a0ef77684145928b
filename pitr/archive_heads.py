"""Heads and WAL indexes: the signed end of the archive, and the headers repeated each hour.

One head at a time: a head that may have reached a region is sent again as it was before there is a
next one, because its name is its sequence.  Reference: docs/format.md §6.4, §7.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pitr.archive_resume import two_writers
from pitr.archive_seal import Writer
from pitr.archive_values import DurableEnd
from pitr.catalogue.records import HeadRecord
from pitr.catalogue.wal_records import INDEX_PIECES_MAX, IndexedHeader, PieceHeader, WalIndexRecord
from pitr.judged_puts import JudgedPuts
from pitr.layout import head_key, wal_index_key
from pitr.pipeline.sign import payload_sha256, sign_record
from pitr.quorum import WriteQuorum
from pitr.repository import ListedBackup, ListedHead, backups_sha256
from pitr.spool import Spool
from storage.store import ObjectConflict


@dataclass(frozen=True, slots=True)
class _Pending:
    head: HeadRecord
    body: bytes


class HeadWriter:
    """Writes the heads of one archive, one after the other.  Not thread-safe."""

    def __init__(
        self,
        writer: Writer,
        puts: JudgedPuts,
        spool: Spool,
        last: ListedHead | None,
        *,
        quorum: WriteQuorum | None = None,
    ) -> None:
        self._writer: Final = writer
        self._puts: Final = puts
        self._spool: Final = spool
        # What heads say from now on; others change it, and a head is written by one thread.
        self.quorum = quorum
        self._last = last
        self._pending: _Pending | None = None

    def finish_pending(self) -> ListedHead | None:
        """Put the head that could not be put before, as it was; None if there is none."""
        return None if self._pending is None else self._put(self._pending)

    def write(self, end: DurableEnd, backups: list[ListedBackup], now: datetime) -> ListedHead:
        """Sign and put the end of the archive, after all that it speaks of.

        Call ``finish_pending`` first.  Raises StoreError, SpoolFull or SpoolFailed: the head is pending
        then.  Raises ArchiveDiverged if another writer has put this head.
        """
        assert self._pending is None
        last = self._last
        head = HeadRecord(
            repository=self._writer.repository,
            archive=self._writer.archive,
            sequence=1 if last is None else last.head.sequence + 1,
            previous=None if last is None else last.payload_sha256,
            at=now,
            timeline=end.timeline,
            wal_start=end.start,
            wal_end=end.end,
            piece_sequence=end.piece_sequence,
            piece_sha256=end.piece_sha256,
            backups_count=len(backups),
            backups_sha256=backups_sha256(backups),
            quorum=self.quorum,
        )
        pending = _Pending(head, sign_record(head.to_payload(), self._writer.signer))
        key, digest = head_key(head.archive, head.sequence), hashlib.sha256(pending.body).digest()
        # After a crash a head that one region has must be put again as it is, not another in its place.
        self._spool.add(key, pending.body, digest)
        self._pending = pending
        return self._put(pending)

    def _put(self, pending: _Pending) -> ListedHead:
        key = head_key(pending.head.archive, pending.head.sequence)
        try:
            self._puts.put(key, pending.body, after_all=True)
        except ObjectConflict as cause:
            raise two_writers(key) from cause
        written = self._last = ListedHead(pending.head, payload_sha256(pending.body))
        self._pending = None
        self._spool.remove(key)
        return written


class IndexWriter:
    """Gathers headers, and writes the WAL index when the data key changes.  Not thread-safe.

    It begins with the first piece of this run of the daemon: a rebuild reads the headers between two
    indexes one by one.
    """

    def __init__(self, writer: Writer, puts: JudgedPuts, previous: bytes | None) -> None:
        self._writer: Final = writer
        self._puts: Final = puts
        self._previous = previous
        self._pieces: list[IndexedHeader] = []
        self._segments: list[IndexedHeader] = []
        self._pending: list[tuple[str, bytes]] = []

    def add_segment(self, entry: IndexedHeader) -> None:
        """Add a segment that is at quorum."""
        self._segments.append(entry)

    def add_piece(self, entry: IndexedHeader) -> None:
        """Add the next piece that is at quorum; with a new data key the index before it is complete."""
        if self._pieces and (
            self._pieces[-1].header.key_id != entry.header.key_id or len(self._pieces) >= INDEX_PIECES_MAX
        ):
            self.close()
        self._pieces.append(entry)

    def close(self) -> None:
        """Make an index of what was gathered, to be put by ``put_pending``."""
        if not self._pieces:
            return
        first, last = self._pieces[0].header, self._pieces[-1].header
        assert isinstance(first, PieceHeader)
        assert isinstance(last, PieceHeader)
        record = WalIndexRecord(
            repository=self._writer.repository,
            archive=self._writer.archive,
            first=first.sequence,
            last=last.sequence,
            previous=self._previous,
            pieces=tuple(self._pieces),
            segments=tuple(self._segments),
        )
        body = sign_record(record.to_payload(), self._writer.signer)
        self._previous = payload_sha256(body)
        self._pending.append((wal_index_key(record.archive, record.first, record.last), body))
        self._pieces, self._segments = [], []

    def put_pending(self) -> None:
        """Put the indexes that are complete.  Raises StoreError: call again.

        Raises ArchiveDiverged if another writer has put one.
        """
        while self._pending:
            key, body = self._pending[0]
            try:
                self._puts.put(key, body)
            except ObjectConflict as cause:
                raise two_writers(key) from cause
            del self._pending[0]


class BackupList:
    """The backups that heads speak of: read when told to, not for every head."""

    def __init__(self, read: Callable[[], list[ListedBackup]]) -> None:
        self._read: Final = read
        self._backups: list[ListedBackup] | None = None

    def forget(self) -> None:
        """Read again for the next head: a backup was made or expired."""
        self._backups = None

    def get(self) -> list[ListedBackup]:
        """Return the listed backups.  Raises StoreError."""
        if self._backups is None:
            self._backups = self._read()
        return self._backups
