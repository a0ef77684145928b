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
from pitr.postgres.page import PAGE_BYTES, PAGES_AT_ONCE, blocks_from, check_pages
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

    def judge(self, path: bytes, offset: int, content: memoryview) -> None:
        """Look at bytes that are written at ``offset``.  Raises NotAuthentic."""
        relation = _parse(path) if self._is_on else None
        if relation is None or offset % PAGE_BYTES:
            return
        first = relation.segment * self._segment_blocks + offset // PAGE_BYTES
        whole = len(content) // PAGE_BYTES
        for at in range(0, whole, PAGES_AT_ONCE):
            count = min(PAGES_AT_ONCE, whole - at)
            pages = content[at * PAGE_BYTES : (at + count) * PAGE_BYTES]
            for bad in check_pages(pages, blocks_from(first + at, count), checksums=True):
                block = first + at + bad.index
                if (os.fsdecode(path), block) in self._known or self._is_excused(bad.lsn):
                    continue
                raise NotAuthentic(
                    f"block {block} of {os.fsdecode(path)} is not the page that belongs there",
                    detail=f"{bad.reason}; it was read so from backup {self._backup}",
                    hint="a mistake in pitr or in its store: restore from an older backup, and report it",
                )

    def _is_excused(self, lsn: LSN | None) -> bool:
        return lsn is not None and self._replayed_from is not None and lsn >= self._replayed_from
