"""One region lists names that nobody wrote: whatever is searched for is found in the others all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import fix_archive as fix
import pytest
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore

from cli.wiring import own_archive
from pitr.archive_resume import find_end
from pitr.catalogue.records import EpochParent
from pitr.catalogue.sqlite import Catalogue
from pitr.catalogue_rebuild import rebuild
from pitr.catalogue_survey import survey_archive
from pitr.derived.snapshot_reader import list_snapshots
from pitr.errors import NotAuthentic
from pitr.event_reader import EventReader
from pitr.events.fence_store import FenceReader
from pitr.events.sync_store import SyncReader
from pitr.layout import (
    ArchiveId,
    PieceKey,
    backup_lease,
    derived_key,
    epoch_key,
    event_key,
    expiry_key,
    fences_key,
    head_key,
    history_key,
    lease_key,
    manifest_key,
    syncs_key,
    wal_index_key,
)
from pitr.lease import newest_record
from pitr.planner import plan_restore
from pitr.quorum import Answers, WriteQuorum
from pitr.recovery import RecoveryTarget
from pitr.repository import Repository
from pitr.restore_plan import StopPoint
from pitr.restore_wal import write_wal_plan
from pitr.verified import BAD_MAX
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_plan_file import read_header
from storage.memory import MemoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from storage.store import StoreUnavailable

JUNK = BAD_MAX + 4
MIB = 1 << 20
FIRST = LSN(fix.SEGMENT_BYTES)


class Site:
    """Three regions that have the same archive, at a quorum of two."""

    def __init__(self, queue: RepairQueue) -> None:
        self.stores = {name: MemoryStore() for name in "abc"}
        self.house = RepositoryHouse(self.stores["a"])
        self.archive = self.house.archive
        for number in range(3):
            self.house.piece(FIRST + number * MIB, FIRST + (number + 1) * MIB)
        self.house.wal_index(1, 2)
        self.house.event()
        self.house.backup(
            fix.backup_of(FIRST, FIRST + MIB, stopped_at=fix.at_second(5), number=1),
        )
        self.house.head()
        for info in list(self.stores["a"].list_objects("")):
            for name in "bc":
                self.stores[name].put(info.key, self.stores["a"].get(info.key))
        self.faulty = {name: FaultyStore(store) for name, store in self.stores.items()}
        self.store = ReplicatedStore(
            [Region(name, store) for name, store in self.faulty.items()],
            quorum=2,
            queue=queue,
            after_all_prefixes=("heads/",),
        )
        self.repository = Repository(self.store, fix.REPOSITORY, self.house.root.public)

    def plant(self, region: str, key_of: Callable[[int], str], count: int = JUNK, first: int = 100) -> None:
        for number in range(first, first + count):
            self.stores[region].put(key_of(number), b"junk")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with closing(RepairQueue(tmp_path / "repairs")) as queue:
        found = Site(queue)
        with closing(found.store):
            yield found


@pytest.mark.parametrize("region", "abc")
def test_a_daemon_begins_though_a_region_lists_many_newer_heads_and_indexes(site: Site, region: str) -> None:
    site.plant(region, lambda number: head_key(site.archive, number))
    # Below the end, where a real one could be: 2 to 2, 1 to 3 and so on.
    names = [wal_index_key(site.archive, first, last) for last in (2, 3) for first in range(1, last + 1)]
    for key in names:
        if key != wal_index_key(site.archive, 1, 2):
            site.stores[region].put(key, b"junk")
    resumed = find_end(site.repository, site.archive)
    assert resumed.head is not None
    assert resumed.head.head.sequence == 1
    assert resumed.end is not None
    assert resumed.end.end == FIRST + 3 * MIB
    assert resumed.index_sha256 is not None


def test_so_many_indexes_of_nobody_do_not_keep_the_daemon_from_beginning(site: Site) -> None:
    for number in range(3, 3 + 2 * JUNK):
        site.house.piece(FIRST + number * MIB, FIRST + (number + 1) * MIB)
    site.house.head()
    for info in list(site.stores["a"].list_objects("")):
        for name in "bc":
            site.stores[name].put(info.key, site.stores["a"].get(info.key))
    site.plant("b", lambda number: wal_index_key(site.archive, number, number), first=4)
    resumed = find_end(site.repository, site.archive)
    assert resumed.index_sha256 == find_end(site.house.repository, site.archive).index_sha256


@pytest.mark.parametrize("region", "abc")
@pytest.mark.parametrize("gives", [True, False])
@pytest.mark.parametrize("has_head", [True, False])
def test_a_daemon_begins_though_a_region_lists_pieces_that_nobody_sealed(
    site: Site, region: str, gives: bool, has_head: bool
) -> None:
    """Below the first segment, among the last pieces, and after the end, where the next one would be."""
    first = LSN(8192)
    end = FIRST + 3 * MIB

    def piece(number: int, start: LSN, stop: LSN) -> str:
        segment = SegmentName.holding(TimelineId(1), start, fix.SEGMENT_BYTES)
        return str(PieceKey(site.archive, segment, start, stop, number, f"{number:08x}"))

    for number in range(1, JUNK):
        site.stores[region].put(piece(number, first, first + number * 8192), b"junk")
        site.stores[region].put(piece(4, end, end + number * 8192), b"junk")
    site.stores[region].put(piece(3, FIRST + 2 * MIB, end), b"junk")
    if not gives:
        site.faulty[region].fail(StoreUnavailable("slow down"), "get")
    if not has_head:
        for store in site.stores.values():
            store.delete(head_key(site.archive, 1))
    resumed = find_end(site.repository, site.archive)
    assert resumed.end is not None
    assert (resumed.end.end, resumed.end.piece_sequence) == (end, 3)
    assert resumed.known is not None
    if not has_head:  # the head of this fixture names another piece
        assert [one.sequence for one in resumed.known.pieces] == [3]


@pytest.mark.parametrize("region", "abc")
def test_a_region_that_refuses_to_give_the_heads_that_it_lists_stops_nothing(site: Site, region: str) -> None:
    site.plant(region, lambda number: head_key(site.archive, number), count=1)
    site.faulty[region].fail(StoreUnavailable("slow down"), "get")
    newest = site.repository.find_head(site.archive).newest
    assert newest is not None
    assert newest.head.sequence == 1


def test_two_regions_full_of_junk_still_stop_the_search(site: Site) -> None:
    for region in "ab":
        site.plant(region, lambda number: head_key(site.archive, number))
    with pytest.raises(NotAuthentic, match="are all bad"):
        site.repository.find_head(site.archive)


@pytest.mark.parametrize("region", "abc")
def test_an_epoch_that_no_root_signed_in_one_region_is_no_archive_and_told(site: Site, region: str) -> None:
    invented = ArchiveId(site.archive.system_identifier, 9)
    site.stores[region].put(epoch_key(invented), b"junk")
    refused: list[object] = []
    assert site.repository.archives(refused) == [site.archive]  # type: ignore[arg-type]
    assert epoch_key(invented) in str(refused)
    own = own_archive(site.repository, site.house.host, site.archive.system_identifier)
    assert own == site.archive


def test_a_bad_epoch_in_two_regions_may_be_a_real_one_and_stops_who_would_write(site: Site) -> None:
    newer = ArchiveId(site.archive.system_identifier, 2)
    for region in "ab":
        site.stores[region].put(epoch_key(newer), b"rotten")
    assert site.repository.archives() == [site.archive, newer]
    with pytest.raises(NotAuthentic):
        own_archive(site.repository, site.house.host, site.archive.system_identifier)


def test_a_bad_epoch_in_the_only_region_stops_who_would_write() -> None:
    house = RepositoryHouse(MemoryStore())
    newer = ArchiveId(house.archive.system_identifier, 2)
    house.store.put(epoch_key(newer), b"rotten")
    with pytest.raises(NotAuthentic):
        own_archive(house.repository, house.host, house.archive.system_identifier)


@pytest.mark.parametrize("region", "abc")
def test_every_other_search_goes_on_past_one_region(site: Site, region: str) -> None:
    archive, lease = site.archive, backup_lease(site.archive)
    for key_of in (
        lambda number: event_key(archive, number),
        lambda number: expiry_key(archive, number),
        lambda number: fences_key(archive, number),
        lambda number: syncs_key(archive, number),
        lambda number: lease_key(lease, number),
        lambda number: derived_key(archive, f"20260101T000000Z-cache-{number:08x}"),
        lambda number: manifest_key(archive, f"20260101T000000Z-full-{number:08x}"),
    ):
        site.plant(region, key_of)
    newest = EventReader(site.repository).newest(archive)
    assert newest is not None
    assert newest.record.sequence == 1
    assert site.repository.expiry.newest(archive) is None
    assert FenceReader(site.repository).newest(archive) is None
    assert SyncReader(site.repository, archive).newest() is None
    assert newest_record(site.repository, archive, lease) is None
    assert list_snapshots(site.repository, archive).records == ()
    listing = site.repository.manifests(archive)
    assert [one.manifest.backup for one in listing.backups] == [
        one.manifest.backup for one in site.house.backups
    ]
    assert listing.refused


def test_of_a_single_region_every_good_backup_is_listed_beside_many_bad_ones(site: Site) -> None:
    site.plant("a", lambda number: manifest_key(site.archive, f"20260101T000000Z-full-{number:08x}"))
    listing = site.house.repository.manifests(site.archive)
    assert len(listing.backups) == 1
    assert len(listing.refused) == JUNK


def test_a_manifest_that_is_listed_and_nowhere_to_be_had_is_told_and_hides_no_other(site: Site) -> None:
    key = manifest_key(site.archive, "20260101T000000Z-full-00000001")
    site.stores["b"].put(key, b"junk")
    site.faulty["b"].lose(key)
    listing = site.repository.manifests(site.archive)
    assert len(listing.backups) == 1
    assert [one.key for one in listing.refused] == [key]


@pytest.mark.parametrize("region", "abc")
def test_a_history_of_nobody_in_one_region_stops_no_restore(site: Site, tmp_path: Path, region: str) -> None:
    """The younger archive is asked first, for it repeats its parent's histories; junk is no answer."""
    house, left_at = site.house, FIRST + 3 * MIB
    content = f"1\t{left_at}\tno recovery target specified\n".encode()
    house.history(2, content)
    house.piece(left_at, FIRST + 4 * MIB, timeline=2)
    younger = house.add_epoch(2, EpochParent(1, TimelineId(2), FIRST + 4 * MIB))
    for info in list(site.stores["a"].list_objects("")):
        for name in "bc":
            site.stores[name].put(info.key, site.stores["a"].get(info.key))
    catalogue = Catalogue(":memory:")
    rebuild(site.repository, catalogue)
    survey = survey_archive(catalogue, younger, Answers(3, WriteQuorum(3, 2)))
    plan = plan_restore(RecoveryTarget("lsn", lsn=FIRST + (4 * MIB - 100), timeline=TimelineId(2)), survey)
    assert [span.timeline.number for span in plan.spans][:2] == [1, 2]
    stop = StopPoint(plan.wal_end, True, plan.wal_end, plan.wal_end)
    site.stores[region].put(history_key(younger, TimelineId(2)), b"junk")
    file = tmp_path / "plan"
    write_wal_plan(file, plan, stop, site.repository, [], None)
    (history,) = read_header(file).path.histories
    assert history.content == content
    # In two regions it may be a real one, and lead elsewhere.
    for name in "abc":
        if name != region:
            site.stores[name].put(history_key(younger, TimelineId(2)), b"junk")
    with pytest.raises(NotAuthentic):
        write_wal_plan(tmp_path / "other", plan, stop, site.repository, [], None)
