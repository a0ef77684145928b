"""A recovery certificate as proof of a restored server's past: of that server, and of no other."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.certified_past import CertifiedPast, find_certified, read_certified, unproven
from cli.errors import UsageRefused
from cli.server_past import ServerPast
from pitr.catalogue.records import EpochParent
from pitr.postgres.replication import ServerIdentity
from pitr.recovery_certificate import BEGIN_BYTES, FORMAT, begin_of
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, TimelineSwitch

SEG = 1 << 20
LEFT_AT = LSN(4 * SEG)
BEGIN = bytes(range(BEGIN_BYTES))
FIELDS: dict[str, Any] = {
    "format": FORMAT,
    "repository": "ab" * 16,
    "archive": "7/2",
    "timelines": [{"timeline": "00000001"}, {"timeline": "00000002"}],
    "wal": {"delivered": [{"segment": "000000020000000000000003", "bytes": SEG, "sha256": "cd" * 32}]},
    "promoted": {
        "timeline": "00000003",
        "left_at": str(LEFT_AT),
        "begin_sha256": hashlib.sha256(BEGIN).hexdigest(),
    },
}


def written(folder: Path, **changed: object) -> Path:
    file = folder / "data.recovery-certificate.json"
    file.write_text(json.dumps({**FIELDS, **changed}))
    return file


def certified(folder: Path, **changed: object) -> CertifiedPast:
    found = read_certified(written(folder, **changed))
    assert found is not None
    return found


def server(
    *switches: tuple[int, LSN], timeline: int = 3, begin: bytes | None = BEGIN, data: Path | None = None
) -> ServerPast:
    def served(of: TimelineId, start: LSN, end: LSN) -> bytes | None:
        return (
            begin if (of, start, end) == (TimelineId(3), LEFT_AT, LSN(LEFT_AT.offset + BEGIN_BYTES)) else None
        )

    way = tuple(TimelineSwitch(TimelineId(number), lsn) for number, lsn in switches)
    history = TimelineHistory(TimelineId(timeline), way)
    identity = ServerIdentity(7, TimelineId(timeline), LSN(9 * SEG))
    return ServerPast(identity, history, SEG, False, served, data_directory=data)


ITSELF = server((1, LSN(2 * SEG)), (2, LEFT_AT))


def test_the_server_that_was_restored_is_known_again_also_after_a_failover(tmp_path: Path) -> None:
    past = certified(tmp_path)
    assert past.is_of(ITSELF, TimelineId(2), LEFT_AT)
    later = server((1, LSN(2 * SEG)), (2, LEFT_AT), (3, LSN(6 * SEG)), timeline=4)
    assert past.is_of(later, TimelineId(2), LEFT_AT)


@pytest.mark.parametrize(
    "other",
    [
        # Another restore to the same target: its timeline began at another moment.
        server((1, LSN(2 * SEG)), (2, LEFT_AT), begin=bytes(BEGIN_BYTES)),
        # The server has its begin no longer: nothing is proven.
        server((1, LSN(2 * SEG)), (2, LEFT_AT), begin=None),
        # It left elsewhere, or to another timeline.
        server((1, LSN(2 * SEG)), (2, LSN(5 * SEG))),
        server((1, LSN(2 * SEG)), (2, LEFT_AT), timeline=4),
        server((1, LEFT_AT), timeline=3),
    ],
)
def test_another_server_is_not_taken_for_it(tmp_path: Path, other: ServerPast) -> None:
    assert not certified(tmp_path).is_of(other, TimelineId(2), LEFT_AT)


def test_it_speaks_of_no_other_timeline_and_of_no_other_end(tmp_path: Path) -> None:
    past = certified(tmp_path)
    assert not past.is_of(ITSELF, TimelineId(1), LSN(2 * SEG))
    assert not past.is_of(ITSELF, TimelineId(2), LSN(3 * SEG))


def test_the_one_beside_the_data_directory_is_found_and_a_named_one_must_be_good(tmp_path: Path) -> None:
    beside = replace(ITSELF, data_directory=tmp_path / "data")
    assert find_certified(ITSELF, None) is None
    assert find_certified(beside, None) is None
    file = written(tmp_path)
    assert find_certified(beside, None) == find_certified(ITSELF, file) == certified(tmp_path)
    file.write_text("{}")
    assert find_certified(beside, None) is None
    with pytest.raises(UsageRefused, match="no recovery certificate"):
        find_certified(beside, file)
    # Of a cluster that was left paused, or that was restored by a version that noted no begin.
    for promoted in (None, {"timeline": "00000003", "left_at": str(LEFT_AT)}):
        with pytest.raises(UsageRefused, match="says nothing"):
            find_certified(beside, written(tmp_path, promoted=promoted))


@pytest.mark.parametrize("key", [*FIELDS])
def test_a_certificate_that_lacks_something_is_none(tmp_path: Path, key: str) -> None:
    fields = {name: value for name, value in FIELDS.items() if name != key}
    file = tmp_path / "data.recovery-certificate.json"
    file.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="lacks"):
        read_certified(file)


def test_a_last_segment_of_another_timeline_proves_nothing(tmp_path: Path) -> None:
    delivered = [{"segment": "000000010000000000000003", "bytes": SEG, "sha256": "cd" * 32}]
    assert read_certified(written(tmp_path, wal={"delivered": delivered})) is None


def test_a_begin_that_crosses_a_segment_is_not_taken() -> None:
    assert begin_of(LSN(SEG), SEG) == LSN(SEG + BEGIN_BYTES)
    assert begin_of(LSN(2 * SEG - BEGIN_BYTES), SEG) == LSN(2 * SEG)
    assert begin_of(LSN(2 * SEG - BEGIN_BYTES + 8), SEG) is None


def test_it_is_said_what_of_the_past_is_not_proven() -> None:
    whole = EpochParent(2, TimelineId(2), LEFT_AT)
    assert unproven(ITSELF, whole) is None
    assert unproven(server(timeline=1), None) is None
    for parent in (None, EpochParent(2, TimelineId(1), LSN(2 * SEG))):
        said = str(unproven(ITSELF, parent))
        assert f"left timeline 00000002 at {LEFT_AT}" in said
        assert "--archive" in said
