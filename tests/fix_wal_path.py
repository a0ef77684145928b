"""WAL for tests of the restore side: segments with true page headers, cut into objects, and their plan."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pitr.layout import ArchiveId, PieceKey, SegmentKey
from pitr.wal.lsn import LSN
from pitr.wal.pages import LONG_HEADER, PAGE_BYTES, PAGE_MAGIC_18
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_path import HistoryFile
from pitr.wal_plan_file import WalPlanHeader, write_plan
from pitr.wal_sources import ArchivedSpan, find_segments, lay_path
from storage.store import ObjectMissing, StoreError

SEGMENT_BYTES = 1 << 20
SYSTEM = 7_300_000_000_000_000_001
ARCHIVE = ArchiveId(SYSTEM, 1)

WalKey = PieceKey | SegmentKey


def segment_content(name: SegmentName, *, timeline: int | None = None, system: int = SYSTEM) -> bytes:
    """Return a segment's bytes: a true long page header, then noise that only this segment has."""
    start = name.start_offset(SEGMENT_BYTES)
    header = struct.pack(
        "<HHIQI4xQII",
        PAGE_MAGIC_18,
        LONG_HEADER,
        timeline or name.timeline.number,
        start,
        0,
        system,
        SEGMENT_BYTES,
        PAGE_BYTES,
    )
    return header + random.Random(str(name)).randbytes(SEGMENT_BYTES - len(header))


@dataclass
class WalShelf:
    """A tiny archive of opened WAL: keys and their bytes, with faults by key."""

    objects: dict[WalKey, bytes] = field(default_factory=dict)
    faults: dict[WalKey, Exception] = field(default_factory=dict)
    reads: list[WalKey] = field(default_factory=list)

    def add_whole(
        self, name: SegmentName, *, attempt: str = "00000000", archive: ArchiveId = ARCHIVE
    ) -> WalKey:
        key = SegmentKey(archive, name, attempt)
        self.objects[key] = segment_content(name)
        return key

    def add_piece(
        self,
        name: SegmentName,
        first: int,
        last: int,
        *,
        sequence: int = 1,
        attempt: str = "00000000",
        archive: ArchiveId = ARCHIVE,
        content: bytes | None = None,
    ) -> WalKey:
        """Add the bytes ``first`` to ``last`` (exclusive) of a segment as a piece."""
        origin = name.start_offset(SEGMENT_BYTES)
        key = PieceKey(archive, name, LSN(origin + first), LSN(origin + last), sequence, attempt)
        self.objects[key] = (segment_content(name) if content is None else content)[first:last]
        return key

    def list_wal(self, archive: ArchiveId, timeline: TimelineId, first: SegmentName) -> Iterable[WalKey]:
        """List as a repository does: by key, from a segment on."""
        found = [
            key
            for key in self.objects
            if key.archive == archive and key.segment.timeline == timeline and key.segment >= first
        ]
        return sorted(found, key=str)

    def read(self, key: WalKey) -> bytes:
        self.reads.append(key)
        if key in self.faults:
            raise self.faults[key]
        if key not in self.objects:
            raise ObjectMissing(f"no object {key}")
        return self.objects[key]

    def fail(self, key: WalKey, error: StoreError | Exception) -> None:
        self.faults[key] = error


def segment_name(number: int, timeline: int = 1) -> SegmentName:
    return SegmentName.of(TimelineId(timeline), number, SEGMENT_BYTES)


def lsn_in(number: int, offset: int = 0) -> LSN:
    """Return the LSN ``offset`` bytes into segment ``number``."""
    return LSN(number * SEGMENT_BYTES + offset)


def span(start: LSN, end: LSN, *, timeline: int = 1, archive: ArchiveId = ARCHIVE) -> ArchivedSpan:
    return ArchivedSpan(archive, TimelineId(timeline), start, end)


def write_test_plan(
    folder: Path, shelf: WalShelf, spans: list[ArchivedSpan], histories: Iterable[HistoryFile] = ()
) -> Path:
    """Write the plan file of a restore along ``spans``."""
    path = lay_path(spans, list(histories), segment_bytes=SEGMENT_BYTES)
    file = folder / "wal-plan.json"
    (folder / "spool").mkdir(exist_ok=True)
    header = WalPlanHeader("0" * 32, "ed25519:root", path, (), None)
    write_plan(file, header, find_segments(path, spans, shelf.list_wal))
    return file
