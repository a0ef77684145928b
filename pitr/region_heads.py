"""The signed ends as each region has them: who lags, and whether any two tell different stories.

Create-only puts keep one region from holding two heads of one number; nothing keeps two regions from
holding one each, if two writers share a key or one region was rolled back and written anew.  Both
heads would be genuine, and a reader that asks one region at a time would never know.
Reference: docs/format.md §6.4; the attacks are those of TUF: fork, rollback, freeze.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Protocol

from pitr.catalogue.records import HeadRecord
from pitr.errors import MalformedValue, NotAuthentic
from pitr.layout import ArchiveId, head_key, head_sequence
from pitr.repository import ListedHead, Repository
from pitr.verified import RefusedObject
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.store import ObjectMissing, ObjectStore, StoreError

# Heads come every 30 s, so this looks half an hour back, which is what two regions may lag apart.
HEADS_COMPARED_MAX: Final = 64


class NamedStore(Protocol):
    """One region: its name and its own store."""

    @property
    def name(self) -> str: ...

    @property
    def store(self) -> ObjectStore: ...


@dataclass(frozen=True, slots=True)
class RegionHead:
    """The newest genuine head of one region; None if it has none.  ``error`` if it could not be asked."""

    region: str
    head: HeadRecord | None
    refused: tuple[RefusedObject, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class HeadFork:
    """Two regions hold genuine heads of one number that differ."""

    sequence: int
    regions: tuple[str, str]


@dataclass(frozen=True, slots=True)
class RegionHeads:
    """What all regions say of one archive's end; ``forks`` ascend by number."""

    heads: tuple[RegionHead, ...]
    forks: tuple[HeadFork, ...]

    def lagging(self, heads_min: int = 1) -> tuple[str, ...]:
        """Return the regions that answered with a head at least so many older than the newest, or none."""
        newest = max((one.head.sequence for one in self.heads if one.head is not None), default=0)
        return tuple(
            one.region
            for one in self.heads
            if one.error is None and newest - (0 if one.head is None else one.head.sequence) >= heads_min
        )

    def first_forks(self) -> tuple[HeadFork, ...]:
        """Return the earliest fork that was seen of each two regions; what follows a fork differs as well."""
        first: dict[tuple[str, str], HeadFork] = {}
        for fork in self.forks:
            first.setdefault(fork.regions, fork)
        return tuple(first.values())


@dataclass(slots=True)
class _View:
    """One region alone, and what was read of it."""

    region: NamedStore
    alone: Repository
    heads: dict[int, ListedHead] = field(default_factory=dict)
    refused: list[RefusedObject] = field(default_factory=list)
    error: str | None = None

    @property
    def newest(self) -> HeadRecord | None:
        return self.heads[max(self.heads)].head if self.heads else None

    def read_newest(self, archive: ArchiveId, heads_max: int) -> None:
        """Read the newest heads: ``heads_max`` of them, or as many more as it takes to find a genuine one."""
        listing = self.region.store.list_objects(f"heads/{archive}/")
        for read, info in enumerate(islice(listing, HEADS_COMPARED_MAX)):
            if read >= heads_max and self.heads:
                return
            self._read(archive, info.key)

    def read_number(self, archive: ArchiveId, sequence: int) -> None:
        """Read one more head, if it is there."""
        if sequence not in self.heads:
            self._read(archive, head_key(archive, sequence))

    def _read(self, archive: ArchiveId, key: str) -> None:
        try:
            # Inside, for a stray name in one region must not keep the others from being compared.
            sequence = head_sequence(key)
            self.heads[sequence] = self.alone.get_head(archive, sequence)
        except ObjectMissing:
            return
        except (NotAuthentic, MalformedValue) as cause:
            self.refused.append(RefusedObject(key, cause.detail or cause.message))


def compare_heads(
    repository: Repository,
    archive: ArchiveId,
    regions: Sequence[NamedStore],
    *,
    heads_max: int = HEADS_COMPARED_MAX,
) -> RegionHeads:
    """Read the newest heads of each region alone and compare those that several have.

    The newest head of a region that lags is asked of the others, however far they are ahead: heads name
    their predecessors, so where that one is alike, so is all before it.  ``heads_max`` 1 is therefore a cheap
    and full comparison; more also reads the copies of older heads.  A region that does not answer is named
    and compared with none.  Raises as ``Repository.epoch``.
    """
    repository.epoch(archive)
    views = [_View(region, repository.alone(region.store)) for region in regions]
    for view in views:
        try:
            view.read_newest(archive, heads_max)
        except StoreError as cause:
            view.error = str(cause)
    ends = {view.newest.sequence for view in views if view.error is None and view.newest is not None}
    for view in views:
        newest = view.newest
        if view.error is not None or newest is None:
            continue
        try:
            for sequence in sorted(ends):
                if sequence < newest.sequence:
                    view.read_number(archive, sequence)
        except StoreError as cause:
            view.error = str(cause)
    heads = tuple(
        RegionHead(view.region.name, view.newest, tuple(view.refused), view.error) for view in views
    )
    return RegionHeads(heads, tuple(_forks(views)))


def _forks(views: Sequence[_View]) -> list[HeadFork]:
    """Compare every head with the first region's that has one of its number."""
    forks = []
    for sequence in sorted({number for view in views for number in view.heads}):
        holders = [view for view in views if sequence in view.heads]
        first = holders[0]
        for view in holders[1:]:
            if view.heads[sequence].payload_sha256 != first.heads[sequence].payload_sha256:
                forks.append(HeadFork(sequence, (first.region.name, view.region.name)))
    return forks


def last_common_head(
    repository: Repository, archive: ArchiveId, regions: Sequence[NamedStore], fork: HeadFork
) -> HeadRecord | None:
    """Return the newest head before ``fork`` that both of its regions have alike, None if there is none.

    Looks near the fork first, then by halving: what follows a fork differs as well.  Raises StoreError.
    """
    views = [repository.alone(region.store) for region in regions if region.name in fork.regions]

    def alike(sequence: int) -> HeadRecord | None:
        try:
            found = [view.get_head(archive, sequence) for view in views]
        except (ObjectMissing, NotAuthentic, MalformedValue):
            return None
        return found[0].head if len({one.payload_sha256 for one in found}) == 1 else None

    common: HeadRecord | None = None
    low, high, step = 0, fork.sequence, 1
    while high - low > 1:
        middle = max(low + 1, high - step) if common is None else (low + high) // 2
        head = alike(middle)
        if head is None:
            high, step = middle, step * 2
        else:
            low, common = middle, head
    return common


def is_before_fork(common: HeadRecord | None, timeline: TimelineId, end: LSN) -> bool:
    """Tell whether WAL up to ``end`` of ``timeline`` is what both sides of a fork after ``common`` have."""
    if common is None or common.wal_end is None:
        return False
    return (timeline, end) <= (common.timeline, common.wal_end)
