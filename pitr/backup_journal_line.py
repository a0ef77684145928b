"""The lines of a backup's journal.  Pure; ``pitr.backup_journal`` writes and reads the file.

Each is JSON and the HMAC that ends it, which is over the line and the HMAC before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pitr.catalogue.backup_record import BackupType, StoredObject, check_backup_id
from pitr.errors import MalformedValue
from pitr.layout import ArchiveId
from pitr.pipeline.keys import content_hmac
from pitr.pipeline.pack_contents import PackContents, PackedFile, PackedFrame
from pitr.pipeline.packs import Extent, FramePlace
from pitr.pipeline.sign import decode_time, encode_time

_VERSION: Final = 1
# A pack of 65,536 small files; a longer line is not written, and not read.
LINE_BYTES_MAX: Final = 16 * 1024 * 1024
# In hex.
MAC_BYTES: Final = 64
# Under the same key lie digests of WAL, which never begins so and has this length.
_MAC_PREFIX: Final = b"pitr/v1/journal-line\0"


@dataclass(frozen=True, slots=True)
class JournalHead:
    """Whose journal it is: one attempt at one backup, under the data key ``key_id``."""

    repository: str
    archive: ArchiveId
    backup: str
    type: BackupType
    parent: str | None
    key_id: bytes
    begun_at: datetime


@dataclass(frozen=True, slots=True)
class JournaledPack:
    """A pack that was at quorum at ``at``: pack ``number`` of ``part``, and what it holds."""

    stored: StoredObject
    part: int
    number: int
    contents: PackContents
    at: datetime


def line_mac(key: bytes, before: bytes, line: bytes) -> bytes:
    """Return what ends a line, ``before`` being what ended the one before it, or nothing."""
    return content_hmac(key, _MAC_PREFIX + before + line).hex().encode("ascii")


def encode_head(head: JournalHead) -> bytes:
    return _encode(
        {
            "version": _VERSION,
            "repository": head.repository,
            "archive": str(head.archive),
            "backup": head.backup,
            "type": head.type,
            "parent": head.parent,
            "key_id": head.key_id.hex(),
            "begun_at": encode_time(head.begun_at),
        }
    )


def decode_head(line: bytes) -> JournalHead:
    """Read a head.  Raises MalformedValue."""
    try:
        fields = _decode(line)
        if fields["version"] != _VERSION:
            raise MalformedValue(f"a journal of version {fields['version']}")
        parent = fields["parent"]
        return JournalHead(
            repository=str(fields["repository"]),
            archive=ArchiveId.parse(str(fields["archive"])),
            backup=check_backup_id(str(fields["backup"])),
            type="incr" if fields["type"] == "incr" else "full",
            parent=None if parent is None else check_backup_id(str(parent)),
            key_id=bytes.fromhex(fields["key_id"]),
            begun_at=decode_time(fields["begun_at"]),
        )
    except (LookupError, ValueError, TypeError) as cause:
        raise MalformedValue("the head of a journal makes no sense") from cause


def encode_pack(pack: JournaledPack) -> bytes:
    stored = pack.stored
    return _encode(
        {
            "key": stored.key,
            "bytes": stored.size_bytes,
            "sha256": stored.sha256.hex(),
            "part": pack.part,
            "number": pack.number,
            "at": encode_time(pack.at),
            "places": [[place.offset, place.sealed_bytes] for place in pack.contents.places],
            "files": [[os.fsdecode(file.path), frames_fields(file)] for file in pack.contents.files],
        }
    )


def decode_pack(line: bytes) -> JournaledPack:
    """Read a pack.  Raises MalformedValue."""
    try:
        fields = _decode(line)
        number = int(fields["number"])
        places = tuple(FramePlace(int(offset), int(size)) for offset, size in fields["places"])
        files = tuple(read_frames(os.fsencode(path), frames, number) for path, frames in fields["files"])
        sha256 = bytes.fromhex(fields["sha256"])
        stored = StoredObject(str(fields["key"]), int(fields["bytes"]), sha256, len(places))
        at = decode_time(fields["at"])
        return JournaledPack(stored, int(fields["part"]), number, PackContents(places, files), at)
    except (LookupError, ValueError, TypeError) as cause:
        raise MalformedValue("a line of a journal makes no sense") from cause


def frames_fields(file: PackedFile) -> list[object]:
    """Return the frames of a file for JSON."""
    return [
        [
            frame.extents[0].frame,
            frame.extents[0].frame_offset,
            frame.stored_bytes,
            frame.mac.hex(),
            [[each.offset, each.size_bytes, each.crc32c] for each in frame.extents],
        ]
        for frame in file.frames
    ]


def read_frames(path: bytes, items: Sequence[Sequence[Any]], pack: int) -> PackedFile:
    """Read what ``frames_fields`` gave.  Raises ValueError, TypeError."""
    frames = []
    for number, frame_offset, stored_bytes, mac, runs in items:
        at, extents = frame_offset, []
        for offset, size_bytes, crc in runs:
            extents.append(Extent(offset, size_bytes, pack, number, at, crc))
            at += size_bytes
        frames.append(PackedFrame(tuple(extents), bytes.fromhex(mac), stored_bytes))
    return PackedFile(path, tuple(frames))


def _encode(fields: Mapping[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


# Any: what a line holds is known once it is taken apart, and its HMAC says who wrote it.
def _decode(line: bytes) -> dict[str, Any]:
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise TypeError("not an object")
    return fields
