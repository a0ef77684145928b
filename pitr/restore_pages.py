"""Judges pages as a restore writes them: a page's checksum holds its block number, so it tells a wrong place.

The bytes are what was read from the server, their CRC says so.  What a checksum finds here is a page that is
put where it does not belong, which no sum over the bytes alone would show.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Final

from pitr.catalogue.backup_record import FINDINGS_MAX, BackupManifest
from pitr.errors import NotAuthentic
from pitr.postgres.datadir import parse_relation_path
from pitr.postgres.page import PAGE_BYTES, BadPage, PageBatch, blocks_from
from pitr.wal.lsn import LSN

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

    def place(self, path: bytes, offset: int) -> int | None:
        """Return the block number at ``offset`` from the relation's first segment; None: nothing to judge."""
        relation = _parse(path) if self._is_on else None
        if relation is None or offset % PAGE_BYTES:
            return None
        return relation.segment * self._segment_blocks + offset // PAGE_BYTES

    def judge(self, path: bytes, block: int, bad: BadPage) -> None:
        """Raise NotAuthentic for a bad page, unless it was known to be bad or replay mends it."""
        if (os.fsdecode(path), block) in self._known or self._is_excused(bad.lsn):
            return
        raise NotAuthentic(
            f"block {block} of {os.fsdecode(path)} is not the page that belongs there",
            detail=f"{bad.reason}; it was read so from backup {self._backup}",
            hint="a mistake in pitr or in its store: restore from an older backup, and report it",
        )

    def _is_excused(self, lsn: LSN | None) -> bool:
        return lsn is not None and self._replayed_from is not None and lsn >= self._replayed_from


class RestoredPages:
    """The pages that one thread writes, judged many at once.  ``begin`` first, ``flush`` last.

    So a page may be found bad after it was written: nothing restored is used after any error.
    """

    def __init__(self) -> None:
        self._judge: PageJudge | None = None
        self._batch = PageBatch()
        self._places: list[tuple[bytes, int]] = []

    def begin(self, judge: PageJudge) -> None:
        """Forget everything; the pages that come now are for ``judge``."""
        self._judge = judge
        self._batch.clear()
        self._places.clear()

    def add(self, path: bytes, offset: int, content: memoryview) -> None:
        """Look at bytes that are written at ``offset``, now or by ``flush``.  Raises NotAuthentic."""
        assert self._judge is not None, "begin comes first"
        first = self._judge.place(path, offset)
        if first is None:
            return
        whole, at = len(content) // PAGE_BYTES, 0
        while at < whole:
            end = min(whole, at + self._batch.room)
            self._batch.add(content[at * PAGE_BYTES : end * PAGE_BYTES], blocks_from(first + at, end - at))
            self._places += [(path, first + number) for number in range(at, end)]
            at = end
            if not self._batch.room:
                self.flush()

    def flush(self) -> None:
        """Judge what was gathered.  Raises NotAuthentic."""
        places, self._places = self._places, []
        if self._judge is not None and places:
            for bad in self._batch.check(checksums=True):
                self._judge.judge(*places[bad.index], bad)
