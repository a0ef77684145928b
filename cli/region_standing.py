"""Which of the regions that are read count: those that hold this repository, each place once.

A region that is reached is not yet one that answers: a mistyped prefix is an empty place, another
repository's region says nothing of this one, and one place under two names is one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from cli.settings import RegionSettings
from pitr.catalogue.records import RepositoryRecord
from pitr.errors import NotAuthentic
from pitr.repository_record import find_repository_record
from storage.regions import Region
from storage.store import StoreError
from storage.url import parse_region_url, place_of


class Standing(StrEnum):
    """What one look at a region found."""

    HOLDS = "holds the repository"
    SILENT = "does not answer"
    EMPTY = "holds no repository"
    DAMAGED = "has a damaged record of the repository"
    FOREIGN = "holds another repository"
    REPEATED = "is the same place as another one"


@dataclass(frozen=True, slots=True)
class RegionStanding:
    """One region; ``record`` is what it says that it is, whoever signed it."""

    name: str
    standing: Standing
    record: RepositoryRecord | None = None

    @property
    def counts(self) -> bool:
        """Tell whether its answers count towards those that are needed to be sure of an end."""
        return self.standing is Standing.HOLDS


def look_at_regions(
    regions: Sequence[Region], settings: Sequence[RegionSettings], repository_id: str, root: str
) -> tuple[RegionStanding, ...]:
    """Ask each region for the repository's record, one small object."""
    places: set[tuple[object, ...]] = set()
    found = []
    for region, one in zip(regions, settings, strict=True):
        place = place_of(parse_region_url(one.url))
        if place in places:
            found.append(RegionStanding(region.name, Standing.REPEATED))
            continue
        places.add(place)
        found.append(_look(region, repository_id, root))
    return tuple(found)


def _look(region: Region, repository_id: str, root: str) -> RegionStanding:
    try:
        record = find_repository_record(region.store)
    except StoreError:
        return RegionStanding(region.name, Standing.SILENT)
    except NotAuthentic:
        return RegionStanding(region.name, Standing.DAMAGED)
    if record is None:
        return RegionStanding(region.name, Standing.EMPTY)
    is_own = (record.repository, record.root) == (repository_id, root)
    return RegionStanding(region.name, Standing.HOLDS if is_own else Standing.FOREIGN, record)
