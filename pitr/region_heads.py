"""The signed ends as each region has them: who lags, and whether any two tell different stories.

Create-only puts keep one region from holding two heads of one number; nothing keeps two regions from
holding one each, if two writers share a key or one region was rolled back and written anew.  Both
heads would be genuine, and a reader that asks one region at a time would never know.
Reference: docs/format.md §6.4; the attacks are those of TUF: fork, rollback, freeze.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from pitr.catalogue.records import HeadRecord
from pitr.errors import MalformedValue, NotAuthentic
from pitr.layout import ArchiveId, head_sequence
from pitr.repository import Repository
from pitr.verified import RefusedObject
from storage.store import ObjectStore, StoreError

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
    """What all regions say of one archive's end."""

    heads: tuple[RegionHead, ...]
    forks: tuple[HeadFork, ...]

    def lagging(self) -> tuple[str, ...]:
        """Return the regions that answered with an older head than the newest, or none at all."""
        newest = max((one.head.sequence for one in self.heads if one.head is not None), default=0)
        return tuple(
            one.region
            for one in self.heads
            if one.error is None and (0 if one.head is None else one.head.sequence) < newest
        )


def compare_heads(repository: Repository, archive: ArchiveId, regions: Sequence[NamedStore]) -> RegionHeads:
    """Read the newest heads of each region alone and compare those that several have.

    A region that does not answer is named and compared with none.  Raises as ``Repository.epoch``.
    """
    repository.epoch(archive)
    heads: list[RegionHead] = []
    forks: list[HeadFork] = []
    seen: dict[int, tuple[str, bytes]] = {}
    for region in regions:
        alone = repository.alone(region.store)
        refused: list[RefusedObject] = []
        newest: HeadRecord | None = None
        try:
            for info in islice(region.store.list_objects(f"heads/{archive}/"), HEADS_COMPARED_MAX):
                try:
                    listed = alone.get_head(archive, head_sequence(info.key))
                except (NotAuthentic, MalformedValue) as cause:
                    refused.append(RefusedObject(info.key, cause.detail or cause.message))
                    continue
                newest = newest or listed.head
                sequence, digest = listed.head.sequence, listed.payload_sha256
                other, known = seen.setdefault(sequence, (region.name, digest))
                if known != digest:
                    forks.append(HeadFork(sequence, (other, region.name)))
        except StoreError as cause:
            heads.append(RegionHead(region.name, newest, tuple(refused), str(cause)))
            continue
        heads.append(RegionHead(region.name, newest, tuple(refused)))
    return RegionHeads(tuple(heads), tuple(forks))
