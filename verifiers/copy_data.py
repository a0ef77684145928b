"""Every object of every region, read in full and compared with the digest that a signed record gives.

Needs no key: packs and indexes by the manifest, pieces and segments by their own signed headers.  A few
objects of at most 64 MiB are in memory at a time.  Reference: docs/format.md §4, §8.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from pitr.catalogue.backup_record import BackupManifest, StoredObject
from pitr.layout import ArchiveId
from pitr.repository import Repository
from storage.listing import CopyInfo, merge_listings
from storage.regions import Region
from storage.store import CopyDamaged
from verifiers.records import verify_record
from verifiers.region_copies import CopyCheckRun, each

# Three of the largest objects are some 200 MB; a region's network is busy with fewer.
READERS: Final = 3
_KINDS: Final = ("heads", "walindex", "wal", "fences")


class DataReader:
    """Reads all data.  ``on_progress`` gets a region's name and the bytes read there, from any thread."""

    def __init__(self, on_progress: Callable[[str, int], None] = lambda _region, _bytes: None) -> None:
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def read_all(
        self, run: CopyCheckRun, archives: Sequence[ArchiveId], manifests: Sequence[BackupManifest]
    ) -> None:
        """Read every object of each region that answers; small records were read before."""
        alone = [(region, run.repository.alone(region.store)) for region in run.asked()]
        for archive in archives:
            for kind in _KINDS:
                self._read_signed(run, alone, f"{kind}/{archive}/")
        for region, _ in alone:
            self._read_packs(run, region, manifests)

    def _read_signed(
        self, run: CopyCheckRun, regions: Sequence[tuple[Region, Repository]], prefix: str
    ) -> None:
        def check(copy: CopyInfo) -> None:
            """Read one object in all regions in turn: so nothing must be kept of those before it."""
            known: tuple[str, bytes] | None = None
            for (region, alone), size_bytes in zip(regions, copy.sizes_bytes, strict=True):
                if size_bytes is None:
                    continue
                said = run.verify(region, copy.key, partial(verify_record, alone, copy.key))
                if said is None:
                    continue
                self._count(run, region, size_bytes)
                known = known or (region.name, said)
                run.compare_said(region, copy.key, said, known)

        each(READERS, check, merge_listings([run.listing(region, prefix) for region, _ in regions]))

    def _read_packs(self, run: CopyCheckRun, region: Region, manifests: Sequence[BackupManifest]) -> None:
        def check(stored: StoredObject) -> None:
            if run.verify(region, stored.key, lambda: _verify_stored(region, stored)):
                self._count(run, region, stored.size_bytes)

        each(READERS, check, _stored(manifests))

    def _count(self, run: CopyCheckRun, region: Region, size_bytes: int) -> None:
        with self._lock:
            run.read_bytes[region.name] += size_bytes
            done = run.read_bytes[region.name]
        self._on_progress(region.name, done)


def _stored(manifests: Sequence[BackupManifest]) -> Iterator[StoredObject]:
    for manifest in manifests:
        yield from manifest.packs
        yield from manifest.indexes


def _verify_stored(region: Region, stored: StoredObject) -> bool:
    body = region.store.get(stored.key)
    if len(body) != stored.size_bytes:
        raise CopyDamaged(f"{len(body)} bytes, the manifest says {stored.size_bytes}")
    if hashlib.sha256(body).digest() != stored.sha256:
        raise CopyDamaged("its SHA-256 is not the one that the manifest says")
    return True
