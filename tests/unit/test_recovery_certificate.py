"""The recovery certificate: written only if the WAL on the way was delivered by the restore itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import fix_archive as fix
import pytest
from fix_wal_path import SEGMENT_BYTES, SYSTEM, lsn_in, segment_name

from pitr.errors import RecoveryFailed, RestoreRefused
from pitr.recovery import RecoveryTarget
from pitr.recovery_certificate import Certifier, Promoted, check_writable
from pitr.restore_plan import RestorePlan, StopPoint
from pitr.wal.timeline import TimelineId
from pitr.wal_deliveries import Delivery, DeliveryNotes
from pitr.wal_path import PathSpan, WalPath

FIRST, LAST = 3, 6
END = lsn_in(LAST, 900)
PATH = WalPath(SYSTEM, SEGMENT_BYTES, (PathSpan(TimelineId(2), FIRST, LAST),), (), END)
STOP = StopPoint(END, True, END, END)
PLAN = RestorePlan(
    RecoveryTarget("latest"),
    fix.archive_of(1),
    TimelineId(2),
    fix.backup_of(lsn_in(FIRST, 40), lsn_in(FIRST, 400), stopped_at=fix.at_second(1)),
    (),
    (),
    (),
    is_past_end=False,
    stop=STOP,
)
AT = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def delivery(number: int) -> Delivery:
    return Delivery(segment_name(number, 2), SEGMENT_BYTES, f"{number:064x}", 1, 2)


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[DeliveryNotes]:
    notes = DeliveryNotes(tmp_path / "deliveries.jsonl")
    yield notes
    notes.close()


def deliver(notes: DeliveryNotes, *numbers: int) -> DeliveryNotes:
    for number in numbers:
        notes.add(delivery(number))
    return notes


def certifier(file: Path, notes: DeliveryNotes, *, is_resumed: bool = False) -> Certifier:
    return Certifier(file, PLAN, STOP, PATH, notes, is_resumed=is_resumed)


def test_what_was_delivered_is_stated_before_promotion_and_the_new_timeline_after_it(
    tmp_path: Path, notes: DeliveryNotes
) -> None:
    file = tmp_path / "data.json"
    maker = certifier(file, deliver(notes, *range(FIRST, LAST + 1)))
    maker.arrived(END, AT)
    stated = json.loads(file.read_text())
    assert stated["promoted"] is None
    assert stated["holes"] == "none"
    assert stated["replay"] == {"planned_end": str(END), "end": str(END)}
    assert stated["last_transaction_at"] == "2026-11-25T12:00:00Z"
    sums = [one["sha256"] for one in stated["wal"]["delivered"]]
    assert sums == [f"{number:064x}" for number in range(FIRST, LAST + 1)]
    assert stated["wal"]["objects"] == {"whole": 4, "pieces": 8}
    maker.promoted(Promoted(TimelineId(3), END, "ab" * 32))
    again = json.loads(file.read_text())
    assert again["promoted"] == {"timeline": "00000003", "left_at": str(END), "begin_sha256": "ab" * 32}
    assert {**again, "promoted": None} == stated


def test_wal_that_came_from_elsewhere_is_no_recovery_of_ours(tmp_path: Path, notes: DeliveryNotes) -> None:
    file = tmp_path / "data.json"
    deliver(notes, FIRST, LAST)
    with pytest.raises(RecoveryFailed) as failed:
        certifier(file, notes).arrived(END, AT)
    assert str(segment_name(FIRST + 1, 2)) in str(failed.value.detail)
    assert not file.exists()
    # After a crash the server may have fetched some alone; then it is said which.
    certifier(file, notes, is_resumed=True).arrived(END, AT)
    stated = json.loads(file.read_text())
    alone = stated["wal"]["fetched_alone_after_a_crash"]
    assert alone == [str(segment_name(number, 2)) for number in (FIRST + 1, FIRST + 2)]


def test_notes_outlive_the_process_and_a_line_that_a_crash_cut(tmp_path: Path, notes: DeliveryNotes) -> None:
    file = tmp_path / "deliveries.jsonl"
    deliver(notes, *range(FIRST, LAST)).close()
    with file.open("ab") as stream:
        stream.write(b'["00000002000000')
    again = DeliveryNotes(file)
    again.add(delivery(LAST))
    again.close()
    last = DeliveryNotes(file)
    assert [last.get(segment_name(number, 2)) for number in range(FIRST, LAST + 1)] == [
        delivery(number) for number in range(FIRST, LAST + 1)
    ]
    last.close()


def test_a_place_that_cannot_be_written_is_refused_before_anything_else(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.json")
    for file in (tmp_path / "missing" / "new.json", tmp_path):
        with pytest.raises(RestoreRefused, match="certificate"):
            check_writable(file)


def test_a_disk_that_fails_keeps_the_cluster_closed(tmp_path: Path, notes: DeliveryNotes) -> None:
    folder = tmp_path / "gone"
    deliver(notes, *range(FIRST, LAST + 1))
    with pytest.raises(RecoveryFailed, match="certificate"):
        certifier(folder / "data.json", notes).arrived(END, AT)
