"""The file between a restore and its ``restore_command``: the WAL path and where its objects are.

Written once by the restore beside the spool, read by each ``pitr wal fetch``, so it must be quick to
read: the first line decides what to answer, and a segment's line is looked for only where the spool
has not got it.  It holds no secret: the identity is named by its path.  Imports little for the same reason.

JSON lines: the header (with size and SHA-256 of what follows), then one line for each segment in order.
"""

from __future__ import annotations

import base64
import hashlib
import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pitr.errors import MalformedValue
from pitr.layout import parse_wal_key
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_path import HistoryFile, PathSegment, PathSpan, WalPath, WalSource

FORMAT = "pitr-wal-plan/1"
_HEADER_BYTES_MAX = 32 * 1024 * 1024
_LINE_BYTES_MAX = 32 * 1024 * 1024
_BODY_CHUNK_BYTES = 1024 * 1024
_LSN_MAX = LSN((1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class RegionAddress:
    """A region's name and URL, for a fetch that has no restore beside it."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class ReplayedWal:
    """Which records recovery replays: those that begin from ``start`` on and before ``end``."""

    start: LSN
    end: LSN


def without_end(replayed: ReplayedWal | None) -> ReplayedWal | None:
    """Return the same for who replays all that there is."""
    return None if replayed is None else ReplayedWal(replayed.start, _LSN_MAX)


@dataclass(frozen=True, slots=True)
class WalPlanHeader:
    """What a fetch knows before it looks a segment up.

    ``replayed`` None: all that the segments hold, as far as one knows.
    """

    repository: str
    root: str
    path: WalPath
    regions: tuple[RegionAddress, ...]
    identity_file: Path | None
    replayed: ReplayedWal | None = None


def write_plan(file: Path, header: WalPlanHeader, segments: Iterable[PathSegment]) -> None:
    """Write the plan file whole, by renaming: a fetch never sees half of it.

    The lines of ``segments`` are written as they come, so any number of them needs little memory.
    """
    body_path = file.with_name(f"{file.name}.body")
    digest = hashlib.sha256()
    size_bytes = 0
    with body_path.open("wb") as body:
        for segment in segments:
            line = _segment_line(segment)
            digest.update(line)
            size_bytes += len(line)
            body.write(line)
    staged = file.with_name(f"{file.name}.new")
    with body_path.open("rb") as body, staged.open("wb") as whole:
        whole.write(_header_line(header, size_bytes, digest.hexdigest()))
        while chunk := body.read(_BODY_CHUNK_BYTES):
            whole.write(chunk)
    body_path.unlink()
    staged.replace(file)


def read_header(file: Path) -> WalPlanHeader:
    """Return the plan's header.  Raises MalformedValue for a file that is cut or no plan; OSError."""
    with file.open("rb") as plan:
        header, _ = _open(plan)
    return header


def find_segment(file: Path, name: SegmentName) -> PathSegment:
    """Return the plan's line of a segment.  Raises MalformedValue if there is none, OSError."""
    prefix = _line_prefix(name)
    with file.open("rb") as plan:
        header, _ = _open(plan)
        for line in plan:
            if line.startswith(prefix):
                return _parse_segment(line, header.path)
    raise MalformedValue(f"the plan {file} has no line of segment {name}")


class PlanSegments:
    """The segments of a plan file by number, for whoever reads many.  Thread-safe; 8 bytes each in memory."""

    def __init__(self, file: Path) -> None:
        """Verify the file's digest and find its lines.  Raises MalformedValue, OSError."""
        self._file = file
        self._offsets = array("Q")
        digest = hashlib.sha256()
        with file.open("rb") as plan:
            self.header, sha256 = _open(plan)
            offset = plan.tell()
            for line in plan:
                self._offsets.append(offset)
                digest.update(line)
                offset += len(line)
        if digest.hexdigest() != sha256:
            raise MalformedValue(f"the plan {file} was changed after it was written")
        path = self.header.path
        self.first, self.last = path.spans[0].first, path.spans[-1].last
        if len(self._offsets) != self.last - self.first + 1:
            raise MalformedValue(f"the plan {file} has {len(self._offsets)} segments' lines")

    def name(self, number: int) -> SegmentName:
        """Return the name under which recovery asks for segment ``number`` of the path."""
        name = self.header.path.name_of(number)
        if name is None:
            raise MalformedValue(f"segment {number} does not lie on the plan's path")
        return name

    def get(self, number: int) -> PathSegment:
        """Return segment ``number``, which must lie on the path.  Raises MalformedValue, OSError."""
        name = self.name(number)
        with self._file.open("rb") as plan:
            plan.seek(self._offsets[number - self.first])
            segment = _parse_segment(plan.readline(_LINE_BYTES_MAX), self.header.path)
        if segment.name != name:
            raise MalformedValue(f"the plan {self._file} has segment {segment.name} out of its order")
        return segment


def _open(plan: BinaryIO) -> tuple[WalPlanHeader, str]:
    line = plan.readline(_HEADER_BYTES_MAX)
    try:
        fields = json.loads(line)
        if fields["format"] != FORMAT:
            raise MalformedValue(f"not a plan for fetching WAL: {fields['format']!r}")
        header = _parse_header(fields)
        expected_bytes, sha256 = int(fields["body_bytes"]), str(fields["body_sha256"])
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise MalformedValue(f"the plan {plan.name} cannot be read: {cause}") from cause
    begin = plan.tell()
    if plan.seek(0, 2) - begin != expected_bytes:
        raise MalformedValue(f"the plan {plan.name} is cut or has grown")
    plan.seek(begin)
    return header, sha256


def _header_line(header: WalPlanHeader, body_bytes: int, body_sha256: str) -> bytes:
    path = header.path
    return _line(
        {
            "format": FORMAT,
            "repository": header.repository,
            "root": header.root,
            "system_identifier": str(path.system_identifier),
            "segment_bytes": path.segment_bytes,
            "end": str(path.end),
            "spans": [[str(span.timeline), span.first, span.last] for span in path.spans],
            "histories": _history_rows(path.histories),
            "taken": _history_rows(path.taken),
            "regions": [[region.name, region.url] for region in header.regions],
            "identity_file": None if header.identity_file is None else str(header.identity_file),
            "replayed": None if header.replayed is None else _lsn_pair(header.replayed),
            "body_bytes": body_bytes,
            "body_sha256": body_sha256,
        }
    )


def _parse_header(fields: dict[str, object]) -> WalPlanHeader:
    path = WalPath(
        system_identifier=int(_text(fields["system_identifier"])),
        segment_bytes=_integer(fields["segment_bytes"]),
        spans=tuple(
            PathSpan(TimelineId.parse(_text(timeline)), _integer(first), _integer(last))
            for timeline, first, last in _rows(fields["spans"], 3)
        ),
        histories=_parse_histories(fields["histories"]),
        end=LSN.parse(_text(fields["end"])),
        # A restore that an earlier release began has none.
        taken=_parse_histories(fields.get("taken", [])),
    )
    identity = fields["identity_file"]
    given = fields.get("replayed")
    (replayed,) = [None] if given is None else _rows([given], 2)
    return WalPlanHeader(
        repository=_text(fields["repository"]),
        root=_text(fields["root"]),
        path=path,
        regions=tuple(RegionAddress(_text(name), _text(url)) for name, url in _rows(fields["regions"], 2)),
        identity_file=None if identity is None else Path(_text(identity)),
        # A restore that an earlier release began has none.
        replayed=None if replayed is None else ReplayedWal(_lsn(replayed[0]), _lsn(replayed[1])),
    )


def _history_rows(histories: Iterable[HistoryFile]) -> list[list[str]]:
    return [[str(one.timeline), base64.b64encode(one.content).decode("ascii")] for one in histories]


def _parse_histories(rows: object) -> tuple[HistoryFile, ...]:
    return tuple(
        HistoryFile(TimelineId.parse(_text(timeline)), base64.b64decode(_text(content), validate=True))
        for timeline, content in _rows(rows, 2)
    )


def _line_prefix(name: SegmentName) -> bytes:
    return f'{{"segment":"{name}",'.encode("ascii")


def _segment_line(segment: PathSegment) -> bytes:
    sources = [
        [str(source.key), source.start.offset, source.end.offset, source.until.offset]
        for source in segment.sources
    ]
    line = _line({"segment": str(segment.name), "needed_end": segment.needed_end.offset, "sources": sources})
    if len(line) > _LINE_BYTES_MAX:
        raise MalformedValue(f"segment {segment.name} has too many objects for a plan: {len(sources)}")
    return line


def _parse_segment(line: bytes, path: WalPath) -> PathSegment:
    try:
        fields = json.loads(line)
        segment = PathSegment(
            SegmentName.parse(_text(fields["segment"])),
            _lsn(fields["needed_end"]),
            tuple(
                WalSource(parse_wal_key(_text(key)), _lsn(start), _lsn(end), _lsn(until))
                for key, start, end, until in _rows(fields["sources"], 4)
            ),
        )
    except (ValueError, KeyError, TypeError) as cause:
        raise MalformedValue(f"a segment's line of the plan cannot be read: {cause}") from cause
    if segment.needed_end != min(segment.name.end(path.segment_bytes), path.end):
        raise MalformedValue(f"the plan ends segment {segment.name} at {segment.needed_end}")
    return segment


def _line(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"


def _lsn_pair(replayed: ReplayedWal) -> list[int]:
    return [replayed.start.offset, replayed.end.offset]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise MalformedValue(f"a text is expected, not {value!r}")
    return value


def _integer(value: object) -> int:
    if type(value) is not int:
        raise MalformedValue(f"an integer is expected, not {value!r}")
    return value


def _lsn(value: object) -> LSN:
    return LSN(_integer(value))


def _rows(value: object, width: int) -> list[list[object]]:
    if not isinstance(value, list) or any(not isinstance(row, list) or len(row) != width for row in value):
        raise MalformedValue(f"rows of {width} are expected")
    return value
