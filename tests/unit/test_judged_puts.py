"""What an archive's own key signed for a name stops its writer; nothing else does that lies in one region."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import fix_archive as fix
import pytest
from fix_stores import FaultyStore
from fix_wal_archive import REPOSITORY_ID, WalHouse

from cli.errors import describe
from pitr.catalogue.event_record import EventRecord, Happening
from pitr.catalogue.records import HistoryRecord
from pitr.catalogue.wal_records import WalIndexRecord, indexed
from pitr.datakeys import HostKeys
from pitr.errors import NameTaken
from pitr.layout import (
    PieceKey,
    SegmentKey,
    envelope_key,
    epoch_key,
    event_key,
    head_key,
    history_key,
    lease_key,
    log_entry_key,
    manifest_key,
    pack_key,
    wal_index_key,
)
from pitr.pipeline.headed import encode_headed, split_headed
from pitr.pipeline.keys import DataKey, seal_envelope
from pitr.pipeline.sign import Signer, record_type, sign_record, sign_typed
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from storage.store import ObjectConflict

ARCHIVE = fix.archive_of(1)
START = LSN(1 << 20)
STRANGER = Signer(bytes([77]) * 32)
Made = tuple[str, bytes]
# Makes an object and its name: number ``number`` of its kind, in one of several versions.
Maker = Callable[[Signer, int, int, str], Made]


def head(signer: Signer, number: int, version: int, repository: str) -> Made:
    record = replace(fix.head_of(sequence=number, piece_sequence=version), repository=repository)
    return head_key(ARCHIVE, number), sign_record(record.to_payload(), signer)


def history(signer: Signer, number: int, version: int, repository: str) -> Made:
    content = b"1\t0/%d000000\tno recovery target specified\n" % version
    record = HistoryRecord(repository, ARCHIVE, TimelineId(number), content)
    return history_key(ARCHIVE, TimelineId(number)), sign_record(record.to_payload(), signer)


def envelope(signer: Signer, number: int, version: int, repository: str) -> Made:
    data_key = DataKey(bytes([number]) * 32)
    record = seal_envelope(
        data_key,
        [WalHouse(MemoryStore(), fix.SYSTEM).recipient],
        repository=repository,
        archive=ARCHIVE,
        purpose="wal",
        created_at=fix.at_second(version),
    )
    return envelope_key(ARCHIVE, record.key_id), sign_record(record.to_payload(), signer)


def manifest(signer: Signer, number: int, version: int, repository: str) -> Made:
    made = fix.backup_of(START, START + version, stopped_at=fix.at_second(60), number=number)
    record = replace(made, repository=repository)
    return manifest_key(ARCHIVE, record.backup), sign_record(record.to_payload(), signer)


def piece(signer: Signer, number: int, version: int, repository: str) -> Made:
    header = replace(
        fix.piece_header(START, START + 1000, number, previous=bytes([version]) * 32),
        repository=repository,
        content_hmac=bytes([version]) * 32,
    )
    key = PieceKey(ARCHIVE, header.segment, header.start, header.end, number, "00000001")
    return str(key), encode_headed(header.to_payload(), b"sealed" * 1000, signer)


def segment(signer: Signer, number: int, version: int, repository: str) -> Made:
    start = START + number * fix.SEGMENT_BYTES
    header = replace(fix.segment_header(start, start + fix.SEGMENT_BYTES, 1, version), repository=repository)
    key = SegmentKey(ARCHIVE, header.segment, "00000001")
    return str(key), encode_headed(header.to_payload(), b"sealed" * 1000, signer)


def index(signer: Signer, number: int, version: int, repository: str) -> Made:
    header = replace(fix.piece_header(START, START + 1000, number), repository=repository)
    key = PieceKey(ARCHIVE, header.segment, header.start, header.end, number, "00000001")
    record = WalIndexRecord(
        repository=repository,
        archive=ARCHIVE,
        first=number,
        last=number,
        previous=bytes([version]) * 32,
        pieces=(indexed(key, header, bytes(32)),),
        segments=(),
    )
    return wal_index_key(ARCHIVE, number, number), sign_record(record.to_payload(), signer)


def event(signer: Signer, number: int, version: int, repository: str) -> Made:
    happening = Happening(fix.at_second(version), "wal-lost", "WAL was lost", ())
    previous = None if number == 1 else bytes(32)
    record = EventRecord(repository, ARCHIVE, number, previous, happening)
    return event_key(ARCHIVE, number), sign_record(record.to_payload(), signer)


MAKERS: dict[str, Maker] = {
    "event": event,
    "head": head,
    "timeline-history": history,
    "envelope": envelope,
    "backup": manifest,
    "wal-piece": piece,
    "wal-segment": segment,
    "wal-index": index,
}


class House:
    def __init__(self, path: Path) -> None:
        self.faulty = {name: FaultyStore(MemoryStore()) for name in "abc"}
        self.queue = RepairQueue(path)
        regions = [Region(name, store) for name, store in self.faulty.items()]
        self.store = ReplicatedStore(regions, quorum=2, queue=self.queue, cooldown_s=0.0)
        self.house = WalHouse(self.store, fix.SYSTEM)
        self.repository = self.house.repository
        self.signer = self.house.signer
        self.root = self.house.identity.root_signer()

    def plant(self, key: str, body: bytes, *names: str) -> None:
        for name in names:
            self.faulty[name].inner.put(key, body)

    def put(self, key: str, body: bytes) -> None:
        """Put once the regions that hold something else have had their say."""
        taken = {
            name
            for name, store in self.faulty.items()
            if any(info.key == key for info in store.inner.list_objects(""))
        }
        gates = [self.faulty[name].hold("put", key) for name in set(self.faulty) - taken]
        lanes = self.store._lanes
        assert lanes is not None
        with ThreadPoolExecutor(1) as pool:
            putting = pool.submit(self.repository.puts.put, key, body)

            def have_answered() -> bool:
                puts = [put for lane in lanes.lanes for put in lane.undecided.values() if put.key == key]
                return putting.done() or any(taken <= set(put.errors) for put in puts)

            with lanes.changed:
                while not have_answered():
                    lanes.changed.wait(0.05)
            for gate in gates:
                gate.release()
            putting.result(30.0)

    def holders(self, key: str, body: bytes) -> str:
        return "".join(name for name, store in self.faulty.items() if _holds(store, key, body))

    def close(self) -> None:
        for store in self.faulty.values():
            store.heal()
        self.store.close()
        self.queue.close()


def _holds(store: FaultyStore, key: str, body: bytes) -> bool:
    is_there = any(info.key == key for info in store.inner.list_objects(""))
    return is_there and store.inner.get(key) == body


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "repair")
    yield house
    house.close()


def _flipped(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def junk_of(house: House, kind: str, number: int) -> dict[str, bytes]:
    """What may lie under the name of a kind's object of that number without any second writer."""
    make, mine = MAKERS[kind], house.signer
    _, ours = make(mine, number, 1, REPOSITORY_ID)
    another = next(name for name in MAKERS if name != kind)
    flips = {
        f"flipped bit {place}": _flipped(ours, at)
        for place, at in enumerate((0, 30, len(ours) // 3, len(ours) // 2, len(ours) - 2))
    }
    return {
        "nothing": b"",
        "text": b"junk" * 100,
        "zeroes": bytes(3_000_000),
        "cut": ours[:-1],
        "extended": ours + b"\0",
        **flips,
        "a stranger's": make(STRANGER, number, 2, REPOSITORY_ID)[1],
        "another one's of ours": make(mine, number + 100, 2, REPOSITORY_ID)[1],
        "another repository's": make(mine, number, 2, "f" * 32)[1],
        "another kind of ours": MAKERS[another](mine, number, 2, REPOSITORY_ID)[1],
    }


@pytest.mark.parametrize("kind", MAKERS)
def test_what_no_writer_signed_for_a_name_is_passed(house: House, kind: str) -> None:
    put = []
    for number, name in enumerate(junk_of(house, kind, 1), start=3):
        key, ours = MAKERS[kind](house.signer, number, 1, REPOSITORY_ID)
        junk = junk_of(house, kind, number)[name]
        house.plant(key, junk, "b")
        house.put(key, ours)
        assert house.holders(key, ours) == "ac", name
        assert _holds(house.faulty["b"], key, junk), name
        put.append(key)
    assert [(fault.region, fault.key) for fault in house.store.damaged()] == [("b", key) for key in put]


@pytest.mark.parametrize("kind", MAKERS)
def test_what_a_second_writer_signed_for_a_name_is_a_conflict(house: House, kind: str) -> None:
    key, ours = MAKERS[kind](house.signer, 3, 1, REPOSITORY_ID)
    rival_key, rivals = MAKERS[kind](house.signer, 3, 2, REPOSITORY_ID)
    assert (key == rival_key, ours == rivals) == (True, False)
    house.plant(key, rivals, "b")
    with pytest.raises(ObjectConflict):
        house.put(key, ours)


@pytest.mark.parametrize("kind", ["envelope", "backup"])
def test_what_a_reader_signed_with_the_root_key_is_a_conflict_too(house: House, kind: str) -> None:
    key, ours = MAKERS[kind](house.signer, 3, 1, REPOSITORY_ID)
    house.plant(key, MAKERS[kind](house.root, 3, 2, REPOSITORY_ID)[1], "b")
    with pytest.raises(ObjectConflict):
        house.put(key, ours)


def test_the_root_key_signs_no_heads(house: House) -> None:
    key, ours = head(house.signer, 3, 1, REPOSITORY_ID)
    house.plant(key, head(house.root, 3, 2, REPOSITORY_ID)[1], "b")
    house.put(key, ours)


@pytest.mark.parametrize("payload_type", ["application/vnd.pitr.head.v2+json", record_type("head")])
def test_what_our_key_signed_in_a_form_that_we_do_not_know_is_a_second_writers(
    house: House, payload_type: str
) -> None:
    key, ours = head(house.signer, 3, 1, REPOSITORY_ID)
    house.plant(key, sign_typed(b'{"kind":"head","new":true}', payload_type, house.signer), "b")
    with pytest.raises(ObjectConflict):
        house.put(key, ours)


def test_a_genuine_header_over_another_body_is_our_own_object_damaged(house: House) -> None:
    key, ours = piece(house.signer, 3, 1, REPOSITORY_ID)
    start = len(ours) - len(split_headed(ours).body)
    house.plant(key, ours[:start] + b"\0" * 10, "b")
    house.put(key, ours)
    assert house.holders(key, ours) == "ac"


def test_a_pack_has_two_random_numbers_in_its_name_so_nobody_else_put_it(house: House) -> None:
    key = pack_key(ARCHIVE, fix.backup_id(1), 0, 0, "00000001")
    house.plant(key, b"other bytes", "b")
    house.put(key, b"sealed")
    assert house.holders(key, b"sealed") == "ac"


@pytest.mark.parametrize(
    "key",
    [
        lease_key("backup/1/00000001", 1),
        epoch_key(fix.archive_of(2)),
        log_entry_key("0" * 16, 1),
        "repository",
        f"expired/{ARCHIVE}/7ffffffffffffffe",
    ],
)
def test_what_means_that_somebody_was_first_is_put_strictly(house: House, key: str) -> None:
    if key != "repository":
        house.plant(key, b"junk", "b")
    with pytest.raises(ObjectConflict):
        house.put(key, b"ours")


def test_junk_in_too_many_regions_is_told_in_three_lines(house: House) -> None:
    key, ours = head(house.signer, 3, 1, REPOSITORY_ID)
    house.plant(key, b"junk", "a", "c")
    with pytest.raises(NameTaken) as raised:
        house.repository.puts.put(key, ours)
    failure = describe(raised.value)
    assert failure.exit_code == 9
    first, why, following = failure.lines()
    assert first == f"error[PITR-9003]: too few regions can take {key}"
    assert "a: object" in why
    assert "c: object" in why
    assert "\n" not in why
    assert "remove it there by hand" in following


def test_a_new_data_key_reaches_the_regions_past_junk(house: House) -> None:
    """The hour's key must not fail for one region: no WAL is sealed without it."""

    class Claiming(MemoryStore):
        """A region that answers each put with: other bytes are there."""

        def put(self, key: str, body: bytes, **options: Any) -> None:
            super().put(key, b"junk")
            super().put(key, body)

    archive, repository = house.house.archive, house.repository
    house.faulty["a"].inner = Claiming()
    keys = HostKeys(repository, archive, house.signer, [house.house.recipient], random=os.urandom)
    data_key = keys.wal_key(fix.BEGIN)
    later = keys.wal_key(fix.BEGIN + timedelta(hours=2))
    assert data_key.key_id != later.key_id
    for each in (data_key, later):
        assert repository.get_envelope(archive, each.key_id).key_id == each.key_id
