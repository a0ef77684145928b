"""One WAL segment's file, put together from the objects that hold it.

Whole segments are preferred; else pieces from the segment's start on.  Where objects overlap they must
be equal.  Only the path's last segment may be shorter than its file: zeros follow, and PostgreSQL takes
them for the end of WAL.  A file appears under its name complete and checked, or not at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pitr.errors import ArchiveDiverged, MalformedValue, PitrError, WalMissing
from pitr.layout import PieceKey, SegmentKey
from pitr.wal.lsn import LSN
from pitr.wal.pages import LONG_HEADER_BYTES, WalGeometry, decode_page_header, segment_system_identifier
from pitr.wal_path import PathSegment, WalPath, WalSource
from storage.store import StoreError, StoreUnavailable

_CAUSES_SHOWN_MAX = 5
# A promoted server writes its own WAL into this file, so in small writes; why: ``pitr.restore_paths``.
_WRITE_BYTES = 64 * 1024

# Opens one WAL object: its bytes, exactly from its start to its end.  Raises PitrError, StoreError.
ReadWal = Callable[[PieceKey | SegmentKey], bytes]


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A segment's file on disk; ``wal_bytes`` of it are WAL, what follows is zero.

    ``sha256`` is that of the WAL, ``sources`` are the objects it was made of.
    """

    path: Path
    wal_bytes: int
    segment_bytes: int
    sha256: bytes
    sources: tuple[WalSource, ...]

    @property
    def is_padded(self) -> bool:
        return self.wal_bytes < self.segment_bytes


def assemble_segment(segment: PathSegment, path: WalPath, read: ReadWal, target: Path) -> SegmentFile:
    """Write the segment to ``target``, replacing what is there.  May be repeated; holds one object at a time.

    Raises WalMissing if no object that can be used goes on where the WAL stops, StoreUnavailable if that
    might be otherwise later, ArchiveDiverged if two objects differ, MalformedValue if the WAL is not
    that of this segment; OSError.
    """
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    descriptor = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        filled = _fill(descriptor, segment, path, read)
        os.ftruncate(descriptor, path.segment_bytes)
        check_first_page(os.pread(descriptor, LONG_HEADER_BYTES, 0), segment, path)
        staged.rename(target)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return SegmentFile(target, filled.wal_bytes, path.segment_bytes, filled.sha256, filled.sources)


def check_first_page(start: bytes, segment: PathSegment, path: WalPath) -> None:
    """Refuse WAL of another place, cluster or later timeline; ``start`` are the segment's first 40 bytes.

    An earlier timeline is right where this one was left in mid-segment.  Raises MalformedValue.
    """
    geometry = WalGeometry(path.segment_bytes)
    header = decode_page_header(start, segment.name.start_offset(path.segment_bytes), geometry)
    if header is None:
        raise MalformedValue(f"segment {segment.name} begins with zeros")
    found = segment_system_identifier(start)
    if found != path.system_identifier:
        raise MalformedValue(f"segment {segment.name} is of cluster {found}, not of {path.system_identifier}")
    if header.timeline > segment.name.timeline.number:
        raise MalformedValue(f"segment {segment.name} begins with WAL of timeline {header.timeline}")


@dataclass(frozen=True, slots=True)
class _Filled:
    wal_bytes: int
    sha256: bytes
    sources: tuple[WalSource, ...]


def _fill(descriptor: int, segment: PathSegment, path: WalPath, read: ReadWal) -> _Filled:
    """Write WAL from the segment's start up to its needed end, or further."""
    origin = segment.name.start_offset(path.segment_bytes)
    position = origin
    untried = list(segment.sources)
    used: list[WalSource] = []
    digest = hashlib.sha256()
    causes: list[str] = []
    may_be_repeated = False
    while position < segment.needed_end.offset:
        source = _best(untried, position)
        if source is None:
            what = f"WAL of segment {segment.name} cannot be had from {LSN(position)} on"
            why = "; ".join(causes[:_CAUSES_SHOWN_MAX]) or "no object of the plan holds it"
            if may_be_repeated:
                raise StoreUnavailable(f"{what}: {why}")
            raise WalMissing(what, detail=why, hint="bring the regions that held it back, and try again")
        untried.remove(source)
        try:
            content = read(source.key)
        except (PitrError, StoreError) as cause:
            causes.append(_words(cause))
            may_be_repeated |= isinstance(cause, StoreUnavailable)
            continue
        if len(content) != source.end - source.start:
            causes.append(f"{source.key} holds {len(content)} bytes of WAL")
            continue
        _check_overlap(descriptor, source, content, origin, position)
        part = memoryview(content)[position - source.start.offset : source.until - source.start]
        _write_all(descriptor, part, position - origin)
        digest.update(part)
        used.append(source)
        position = source.until.offset
    return _Filled(position - origin, digest.digest(), tuple(used))


def _best(untried: list[WalSource], position: int) -> WalSource | None:
    """Return the source that goes furthest from ``position``; of equals the first, which the path prefers."""
    best: WalSource | None = None
    for source in untried:
        if source.start.offset <= position < source.until.offset and (
            best is None or source.until > best.until
        ):
            best = source
    return best


def _check_overlap(descriptor: int, source: WalSource, content: bytes, origin: int, position: int) -> None:
    overlap_bytes = position - source.start.offset
    if (
        overlap_bytes
        and os.pread(descriptor, overlap_bytes, source.start.offset - origin) != content[:overlap_bytes]
    ):
        raise ArchiveDiverged(
            f"two objects hold different WAL between {source.start} and {LSN(position)}",
            detail=f"one of them is {source.key}",
            hint="two writers shared one archive; restore to a moment before this point",
        )


def _write_all(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content[:_WRITE_BYTES], offset)
        content = content[written:]
        offset += written


def _words(cause: PitrError | StoreError) -> str:
    detail = cause.detail if isinstance(cause, PitrError) else None
    return f"{cause}: {detail}" if detail else f"{cause}"
