"""Names that are none of ours, left below a region's folder: passed over everywhere, and told."""

from __future__ import annotations

from pathlib import Path

import fix_archive as fix
from fix_repository import RepositoryHouse

from pitr.archive_resume import find_end
from pitr.catalogue.sqlite import Catalogue
from pitr.catalogue_rebuild import rebuild
from pitr.event_reader import EventReader
from pitr.listed import REFUSED_NAMES_MAX, read_names
from pitr.verified import RefusedObject
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.local import DirectoryStore
from storage.store import ObjectInfo

SEG = fix.SEGMENT_BYTES


def test_a_stray_file_in_a_region_stops_neither_daemon_nor_catalogue(tmp_path: Path) -> None:
    house = RepositoryHouse(DirectoryStore.create(tmp_path))
    archive = house.archive
    keys = [house.piece(LSN(n * SEG), LSN((n + 1) * SEG), fix.times(n)) for n in (1, 2)]
    house.history(2, b"1\t0/900000\tx\n")
    index = house.wal_index(1, 2)
    house.event()
    house.head()
    segment = f"wal/{archive}/00000001/{keys[0].segment}"
    strays = [
        "epochs/.DS_Store",
        f"history/{archive}/.DS_Store",
        f"wal/{archive}/.DS_Store",
        f"wal/{archive}/00000001/.nfs000000000123",
        f"{segment}/.nfs000000000124",
        f"wal/{archive}/00000001/zz",
        f"wal/{archive}/zz",
        f"walindex/{archive}/zz",
        f"events/{archive}/0",
        f"heads/{archive}/0",
    ]
    for stray in strays:
        path = tmp_path / "objects" / stray
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"stray")
    repository = house.repository
    assert repository.archives() == [archive]
    assert repository.history_timelines(archive) == [TimelineId(2)]
    assert list(repository.wal.timelines(archive)) == [TimelineId(1)]
    assert list(repository.wal.objects(archive, TimelineId(1))) == keys
    assert list(repository.wal.indexes(archive)) == [index]
    assert len(EventReader(repository).page(archive, limit=5).events) == 1
    resumed = find_end(repository, archive)
    assert resumed.end is not None
    assert resumed.end.end == LSN(3 * SEG)
    result = rebuild(repository, Catalogue(":memory:"))
    assert result.archives == (archive,)
    # What only the daemon or an auditor lists is not read by a rebuild.
    told = {one.key for one in result.refused}
    assert told == {stray for stray in strays if not stray.startswith(("walindex/", "events/"))}


def test_no_more_strays_are_told_than_a_person_can_use() -> None:
    refused: list[RefusedObject] = []
    listing = [ObjectInfo(f"none/{number}", 1) for number in range(REFUSED_NAMES_MAX + 5)]
    assert list(read_names(listing, TimelineId.parse, refused)) == []
    assert len(refused) == REFUSED_NAMES_MAX
