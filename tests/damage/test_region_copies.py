"""Each region's own copies checked: damage in one region is found there, though two others cover for it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import fix_archive as fix
import pytest
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore

from pitr.catalogue.backup_record import StoredObject
from pitr.catalogue.expiry_record import ExpireRecord, GoneBackup, GoneEnvelope, GoneWal
from pitr.layout import (
    REPOSITORY_KEY,
    envelope_key,
    epoch_key,
    event_key,
    expiry_key,
    head_key,
    history_key,
    index_key,
    manifest_key,
    pack_key,
    parse_wal_key,
    wal_index_key,
)
from pitr.pipeline.headed import encode_headed, split_headed
from pitr.pipeline.sign import sign_record
from pitr.repository import Repository
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from storage.copy_faults import FaultKind
from storage.memory import MemoryStore
from storage.regions import Region
from storage.replicated import ReplicatedStore
from storage.store import CopyCheck, ObjectInfo, StoreUnavailable
from verifiers.base import Severity
from verifiers.copy_data import READERS, DataReader
from verifiers.copy_findings import NAMES_MAX, copy_findings
from verifiers.region_copies import CopiesReport, Verdict, check_copies

SEG = fix.SEGMENT_BYTES
START = LSN(SEG)
NAMES = ("eu", "us", "ap")
# What is large or many is read in full only when asked to.
SMALL = ("repository", "epoch", "envelope", "history", "manifest", "head", "expired", "event")
LARGE = ("walindex", "piece", "segment", "pack", "index")


class ThreeRegions:
    """A repository with two objects of every kind, alike in three regions."""

    def __init__(self) -> None:
        store = MemoryStore()
        self.house = house = RepositoryHouse(store)
        pieces = [house.piece(START, START + 8192), house.piece(START + 8192, START + 16384)]
        house.piece(START + SEG, START + SEG + 8192, hour=2)
        segments = [house.segment(START, 1, 2), house.segment(START + SEG, 3, 3)]
        house.history(2, b"1\t0/300000\tno recovery target specified\n")
        house.history(3, b"1\t0/300000\tx\n2\t0/400000\tx\n")
        house.add_epoch(2)
        backups = []
        for number in (1, 3):
            manifest = fix.backup_of(
                START + 40, START + 1000, stopped_at=fix.at_second(number), number=number
            )
            archive, backup = manifest.archive, manifest.backup
            stored = []
            for name in (pack_key, index_key):
                body = f"{name.__name__} of backup {number}".encode() * 100
                key = name(archive, backup, 0, 0, "0123abcd")
                store.put(key, body)
                stored.append(StoredObject(key, len(body), hashlib.sha256(body).digest(), 1))
            made = replace(manifest, packs=(stored[0],), indexes=(stored[1],))
            house.backup(made)
            backups.append(made)
        house.wal_index(1, 2)
        house.wal_index(3, 3)
        house.head()
        house.head()
        archive = house.archive
        self.expired = 0
        for _ in range(2):
            self.expire(store)
        house.event()
        house.event()
        keys_of_envelopes = [info.key for info in store.list_objects("envelopes/")]
        assert len(keys_of_envelopes) >= 2
        assert envelope_key(archive, house.headers[pieces[0]].header.key_id) in keys_of_envelopes
        self.backups = backups
        self.keys: dict[str, list[str]] = {
            "repository": [REPOSITORY_KEY, epoch_key(archive)],
            "epoch": [epoch_key(archive), epoch_key(fix.archive_of(2))],
            "envelope": keys_of_envelopes[:2],
            "expired": [expiry_key(archive, number) for number in (1, 2)],
            "event": [event_key(archive, number) for number in (1, 2)],
            "history": [history_key(archive, TimelineId(number)) for number in (2, 3)],
            "manifest": [manifest_key(archive, one.backup) for one in backups],
            "head": [head_key(archive, 1), head_key(archive, 2)],
            "walindex": [wal_index_key(archive, 1, 2), wal_index_key(archive, 3, 3)],
            "piece": [str(key) for key in pieces],
            "segment": [str(key) for key in segments],
            "pack": [one.packs[0].key for one in backups],
            "index": [one.indexes[0].key for one in backups],
        }
        self.stores = {name: MemoryStore() for name in NAMES}
        for info in store.list_objects(""):
            for copy in self.stores.values():
                copy.put(info.key, store.get(info.key))
        self.faulty = {name: FaultyStore(copy) for name, copy in self.stores.items()}

    def expire(self, *stores: MemoryStore, **gone: Any) -> ExpireRecord:
        """Sign the next expire record, which names ``gone`` alone, and put it in each of ``stores``."""
        named: dict[str, Any] = {"backups": (), "wal": (), "envelopes": (), **gone}
        self.expired += 1
        previous = None if self.expired == 1 else bytes(32)
        place = (fix.REPOSITORY, self.house.archive, self.expired, previous)
        record = ExpireRecord(*place, fix.BEGIN, 60, 1, **named)
        for store in stores:
            body = self.house.repository.expiry.sign(record, self.house.root)
            store.put(expiry_key(self.house.archive, self.expired), body)
        return record

    def change(self, region: str, key: str, body: bytes | None) -> None:
        self.stores[region].delete(key)
        if body is not None:
            self.stores[region].put(key, body)

    def check(self, *, read_data: bool = False) -> CopiesReport:
        regions = [Region(name, self.faulty[name]) for name in NAMES]
        store = ReplicatedStore(regions, quorum=2)
        repository = Repository(store, self.house.repository.repository_id, self.house.root.public)
        return check_copies(repository, regions, read_data=DataReader().read_all if read_data else None)


@pytest.fixture
def three() -> ThreeRegions:
    return ThreeRegions()


def verdicts(report: CopiesReport) -> dict[str, Verdict]:
    return {one.region: one.verdict for one in report.regions}


def flip(three: ThreeRegions, key: str, other: str) -> None:
    body = bytearray(three.stores["us"].get(key))
    body[len(body) // 2] ^= 1
    three.change("us", key, bytes(body))


def cut(three: ThreeRegions, key: str, other: str) -> None:
    three.change("us", key, three.stores["us"].get(key)[:-1])


def delete(three: ThreeRegions, key: str, other: str) -> None:
    three.change("us", key, None)


def swap(three: ThreeRegions, key: str, other: str) -> None:
    first, second = three.stores["us"].get(key), three.stores["us"].get(other)
    three.change("us", key, second)
    three.change("us", other, first)


DAMAGES: dict[str, Callable[[ThreeRegions, str, str], None]] = {
    "flip": flip,
    "cut": cut,
    "delete": delete,
    "swap": swap,
}


@pytest.mark.parametrize("read_data", [False, True])
def test_regions_that_are_alike_and_good_pass(three: ThreeRegions, read_data: bool) -> None:
    report = three.check(read_data=read_data)
    assert verdicts(report) == dict.fromkeys(NAMES, Verdict.PASS)
    objects = len(list(three.stores["eu"].list_objects("")))
    assert {one.objects for one in report.regions} == {objects}
    assert all((one.read_bytes > 0) == read_data for one in report.regions)
    assert {finding.severity for finding in copy_findings(report)} == {Severity.OK}


@pytest.mark.parametrize("kind", [*SMALL, *LARGE])
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damage_in_one_region_is_found_there_and_nowhere_else(
    three: ThreeRegions, kind: str, damage: str
) -> None:
    key, other = three.keys[kind]
    DAMAGES[damage](three, key, other)
    report = three.check(read_data=True)
    assert verdicts(report) == {"eu": Verdict.PASS, "us": Verdict.FAIL, "ap": Verdict.PASS}
    found = {(fault.region, fault.key, fault.kind) for fault in report.faults.faults}
    expected = FaultKind.MISSING if damage == "delete" else FaultKind.DAMAGED
    assert found == {("us", one, expected) for one in ([key, other] if damage == "swap" else [key])}
    failed = {finding.subject for finding in copy_findings(report) if finding.severity is Severity.FAIL}
    assert failed == {"us", *(f"us: {one}" for _, one, _ in found)}


@pytest.mark.parametrize("kind", [*SMALL, *LARGE])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_without_reading_data_sizes_and_small_records_are_checked(
    three: ThreeRegions, kind: str, damage: str
) -> None:
    DAMAGES[damage](three, *three.keys[kind])
    is_found = damage != "flip" or kind in SMALL
    assert verdicts(three.check())["us"] is (Verdict.FAIL if is_found else Verdict.PASS)


def test_of_two_sizes_the_signature_says_which_is_wrong(three: ThreeRegions) -> None:
    """With two copies there is no majority, and with three it may be wrong."""
    key = three.keys["piece"][0]
    body = three.stores["eu"].get(key)
    three.change("eu", key, body[:-1])
    three.change("us", key, body[:-1])
    report = three.check()
    assert verdicts(report) == {"eu": Verdict.FAIL, "us": Verdict.FAIL, "ap": Verdict.PASS}


def test_a_region_that_does_not_answer_is_not_asked_and_condemns_no_other(three: ThreeRegions) -> None:
    three.faulty["ap"].go_down()
    report = three.check(read_data=True)
    assert verdicts(report) == {"eu": Verdict.PASS, "us": Verdict.PASS, "ap": Verdict.NOT_ASKED}
    (finding,) = [one for one in copy_findings(report) if one.subject == "ap"]
    assert (finding.severity, "region is down" in finding.message) == (Severity.WARN, True)


def test_a_region_that_goes_away_in_the_middle_of_a_listing_lacks_nothing(three: ThreeRegions) -> None:
    three.faulty["ap"].fail(StoreUnavailable("gone"), "list-next", times=None)
    report = three.check()
    assert verdicts(report)["ap"] is Verdict.NOT_ASKED
    assert report.faults.faults == ()


class Late(FaultyStore):
    """A region whose listing does not show an object that is there a moment later."""

    hidden = ""

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        found = super().list_objects(prefix, start_after=start_after)
        return (info for info in found if info.key != self.hidden)


def test_what_arrives_during_the_check_is_not_missing(three: ThreeRegions) -> None:
    late = Late(three.stores["us"])
    late.hidden = three.keys["piece"][1]
    three.faulty["us"] = late
    assert verdicts(three.check())["us"] is Verdict.PASS


def test_what_is_deleted_everywhere_during_the_check_is_not_missing(three: ThreeRegions) -> None:
    key = three.keys["piece"][0]
    three.change("us", key, None)
    for name in ("eu", "ap"):
        three.faulty[name].lose(key)
    assert verdicts(three.check())["us"] is Verdict.PASS


def test_an_object_that_a_manifest_names_and_no_region_has_is_missing_in_each(three: ThreeRegions) -> None:
    key = three.keys["pack"][0]
    for name in NAMES:
        three.change(name, key, None)
    report = three.check()
    assert {(fault.region, fault.key, fault.kind) for fault in report.faults.faults} == {
        (name, key, FaultKind.MISSING) for name in NAMES
    }


def test_objects_that_no_manifest_names_are_no_concern(three: ThreeRegions) -> None:
    """A backup that is being taken, or was given up, has no manifest."""
    three.stores["eu"].put(
        pack_key(three.house.archive, "20261123T000000Z-full-00000000", 0, 0, "0" * 8), b"x"
    )
    assert set(verdicts(three.check(read_data=True)).values()) == {Verdict.PASS}


def expire_first_hour(three: ThreeRegions) -> list[str]:
    """Declare the first backup and the first segment gone; return the keys of all that they are made of."""
    backup, segment = three.backups[0], SegmentName.parse(three.keys["piece"][0].split("/")[4])
    key_id = bytes.fromhex(three.keys["envelope"][0].split("/")[3])
    three.expire(
        *three.stores.values(),
        backups=(GoneBackup(backup.backup, bytes(32), backup.stopped_at, fix.BEGIN),),
        wal=(GoneWal(segment, segment, (1, 2), fix.BEGIN),),
        envelopes=(GoneEnvelope(key_id, fix.BEGIN),),
    )
    kinds = ("manifest", "pack", "index", "segment", "walindex", "envelope")
    return [*three.keys["piece"], *(three.keys[kind][0] for kind in kinds)]


@pytest.mark.parametrize("holder", NAMES)
def test_what_has_expired_and_one_region_still_holds_is_missing_in_no_other(
    three: ThreeRegions, holder: str
) -> None:
    """A region that is down or locked while the others delete."""
    gone = expire_first_hour(three)
    for key in gone:
        for name in NAMES:
            if name != holder:
                three.change(name, key, None)
    report = three.check(read_data=True)
    assert report.faults.faults == ()
    assert verdicts(report) == dict.fromkeys(NAMES, Verdict.PASS)


@pytest.mark.parametrize("kind", ["manifest", "pack", "index", "segment", "walindex", "envelope", "head"])
def test_what_no_expire_record_names_is_missing_beside_what_one_does(three: ThreeRegions, kind: str) -> None:
    expire_first_hour(three)
    key = three.keys[kind][1]
    three.change("us", key, None)
    assert [(fault.region, fault.key) for fault in three.check().faults.faults] == [("us", key)]


class Expiring(FaultyStore):
    """A region from which all is expired while it is being listed."""

    then: Callable[[], object] = staticmethod(lambda: None)

    def list_objects(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        if prefix.startswith("wal/"):
            then, self.then = self.then, lambda: None
            then()
        return super().list_objects(prefix, start_after=start_after)


def test_what_is_expired_during_the_check_is_not_missing(three: ThreeRegions) -> None:
    expiring = Expiring(three.stores["us"])

    def expire() -> None:
        for key in expire_first_hour(three):
            three.change("us", key, None)

    expiring.then = expire
    three.faulty["us"] = expiring
    assert three.check().faults.faults == ()


@pytest.mark.parametrize("kind", ["piece", "segment"])
def test_two_genuine_wal_objects_of_one_name_and_size_are_a_conflict(three: ThreeRegions, kind: str) -> None:
    key = three.keys[kind][1]
    whole = three.stores["us"].get(key)
    header = three.house.headers[parse_wal_key(key)].header
    other = replace(header, content_hmac=bytes([7]) * 32)
    twin = encode_headed(other.to_payload(), bytes(split_headed(whole).body), three.house.host)
    assert len(twin) == len(whole)
    three.change("us", key, twin)
    found = three.check(read_data=True).faults.faults
    assert [(fault.region, fault.key, fault.kind) for fault in found] == [("us", key, FaultKind.CONFLICTS)]


def test_two_genuine_expire_records_of_one_number_are_a_conflict(three: ThreeRegions) -> None:
    segment = SegmentName.parse(three.keys["piece"][0].split("/")[4])
    gone = GoneWal(segment, segment, None, fix.BEGIN)
    three.expire(three.stores["us"])
    three.expired -= 1
    three.expire(three.stores["eu"], three.stores["ap"], wal=(gone,))
    key = expiry_key(three.house.archive, 3)
    assert [(fault.key, fault.kind) for fault in three.check().faults.faults] == [(key, FaultKind.CONFLICTS)]


class Counting(FaultyStore):
    """A region that knows how many of its objects are being read in full at once."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.lock = threading.Lock()
        self.reading = self.reading_max = 0

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        with self.lock:
            self.reading += key.startswith(("wal/", "backups/"))
            self.reading_max = max(self.reading_max, self.reading)
        try:
            return super().get(key, check=check)
        finally:
            with self.lock:
                self.reading -= key.startswith(("wal/", "backups/"))


def test_only_a_few_large_objects_are_in_memory_at_a_time(three: ThreeRegions) -> None:
    for number in range(30):
        start = START + SEG + 8192 * (number + 1)
        key = str(three.house.piece(start, start + 8192, hour=2))
        for copy in three.stores.values():
            copy.put(key, three.house.store.get(key))
    counting = Counting(three.stores["us"])
    three.faulty["us"] = counting
    assert verdicts(three.check(read_data=True))["us"] is Verdict.PASS
    assert 1 <= counting.reading_max <= READERS


def test_two_genuine_records_of_one_name_are_a_conflict(three: ThreeRegions) -> None:
    twin = fix.head_of(sequence=2, at=fix.at_second(99))
    three.change("us", three.keys["head"][1], sign_record(twin.to_payload(), three.house.host))
    report = three.check()
    assert [(fault.key, fault.kind) for fault in report.faults.faults] == [
        (three.keys["head"][1], FaultKind.CONFLICTS)
    ]


def test_many_bad_copies_are_counted_and_some_named(three: ThreeRegions) -> None:
    for _ in range(NAMES_MAX + 8):
        head = three.house.head()
        for name in ("eu", "ap"):
            key = head_key(three.house.archive, head)
            three.stores[name].put(key, three.house.store.get(key))
    findings = [one for one in copy_findings(three.check()) if one.id == "copies.missing"]
    assert len(findings) == NAMES_MAX + 1
    assert findings[-1].message == "8 more copies are missing"
    assert findings[-1].hint is not None
