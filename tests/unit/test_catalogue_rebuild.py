"""A rebuilt catalogue equals the recorded one; what cannot be verified is left out and reported."""

from __future__ import annotations

from dataclasses import replace

import fix_archive as fix
import pytest
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore

from pitr.catalogue.sqlite import Catalogue
from pitr.catalogue_rebuild import NamedRegion, check, rebuild
from pitr.layout import PieceKey
from pitr.quorum import Answers
from pitr.wal.lsn import LSN
from storage.memory import MemoryStore
from storage.store import StoreUnavailable

SEG = fix.SEGMENT_BYTES
QUARTER = SEG // 4


class Daemon:
    """Writes to the store first and records second, as the daemon does."""

    def __init__(self, store: MemoryStore) -> None:
        self.house = RepositoryHouse(store)
        self.catalogue = Catalogue(":memory:")
        self.catalogue.record_epoch(self.house.repository.epoch(self.house.archive))

    def pieces(self, segment: int, count: int = 4) -> None:
        for n in range(count):
            start = LSN(segment * SEG + n * QUARTER)
            key = self.house.piece(start, start + QUARTER, fix.times(segment * 10 + n))
            self.catalogue.record_wal(self.house.headers[key].header, key, ["a"])

    def segment(self, number: int, first: int) -> None:
        key = self.house.segment(LSN(number * SEG), first, first + 3, fix.times(number * 10, number * 10 + 3))
        self.catalogue.record_wal(self.house.headers[key].header, key, ["a"])

    def backup(self, number: int, second: float) -> None:
        manifest = fix.backup_of(
            LSN(SEG + 40), LSN(SEG + 1000), stopped_at=fix.at_second(second), number=number
        )
        listed = self.house.backup(manifest)
        self.catalogue.record_backup(listed.manifest, listed.object_sha256)

    def head(self) -> None:
        sequence = self.house.head()
        found = self.house.repository.get_head(self.house.archive, sequence)
        self.catalogue.record_head(found.head, found.payload_sha256)


def busy_daemon(store: MemoryStore) -> Daemon:
    daemon = Daemon(store)
    daemon.catalogue.record_history(daemon.house.history(2, b"1\t0/900000\tx\n"))
    daemon.pieces(1)
    daemon.segment(1, 1)
    daemon.backup(1, 5)
    daemon.head()
    daemon.pieces(2)
    daemon.segment(2, 5)
    daemon.pieces(3, count=3)
    daemon.backup(2, 40)
    daemon.head()
    return daemon


def test_a_rebuilt_catalogue_equals_the_recorded_one() -> None:
    daemon = busy_daemon(MemoryStore())
    fresh = Catalogue(":memory:")
    for _ in range(2):
        result = rebuild(daemon.house.repository, fresh)
        assert fresh.dump() == daemon.catalogue.dump()
    assert result.refused == ()
    assert result.wal_objects == 5
    # Two segments spare their eight pieces' headers.
    assert result.headers_read == 5
    assert check(daemon.house.repository, daemon.catalogue) == ()


def test_an_index_spares_the_headers_and_gives_the_same() -> None:
    store = MemoryStore()
    daemon = Daemon(store)
    for segment in range(1, 6):
        daemon.pieces(segment)
    daemon.head()
    fresh = Catalogue(":memory:")
    assert rebuild(daemon.house.repository, fresh).headers_read == 20
    daemon.house.wal_index(1, 16)
    assert rebuild(daemon.house.repository, fresh).headers_read == 4
    assert fresh.dump() == daemon.catalogue.dump()


def test_a_damaged_index_is_reported_and_the_headers_are_read() -> None:
    store = MemoryStore()
    daemon = Daemon(store)
    for segment in range(1, 4):
        daemon.pieces(segment)
    daemon.house.wal_index(1, 12)
    key = next(iter(store.list_objects("walindex/"))).key
    store.delete(key)
    store.put(key, b"garbage")
    fresh = Catalogue(":memory:")
    result = rebuild(daemon.house.repository, fresh)
    assert result.headers_read == 12
    assert [refused.key.split("/")[0] for refused in result.refused] == ["walindex"]
    assert fresh.dump() == daemon.catalogue.dump()


def test_one_region_alone_ends_with_its_last_signed_head() -> None:
    """What was put after that head may be a part only of what there is."""
    daemon = busy_daemon(MemoryStore())
    expected = daemon.catalogue.dump()
    daemon.pieces(4)
    daemon.segment(4, 12)
    daemon.backup(3, 500)
    alone = Catalogue(":memory:")
    result = rebuild(daemon.house.repository, alone, answers=Answers(1))
    assert result.refused == ()
    assert alone.dump() == expected
    assert alone.dump() != daemon.catalogue.dump()


def test_one_region_alone_ends_with_its_head_though_a_chain_was_made_one_since() -> None:
    daemon = busy_daemon(MemoryStore())
    expected = daemon.catalogue.dump()
    newest = max((one.manifest for one in daemon.house.backups), key=lambda each: each.stopped_at)
    made = replace(newest, backup=fix.backup_id(77), stands_for=newest.backup, packs=(), indexes=())
    daemon.house.repository.put_manifest(made, daemon.house.root)
    alone = Catalogue(":memory:")
    assert rebuild(daemon.house.repository, alone, answers=Answers(1)).refused == ()
    assert alone.dump() == expected


def test_one_region_without_a_head_holds_nothing_certain() -> None:
    daemon = Daemon(MemoryStore())
    daemon.pieces(1)
    daemon.backup(1, 5)
    alone = Catalogue(":memory:")
    rebuild(daemon.house.repository, alone, answers=Answers(1))
    assert alone.wal_units(daemon.house.archive) == ()
    assert alone.backups(daemon.house.archive) == []


def test_backups_that_the_head_does_not_sign_are_reported() -> None:
    store = MemoryStore()
    daemon = busy_daemon(store)
    first = daemon.house.backups[0].manifest
    store.delete(f"manifests/{first.archive}/{first.backup}")
    result = rebuild(daemon.house.repository, Catalogue(":memory:"), answers=Answers(1))
    assert any("not the 2 backups that head 2 signs" in refused.reason for refused in result.refused)


def test_a_damaged_piece_is_a_hole_and_never_wal() -> None:
    store = MemoryStore()
    daemon = Daemon(store)
    daemon.pieces(1)
    bad = next(k for k in daemon.house.headers if isinstance(k, PieceKey) and k.sequence == 2)
    body = bytearray(store.get(str(bad)))
    body[200] ^= 1
    store.delete(str(bad))
    store.put(str(bad), bytes(body))
    fresh = Catalogue(":memory:")
    result = rebuild(daemon.house.repository, fresh)
    assert [refused.key for refused in result.refused] == [str(bad)]
    assert [(i.start, i.end) for i in fresh.coverage(daemon.house.archive)] == [
        (LSN(SEG), LSN(SEG + QUARTER)),
        (LSN(SEG + 2 * QUARTER), LSN(2 * SEG)),
    ]


def test_differences_say_what_only_the_store_or_only_the_catalogue_has() -> None:
    store = MemoryStore()
    daemon = busy_daemon(store)
    manifest = fix.backup_of(LSN(SEG + 40), LSN(SEG + 1000), stopped_at=fix.at_second(60), number=9)
    daemon.house.backup(manifest)
    ghost = fix.piece_header(LSN(9 * SEG), LSN(9 * SEG + 8), 99)
    key = PieceKey(daemon.house.archive, ghost.segment, ghost.start, ghost.end, 99, "00000000")
    daemon.catalogue.record_wal(ghost, key)
    differences = check(daemon.house.repository, daemon.catalogue)
    assert [(d.row.split()[0], d.is_in_store) for d in differences] == [
        ("backups", True),
        ("wal_units", False),
    ]


def test_a_backup_made_of_a_chain_since_is_no_difference_but_one_labelled_so_is() -> None:
    daemon = busy_daemon(MemoryStore())
    newest = daemon.house.backups[-1].manifest
    made = replace(newest, backup=fix.backup_id(77), stands_for=newest.backup, packs=(), indexes=())
    daemon.house.repository.put_manifest(made, daemon.house.root)
    assert check(daemon.house.repository, daemon.catalogue) == ()
    labelled = replace(newest, backup=fix.backup_id(78), label='"stands_for":"x"', packs=(), indexes=())
    daemon.house.backup(labelled)
    (difference,) = check(daemon.house.repository, daemon.catalogue)
    assert difference.is_in_store
    assert labelled.backup in difference.row


def test_a_failed_rebuild_changes_nothing() -> None:
    store = FaultyStore(MemoryStore())
    daemon = busy_daemon(store)  # type: ignore[arg-type]
    before = daemon.catalogue.dump()
    store.go_down()
    with pytest.raises(StoreUnavailable, match="down"):
        rebuild(daemon.house.repository, daemon.catalogue)
    assert daemon.catalogue.dump() == before


def test_who_holds_what_is_recorded_and_a_silent_region_is_named() -> None:
    store = MemoryStore()
    daemon = busy_daemon(store)
    partial, silent = MemoryStore(), FaultyStore(MemoryStore())
    silent.go_down()
    for info in store.list_objects("wal/"):
        if "/000000010000000000000001/" in info.key:
            partial.put(info.key, store.get(info.key))
    regions = [NamedRegion("a", store), NamedRegion("b", partial), NamedRegion("c", silent)]
    fresh = Catalogue(":memory:")
    assert rebuild(daemon.house.repository, fresh, regions=regions).unseen == ("c",)
    units = fresh.wal_units(daemon.house.archive)
    assert [unit.regions for unit in units] == [("a", "b"), *[("a",)] * 4]
