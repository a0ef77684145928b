"""The record of a snapshot: to bytes and back, hostile ones refused, and the right one chosen."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from fix_archive import BEGIN, KEY_ID, REPOSITORY, archive_of

from pitr.derived.policy import After, Namespace, Policy, treat
from pitr.derived.restore_words import read_me
from pitr.derived.snapshot_record import NodeSnapshot, SnapshotPart, SnapshotRecord, newest_before
from pitr.derived.topology import SlotRange
from pitr.derived.unknowable import unknowable
from pitr.errors import MalformedValue
from pitr.layout import derived_key, derived_part_key, derived_prefix


def node(seconds: int, slots: tuple[SlotRange, ...] = (SlotRange(0, 16_383),)) -> NodeSnapshot:
    at = BEGIN + timedelta(seconds=seconds)
    parts = (SnapshotPart(7, bytes(32)), SnapshotPart(9, bytes(range(32))))
    return NodeSnapshot("aa", "h:1", "6.2.5", slots, at, at + timedelta(seconds=3), 5, 100, bytes(32), parts)


def record(seconds: int = 0, name: str = "wards") -> SnapshotRecord:
    at = BEGIN + timedelta(seconds=seconds)
    snapshot = f"{at:%Y%m%dT%H%M%SZ}-{name}-0123abcd"
    nodes = (
        node(seconds, (SlotRange(0, 9), SlotRange(11, 16_383))),
        node(seconds + 2, (SlotRange(10, 10),)),
    )
    return SnapshotRecord(REPOSITORY, archive_of(1), snapshot, name, True, at, at, KEY_ID, nodes)


def test_a_record_is_read_as_it_was_written() -> None:
    assert SnapshotRecord.from_payload(record().to_payload()) == record()
    assert record().key.startswith(derived_prefix(archive_of(1)))
    assert (record().began_at, record().ended_at) == (BEGIN, BEGIN + timedelta(seconds=5))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("kind",), "backup"),
        (("nodes",), []),
        (("name",), "other"),
        (("nodes", 0, "slots"), [[0, 16_384]]),
        (("nodes", 0, "slots"), [[5, 1]]),
        (("nodes", 0, "slots"), [["a", 1]]),
        (("nodes", 0, "parts"), []),
        (("nodes", 0, "bytes"), 0),
        (("nodes", 0, "sha256"), "00"),
        (("nodes", 0, "address"), "x" * 400),
        (("key_id",), ""),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(place: tuple[Any, ...], value: object) -> None:
    payload: Any = record().to_payload()
    inner = payload
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    with pytest.raises(MalformedValue):
        SnapshotRecord.from_payload(payload)


def test_keys_are_built_of_ids_only() -> None:
    snapshot = record().snapshot
    assert derived_part_key(archive_of(1), snapshot, 2, 7).endswith(f"/parts/{snapshot}/0002-000007")
    for bad in ("", "..", "20261123T120000Z-a/b-0123abcd", "20261123T120000Z--0123abcd"):
        with pytest.raises(MalformedValue):
            derived_key(archive_of(1), bad)


def test_the_newest_that_was_whole_by_then_is_chosen() -> None:
    records = (record(0), record(100), record(200))

    def chosen(at: datetime | None) -> SnapshotRecord | None:
        return newest_before(records, at)

    assert chosen(None) == records[2]
    # The third one's last file was whole at 205 s: before that it may hold what came later.
    assert chosen(BEGIN + timedelta(seconds=204)) == records[1]
    assert chosen(BEGIN + timedelta(seconds=205)) == records[2]
    assert chosen(BEGIN) is None


def test_the_text_beside_the_files_tells_slots_times_and_the_order() -> None:
    text = read_me(record())
    assert "slots 0-9 11-16383" in text
    assert "up to 5.0 s lie between" in text
    assert "2 new, empty servers" in text
    alone = read_me(replace(record(), is_cluster=False, nodes=(node(0, ()),)))
    assert "CLUSTER" not in alone
    assert "a new, empty server" in alone
    assert alone.index("SHUTDOWN NOSAVE") < alone.index("pitr redis apply")


def test_what_cannot_be_known_is_said_with_figures() -> None:
    treatments = treat(
        [Namespace("queue:", Policy.RESTORE), Namespace("session:", Policy.KEEP, True)], After.RESTORE
    )
    found = {"queue:": 4, "session:": 6}
    at = BEGIN + timedelta(seconds=150)
    told = unknowable(treatments, found, undeclared=3, clients=2, at=at, snapshot=record(100))
    text = "\n".join(told)
    assert record(100).snapshot in text
    for figure in ("about 6 keys stay", "its 4 keys", "about 3 keys belong", "up to 2 other clients"):
        assert figure in text
    none = unknowable(treatments, {}, undeclared=0, clients=0, at=at, snapshot=None)
    assert len(none) == 2
    assert "there is no snapshot" in none[1]
