"""Every region's own copies, compared with each other and with what signed records say of them.

A read is content with one good copy, so what another region has lost or holds damaged shows in no read.
Here each region is listed and asked by itself: which objects it lacks, whose size is wrong, which small
signed records do not verify; with ``read_data`` every object is read in full (``verifiers.copy_data``).
What is listed is compared as it comes, so memory does not grow with the repository.  What an expire record
names is missing nowhere: some regions delete it earlier than others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from pitr.catalogue.backup_record import BackupManifest, StoredObject
from pitr.errors import PitrError
from pitr.layout import REPOSITORY_KEY, ArchiveId
from pitr.region_heads import HEADS_COMPARED_MAX
from pitr.repository import Repository
from storage.copy_faults import CopyFault, CopyFaults, FaultKind, FaultReport
from storage.listing import CopyInfo, merge_listings
from storage.regions import Region
from storage.store import CopyDamaged, ObjectInfo, ObjectMissing, StoreError
from verifiers.gone_keys import GoneKeys
from verifiers.records import RECORD_PREFIXES, verify_record

# Each waits for one small read; more would only queue in the store's own connections.
READERS: Final = 8
_BATCH: Final = 256
# Sizes that differ are judged by reading the copies; a region full of cut objects is judged by its size.
_JUDGED_MAX: Final = 200
# Missing at first sight may be on its way; more of them than this are not.
_ASKED_AGAIN_MAX: Final = 1000

_T = TypeVar("_T")


class Verdict(StrEnum):
    """What is to be said of one region.  Not asked is never passed."""

    PASS = "pass"
    FAIL = "fail"
    NOT_ASKED = "not asked"


@dataclass(frozen=True, slots=True)
class RegionCopies:
    """One region: copies listed, bytes read in full, and why it was not asked, or not to the end."""

    region: str
    verdict: Verdict
    objects: int
    read_bytes: int
    unasked: str | None


@dataclass(frozen=True, slots=True)
class CopiesReport:
    """What was found, by region; ``faults`` name what is wrong, in bounds, and count it."""

    regions: tuple[RegionCopies, ...]
    faults: FaultReport


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A copy that was not there at first sight; ``is_named``: a signed manifest says that it must be."""

    region: Region
    key: str
    detail: str
    is_named: bool


class CopyCheckRun:
    """One check of all regions; what is found is gathered here.  Methods may run in several threads."""

    def __init__(self, repository: Repository, regions: Sequence[Region]) -> None:
        self.repository: Final = repository
        self.regions: Final = tuple(regions)
        self.faults: Final = CopyFaults()
        self.objects: Final[Counter[str]] = Counter()
        self.read_bytes: Final[Counter[str]] = Counter()
        self.unasked: Final[dict[str, str]] = {}
        self._suspects: list[_Suspect] = []
        self._gone: dict[ArchiveId, GoneKeys] = {}
        self._judged = 0
        self._said: dict[str, tuple[str, bytes]] = {}

    def asked(self) -> list[Region]:
        """Return the regions that have answered so far."""
        return [region for region in self.regions if region.name not in self.unasked]

    def listing(self, region: Region, prefix: str) -> Iterator[ObjectInfo]:
        """List a region; where it does not answer to the end, it is not asked any further."""
        try:
            yield from region.store.list_objects(prefix)
        except StoreError as cause:
            self.unasked[region.name] = str(cause)

    def verify(self, region: Region, key: str, check: Callable[[], _T]) -> _T | None:
        """Return what ``check`` does of one copy; None if the copy is bad, gone, or its region away."""
        if region.name in self.unasked:
            return None
        try:
            return check()
        except CopyDamaged as cause:
            self.add(region, key, FaultKind.DAMAGED, str(cause))
        except ObjectMissing:
            # Listed a moment ago, or the listing's own finding.
            pass
        except StoreError as cause:
            self.unasked[region.name] = str(cause)
        return None

    def add(self, region: Region, key: str, kind: FaultKind, detail: str) -> None:
        """Take up what is wrong with a copy."""
        self.faults.add(CopyFault(region.name, key, kind, detail))

    # -- small signed records, read in each region

    def check_records(
        self,
        prefix: str,
        limit: int | None = None,
        verify: Callable[[Repository, str], bytes] = verify_record,
    ) -> None:
        """Verify each region's copies of the signed records below ``prefix``, at most ``limit`` of each."""
        for region in self.asked():
            check = partial(verify, self.repository.alone(region.store))
            keys = (info.key for info in islice(self.listing(region, prefix), limit))
            each(READERS, partial(self._check_record, region, check), keys)

    def _check_record(self, region: Region, check: Callable[[str], bytes], key: str) -> None:
        said = self.verify(region, key, partial(check, key))
        if said is not None:
            self.compare_said(region, key, said, self._said.setdefault(key, (region.name, said)))

    def compare_said(self, region: Region, key: str, said: bytes, known: tuple[str, bytes]) -> None:
        """Take up a conflict if a genuine copy says another thing than the one of the region in ``known``."""
        if known[1] != said:
            detail = f"genuine, and says another thing than the copy in {known[0]}: two writers"
            self.add(region, key, FaultKind.CONFLICTS, detail)

    def end_records(self) -> None:
        """Forget what the records of one kind said; the next kind has other keys."""
        self._said.clear()

    # -- listings

    def compare_listings(self, prefix: str, *, has_signed_size: bool = False) -> None:
        """Compare which copies the regions list below ``prefix``, and their sizes where nobody else does."""
        asked = self.asked()
        for copy in merge_listings([self.listing(region, prefix) for region in asked]):
            for region, size in zip(asked, copy.sizes_bytes, strict=True):
                if size is not None:
                    self.objects[region.name] += 1
                elif region.name not in self.unasked:
                    holders = [r.name for r, s in zip(asked, copy.sizes_bytes, strict=True) if s is not None]
                    self.suspect(region, copy.key, f"in {', '.join(holders)}", is_named=False)
            sizes = {size for size in copy.sizes_bytes if size is not None}
            if len(sizes) > 1 and not has_signed_size:
                self._judge(copy, asked)

    def _judge(self, copy: CopyInfo, asked: Sequence[Region]) -> None:
        """Find out whose size is wrong: by reading, or by the majority where there are too many."""
        found = [
            (region, size) for region, size in zip(asked, copy.sizes_bytes, strict=True) if size is not None
        ]
        detail = f"sizes in bytes differ: {', '.join(f'{region.name} {size}' for region, size in found)}"
        self._judged += 1
        if self._judged > _JUDGED_MAX:
            (usual, votes), *_ = Counter(size for _, size in found).most_common(1)
            wrong = [region for region, size in found if size != usual or votes * 2 <= len(found)]
            for region in wrong:
                self.add(region, copy.key, FaultKind.DIFFERS, detail)
            return
        good = [(region, size) for region, size in found if self._is_genuine(region, copy.key)]
        for region, size in good[1:]:
            if size != good[0][1]:
                self.add(
                    region,
                    copy.key,
                    FaultKind.CONFLICTS,
                    f"genuine, as is that in {good[0][0].name}; {detail}",
                )

    def _is_genuine(self, region: Region, key: str) -> bool:
        alone = self.repository.alone(region.store)
        return self.verify(region, key, lambda: verify_record(alone, key)) is not None

    def compare_backup(self, manifest: BackupManifest) -> None:
        """Compare each region's listing of a backup with what its manifest says of it."""
        wanted = {stored.key: stored for stored in (*manifest.packs, *manifest.indexes)}
        prefix = f"backups/{manifest.archive}/{manifest.backup}/"
        for region in self.asked():
            lacking = dict(wanted)
            for info in self.listing(region, prefix):
                stored = lacking.pop(info.key, None)
                if stored is None:
                    continue
                self.objects[region.name] += 1
                if info.size_bytes != stored.size_bytes:
                    self.add(region, info.key, FaultKind.DAMAGED, _size_detail(stored, info.size_bytes))
            if region.name not in self.unasked:
                for key in lacking:
                    self.suspect(region, key, f"backup {manifest.backup} needs it", is_named=True)

    # -- what was not there at first sight

    def note_expired(self, archive: ArchiveId) -> None:
        """Take up what of an archive has expired: of that a region may lack what others still hold.

        Raises as ``ExpiryReader.newest``.
        """
        newest = self.repository.expiry.newest(archive)
        if newest is not None:
            self._gone[archive] = GoneKeys(newest.record)

    def _is_gone(self, key: str) -> bool:
        return any(gone.holds(key) for gone in self._gone.values())

    def suspect(self, region: Region, key: str, detail: str, *, is_named: bool) -> None:
        """Note a copy that a region does not list; it is asked for once more at the end."""
        if self._is_gone(key):
            return
        if len(self._suspects) < _ASKED_AGAIN_MAX:
            self._suspects.append(_Suspect(region, key, detail, is_named))
        else:
            self.add(region, key, FaultKind.MISSING, detail)

    def ask_again(self, archives: Iterable[ArchiveId]) -> None:
        """Ask for what was missing: a put may have been on its way, or a deletion under way."""
        for archive in archives if self._suspects else ():
            # Where it cannot be read any more, what it said before holds.
            with suppress(PitrError, StoreError):
                self.note_expired(archive)
        for one in self._suspects:
            if self._is_gone(one.key):
                continue
            if one.region.name in self.unasked or self._has(one.region, one.key) is not False:
                continue
            others = [region for region in self.asked() if region is not one.region]
            if one.is_named or any(self._has(region, one.key) for region in others):
                self.add(one.region, one.key, FaultKind.MISSING, one.detail)
        self._suspects.clear()

    def _has(self, region: Region, key: str) -> bool | None:
        try:
            region.store.get_range(key, 0, 1)
        except ObjectMissing:
            return False
        except StoreError as cause:
            self.unasked[region.name] = str(cause)
            return None
        return True

    def report(self) -> CopiesReport:
        """Return what was found."""
        faults = self.faults.report()
        return CopiesReport(tuple(self._region(region, faults) for region in self.regions), faults)

    def _region(self, region: Region, faults: FaultReport) -> RegionCopies:
        unasked = self.unasked.get(region.name)
        verdict = Verdict.PASS if unasked is None else Verdict.NOT_ASKED
        if faults.count(region.name, *FaultKind):
            verdict = Verdict.FAIL
        name = region.name
        return RegionCopies(name, verdict, self.objects[name], self.read_bytes[name], unasked)


def check_copies(
    repository: Repository,
    regions: Sequence[Region],
    *,
    known: Iterable[CopyFault] = (),
    read_data: Callable[[CopyCheckRun, Sequence[ArchiveId], Sequence[BackupManifest]], None] | None = None,
    others: Callable[[CopyCheckRun], None] = lambda _run: None,
) -> CopiesReport:
    """Check every region's own copies.  ``known`` are faults that reads have met already.

    ``read_data`` reads all of them in full: ``verifiers.copy_data``; ``others`` checks what else there is:
    ``verifiers.verifier_copies``.  Raises StoreError if the regions together cannot say what there is.
    """
    run = CopyCheckRun(repository, regions)
    for fault in known:
        if fault.kind is FaultKind.DAMAGED:
            run.faults.add(fault)
    archives = repository.archives()
    for prefix in (REPOSITORY_KEY, "epochs/"):
        run.check_records(prefix)
        run.compare_listings(prefix, has_signed_size=True)
    manifests: list[BackupManifest] = []
    for archive in archives:
        try:
            # Read once from any region, so that a bad copy of it condemns no other record of its region.
            repository.epoch(archive)
        except PitrError:
            # In no region as root signed it: a finding of its own copies, and nothing below can be judged.
            continue
        run.note_expired(archive)
        manifests += [listed.manifest for listed in repository.manifests(archive).backups]
        for kind in RECORD_PREFIXES:
            run.check_records(f"{kind}/{archive}/")
            run.end_records()
            run.compare_listings(f"{kind}/{archive}/", has_signed_size=True)
        run.check_records(f"heads/{archive}/", HEADS_COMPARED_MAX)
        run.end_records()
        for kind in ("heads", "walindex", "wal", "fences"):
            run.compare_listings(f"{kind}/{archive}/")
    for manifest in manifests:
        run.compare_backup(manifest)
    others(run)
    if read_data is not None:
        read_data(run, archives, manifests)
    run.ask_again(archives)
    return run.report()


def each(readers: int, work: Callable[[_T], object], items: Iterable[_T]) -> None:
    """Do ``work`` for every item in a few threads; at most a batch of items is held."""
    source = iter(items)
    with ThreadPoolExecutor(max_workers=readers, thread_name_prefix="copies") as pool:
        while batch := list(islice(source, _BATCH)):
            for _ in pool.map(work, batch):
                pass


def _size_detail(stored: StoredObject, size_bytes: int) -> str:
    return f"{size_bytes} bytes, the manifest says {stored.size_bytes}"
