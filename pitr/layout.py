"""Layout: the keys of a repository's objects, to text and back.  Pure.

The promise is docs/format.md §1; nothing else in the project builds or cuts a key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId

REPOSITORY_KEY = "repository"
_HEAD_TOP = (1 << 63) - 1
_PIECE = re.compile(r"p-([0-9A-F]{16})-([0-9A-F]{16})-([0-9]{16})-([0-9a-f]{8})")
_PART_KEY = re.compile(r".*/(?:pack|index)-([0-9]{4})-([0-9]{6})-[0-9a-f]{8}")
_SEGMENT = re.compile(r"s-([0-9a-f]{8})")
_SNAPSHOT = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9][a-z0-9_-]{0,62}-[0-9a-f]{8}")


@dataclass(frozen=True, order=True, slots=True)
class ArchiveId:
    """One cluster's archive by one writer: (system identifier, writer epoch)."""

    system_identifier: int
    epoch: int

    def __post_init__(self) -> None:
        if not 0 < self.system_identifier < 1 << 64 or not 0 < self.epoch < 100_000_000:
            raise MalformedValue(f"not an archive id: {self.system_identifier}/{self.epoch}")

    def __str__(self) -> str:
        return f"{self.system_identifier}/{self.epoch:08d}"

    @classmethod
    def parse(cls, text: str) -> ArchiveId:
        """Read ``SYS/EPOCH`` as it stands in keys."""
        system, _, epoch = text.partition("/")
        if not system.isascii() or not system.isdigit() or not re.fullmatch(r"[0-9]{8}", epoch):
            raise MalformedValue(f"not an archive id: {text!r}")
        return cls(int(system), int(epoch))


@dataclass(frozen=True, slots=True)
class PieceKey:
    """The name of a WAL piece: it says what the piece claims to hold; only its signed header proves it."""

    archive: ArchiveId
    segment: SegmentName
    start: LSN
    end: LSN
    sequence: int
    attempt: str

    def __str__(self) -> str:
        return (
            f"{segment_prefix(self.archive, self.segment)}p-{self.start.offset:016X}-{self.end.offset:016X}"
            f"-{self.sequence:016d}-{self.attempt}"
        )


@dataclass(frozen=True, slots=True)
class SegmentKey:
    """The name of a whole WAL segment."""

    archive: ArchiveId
    segment: SegmentName
    attempt: str

    def __str__(self) -> str:
        return f"{segment_prefix(self.archive, self.segment)}s-{self.attempt}"


def timeline_prefix(archive: ArchiveId, timeline: TimelineId) -> str:
    """Return the prefix of all WAL of one timeline; keys below it sort by LSN."""
    return f"wal/{archive}/{timeline}/"


def segment_prefix(archive: ArchiveId, segment: SegmentName) -> str:
    """Return the prefix of the pieces and copies of one WAL segment."""
    return f"{timeline_prefix(archive, segment.timeline)}{segment}/"


def parse_wal_key(key: str) -> PieceKey | SegmentKey:
    """Read the key of a piece or segment.  Raises MalformedValue."""
    parts = key.split("/")
    if len(parts) != 6 or parts[0] != "wal":
        raise MalformedValue(f"not a WAL object's key: {key!r}")
    archive = ArchiveId.parse(f"{parts[1]}/{parts[2]}")
    segment = SegmentName.parse(parts[4])
    if TimelineId.parse(parts[3]) != segment.timeline:
        raise MalformedValue(f"timeline and segment name disagree: {key!r}")
    if match := _PIECE.fullmatch(parts[5]):
        return PieceKey(
            archive, segment, LSN(int(match[1], 16)), LSN(int(match[2], 16)), int(match[3]), match[4]
        )
    if match := _SEGMENT.fullmatch(parts[5]):
        return SegmentKey(archive, segment, match[1])
    raise MalformedValue(f"not a WAL object's key: {key!r}")


def epoch_key(archive: ArchiveId) -> str:
    """Return the key of the record that names an epoch's writer."""
    return f"epochs/{archive}"


def envelope_key(archive: ArchiveId, key_id: bytes) -> str:
    """Return the key of a data key's envelope; ``key_id`` has 16 bytes."""
    return f"envelopes/{archive}/{key_id.hex()}"


def history_key(archive: ArchiveId, timeline: TimelineId) -> str:
    """Return the key of a timeline's history file."""
    return f"history/{archive}/{timeline}"


def wal_index_key(archive: ArchiveId, first: int, last: int) -> str:
    """Return the key of the index of pieces ``first`` to ``last``."""
    return f"walindex/{archive}/{first:016d}-{last:016d}"


def head_key(archive: ArchiveId, sequence: int) -> str:
    """Return the key of head ``sequence`` (from 1); newer heads sort first."""
    if not 0 < sequence < _HEAD_TOP:
        raise MalformedValue(f"head sequence out of range: {sequence}")
    return f"heads/{archive}/{_HEAD_TOP - sequence:016x}"


def wal_index_range(key: str) -> tuple[int, int]:
    """Return the first and the last piece that a WAL index's key names."""
    match = re.fullmatch(r"walindex/[0-9]+/[0-9]{8}/([0-9]{16})-([0-9]{16})", key)
    if match is None:
        raise MalformedValue(f"not a WAL index's key: {key!r}")
    return int(match[1]), int(match[2])


def head_sequence(key: str) -> int:
    """Return the sequence that a head's key stands for."""
    match = re.fullmatch(r"heads/[0-9]+/[0-9]{8}/([0-9a-f]{16})", key)
    if match is None:
        raise MalformedValue(f"not a head's key: {key!r}")
    return _HEAD_TOP - int(match[1], 16)


def backup_lease(archive: ArchiveId) -> str:
    """Return the name of the lease that whoever takes a base backup of ``archive`` holds."""
    return f"backup/{archive}"


def lease_prefix(name: str) -> str:
    """Return the prefix of a lease's records; the newest sorts first."""
    return f"leases/{name}/"


def lease_key(name: str, number: int) -> str:
    """Return the key of record ``number`` (from 1) of a lease."""
    if not 0 < number < _HEAD_TOP:
        raise MalformedValue(f"lease number out of range: {number}")
    return f"{lease_prefix(name)}{_HEAD_TOP - number:016x}"


def lease_number(key: str) -> int:
    """Return the number that a lease record's key stands for."""
    match = re.fullmatch(r"leases/[A-Za-z0-9._/-]+/([0-9a-f]{16})", key)
    if match is None:
        raise MalformedValue(f"not a lease record's key: {key!r}")
    return _HEAD_TOP - int(match[1], 16)


def expiry_key(archive: ArchiveId, sequence: int) -> str:
    """Return the key of expire record ``sequence`` (from 1); newer ones sort first."""
    if not 0 < sequence < _HEAD_TOP:
        raise MalformedValue(f"expire record's sequence out of range: {sequence}")
    return f"expired/{archive}/{_HEAD_TOP - sequence:016x}"


def expiry_sequence(key: str) -> int:
    """Return the sequence that an expire record's key stands for."""
    match = re.fullmatch(r"expired/[0-9]+/[0-9]{8}/([0-9a-f]{16})", key)
    if match is None:
        raise MalformedValue(f"not an expire record's key: {key!r}")
    return _HEAD_TOP - int(match[1], 16)


def event_key(archive: ArchiveId, sequence: int) -> str:
    """Return the key of signed event ``sequence`` (from 1); newer ones sort first."""
    if not 0 < sequence < _HEAD_TOP:
        raise MalformedValue(f"event's sequence out of range: {sequence}")
    return f"events/{archive}/{_HEAD_TOP - sequence:016x}"


def event_sequence(key: str) -> int:
    """Return the sequence that an event's key stands for."""
    match = re.fullmatch(r"events/[0-9]+/[0-9]{8}/([0-9a-f]{16})", key)
    if match is None:
        raise MalformedValue(f"not an event's key: {key!r}")
    return _HEAD_TOP - int(match[1], 16)


def fences_key(archive: ArchiveId, sequence: int) -> str:
    """Return the key of object ``sequence`` (from 1) of an archive's fences; newer ones sort first."""
    return f"fences/{archive}/{_inverse(sequence)}"


def fences_sequence(key: str) -> int:
    """Return the sequence that the key of an object of fences stands for.  Raises MalformedValue."""
    match = re.fullmatch(r"fences/[0-9]+/[0-9]{8}/([0-9a-f]{16})", key)
    if match is None:
        raise MalformedValue(f"not the key of an object of fences: {key!r}")
    return _HEAD_TOP - int(match[1], 16)


def syncs_key(archive: ArchiveId, sequence: int) -> str:
    """Return the key of object ``sequence`` (from 1) of a mirror's pairs; newer ones sort first."""
    return f"syncs/{archive}/{_inverse(sequence)}"


def syncs_sequence(key: str) -> int:
    """Return the sequence that the key of an object of pairs stands for.  Raises MalformedValue."""
    match = re.fullmatch(r"syncs/[0-9]+/[0-9]{8}/([0-9a-f]{16})", key)
    if match is None:
        raise MalformedValue(f"not the key of an object of pairs: {key!r}")
    return _HEAD_TOP - int(match[1], 16)


def log_prefix(key_id: str, what: str) -> str:
    """Return the prefix of the entries (``entry``) or checkpoints (``checkpoint``) of a verifier's log."""
    return f"log/{_key_id(key_id)}/{what}/"


def log_entry_key(key_id: str, sequence: int) -> str:
    """Return the key of entry ``sequence`` (from 0) of a verifier's log; newer ones sort first."""
    return f"{log_prefix(key_id, 'entry')}{_inverse(sequence + 1)}"


def checkpoint_key(key_id: str, size: int) -> str:
    """Return the key of the checkpoint over the first ``size`` entries of a verifier's log."""
    return f"{log_prefix(key_id, 'checkpoint')}{_inverse(size)}"


def log_number(key: str) -> int:
    """Return an entry's sequence plus one, or a checkpoint's size, from its key.  Raises MalformedValue."""
    match = re.fullmatch(r"log/[0-9a-f]{16}/(?:entry|checkpoint)/([0-9a-f]{16})", key)
    if match is None:
        raise MalformedValue(f"not a key of a verifier's log: {key!r}")
    return _HEAD_TOP - int(match[1], 16)


def report_prefix(key_id: str, system_identifier: int, number: int) -> str:
    """Return the prefix of what belongs to report ``number`` (from 1) that a verifier signed of a cluster."""
    return f"reports/{_key_id(key_id)}/{system_identifier}/{_inverse(number)}/"


def period_report_prefix(key_id: str, system_identifier: int, report_id: str) -> str:
    """Return the prefix of what belongs to a report of a period."""
    return f"reports/{_key_id(key_id)}/{system_identifier}/period-{report_id}/"


def _key_id(text: str) -> str:
    if re.fullmatch(r"[0-9a-f]{16}", text) is None:
        raise MalformedValue(f"not a signer's key id: {text[:80]!r}")
    return text


def _inverse(number: int) -> str:
    if not 0 < number < _HEAD_TOP:
        raise MalformedValue(f"sequence out of range: {number}")
    return f"{_HEAD_TOP - number:016x}"


def derived_prefix(archive: ArchiveId) -> str:
    """Return the prefix of the records of derived state's snapshots; they sort by time."""
    return f"derived/{archive}/snapshots/"


def derived_key(archive: ArchiveId, snapshot: str) -> str:
    """Return the key of the record that makes a snapshot of derived state."""
    return f"{derived_prefix(archive)}{check_snapshot(snapshot)}"


def derived_parts_prefix(archive: ArchiveId, snapshot: str) -> str:
    """Return the prefix of all parts of a snapshot."""
    return f"derived/{archive}/parts/{check_snapshot(snapshot)}/"


def derived_part_key(archive: ArchiveId, snapshot: str, node: int, number: int) -> str:
    """Return the key of part ``number`` of what a snapshot holds of its node ``node``, both from 0."""
    return f"{derived_parts_prefix(archive, snapshot)}{node:04d}-{number:06d}"


def check_snapshot(text: str) -> str:
    """Return the id of a snapshot of derived state.  Raises MalformedValue."""
    if _SNAPSHOT.fullmatch(text) is None:
        raise MalformedValue(f"not the id of a snapshot: {text[:100]!r}")
    return text


def backup_prefix(archive: ArchiveId, backup: str) -> str:
    """Return the prefix of all packs and index parts of a base backup."""
    return f"backups/{archive}/{backup}/"


def pack_key(archive: ArchiveId, backup: str, part: int, number: int, attempt: str) -> str:
    """Return the key of a pack of a base backup."""
    return f"{backup_prefix(archive, backup)}pack-{part:04d}-{number:06d}-{attempt}"


def index_key(archive: ArchiveId, backup: str, part: int, number: int, attempt: str) -> str:
    """Return the key of an index part of a base backup."""
    return f"{backup_prefix(archive, backup)}index-{part:04d}-{number:06d}-{attempt}"


def part_and_number(key: str) -> tuple[int, int]:
    """Return the part and the number in the key of a pack or index part.  Raises MalformedValue."""
    match = _PART_KEY.fullmatch(key)
    if match is None:
        raise MalformedValue(f"not the key of a pack or index: {key!r}")
    return int(match[1]), int(match[2])


def manifest_key(archive: ArchiveId, backup: str) -> str:
    """Return the key of a backup's manifest."""
    return f"manifests/{archive}/{backup}"


def fingerprint_prefix(key_id: str, system_identifier: int) -> str:
    """Return the prefix of the fingerprints of a cluster that one verifier took; they sort by LSN."""
    return f"fingerprints/{key_id}/{system_identifier}/"


def fingerprint_key(key_id: str, system_identifier: int, lsn: LSN) -> str:
    """Return the key of the fingerprint at an LSN."""
    return f"{fingerprint_prefix(key_id, system_identifier)}{lsn.offset:016X}"


def fingerprint_lsn(key: str) -> LSN:
    """Return the LSN that a fingerprint's key names.  Raises MalformedValue."""
    match = re.fullmatch(r"fingerprints/[0-9a-f]{16}/[0-9]+/([0-9A-F]{16})", key)
    if match is None:
        raise MalformedValue(f"not a fingerprint's key: {key!r}")
    return LSN(int(match[1], 16))
