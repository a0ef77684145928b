"""Fences, a mirror's pairs and snapshots of Redis expire with what they are for, and not before."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import fix_archive as fix
import pytest
from fix_expiry import SEG, ExpiryHouse, FaultPoint, Killed
from fix_fences import fence_of
from hypothesis import given
from hypothesis import strategies as st

from pitr.catalogue.expiry_record import ExpireRecord, GoneBelow, GoneBeside, GoneSnapshot, NumberedKind
from pitr.datakeys import DataKeys
from pitr.derived.snapshot_reader import list_snapshots
from pitr.derived.snapshot_record import NodeSnapshot, SnapshotPart, SnapshotRecord
from pitr.derived.topology import SlotRange
from pitr.errors import MalformedValue
from pitr.events.fence_store import FenceReader, FenceWriter, WrittenFence
from pitr.events.partition import TopicPartition
from pitr.events.sync_pairs import KnownPairs, SyncPair
from pitr.events.sync_record import SyncsHeader, encode_lines, whole_lines
from pitr.events.sync_store import SyncReader
from pitr.layout import derived_part_key, fences_key, fences_sequence, syncs_key
from pitr.pipeline.headed import encode_headed, split_headed
from pitr.pipeline.seal import seal
from pitr.pipeline.sign import payload_sha256, sign_record
from pitr.retention_beside import FencesAt, keys_between
from pitr.wal.lsn import LSN
from verifiers.gone_keys import GoneKeys

HOURS, WINDOW_H = 24, 8.0
AT = TopicPartition("orders", 0)


class World(ExpiryHouse):
    """With four fences an hour, an object of two each, a book of pairs each hour, and two Redis each hour."""

    def __init__(self) -> None:
        super().__init__(HOURS)
        store = self.house.store
        writer = FenceWriter(self.house.repository, self.archive, self.house.host, self.house.keys.wal_key)
        previous = None
        for hour in range(HOURS):
            for half in range(2):
                numbers = [hour * 4 + half * 2 + one for one in range(2)]
                fences = [
                    fence_of(
                        at + 1,
                        lsn=(hour + 1) * SEG + (at % 4) * SEG // 4 + 64,
                        committed_by=(hour + 1) * SEG + (at % 4) * SEG // 4 + 96,
                    )
                    for at in numbers
                ]
                writer.put([WrittenFence.of(one) for one in fences], self.at(hour))
            previous = self._pairs(hour, previous)
            for name in ("carts", "wards"):
                self._snapshot(hour, name)
        assert store.get(fences_key(self.archive, 2 * HOURS))
        self.begin_again()

    def _pairs(self, hour: int, previous: bytes | None) -> bytes:
        """Put two objects: a whole book, and one that goes on from it."""
        for sequence in (2 * hour + 1, 2 * hour + 2):
            key = self.house.keys.wal_key(self.at(hour))
            header = SyncsHeader(
                fix.REPOSITORY,
                self.archive,
                sequence,
                previous,
                2 * hour + 1,
                self.at(hour),
                "0" * 32,
                hour,
                key.key_id,
            )
            lines = whole_lines({AT: KnownPairs("t", (SyncPair(hour + 1, hour + 1),), settled=hour + 1)})
            sealed = seal(encode_lines("eu", lines), key, header.context)
            body = encode_headed(header.to_payload(), sealed, self.house.host)
            self.house.store.put(syncs_key(self.archive, sequence), body)
            previous = payload_sha256(split_headed(body).envelope)
        assert previous is not None
        return previous

    def _snapshot(self, hour: int, name: str) -> None:
        at, key = self.at(hour), self.house.keys.backup_key(self.at(hour))
        parts = (SnapshotPart(7, bytes(32)),)
        slots = (SlotRange(0, 16_383),)
        node = NodeSnapshot("aa", "h:1", "7", slots, at, at + timedelta(seconds=5), 5, 7, bytes(32), parts)
        snapshot = f"{at:%Y%m%dT%H%M%SZ}-{name}-0123abcd"
        record = SnapshotRecord(
            fix.REPOSITORY, self.archive, snapshot, name, True, at, at, key.key_id, (node,)
        )
        self.house.store.put(derived_part_key(self.archive, snapshot, 0, 0), b"sealed!")
        self.house.store.put(record.key, sign_record(record.to_payload(), self.house.host))

    def left(self, region: str = "eu") -> dict[str, list[str]]:
        """Return what is there: names of fences, pairs and snapshots, keys of snapshots' parts."""
        store = self.stores[region]
        return {
            kind: sorted(
                info.key.rpartition("/")[2] for info in store.list_objects(f"{kind}/{self.archive}/")
            )
            for kind in ("fences", "syncs")
        } | {
            what: [info.key for info in store.list_objects(f"derived/{self.archive}/{what}/")]
            for what in ("snapshots", "parts")
        }

    def fences(self) -> list[int]:
        store = self.stores["eu"]
        return sorted(fences_sequence(i.key) for i in store.list_objects(f"fences/{self.archive}/"))


def test_what_no_restore_that_stays_can_read_goes_and_the_rest_is_read() -> None:
    world = World()
    done = world.expire(WINDOW_H, fences_read_max=5)
    assert done.record is not None
    first_backup = min(each.backup.wal_start for each in done.plan.kept)
    hour = first_backup.offset // SEG - 1
    assert 8 <= hour < 16, "something goes, and something stays"
    # Two objects an hour, of two fences each: of those below the first segment three are kept.
    assert world.fences() == list(range(2 * hour - 2, 2 * HOURS + 1))
    repository = world.repository()
    keys = DataKeys(repository, world.house.identity)
    for sequence in world.fences():
        assert FenceReader(repository).read(world.archive, sequence, keys), "its key is there as well"
    assert len(world.left()["syncs"]) == 4, "two books"
    assert SyncReader(repository, world.archive).read("eu", keys).faults == ()
    moment = min(done.plan.since, *(each.backup.started_at for each in done.plan.kept))
    kept = [one for one in list_snapshots(repository, world.archive).records if one.name == "carts"]
    assert [one.ended_at > moment for one in kept] == [False] + [True] * (len(kept) - 1)
    assert len(world.left()["parts"]) == 2 * len(kept)
    assert world.left("us") == world.left("ap") == world.left()
    again = world.expire(WINDOW_H, fences_read_max=5)
    assert again.record is None
    gone = GoneKeys(done.record)
    assert gone.holds(fences_key(world.archive, 2 * hour - 3))
    assert not gone.holds(fences_key(world.archive, 2 * hour - 2))
    assert gone.holds(syncs_key(world.archive, 2 * HOURS - 4))
    assert not gone.holds(syncs_key(world.archive, 2 * HOURS - 3))
    (name, *_) = (each.snapshot for each in done.record.beside.snapshots)
    assert gone.holds(derived_part_key(world.archive, name, 0, 0))
    assert not gone.holds(kept[0].key)


def test_nothing_of_it_goes_while_so_many_fences_may_be_read() -> None:
    world = World()
    before = world.fences()
    done = world.expire(WINDOW_H)
    assert done.record is not None
    assert done.record.beside.first(NumberedKind.FENCES) == 1
    assert world.fences() == before
    keys = DataKeys(world.repository(), world.house.identity)
    assert FenceReader(world.repository()).read(world.archive, 1, keys), "nor its key, though the WAL is gone"


def test_parts_stay_until_the_grace_has_passed_and_the_records_go() -> None:
    world = World()
    before = world.left()
    world.expire(WINDOW_H, grace_h=1, fences_read_max=5)
    after = world.left()
    assert (after["fences"], after["syncs"], after["parts"]) == (
        before["fences"],
        before["syncs"],
        before["parts"],
    )
    assert len(after["snapshots"]) < len(before["snapshots"])
    world.now += timedelta(minutes=61)
    world.expire(WINDOW_H + 1.1, fences_read_max=5)
    later = world.left()
    assert all(len(later[kind]) < len(before[kind]) for kind in ("fences", "syncs", "parts"))


def test_a_run_that_is_killed_is_finished_by_the_next() -> None:
    world = World()
    point = FaultPoint()
    world.expire(WINDOW_H, point=point, fences_read_max=5)
    expected = {region: world.keys(region) for region in world.stores}
    kinds = [change.split()[2].split("/")[0] for change in point.changes]
    for kill_at in (kinds.index("fences") + 3, kinds.index("syncs") + 3, kinds.index("derived") + 3):
        world.begin_again()
        with pytest.raises(Killed):
            world.expire(WINDOW_H, point=FaultPoint(kill_at), fences_read_max=5)
        world.expire(WINDOW_H, fences_read_max=5)
        assert {region: world.keys(region) for region in world.stores} == expected, kinds[kill_at]


def test_bad_headers_keep_what_they_hide_and_it_is_said() -> None:
    world = World()
    for store in world.stores.values():
        for info in list(store.list_objects(f"fences/{world.archive}/"))[1:]:
            store.delete(info.key)
            store.put(info.key, b"rotten")
    before = world.fences()
    done = world.expire(WINDOW_H, fences_read_max=5)
    assert done.record is not None
    assert world.fences() == before
    assert len(world.left()["syncs"]) == 4, "of the others it goes all the same"


def test_a_record_reads_as_it_was_written_and_one_of_before_too() -> None:
    record = ExpireRecord(fix.REPOSITORY, fix.archive_of(1), 1, None, fix.BEGIN, 60, 1, (), (), ())
    assert set(record.to_payload()) & {"below", "snapshots"} == set()
    assert ExpireRecord.from_payload(record.to_payload()) == record
    beside = GoneBeside(
        (GoneBelow(NumberedKind.FENCES, 7, fix.BEGIN), GoneBelow(NumberedKind.SYNCS, 2, fix.BEGIN)),
        (GoneSnapshot("20260101T000000Z-wards-0123abcd", fix.BEGIN),),
    )
    assert ExpireRecord.from_payload(replace(record, beside=beside).to_payload()).beside == beside
    payload = replace(record, beside=beside).to_payload()
    for wrong in (
        {**payload, "below": [{"kind": "wal", "below": 7, "delete_after": "2026-01-01T00:00:00.000000Z"}]},
        {**payload, "below": [{"kind": "syncs", "below": 1, "delete_after": "2026-01-01T00:00:00.000000Z"}]},
        {**payload, "snapshots": [{"snapshot": "../x", "delete_after": "2026-01-01T00:00:00.000000Z"}]},
    ):
        with pytest.raises(MalformedValue):
            ExpireRecord.from_payload(wrong)


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=12), st.integers(1, 50), st.sets(st.integers(0, 3000))
)
def test_the_keys_of_however_many_fences_that_stay_are_found_by_few_looks(
    runs: list[int], first: int, bad: set[int]
) -> None:
    """An archiver that is hours behind seals WAL that goes with the key of fences far above it."""
    by_place = [number for number, length in enumerate(runs) for _ in range(length)]
    last, looks = first + len(by_place) - 1, 0

    def at_or_after(sequence: int) -> FencesAt:
        nonlocal looks
        looks += 1
        while sequence in bad and sequence < last:
            sequence += 1
        key = by_place[sequence - first].to_bytes(16, "big")
        return FencesAt(sequence, 2, (1, LSN(sequence)), key)

    found = keys_between(first, last, lambda some: map(at_or_after, some))
    readable = {
        by_place[number - first] for number in range(first, last + 1) if number not in bad or number == last
    }
    assert found == {number.to_bytes(16, "big") for number in readable}
    assert looks <= 2 + len(runs) * 12
    assert keys_between(5, 4, lambda some: map(at_or_after, some)) == frozenset()
