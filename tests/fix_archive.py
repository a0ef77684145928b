"""Archives made up for planner and catalogue tests: manifests, units and heads by a few numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.records import HeadRecord
from pitr.catalogue.wal_records import PieceHeader, SegmentHeader, TransactionTimes, WalUnit
from pitr.layout import ArchiveId, PieceKey, SegmentKey
from pitr.quorum import WriteQuorum
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId

REPOSITORY = "00112233445566778899aabbccddeeff"
SYSTEM = 7301234567890123456
SEGMENT_BYTES = 1 << 20
BEGIN = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
KEY_ID = bytes(range(16))


def archive_of(epoch: int) -> ArchiveId:
    return ArchiveId(SYSTEM, epoch)


def at_second(second: float) -> datetime:
    return BEGIN + timedelta(seconds=second)


def times(first: float, last: float | None = None, *, is_exact: bool = True) -> TransactionTimes:
    return TransactionTimes(at_second(first), at_second(first if last is None else last), is_exact)


def backup_id(number: int) -> str:
    return f"20261123T{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}Z-full-{number:08x}"


def backup_of(
    start: LSN,
    stop: LSN,
    *,
    stopped_at: datetime,
    epoch: int = 1,
    timeline: int = 1,
    number: int = 0,
    segment_bytes: int = SEGMENT_BYTES,
) -> BackupManifest:
    return BackupManifest(
        repository=REPOSITORY,
        archive=archive_of(epoch),
        backup=backup_id(number),
        label="test",
        type="full",
        parent=None,
        started_at=min(stopped_at, at_second(0)),
        stopped_at=stopped_at,
        timeline=TimelineId(timeline),
        start_lsn=start,
        stop_lsn=stop,
        server_version=170010,
        segment_bytes=segment_bytes,
        page_checksums=True,
        key_id=KEY_ID,
        tablespaces=(),
        settings=(("max_connections", "100"),),
        backup_label=b"label",
        tablespace_map=b"",
        files=1,
        size_bytes=1,
        packs=(),
        indexes=(),
    )


def unit_of(
    start: LSN,
    end: LSN,
    transactions: TransactionTimes | None = None,
    *,
    epoch: int = 1,
    timeline: int = 1,
    sequence: int = 1,
    is_segment: bool = False,
    regions: tuple[str, ...] = (),
) -> WalUnit:
    segment = SegmentName.holding(TimelineId(timeline), start, SEGMENT_BYTES)
    attempt = f"{sequence:08x}"
    key: PieceKey | SegmentKey = (
        SegmentKey(archive_of(epoch), segment, attempt)
        if is_segment
        else PieceKey(archive_of(epoch), segment, start, end, sequence, attempt)
    )
    return WalUnit(key, start, end, SEGMENT_BYTES, transactions, regions)


def head_of(
    *,
    epoch: int = 1,
    timeline: int = 1,
    sequence: int = 1,
    wal_start: LSN | None = None,
    wal_end: LSN | None = None,
    at: datetime = BEGIN,
    piece_sequence: int = 0,
    backups_count: int = 0,
    backups_sha256: bytes = bytes(32),
    quorum: WriteQuorum | None = None,
) -> HeadRecord:
    return HeadRecord(
        repository=REPOSITORY,
        archive=archive_of(epoch),
        sequence=sequence,
        previous=None if sequence == 1 else bytes(32),
        at=at,
        timeline=TimelineId(timeline),
        wal_start=wal_start,
        wal_end=wal_end,
        piece_sequence=piece_sequence,
        piece_sha256=None if piece_sequence == 0 else bytes(32),
        backups_count=backups_count,
        backups_sha256=backups_sha256,
        quorum=quorum,
    )


def piece_header(
    start: LSN,
    end: LSN,
    sequence: int,
    *,
    epoch: int = 1,
    timeline: int = 1,
    transactions: TransactionTimes | None = None,
    previous: bytes | None = None,
    key_id: bytes = KEY_ID,
) -> PieceHeader:
    return PieceHeader(
        repository=REPOSITORY,
        archive=archive_of(epoch),
        timeline=TimelineId(timeline),
        segment_bytes=SEGMENT_BYTES,
        start=start,
        end=end,
        sequence=sequence,
        previous=(previous or bytes(32)) if sequence > 1 else None,
        content_hmac=bytes(32),
        key_id=key_id,
        received_at=BEGIN,
        transactions=transactions,
    )


def segment_header(
    start: LSN,
    end: LSN,
    first: int,
    last: int,
    *,
    epoch: int = 1,
    timeline: int = 1,
    transactions: TransactionTimes | None = None,
    key_id: bytes = KEY_ID,
) -> SegmentHeader:
    return SegmentHeader(
        repository=REPOSITORY,
        archive=archive_of(epoch),
        timeline=TimelineId(timeline),
        segment_bytes=SEGMENT_BYTES,
        segment=SegmentName.holding(TimelineId(timeline), start, SEGMENT_BYTES),
        start=start,
        end=end,
        first_piece=first,
        last_piece=last,
        pieces_sha256=bytes(32),
        content_hmac=bytes(32),
        key_id=key_id,
        transactions=transactions,
    )
