"""Judges pages as a restore writes them: a page's checksum holds its block number, so it tells a wrong place.

The bytes are what was read from the server, their CRC says so.  What a checksum finds here is a page that is
put where it does not belong, which no sum over the bytes alone would show.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from pitr.catalogue.backup_record import FINDINGS_MAX, BackupManifest
from pitr.errors import NotAuthentic
from pitr.postgres.datadir import parse_relation_path
from pitr.postgres.page import PAGE_BYTES, PAGES_AT_ONCE, BadPage, blocks_from, blocks_of, check_pages
from pitr.wal.lsn import LSN

# Longer runs are worth a call of their own.
_SHORT_PAGES: Final = 32
_BATCH_PAGES: Final = 128
_parse: Final = lru_cache(maxsize=4096)(parse_relation_path)


class PageJudge:
    """Judges the pages of one backup of a chain.  Thread-safe.

    ``replayed_from``: a page with a later LSN may be torn, for replay mends it; None in an older backup of a
    chain, of which only pages are taken that nobody wrote again.
    """

    def __init__(self, manifest: BackupManifest, replayed_from: LSN | None) -> None:
        self._backup = manifest.backup
        # Without checksums a header alone says nothing of a page's place.
        self._is_on = manifest.page_checksums and len(manifest.findings) < FINDINGS_MAX
        self._segment_blocks = manifest.relation_segment_blocks
        self._known = {(finding.path, finding.block) for finding in manifest.findings}
        self._replayed_from = replayed_from

    def judge(self, path: bytes, offset: int, content: memoryview) -> None:
        """Look at bytes that are written at ``offset``.  Raises NotAuthentic."""
        first = self.place(path, offset)
        if first is None:
            return
        whole = len(content) // PAGE_BYTES
        for at in range(0, whole, PAGES_AT_ONCE):
            count = min(PAGES_AT_ONCE, whole - at)
            pages = content[at * PAGE_BYTES : (at + count) * PAGE_BYTES]
            for bad in check_pages(pages, blocks_from(first + at, count), checksums=True):
                self._refuse(path, first + at + bad.index, bad)

    def place(self, path: bytes, offset: int) -> int | None:
        """Return the block number at ``offset`` from the relation's first segment; None: nothing to judge."""
        relation = _parse(path) if self._is_on else None
        if relation is None or offset % PAGE_BYTES:
            return None
        return relation.segment * self._segment_blocks + offset // PAGE_BYTES

    def judge_together(self, pages: memoryview, places: Sequence[tuple[bytes, int]]) -> None:
        """Look at pages of several files, each with its path and its block.  Raises NotAuthentic."""
        blocks = blocks_of([block for _, block in places])
        for bad in check_pages(pages, blocks, checksums=True):
            self._refuse(*places[bad.index], bad)

    def _refuse(self, path: bytes, block: int, bad: BadPage) -> None:
        """Raise NotAuthentic, unless the page was known to be bad or replay mends it."""
        if (os.fsdecode(path), block) in self._known or self._is_excused(bad.lsn):
            return
        raise NotAuthentic(
            f"block {block} of {os.fsdecode(path)} is not the page that belongs there",
            detail=f"{bad.reason}; it was read so from backup {self._backup}",
            hint="a mistake in pitr or in its store: restore from an older backup, and report it",
        )

    def _is_excused(self, lsn: LSN | None) -> bool:
        return lsn is not None and self._replayed_from is not None and lsn >= self._replayed_from


class PageBatch:
    """Gathers pages that come in short runs, and judges many at once.  Not thread-safe; end with ``flush``.

    A call of numpy costs a single page 20 times what it costs one of a hundred.  So a page may be found
    bad after it was written: nothing restored is used after any error.
    """

    def __init__(self, judge: PageJudge) -> None:
        self._judge = judge
        self._pages = bytearray()
        self._places: list[tuple[bytes, int]] = []

    def judge(self, path: bytes, offset: int, content: memoryview) -> None:
        """Look at bytes that are written at ``offset``, now or by ``flush``.  Raises NotAuthentic."""
        whole = len(content) // PAGE_BYTES
        if whole > _SHORT_PAGES:
            self._judge.judge(path, offset, content)
            return
        first = self._judge.place(path, offset)
        if first is None:
            return
        self._pages += content[: whole * PAGE_BYTES]
        self._places += [(path, first + number) for number in range(whole)]
        if len(self._places) >= _BATCH_PAGES:
            self.flush()

    def flush(self) -> None:
        """Judge what was gathered.  Raises NotAuthentic."""
        if self._places:
            self._judge.judge_together(memoryview(bytes(self._pages)), self._places)
        self._pages.clear()
        self._places.clear()
