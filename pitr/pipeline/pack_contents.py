"""What lies in a pack, as its writer knows it: whose bytes each frame holds, and a MAC of them.

Of this a host that cannot open the pack can still tell whether a file holds the same bytes now.  Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pitr.pipeline.content_mac import ContentMac
from pitr.pipeline.packs import Extent, FramePlace


@dataclass(frozen=True, slots=True)
class PackedFrame:
    """A file's bytes in one frame: where they belong in the file, and their MAC.

    ``stored_bytes`` is the compressed size where nothing else is in the frame, else 0.
    """

    extents: tuple[Extent, ...]
    mac: bytes
    stored_bytes: int

    @property
    def content_bytes(self) -> int:
        return sum(extent.size_bytes for extent in self.extents)


@dataclass(frozen=True, slots=True)
class PackedFile:
    """What of a file lies in one pack, in the file's order."""

    path: bytes
    frames: tuple[PackedFrame, ...]

    @property
    def content_bytes(self) -> int:
        return sum(frame.content_bytes for frame in self.frames)


@dataclass(frozen=True, slots=True)
class PackContents:
    """All that a pack holds, in the order in which it was put in."""

    places: tuple[FramePlace, ...]
    files: tuple[PackedFile, ...]


@dataclass(slots=True)
class ContentLog:
    """Gathers what goes into a pack; ``mac`` None: nobody wants to know."""

    mac: ContentMac | None
    _files: dict[bytes, list[PackedFrame]] = field(default_factory=dict)

    def add(
        self, path: bytes, extents: tuple[Extent, ...], content: bytes | memoryview, stored_bytes: int
    ) -> None:
        """Note a file's bytes; those of one file come in order, and not between another's."""
        if self.mac is not None and extents:
            frame = PackedFrame(extents, self.mac.make(content), stored_bytes)
            self._files.setdefault(path, []).append(frame)

    def take(self) -> tuple[PackedFile, ...]:
        """Return what was gathered, and begin anew."""
        files = tuple(PackedFile(path, tuple(frames)) for path, frames in self._files.items())
        self._files.clear()
        return files
