"""A repository with one host, made by hand: pieces, segments, backups and heads in any store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta

import fix_archive as fix

from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.event_record import EventKind, EventRecord, Happening
from pitr.catalogue.records import EpochParent, EpochRecord, HistoryRecord, RepositoryRecord
from pitr.catalogue.wal_records import (
    IndexedHeader,
    PieceHeader,
    SegmentHeader,
    TransactionTimes,
    WalIndexRecord,
    indexed,
)
from pitr.datakeys import HostKeys
from pitr.layout import ArchiveId, PieceKey, SegmentKey, event_key
from pitr.pipeline.headed import encode_headed, split_headed
from pitr.pipeline.keys import Identity
from pitr.pipeline.seal import seal
from pitr.pipeline.sign import Signer, payload_sha256, sign_record
from pitr.repository import ListedBackup, Repository, backups_sha256
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from pitr.wal_reader import wal_context
from storage.store import ObjectStore


def random_from(seed: int) -> Callable[[int], bytes]:
    """A deterministic source: nothing here is secret."""
    state = [seed]

    def random(count: int) -> bytes:
        state[0] += 1
        return hashlib.shake_256(f"{seed}/{state[0]}".encode()).digest(count)

    return random


def wal_bytes(start: LSN, end: LSN) -> bytes:
    """Bytes that say where they are, so that misplaced ones show."""
    return b"".join(offset.to_bytes(8, "big") for offset in range(start.offset, end.offset, 8))


class RepositoryHouse:
    """Writes as the host of archive 1 does; ``told`` is called with what it recorded, store first."""

    def __init__(self, store: ObjectStore, seed: int = 1) -> None:
        self.random = random_from(seed)
        self.store = store
        self.identity = Identity.generate(self.random)
        self.root = self.identity.root_signer()
        self.host = Signer.generate(self.random)
        recipient = self.identity.recipient()
        record = RepositoryRecord(fix.REPOSITORY, fix.BEGIN, str(self.root.public), (str(recipient),))
        self.repository = Repository.create(store, record, self.root)
        self.archive = self.add_epoch(1)
        self.keys = HostKeys(self.repository, self.archive, self.host, [recipient], random=self.random)
        self.sequence = 0
        self.digest: bytes | None = None
        self.events = 0
        self.event_digest: bytes | None = None
        self.heads = 0
        self.head_digest: bytes | None = None
        self.backups: list[ListedBackup] = []
        self.headers: dict[PieceKey | SegmentKey, IndexedHeader] = {}
        self.wal_end: LSN | None = None

    def event(self) -> None:
        """Put the next signed event."""
        self.events += 1
        happening = Happening.of(fix.BEGIN, EventKind.WAL_LOST, f"event {self.events}")
        record = EventRecord(fix.REPOSITORY, self.archive, self.events, self.event_digest, happening)
        body = sign_record(record.to_payload(), self.host)
        self.store.put(event_key(self.archive, self.events), body)
        self.event_digest = payload_sha256(body)

    def add_epoch(self, epoch: int, parent: EpochParent | None = None) -> ArchiveId:
        archive = fix.archive_of(epoch)
        record = EpochRecord(fix.REPOSITORY, archive, fix.BEGIN, str(self.host.public), parent)
        self.repository.write_epoch(record, self.root)
        return archive

    def piece(
        self, start: LSN, end: LSN, times: TransactionTimes | None = None, *, timeline: int = 1, hour: int = 0
    ) -> PieceKey:
        key = self.keys.wal_key(fix.BEGIN + timedelta(hours=hour))
        header = fix.piece_header(
            start,
            end,
            self.sequence + 1,
            timeline=timeline,
            transactions=times,
            previous=self.digest,
            key_id=key.key_id,
        )
        body = seal(wal_bytes(start, end), key, wal_context(header))
        whole = encode_headed(header.to_payload(), body, self.host)
        name = PieceKey(self.archive, header.segment, start, end, header.sequence, self.random(4).hex())
        self.store.put(str(name), whole)
        self.sequence, self.wal_end = header.sequence, end
        self.digest = payload_sha256(split_headed(whole).envelope)
        self.headers[name] = indexed(name, header, self.digest)
        return name

    def segment(
        self, start: LSN, first: int, last: int, times: TransactionTimes | None = None, *, timeline: int = 1
    ) -> SegmentKey:
        key = self.keys.wal_key(fix.BEGIN)
        end = start + fix.SEGMENT_BYTES
        header = fix.segment_header(
            start, end, first, last, timeline=timeline, transactions=times, key_id=key.key_id
        )
        whole = encode_headed(
            header.to_payload(), seal(wal_bytes(start, end), key, wal_context(header)), self.host
        )
        name = SegmentKey(self.archive, header.segment, self.random(4).hex())
        self.store.put(str(name), whole)
        self.headers[name] = indexed(name, header, payload_sha256(split_headed(whole).envelope))
        return name

    def backup(self, manifest: BackupManifest) -> ListedBackup:
        listed = ListedBackup(manifest, self.repository.put_manifest(manifest, self.host))
        self.backups.append(listed)
        return listed

    def history(self, timeline: int, content: bytes) -> HistoryRecord:
        record = HistoryRecord(fix.REPOSITORY, self.archive, TimelineId(timeline), content)
        self.repository.put_history(record, self.host)
        return record

    def head(self) -> int:
        self.heads += 1
        head = fix.head_of(
            sequence=self.heads,
            wal_start=LSN(fix.SEGMENT_BYTES) if self.wal_end else None,
            wal_end=self.wal_end,
            at=fix.BEGIN + timedelta(seconds=30 * self.heads),
            piece_sequence=self.sequence,
            backups_count=len(self.backups),
            backups_sha256=backups_sha256(self.backups),
        )
        self.head_digest = self.repository.put_head(head, self.host)
        return self.heads

    def wal_index(self, first: int, last: int) -> WalIndexRecord:
        entries = list(self.headers.values())
        pieces = [
            e for e in entries if isinstance(e.header, PieceHeader) and first <= e.header.sequence <= last
        ]
        segments = [e for e in entries if isinstance(e.header, SegmentHeader) and e.header.last_piece <= last]
        record = WalIndexRecord(
            fix.REPOSITORY, self.archive, first, last, None, tuple(pieces), tuple(segments)
        )
        self.repository.put_wal_index(record, self.host)
        return record
