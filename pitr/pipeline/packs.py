"""The index of a base backup: which bytes of which file lie in which frame of which pack.  Pure.

Lines of JSON, written and read one by one, so that neither side holds the index of a large cluster.
All lines that name frames of a pack stand right before the pack's own line; a reader can fetch a pack
when it comes to that line, and then forget both.  Packs may come in any order, each once.

Reference: docs/format.md §8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from pitr.errors import MalformedValue
from pitr.pipeline.crc import FileCrc32c
from pitr.pipeline.frames import LENGTH, TAG_BYTES
from pitr.pipeline.seal import FRAME_CONTENT_BYTES, HEADER_BYTES

PACK_BYTES_MAX: Final = 48 * 1024 * 1024
# Bounds the line that lists them, and with it a reader's memory.
PACK_FRAMES_MAX: Final = 4096
LINE_BYTES_MAX: Final = 1024 * 1024
PATH_BYTES_MAX: Final = 4096
# Larger than any file system's limit for a file; it only keeps sums in 64 bits.
FILE_BYTES_MAX: Final = 1 << 56
_MTIME_MAX: Final = 1 << 40
_CRC: Final = re.compile(r"[0-9a-f]{8}")
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")
_LINK: Final = re.compile(rb"pg_tblspc/[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class FramePlace:
    """A frame's place in its pack: ``offset`` is that of its length, which ``sealed_bytes`` follow."""

    offset: int
    sealed_bytes: int


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of a file's bytes, and where they are: at ``frame_offset`` of a frame's content."""

    offset: int
    size_bytes: int
    pack: int
    frame: int
    frame_offset: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class IndexPack:
    """A pack of this part is complete; its last frame is the container's last."""

    number: int
    frames: tuple[FramePlace, ...]


@dataclass(frozen=True, slots=True)
class IndexFileMore:
    """Some extents of a file that goes on in a later line."""

    path: bytes
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class IndexFile:
    """A file, with its last extents; ``crc32c`` is of all its bytes, ``mtime`` in seconds since 1970.

    ``parent_bytes``: what no extent gives below this offset is as the parent backup has it; from there
    on it is zero.  None for a file that is whole here; otherwise ``crc32c`` is None, for nobody has read all.
    """

    path: bytes
    size_bytes: int
    mode: int
    mtime: int
    crc32c: int | None
    extents: tuple[Extent, ...]
    parent_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class IndexLink:
    """The symbolic link of a tablespace."""

    path: bytes
    oid: int


@dataclass(frozen=True, slots=True)
class IndexDirectory:
    """A directory; it stands before every directory in it."""

    path: bytes
    mode: int


IndexLine: TypeAlias = IndexPack | IndexFileMore | IndexFile | IndexLink | IndexDirectory


def encode_line(line: IndexLine) -> bytes:
    """Return the line with its line feed.  Raises MalformedValue if it is longer than LINE_BYTES_MAX."""
    match line:
        case IndexPack():
            fields: dict[str, object] = {
                "pack": line.number,
                "frames": [[frame.offset, frame.sealed_bytes] for frame in line.frames],
            }
        case IndexFileMore():
            fields = {**_path("path", line.path), "more": True, "extents": _extents(line.extents)}
        case IndexFile():
            fields = {
                **_path("path", line.path),
                "size": line.size_bytes,
                "mode": line.mode,
                "mtime": line.mtime,
                "extents": _extents(line.extents),
            }
            if line.crc32c is not None:
                fields["crc32c"] = f"{line.crc32c:08x}"
            if line.parent_bytes is not None:
                fields["parent_bytes"] = line.parent_bytes
        case IndexLink():
            fields = {"link": line.path.decode("ascii"), "to": line.oid}
        case IndexDirectory():
            fields = {**_path("directory", line.path), "mode": line.mode}
    encoded = json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"
    if len(encoded) > LINE_BYTES_MAX:
        raise MalformedValue(f"a line of an index has {len(encoded)} bytes")
    return encoded


def iter_index(objects: Iterable[Iterable[bytes]]) -> Iterator[IndexLine]:
    """Yield the lines of one part's index; ``objects`` are the contents of its objects' frames, in order.

    Checks what can be known from the index alone: paths stay below the data directory, extents are in
    order, lie in frames that exist, and add up to the file's size and CRC.  Raises MalformedValue.
    """
    checker = _Checker()
    for frames in objects:
        for raw in _lines(frames):
            line = decode_line(raw)
            checker.check(line)
            yield line
    checker.finish()


def decode_line(raw: bytes) -> IndexLine:
    """Read one line without its line feed.  Raises MalformedValue."""
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError) as cause:
        raise MalformedValue("a line of an index is not JSON") from cause
    if not isinstance(fields, dict):
        raise MalformedValue("a line of an index is not an object")
    if "pack" in fields:
        frames = tuple(FramePlace(*_integers(item, 2)) for item in _items(fields, "frames"))
        return IndexPack(_integer(fields, "pack", 999_999), frames)
    if "link" in fields:
        path = _parse_path(fields, "link")
        if _LINK.fullmatch(path) is None:
            raise MalformedValue("a link of an index is no tablespace's")
        return IndexLink(path, _integer(fields, "to", 0xFFFF_FFFF))
    if "directory" in fields or "directory_hex" in fields:
        return IndexDirectory(_parse_path(fields, "directory"), _integer(fields, "mode", 0o7777))
    path = _parse_path(fields, "path")
    extents = tuple(_parse_extent(item) for item in _items(fields, "extents"))
    if fields.get("more") is True:
        return IndexFileMore(path, extents)
    is_partial = "parent_bytes" in fields
    if is_partial and "crc32c" in fields:
        raise MalformedValue("a file of an index has a CRC, and is not all there")
    return IndexFile(
        path,
        _integer(fields, "size", FILE_BYTES_MAX),
        _integer(fields, "mode", 0o7777),
        _integer(fields, "mtime", _MTIME_MAX),
        None if is_partial else _parse_crc(fields.get("crc32c")),
        extents,
        _integer(fields, "parent_bytes", FILE_BYTES_MAX) if is_partial else None,
    )


class _Checker:
    """What must hold between the lines of one part."""

    def __init__(self) -> None:
        # The pack of the lines since the last pack's.
        self._pack: int | None = None
        self._seen: set[int] = set()
        self._frames_used = 0
        self._open: bytes | None = None
        self._crc = FileCrc32c()

    def check(self, line: IndexLine) -> None:
        match line:
            case IndexPack():
                self._check_pack(line)
            case IndexFileMore():
                self._check_more(line)
            case IndexFile():
                self._check_file(line)
            case _:
                pass

    def finish(self) -> None:
        if self._open is not None:
            raise MalformedValue("an index ends inside a file")
        if self._frames_used:
            raise MalformedValue("an index ends before the line of its last pack")

    def _check_pack(self, pack: IndexPack) -> None:
        if self._pack not in {None, pack.number} or pack.number in self._seen:
            raise MalformedValue(f"pack {pack.number} of an index is not the one that comes next")
        if not self._frames_used <= len(pack.frames) <= PACK_FRAMES_MAX or not pack.frames:
            raise MalformedValue(f"pack {pack.number} of an index has a wrong number of frames")
        end = HEADER_BYTES
        for frame in pack.frames:
            if frame.offset != end:
                raise MalformedValue(f"pack {pack.number} of an index has a gap between its frames")
            end += LENGTH.size + frame.sealed_bytes
            if frame.sealed_bytes <= TAG_BYTES or end > PACK_BYTES_MAX:
                raise MalformedValue(f"pack {pack.number} of an index has an impossible frame")
        self._seen.add(pack.number)
        self._pack = None
        self._frames_used = 0

    def _check_more(self, file: IndexFileMore) -> None:
        if self._open is None:
            self._open, self._crc = file.path, FileCrc32c()
        elif self._open != file.path:
            raise MalformedValue("an index continues another file than it began")
        self._add(self._crc, file.extents)

    def _check_file(self, file: IndexFile) -> None:
        # Between two lines of a file whole small ones may stand: they shared a frame that filled up.
        crc = FileCrc32c()
        if self._open == file.path:
            crc, self._open = self._crc, None
        self._add(crc, file.extents)
        if crc.end > file.size_bytes or (file.parent_bytes or 0) > file.size_bytes:
            raise MalformedValue("a file of an index is longer than it says")
        if file.parent_bytes is None and crc.finish(file.size_bytes) != file.crc32c:
            raise MalformedValue("a file of an index is not what its extents say")

    def _add(self, crc: FileCrc32c, extents: tuple[Extent, ...]) -> None:
        for extent in extents:
            if self._pack is None:
                self._pack = extent.pack
            if extent.pack != self._pack or extent.frame >= PACK_FRAMES_MAX:
                raise MalformedValue("an extent of an index is not in the pack that comes next")
            if not 0 < extent.size_bytes <= FRAME_CONTENT_BYTES - extent.frame_offset:
                raise MalformedValue("an extent of an index does not fit a frame")
            if extent.offset < crc.end:
                raise MalformedValue("extents of an index overlap or are out of order")
            crc.add(extent.offset, extent.size_bytes, extent.crc32c)
            self._frames_used = max(self._frames_used, extent.frame + 1)


def _lines(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Cut the frames' contents into lines; none longer than LINE_BYTES_MAX, the last one whole."""
    rest = b""
    for frame in frames:
        *whole, rest = (rest + frame).split(b"\n")
        for line in whole:
            if len(line) >= LINE_BYTES_MAX:
                raise MalformedValue("a line of an index is too long")
            yield line
        if len(rest) >= LINE_BYTES_MAX:
            raise MalformedValue("a line of an index is too long")
    if rest:
        raise MalformedValue("an object of an index ends inside a line")


def check_path(path: bytes) -> bytes:
    """Return ``path`` if it stays below the directory that it is relative to.  Raises MalformedValue."""
    parts = path.split(b"/")
    if len(path) > PATH_BYTES_MAX or b"\0" in path or any(part in (b"", b".", b"..") for part in parts):
        raise MalformedValue(f"not a path below the data directory: {path[:200]!r}")
    return path


def _path(name: str, path: bytes) -> dict[str, object]:
    try:
        return {name: check_path(path).decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_hex": path.hex()}


def _extents(extents: tuple[Extent, ...]) -> list[list[object]]:
    return [
        [each.offset, each.size_bytes, each.pack, each.frame, each.frame_offset, f"{each.crc32c:08x}"]
        for each in extents
    ]


def _parse_path(fields: Mapping[str, object], name: str) -> bytes:
    text = fields.get(name)
    if isinstance(text, str):
        try:
            return check_path(text.encode("utf-8"))
        except UnicodeEncodeError as cause:
            raise MalformedValue("a path of an index is not text") from cause
    text = fields.get(f"{name}_hex")
    if not isinstance(text, str) or _HEX.fullmatch(text) is None:
        raise MalformedValue(f"a line of an index has no {name}")
    return check_path(bytes.fromhex(text))


def _parse_extent(item: object) -> Extent:
    if not isinstance(item, list) or len(item) != 6:
        raise MalformedValue("an extent of an index is malformed")
    offset, size_bytes, pack, frame, frame_offset = _integers(item[:5], 5)
    return Extent(offset, size_bytes, pack, frame, frame_offset, _parse_crc(item[5]))


def _parse_crc(text: object) -> int:
    if not isinstance(text, str) or _CRC.fullmatch(text) is None:
        raise MalformedValue("a CRC of an index is malformed")
    return int(text, 16)


def _items(fields: Mapping[str, object], name: str) -> list[object]:
    items = fields.get(name)
    if not isinstance(items, list):
        raise MalformedValue(f"a line of an index has no list {name}")
    return items


def _integer(fields: Mapping[str, object], name: str, most: int) -> int:
    (value,) = _integers([fields.get(name)], 1)
    if value > most:
        raise MalformedValue(f"a line of an index has a {name} out of range: {value}")
    return value


def _integers(items: object, count: int) -> list[int]:
    if not isinstance(items, list) or len(items) != count:
        raise MalformedValue(f"an index holds something else than {count} integers")
    for item in items:
        # A bool is an int to Python, and no number to us.
        if type(item) is not int or not 0 <= item <= FILE_BYTES_MAX:
            raise MalformedValue(f"an index holds a number out of range: {item!r:.40}")
    return items
