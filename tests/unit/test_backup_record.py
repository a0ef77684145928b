"""The manifest of a base backup as a record: incremental ones, and those of before."""

from __future__ import annotations

from dataclasses import replace

import fix_archive as fix
import pytest

from pitr.catalogue.backup_record import KEYS_MAX, RELATION_SEGMENT_BLOCKS, BackupManifest, StoredObject
from pitr.errors import MalformedValue
from pitr.layout import index_key, pack_key
from pitr.wal.lsn import LSN

FULL = fix.backup_of(LSN(1000), LSN(2000), stopped_at=fix.at_second(5))
INCR = replace(FULL, type="incr", parent=fix.backup_id(7), relation_segment_blocks=1024)


@pytest.mark.parametrize("manifest", [FULL, INCR], ids=["full", "incr"])
def test_a_manifest_comes_back_from_its_record(manifest: BackupManifest) -> None:
    assert BackupManifest.from_payload(manifest.to_payload()) == manifest


def test_a_full_backup_says_why_it_is_none_that_is_built_on_another() -> None:
    told = replace(FULL, full_because="the WAL summaries have a hole")
    payload = told.to_payload()
    assert BackupManifest.from_payload(payload) == told
    # One that has nothing to say is written as ever.
    assert "full_because" not in FULL.to_payload()
    assert BackupManifest.from_payload({**FULL.to_payload(), "full_because": None}) == FULL
    for wrong in ({**payload, "full_because": 7}, {**INCR.to_payload(), "full_because": "because"}):
        with pytest.raises(MalformedValue):
            BackupManifest.from_payload(wrong)


def test_a_manifest_of_before_has_segments_of_a_gibibyte() -> None:
    payload = FULL.to_payload()
    del payload["relation_segment_blocks"]
    read = BackupManifest.from_payload(payload)
    assert read == FULL
    assert read.relation_segment_blocks == RELATION_SEGMENT_BLOCKS == 131_072


@pytest.mark.parametrize("blocks", [0, -1, 1 << 32, "131072", True])
def test_segments_of_an_impossible_length_are_refused(blocks: object) -> None:
    with pytest.raises(MalformedValue):
        BackupManifest.from_payload({**FULL.to_payload(), "relation_segment_blocks": blocks})


@pytest.mark.parametrize(
    "change", [{"type": "full"}, {"parent": None}, {"type": "diff"}, {"parent": 7}], ids=str
)
def test_an_incremental_backup_has_a_parent_and_a_full_one_none(change: dict[str, object]) -> None:
    with pytest.raises(MalformedValue):
        BackupManifest.from_payload({**INCR.to_payload(), **change})


PACK = StoredObject(pack_key(FULL.archive, FULL.backup, 1, 0, "0123abcd"), 100, b"\x01" * 32, 3)
INDEX = StoredObject(index_key(FULL.archive, FULL.backup, 1, 0, "0123abcd"), 50, b"\x02" * 32, 1)
OTHER_KEY = b"\x0f" * 16
RESUMED = replace(
    FULL, packs=(PACK, replace(PACK, key=f"{PACK.key[:-8]}00000000", key_id=OTHER_KEY)), indexes=(INDEX,)
)


def test_packs_of_an_earlier_attempt_name_their_key() -> None:
    payload = RESUMED.to_payload()
    assert BackupManifest.from_payload(payload) == RESUMED
    assert RESUMED.key_ids == {FULL.key_id, OTHER_KEY}
    assert RESUMED.resumed_bytes == 100
    # Its own packs are written as ever, so that an older reader's manifest is the same bytes.
    packs = payload["packs"]
    assert isinstance(packs, list)
    assert sorted(packs[0]) == ["bytes", "frames", "key", "sha256"]
    assert FULL.key_ids == {FULL.key_id}


def changed_packs(**change: object) -> dict[str, object]:
    payload = RESUMED.to_payload()
    packs = payload["packs"]
    assert isinstance(packs, list)
    return {**payload, "packs": [packs[0], {**packs[1], **change}]}


@pytest.mark.parametrize("key_id", ["", "0f", "0F" * 16, "0f" * 17, 7, True, ["0f" * 16]])
def test_a_pack_of_an_impossible_key_is_refused(key_id: object) -> None:
    with pytest.raises(MalformedValue):
        BackupManifest.from_payload(changed_packs(key_id=key_id))


def test_a_pack_whose_key_is_null_is_sealed_with_the_manifests() -> None:
    read = BackupManifest.from_payload(changed_packs(key_id=None))
    assert read.key_ids == {FULL.key_id}


def test_a_pack_of_another_backup_is_refused_whatever_its_key() -> None:
    elsewhere = pack_key(FULL.archive, fix.backup_id(9), 1, 0, "0123abcd")
    with pytest.raises(MalformedValue, match="not its own"):
        BackupManifest.from_payload(changed_packs(key=elsewhere))


def test_an_index_of_another_key_is_refused() -> None:
    with pytest.raises(MalformedValue, match="backup's own key"):
        replace(RESUMED, indexes=(replace(INDEX, key_id=OTHER_KEY),))


def test_more_keys_than_there_are_attempts_are_refused() -> None:
    def with_keys(count: int) -> tuple[StoredObject, ...]:
        return tuple(replace(PACK, key_id=number.to_bytes(16, "big")) for number in range(count))

    assert len(replace(FULL, packs=with_keys(KEYS_MAX - 1)).key_ids) == KEYS_MAX
    with pytest.raises(MalformedValue, match="more data keys"):
        replace(FULL, packs=with_keys(KEYS_MAX))


def test_wal_is_needed_from_the_segment_that_the_backup_starts_in() -> None:
    size = FULL.segment_bytes
    starts = {size: size, size + 1: size, 2 * size - 1: size, 2 * size: 2 * size, 1: 1, size - 1: 1}
    for start, begins in starts.items():
        assert replace(FULL, start_lsn=LSN(start), stop_lsn=LSN(3 * size)).wal_start == LSN(begins)
