"""One object for each key of docs/format.md §1, §6 to §8 and §11: a small archive of fixed inputs.

``python -m golden.make_archive_vectors`` in ``tests`` writes ``vectors-2.json`` where there is none; it
is never replaced.  What a verifier puts (§10) is in ``reports-v1``; envelopes hold randomness and are
in ``vectors.json``.  Compressed frames are given, as there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from golden.make_vectors import ARCHIVE, CREATED_AT, DATA_KEY, FILE_ID, HOST, IDENTITY, REPOSITORY

from pitr import layout
from pitr.archive_seal import ArchivedPiece, Content, SegmentBuilder, Writer
from pitr.catalogue.backup_record import BackupManifest, PageFinding, StoredObject, Tablespace
from pitr.catalogue.event_record import EventKind, EventRecord, Happening
from pitr.catalogue.expiry_record import ExpireRecord, GoneBackup, GoneEnvelope, GoneWal
from pitr.catalogue.lease_record import Holder, LeaseRecord
from pitr.catalogue.records import EpochParent, EpochRecord, HeadRecord, HistoryRecord, RepositoryRecord
from pitr.catalogue.wal_records import (
    PieceHeader,
    SegmentHeader,
    TimePoint,
    TransactionTimes,
    WalIndexRecord,
    indexed,
)
from pitr.derived.snapshot_record import NodeSnapshot, SnapshotPart, SnapshotRecord
from pitr.events import fence, sync_record
from pitr.events.fence_code import encode_fence
from pitr.events.fence_record import FencePlace, FencesHeader
from pitr.events.partition import TopicPartition
from pitr.events.sync_pairs import SyncPair
from pitr.pipeline import headed, keys, seal, sign
from pitr.pipeline.crc import crc32c
from pitr.pipeline.packs import (
    Extent,
    FramePlace,
    IndexDirectory,
    IndexFile,
    IndexLink,
    IndexPack,
    encode_line,
)
from pitr.quorum import WriteQuorum
from pitr.repository import named_backups_sha256
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_reader import wal_context

VECTORS = Path(__file__).with_name("vectors-2.json")
ATTEMPT = "0123abcd"
TIMELINE = TimelineId(10)
SEGMENT_BYTES = 1 << 20
START = LSN(0x16_B3700000)
MIDDLE, END = START + SEGMENT_BYTES // 2, START + SEGMENT_BYTES
BACKUP = "20261123T130500Z-full-0123abcd"
SNAPSHOT = "20261123T130500Z-main-0123abcd"
FILES = {b"PG_VERSION": b"17\n", b"base/5/1259": b"a page of a catalogue"}
RDB = b"REDIS0011 and what is in it"
_BLOCK_BYTES = 1 << 17


def second(number: int) -> datetime:
    return CREATED_AT + timedelta(seconds=number)


def raw_frame(content: bytes) -> bytes:
    """Return a zstd frame of one raw block, by RFC 8878 §3.1.1: 256 to 65,791 bytes with two of size."""
    if len(content) < 256:
        size = b"\x20" + bytes([len(content)])
    else:
        size = b"\x60" + (len(content) - 256).to_bytes(2, "little")
    return b"\x28\xb5\x2f\xfd" + size + (len(content) << 3 | 1).to_bytes(3, "little") + content


def same_frame(byte: int, size_bytes: int) -> bytes:
    """Return a zstd frame of blocks that repeat one byte, of 128 KiB each; the size has four bytes."""
    count = size_bytes // _BLOCK_BYTES
    blocks = [
        (_BLOCK_BYTES << 3 | 1 << 1 | (number == count - 1)).to_bytes(3, "little") + bytes([byte])
        for number in range(count)
    ]
    return b"\x28\xb5\x2f\xfd\xa0" + size_bytes.to_bytes(4, "little") + b"".join(blocks)


def container(context: seal.Context, frames: Sequence[bytes]) -> bytes:
    sealer = seal.Sealer(DATA_KEY, context, file_id=FILE_ID)
    sealed = [sealer.seal_frame(frame, last=number == len(frames) - 1) for number, frame in enumerate(frames)]
    return sealer.header + b"".join(sealed)


def signed(payload: Mapping[str, object], signer: sign.Signer = HOST) -> bytes:
    return sign.sign_record(payload, signer)


def payload_sha256(object_bytes: bytes) -> bytes:
    """H of the payload of a record or of an object's signed header."""
    if object_bytes.startswith(b"PITRH1"):
        object_bytes = bytes(headed.split_headed(object_bytes).envelope)
    return sign.payload_sha256(object_bytes)


def computed() -> dict[str, bytes]:
    """Return every object by its key, made by our own code."""
    wal, backup = _wal(), _backup()
    pieces = [key for key in wal if "/p-" in key]
    manifest = backup[layout.manifest_key(ARCHIVE, BACKUP)]
    return _anchors() | wal | backup | _heads(wal[pieces[-1]], manifest) | _others(manifest) | _derived()


def _anchors() -> dict[str, bytes]:
    root = IDENTITY.root_signer()
    recipients = tuple(str(IDENTITY.recipient(suite)) for suite in (1, 2))
    repository = RepositoryRecord(REPOSITORY, CREATED_AT, str(root.public), recipients)
    parent = EpochParent(ARCHIVE.epoch - 1, TimelineId(9), START)
    epoch = EpochRecord(REPOSITORY, ARCHIVE, second(1), str(HOST.public), parent)
    history = HistoryRecord(REPOSITORY, ARCHIVE, TIMELINE, b"9\t16/B3700000\tno recovery target specified\n")
    return {
        layout.REPOSITORY_KEY: signed(repository.to_payload(), root),
        layout.epoch_key(ARCHIVE): signed(epoch.to_payload(), root),
        layout.history_key(ARCHIVE, TIMELINE): signed(history.to_payload()),
    }


def _wal() -> dict[str, bytes]:
    """Two pieces that fill a segment, the segment whole, and the index of their headers."""
    writer = Writer(
        REPOSITORY, ARCHIVE, SEGMENT_BYTES, HOST, keys.content_key(HOST, REPOSITORY), lambda size: bytes(size)
    )
    builder = SegmentBuilder(writer, TIMELINE, START)
    found: dict[str, bytes] = {}
    entries, previous = [], None
    for number, (start, end) in enumerate(((START, MIDDLE), (MIDDLE, END)), start=1):
        whole = bytes([number]) * (end - start)
        frame = same_frame(number, len(whole))
        times = TransactionTimes(second(number), second(number + 2), is_exact=number == 2)
        points = (TimePoint(start + 8, second(number)),)
        content = Content(start, memoryview(whole), (frame,), times, points)
        header = PieceHeader(
            REPOSITORY,
            ARCHIVE,
            TIMELINE,
            SEGMENT_BYTES,
            start,
            end,
            number,
            previous,
            keys.content_hmac(writer.content_key, whole),
            DATA_KEY.key_id,
            second(10 + number),
            times,
            points,
        )
        body = headed.encode_headed(header.to_payload(), container(wal_context(header), [frame]), HOST)
        previous = payload_sha256(body)
        key = layout.PieceKey(ARCHIVE, header.segment, start, end, number, ATTEMPT)
        builder.add_content(content)
        builder.pieces.append(ArchivedPiece(start, end, number, header.content_hmac, previous))
        entries.append(indexed(key, header, previous))
        found[str(key)] = body
    # Its frames are the pieces'; what our code seals has a file id of its own, so only the header is taken.
    whole_header: SegmentHeader = builder.seal(DATA_KEY).header
    frames = [same_frame(1, SEGMENT_BYTES // 2), same_frame(2, SEGMENT_BYTES // 2)]
    segment = headed.encode_headed(
        whole_header.to_payload(), container(wal_context(whole_header), frames), HOST
    )
    segment_key = layout.SegmentKey(ARCHIVE, whole_header.segment, ATTEMPT)
    found[str(segment_key)] = segment
    entry = indexed(segment_key, whole_header, payload_sha256(segment))
    index = WalIndexRecord(REPOSITORY, ARCHIVE, 1, 2, None, tuple(entries), (entry,))
    found[layout.wal_index_key(ARCHIVE, 1, 2)] = signed(index.to_payload())
    return found


def _backup() -> dict[str, bytes]:
    """A pack of one frame with two files, the index that finds them, and the manifest."""
    whole = b"".join(FILES.values())
    pack_key = layout.pack_key(ARCHIVE, BACKUP, 0, 0, ATTEMPT)
    index_key = layout.index_key(ARCHIVE, BACKUP, 0, 0, ATTEMPT)
    frame = raw_frame(whole)
    pack = container(seal.Context(REPOSITORY, ARCHIVE, "pack", f"{BACKUP}/0000/000000"), [frame])
    lines = [IndexDirectory(b"base/5", 0o700), IndexLink(b"pg_tblspc/16400", 16400)]
    offset, files = 0, []
    for path, content in FILES.items():
        extent = Extent(0, len(content), 0, 0, offset, crc32c(content))
        files.append(IndexFile(path, len(content), 0o600, 1_795_000_000, crc32c(content), (extent,)))
        offset += len(content)
    places = (FramePlace(seal.HEADER_BYTES, len(frame) + 16),)
    text = b"".join(map(encode_line, [*lines, *files, IndexPack(0, places)]))
    index = container(seal.Context(REPOSITORY, ARCHIVE, "index", f"{BACKUP}/0000/000000"), [raw_frame(text)])
    manifest = BackupManifest(
        repository=REPOSITORY,
        archive=ARCHIVE,
        backup=BACKUP,
        label="nightly",
        type="full",
        parent=None,
        started_at=CREATED_AT,
        stopped_at=second(60),
        timeline=TIMELINE,
        start_lsn=START + 40,
        stop_lsn=MIDDLE,
        server_version=170_010,
        segment_bytes=SEGMENT_BYTES,
        page_checksums=True,
        key_id=DATA_KEY.key_id,
        tablespaces=(Tablespace(16400, "fast", "/srv/fast"),),
        settings=(("bootstrap_superuser", "postgres"), ("max_connections", "100")),
        backup_label=b"START WAL LOCATION: 16/B3700028 (file 0000000A0000001600000B37)\n",
        tablespace_map=b"16400 /srv/fast\n",
        files=len(FILES),
        size_bytes=len(whole),
        packs=(StoredObject(pack_key, len(pack), hashlib.sha256(pack).digest(), 1),),
        indexes=(StoredObject(index_key, len(index), hashlib.sha256(index).digest(), 1),),
        findings=(PageFinding("app.public.patients", "base/5/1259", "main", 7, "checksum"),),
        full_because="no full backup yet",
    )
    return {
        pack_key: pack,
        index_key: index,
        layout.manifest_key(ARCHIVE, BACKUP): signed(manifest.to_payload()),
    }


def _heads(last_piece: bytes, manifest: bytes) -> dict[str, bytes]:
    """The first head, before anything, and one that counts the pieces and the backup."""
    nothing = named_backups_sha256({})
    first = HeadRecord(
        REPOSITORY, ARCHIVE, 1, None, CREATED_AT, TIMELINE, None, None, 0, None, 0, nothing, WriteQuorum(3, 2)
    )
    body = signed(first.to_payload())
    second_head = HeadRecord(
        REPOSITORY,
        ARCHIVE,
        2,
        payload_sha256(body),
        second(90),
        TIMELINE,
        START,
        END,
        2,
        payload_sha256(last_piece),
        1,
        named_backups_sha256({BACKUP: hashlib.sha256(manifest).digest()}),
        WriteQuorum(3, 2),
    )
    return {
        layout.head_key(ARCHIVE, 1): body,
        layout.head_key(ARCHIVE, 2): signed(second_head.to_payload()),
    }


def _others(manifest: bytes) -> dict[str, bytes]:
    """A lease, what expired, an event, and what binds Kafka to WAL."""
    name = layout.backup_lease(ARCHIVE)
    lease = LeaseRecord(
        REPOSITORY, ARCHIVE, name, 1, Holder("db1", 4711, "0f" * 8), CREATED_AT, second(120), is_released=True
    )
    segment = SegmentName.holding(TIMELINE, START, SEGMENT_BYTES)
    gone_at = second(86_400)
    expired = ExpireRecord(
        REPOSITORY,
        ARCHIVE,
        1,
        None,
        second(100),
        35 * 86_400,
        2,
        (GoneBackup(BACKUP, hashlib.sha256(manifest).digest(), second(60), gone_at),),
        (GoneWal(segment, segment, (1, 2), gone_at),),
        (GoneEnvelope(DATA_KEY.key_id, gone_at),),
    )
    happening = Happening.of(second(5), EventKind.WAL_LOST, "the slot was lost", slot="pitr")
    event = EventRecord(REPOSITORY, ARCHIVE, 1, None, happening)
    return {
        layout.lease_key(name, 1): signed(lease.to_payload()),
        layout.expiry_key(ARCHIVE, 1): signed(expired.to_payload(), IDENTITY.root_signer()),
        layout.event_key(ARCHIVE, 1): signed(event.to_payload()),
        layout.fences_key(ARCHIVE, 1): _fences(),
        layout.syncs_key(ARCHIVE, 1): _syncs(),
    }


def _fences() -> bytes:
    mark = fence.Mark(
        7,
        ARCHIVE.system_identifier,
        TIMELINE,
        START + 48,
        4_294_967_999,
        4_294_967_990,
        4_294_968_000,
        second(30),
    )
    last = fence.Identity(1_795_000_000_123, hashlib.sha256(b"a record").digest())
    topic = fence.TopicFence(
        "orders", "AAAAAAAAAAAAAAAAAAAAAQ", (fence.PartitionFence(0, 3, 11, 12, last, 10),)
    )
    taken = fence.Fence(
        mark,
        second(31),
        second(32),
        "a-cluster",
        (topic,),
        (fence.GroupFence("billing", {"orders": {0: 9}}),),
        committed_by=START + 64,
    )
    place = FencePlace(7, TIMELINE, START + 48, START + 64, second(30))
    header = FencesHeader(REPOSITORY, ARCHIVE, 1, None, 1, place, place, DATA_KEY.key_id)
    frame = raw_frame(encode_fence(taken).encode("ascii"))
    body = container(seal.Context(REPOSITORY, ARCHIVE, "fences", "1"), [frame])
    return headed.encode_headed(header.to_payload(), body, HOST)


def _syncs() -> bytes:
    line = sync_record.SyncsLine(
        TopicPartition("orders", 0),
        "AAAAAAAAAAAAAAAAAAAAAQ",
        is_reset=False,
        settled=100,
        pairs=(SyncPair(10, 5), SyncPair(100, 93)),
    )
    header = sync_record.SyncsHeader(
        REPOSITORY, ARCHIVE, 1, None, 1, second(40), "0123456789abcdef" * 2, 5, DATA_KEY.key_id
    )
    frame = raw_frame(sync_record.encode_lines("east", [line]))
    return headed.encode_headed(header.to_payload(), container(header.context, [frame]), HOST)


def _derived() -> dict[str, bytes]:
    """The one part of a server's RDB file, and the record of the snapshot."""
    key = layout.derived_part_key(ARCHIVE, SNAPSHOT, 0, 0)
    part = container(
        seal.Context(REPOSITORY, ARCHIVE, "derived", f"{SNAPSHOT}/0000/000000"), [raw_frame(RDB)]
    )
    node = NodeSnapshot(
        "0" * 40,
        "10.0.0.1:6379",
        "7.2.4",
        (),
        second(70),
        second(71),
        3,
        len(RDB),
        hashlib.sha256(RDB).digest(),
        (SnapshotPart(len(part), hashlib.sha256(part).digest()),),
    )
    record = SnapshotRecord(
        REPOSITORY, ARCHIVE, SNAPSHOT, "main", False, CREATED_AT, second(72), DATA_KEY.key_id, (node,)
    )
    return {key: part, layout.derived_key(ARCHIVE, SNAPSHOT): signed(record.to_payload())}


def main() -> None:
    """Write the file once."""
    with VECTORS.open("x", encoding="ascii") as file:
        objects = {key: body.hex() for key, body in computed().items()}
        json.dump({"version": 1, "objects": objects}, file, indent=1, sort_keys=True)
        file.write("\n")


if __name__ == "__main__":
    main()
