"""The manifest of a base backup as a record: incremental ones, and those of before."""

from __future__ import annotations

from dataclasses import replace

import fix_archive as fix
import pytest

from pitr.catalogue.backup_record import RELATION_SEGMENT_BLOCKS, BackupManifest
from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN

FULL = fix.backup_of(LSN(1000), LSN(2000), stopped_at=fix.at_second(5))
INCR = replace(FULL, type="incr", parent=fix.backup_id(7), relation_segment_blocks=1024)


@pytest.mark.parametrize("manifest", [FULL, INCR], ids=["full", "incr"])
def test_a_manifest_comes_back_from_its_record(manifest: BackupManifest) -> None:
    assert BackupManifest.from_payload(manifest.to_payload()) == manifest


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


def test_wal_is_needed_from_the_segment_that_the_backup_starts_in() -> None:
    size = FULL.segment_bytes
    starts = {size: size, size + 1: size, 2 * size - 1: size, 2 * size: 2 * size, 1: 1, size - 1: 1}
    for start, begins in starts.items():
        assert replace(FULL, start_lsn=LSN(start), stop_lsn=LSN(3 * size)).wal_start == LSN(begins)
