"""The parts of a backup's index as a restore reads them: of each pack, which bytes go where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pitr.pipeline.packs import Extent, IndexFile, IndexFileMore
from pitr.restore_wanted import Claim, Piece, Span, WantedFiles, whole


@dataclass(frozen=True, slots=True)
class Use:
    """An extent, and what of it is written; ``file`` is the number of a file that is put together."""

    path: bytes
    extent: Extent
    spans: tuple[Span, ...]
    file: int | None


@dataclass(frozen=True, slots=True)
class HeldExtent:
    """An extent of a pack, wanted or not, and whose bytes it holds."""

    path: bytes
    extent: Extent


class PartReader:
    """Reads the files of one part of a backup: what is taken of each, and for the newest, what is not there.

    ``keeps_all``: also note what of each pack is not wanted, which only a comparison with old files needs.
    """

    def __init__(self, wanted: WantedFiles, depth: int, *, keeps_all: bool = False) -> None:
        self.depth = depth
        self._keeps_all = keeps_all
        self._held: list[HeldExtent] = []
        self._wanted = wanted
        self._uses: list[Use] = []
        # The one file whose lines go on; of the newest backup its number is known only at its last line.
        self._open: Claim | None = None
        self._open_path: bytes | None = None

    def add_more(self, line: IndexFileMore) -> None:
        if self._open_path != line.path:
            self._open_path, self._open = line.path, self._claim(line.path)
        self._hold(line)
        self._take(self._open, line.extents)

    def add_file(self, line: IndexFile) -> None:
        if self._open_path == line.path:
            claim, self._open, self._open_path = self._open, None, None
        else:
            claim = self._claim(line.path)
        self._hold(line)
        if claim is None:
            return
        self._take(claim, line.extents)
        rest = claim.rest(line.parent_bytes)
        if self.depth:
            self._wanted.settle(claim, rest)
        elif line.parent_bytes is not None:
            number = self._wanted.begin(line, rest)
            for extent in claim.taken:
                self._wanted.add_piece(Piece(number, extent.offset, extent.size_bytes, extent.crc32c))

    def end_pack(self) -> tuple[Use, ...]:
        """Return what is taken of the pack whose lines have been read; see ``held`` first."""
        uses, self._uses = tuple(self._uses), []
        self._held = []
        return uses

    @property
    def held(self) -> tuple[HeldExtent, ...]:
        """All extents of the pack whose lines are being read; empty unless ``keeps_all``."""
        return tuple(self._held)

    def _hold(self, line: IndexFile | IndexFileMore) -> None:
        if self._keeps_all:
            self._held += [HeldExtent(line.path, extent) for extent in line.extents]

    def _claim(self, path: bytes) -> Claim | None:
        return whole(path) if self.depth == 0 else self._wanted.claim(path)

    def _take(self, claim: Claim | None, extents: Sequence[Extent]) -> None:
        if claim is None:
            return
        for extent in extents:
            spans = claim.take(extent)
            if spans:
                self._uses.append(Use(claim.path, extent, spans, claim.file))
