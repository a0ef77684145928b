"""Objects of a repository that were flipped, cut, swapped, renamed or signed by somebody else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fix_archive as fix
import pytest
from fix_repository import RepositoryHouse, random_from, wal_bytes

from pitr.catalogue.expiry_record import ExpireRecord
from pitr.catalogue.records import EpochRecord, RepositoryRecord
from pitr.datakeys import DataKeys
from pitr.errors import KeyMissing, MalformedValue, NotAuthentic, NotInitialised
from pitr.layout import (
    REPOSITORY_KEY,
    PieceKey,
    envelope_key,
    epoch_key,
    expiry_key,
    head_key,
    history_key,
    manifest_key,
)
from pitr.pipeline.keys import Identity
from pitr.pipeline.sign import Signer, sign_record
from pitr.region_heads import HEADS_COMPARED_MAX, compare_heads, is_before_fork, last_common_head
from pitr.repository import Repository
from pitr.verified import BAD_MAX
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from storage.store import ObjectMissing, ObjectStore

SEG = fix.SEGMENT_BYTES
START, END = LSN(SEG), LSN(SEG + 8192)


def replace(store: MemoryStore, key: str, body: bytes) -> None:
    store.delete(key)
    store.put(key, body)


def flip(body: bytes, at: int) -> bytes:
    changed = bytearray(body)
    changed[at] ^= 1
    return bytes(changed)


class Site:
    """A house with one object of each kind, and what reading each one looks like."""

    def __init__(self, store: ObjectStore, seed: int = 1) -> None:
        self.house = RepositoryHouse(store, seed)
        self.store = store
        self.piece = self.house.piece(START, END)
        self.segment = self.house.segment(START, 1, 1)
        self.house.history(2, b"1\t0/300000\tno recovery target specified\n")
        self.manifest = fix.backup_of(START + 40, START + 1000, stopped_at=fix.at_second(5))
        self.house.backup(self.manifest)
        self.house.head()
        self.house.wal_index(1, 1)
        expiry = ExpireRecord(fix.REPOSITORY, self.house.archive, 1, None, fix.BEGIN, 60, 1, (), (), ())
        store.put(
            expiry_key(self.house.archive, 1), self.house.repository.expiry.sign(expiry, self.house.root)
        )
        self.key_id = self.house.headers[self.piece].header.key_id

    def readers(self) -> dict[str, Callable[[Repository], object]]:
        archive = self.house.archive
        index_key = f"walindex/{archive}/{1:016d}-{1:016d}"
        return {
            epoch_key(archive): lambda r: r.epoch(archive),
            envelope_key(archive, self.key_id): lambda r: r.get_envelope(archive, self.key_id),
            history_key(archive, TimelineId(2)): lambda r: r.get_history(archive, TimelineId(2)),
            manifest_key(archive, self.manifest.backup): lambda r: r.get_manifest(
                archive, self.manifest.backup
            ),
            head_key(archive, 1): lambda r: r.get_head(archive, 1),
            index_key: lambda r: list(r.wal.indexes(archive)),
            expiry_key(archive, 1): lambda r: r.expiry.get(archive, 1),
            str(self.piece): lambda r: (r.read_header(self.piece), r.read_wal(self.piece, self.data_keys(r))),
            str(self.segment): lambda r: r.read_wal(self.segment, self.data_keys(r)),
        }

    def data_keys(self, repository: Repository) -> DataKeys:
        return DataKeys(repository, self.house.identity)

    def fresh(self, store: ObjectStore | None = None) -> Repository:
        return Repository.open(store or self.store, self.house.root.public)


@pytest.fixture(scope="module")
def pristine() -> Site:
    return Site(MemoryStore())


KINDS = range(9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_object_of_each_kind_is_read(pristine: Site, kind: int) -> None:
    read = list(pristine.readers().values())[kind]
    assert read(pristine.fresh()) is not None


def test_wal_reads_back_as_it_was_put(pristine: Site) -> None:
    repository = pristine.fresh()
    keys = pristine.data_keys(repository)
    assert repository.read_wal(pristine.piece, keys) == wal_bytes(START, END)
    assert repository.read_wal(pristine.segment, keys) == wal_bytes(START, START + SEG)


@pytest.mark.parametrize("kind", KINDS)
def test_each_flipped_or_cut_object_is_refused(kind: int) -> None:
    site = Site(MemoryStore())
    key, read = list(site.readers().items())[kind]
    body = site.store.get(key)
    step = max(1, len(body) // 40)
    for at in range(0, len(body), step):
        for changed in (flip(body, at), body[:at]):
            replace(site.store, key, changed)
            with pytest.raises((NotAuthentic, MalformedValue)):
                read(site.fresh())
    replace(site.store, key, body + b"x")
    with pytest.raises((NotAuthentic, MalformedValue)):
        read(site.fresh())


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_signed_by_another_host_is_refused(kind: int) -> None:
    site, foreign = Site(MemoryStore()), Site(MemoryStore(), seed=2)
    key, read = list(site.readers().items())[kind]
    theirs = list(foreign.readers())[kind]
    replace(site.store, key, foreign.store.get(theirs))
    with pytest.raises((NotAuthentic, MalformedValue)):
        read(site.fresh())


def test_renamed_objects_are_refused_though_their_signatures_hold() -> None:
    """Each is genuine, and lies where another of its kind belongs."""
    site = Site(MemoryStore())
    house, archive = site.house, site.house.archive
    house.piece(END, END + 8192)
    second = list(house.headers)[-1]
    house.head()
    later = fix.backup_of(START + 40, START + 1000, stopped_at=fix.at_second(9), number=3)
    house.backup(later)
    house.history(3, b"1\t0/300000\tx\n2\t0/400000\tx\n")
    moves = {
        head_key(archive, 2): (head_key(archive, 1), lambda r: r.get_head(archive, 1)),
        manifest_key(archive, later.backup): (
            manifest_key(archive, site.manifest.backup),
            lambda r: r.get_manifest(archive, site.manifest.backup),
        ),
        history_key(archive, TimelineId(3)): (
            history_key(archive, TimelineId(2)),
            lambda r: r.get_history(archive, TimelineId(2)),
        ),
        str(second): (str(site.piece), lambda r: r.read_header(site.piece)),
    }
    for source, (target, read) in moves.items():
        replace(site.store, target, site.store.get(source))
        with pytest.raises(NotAuthentic):
            read(site.fresh())


def test_a_piece_under_another_lsn_range_is_refused() -> None:
    site = Site(MemoryStore())
    lie = PieceKey(site.piece.archive, site.piece.segment, START, END + 8192, 1, site.piece.attempt)
    site.store.put(str(lie), site.store.get(str(site.piece)))
    with pytest.raises(NotAuthentic):
        site.fresh().read_header(lie)


def test_another_regions_good_copy_is_read_where_one_is_damaged(tmp_path: Path) -> None:
    stores = [MemoryStore(), MemoryStore(), MemoryStore()]
    queue = RepairQueue(tmp_path / "queue.sqlite")
    regions = [Region(name, store) for name, store in zip("abc", stores, strict=True)]
    store = ReplicatedStore(regions, quorum=3, queue=queue)
    try:
        site = Site(store)
        for key, read in site.readers().items():
            body = stores[0].get(key)
            replace(stores[0], key, flip(body, len(body) // 2))
            replace(stores[1], key, body[: len(body) // 2])
            assert read(site.fresh(store)) is not None, key
            replace(stores[2], key, flip(body, 20))
            with pytest.raises((NotAuthentic, MalformedValue)):
                read(site.fresh(store))
            for one in stores:
                replace(one, key, body)
    finally:
        store.close()
        queue.close()


def test_a_bad_newest_head_is_reported_and_the_one_before_it_is_taken() -> None:
    site = Site(MemoryStore())
    site.house.head()
    newest = head_key(site.house.archive, 2)
    replace(site.store, newest, flip(site.store.get(newest), 100))
    search = site.fresh().find_head(site.house.archive)
    assert search.newest is not None
    assert search.newest.head.sequence == 1
    assert [refused.key for refused in search.refused] == [newest]
    assert site.fresh().latest_head(site.house.archive) == search.newest.head


def test_too_many_bad_heads_stop_the_search() -> None:
    site = Site(MemoryStore())
    for _ in range(BAD_MAX):
        key = head_key(site.house.archive, site.house.head())
        replace(site.store, key, b"garbage")
    with pytest.raises(NotAuthentic, match="all bad"):
        site.fresh().find_head(site.house.archive)


def test_a_bad_manifest_is_reported_and_hides_no_other() -> None:
    site = Site(MemoryStore())
    other = fix.backup_of(START + 40, START + 1000, stopped_at=fix.at_second(9), number=3)
    site.house.backup(other)
    key = manifest_key(site.house.archive, site.manifest.backup)
    replace(site.store, key, flip(site.store.get(key), 50))
    listing = site.fresh().manifests(site.house.archive)
    assert [listed.manifest for listed in listing.backups] == [other]
    assert [refused.key for refused in listing.refused] == [key]


def test_two_regions_with_different_heads_of_one_number_are_a_fork() -> None:
    site = Site(MemoryStore())
    other, lagging = MemoryStore(), MemoryStore()
    for info in list(site.store.list_objects("")):
        lagging.put(info.key, site.store.get(info.key))
        other.put(info.key, site.store.get(info.key))
    site.house.head()
    twin = fix.head_of(sequence=2, at=fix.at_second(99))
    other.put(head_key(site.house.archive, 2), sign_record(twin.to_payload(), site.house.host))
    regions = [Region("a", site.store), Region("b", other), Region("c", lagging)]
    found = compare_heads(site.fresh(), site.house.archive, regions)
    assert [(fork.sequence, fork.regions) for fork in found.forks] == [(2, ("a", "b"))]
    assert found.lagging() == ("c",)


def copy_of(store: MemoryStore) -> MemoryStore:
    copy = MemoryStore()
    for info in list(store.list_objects("")):
        copy.put(info.key, store.get(info.key))
    return copy


@pytest.mark.parametrize("ahead", [1, 5, HEADS_COMPARED_MAX + 10])
@pytest.mark.parametrize("heads_max", [1, HEADS_COMPARED_MAX])
def test_a_fork_is_seen_however_far_one_region_is_ahead(ahead: int, heads_max: int) -> None:
    site = Site(MemoryStore())
    site.house.head()
    site.house.head()
    other = copy_of(site.store)
    twin = fix.head_of(sequence=4, at=fix.at_second(99))
    other.put(head_key(site.house.archive, 4), sign_record(twin.to_payload(), site.house.host))
    for _ in range(ahead):
        site.house.head()
    regions = [Region("a", site.store), Region("b", other)]
    found = compare_heads(site.fresh(), site.house.archive, regions, heads_max=heads_max)
    assert [(fork.sequence, fork.regions) for fork in found.first_forks()] == [(4, ("a", "b"))]
    common = last_common_head(site.fresh(), site.house.archive, regions, found.first_forks()[0])
    assert common is not None
    assert common.sequence == 3


@pytest.mark.parametrize("forked_at", [1, 2, 9, 40])
def test_the_last_common_head_is_found_below_all_that_was_compared(forked_at: int) -> None:
    site = Site(MemoryStore())
    for _ in range(39):
        site.house.head()
    other = copy_of(site.store)
    for sequence in range(forked_at, 41):
        twin = fix.head_of(sequence=sequence, at=fix.at_second(99))
        replace(
            other, head_key(site.house.archive, sequence), sign_record(twin.to_payload(), site.house.host)
        )
    regions = [Region("a", site.store), Region("b", other)]
    found = compare_heads(site.fresh(), site.house.archive, regions, heads_max=1)
    (fork,) = found.first_forks()
    assert fork.sequence == 40
    common = last_common_head(site.fresh(), site.house.archive, regions, fork)
    assert (None if common is None else common.sequence) == (forked_at - 1 or None)


def test_a_damaged_newest_head_is_passed_over_and_the_one_before_it_compared() -> None:
    site = Site(MemoryStore())
    site.house.head()
    other = copy_of(site.store)
    key = head_key(site.house.archive, 2)
    replace(other, key, flip(other.get(key), 100))
    regions = [Region("a", site.store), Region("b", other)]
    found = compare_heads(site.fresh(), site.house.archive, regions, heads_max=1)
    assert found.forks == ()
    assert [refused.key for refused in found.heads[1].refused] == [key]
    assert found.heads[1].head is not None
    assert (found.heads[1].head.sequence, found.lagging(), found.lagging(2)) == (1, ("b",), ())


@pytest.mark.parametrize("stray", ["0000", "f" * 16, "a/b"])
def test_a_stray_name_among_the_heads_of_one_region_is_refused_and_the_others_are_compared(
    stray: str,
) -> None:
    site = Site(MemoryStore())
    site.house.head()
    other = copy_of(site.store)
    key = f"heads/{site.house.archive}/{stray}"
    other.put(key, b"?")
    regions = [Region("a", site.store), Region("b", other)]
    found = compare_heads(site.fresh(), site.house.archive, regions)
    assert [refused.key for refused in found.heads[1].refused] == [key]
    assert [one.head is not None and one.head.sequence for one in found.heads] == [2, 2]
    assert (found.forks, found.heads[1].error, found.lagging()) == ((), None, ())


def test_only_wal_up_to_the_last_common_head_is_before_the_fork() -> None:
    common = fix.head_of(sequence=3, wal_start=START, wal_end=END)
    one, two = TimelineId(1), TimelineId(2)
    assert is_before_fork(common, one, END)
    assert not is_before_fork(common, one, END + 1)
    assert not is_before_fork(common, two, START)
    assert not is_before_fork(fix.head_of(sequence=3), one, START)
    assert not is_before_fork(None, one, START)


def test_a_repository_of_another_root_or_id_is_refused_and_none_is_said() -> None:
    site = Site(MemoryStore())
    other = Identity.generate(random_from(7)).root_signer()
    with pytest.raises(NotAuthentic):
        Repository.open(site.store, other.public)
    with pytest.raises(NotAuthentic, match="another repository"):
        Repository.open(site.store, site.house.root.public, repository_id="f" * 32)
    with pytest.raises(NotInitialised):
        Repository.open(MemoryStore(), other.public)
    claim = RepositoryRecord(fix.REPOSITORY, fix.BEGIN, str(other.public), ())
    replace(site.store, REPOSITORY_KEY, sign_record(claim.to_payload(), site.house.root))
    with pytest.raises(NotAuthentic):
        site.fresh()


def test_only_the_root_names_a_writer_and_only_that_writer_may_write() -> None:
    site = Site(MemoryStore())
    thief = Signer.generate(random_from(9))
    forged = EpochRecord(fix.REPOSITORY, fix.archive_of(2), fix.BEGIN, str(thief.public))
    with pytest.raises(NotAuthentic):
        site.house.repository.write_epoch(forged, thief)
    site.store.put(epoch_key(fix.archive_of(2)), sign_record(forged.to_payload(), site.house.host))
    with pytest.raises(NotAuthentic):
        site.fresh().epoch(fix.archive_of(2))
    with pytest.raises(NotAuthentic, match="may not write"):
        site.fresh().check_signer(site.house.archive, thief)
    with pytest.raises(NotInitialised):
        site.fresh().verifier(fix.archive_of(3))


def test_a_missing_envelope_and_a_foreign_identity_are_told_apart() -> None:
    site = Site(MemoryStore())
    foreign = DataKeys(site.fresh(), Identity.generate(random_from(5)))
    with pytest.raises(KeyMissing):
        site.fresh().read_wal(site.piece, foreign)
    site.store.delete(envelope_key(site.house.archive, site.key_id))
    with pytest.raises(NotAuthentic, match="envelope of data key"):
        site.fresh().read_wal(site.piece, site.data_keys(site.fresh()))


def test_a_missing_object_is_missing_and_not_damaged() -> None:
    site = Site(MemoryStore())
    site.store.delete(str(site.piece))
    with pytest.raises(ObjectMissing):
        site.fresh().read_header(site.piece)
