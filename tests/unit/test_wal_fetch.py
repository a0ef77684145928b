"""``restore_command`` without a restore beside it: what is delivered, and what each failure ends with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fix_wal_path import (
    SEGMENT_BYTES,
    WalShelf,
    lsn_in,
    segment_content,
    segment_name,
    span,
    write_test_plan,
)

from pitr.errors import KeyMissing
from pitr.wal.timeline import TimelineId
from pitr.wal_fetch import WalFetchOutcome, WalFetchRequest, fetch_wal
from pitr.wal_path import HistoryFile
from pitr.wal_plan_file import WalPlanHeader
from storage.store import StoreUnavailable

ROOT = Path(__file__).parents[2]
SPANS = [span(lsn_in(7), lsn_in(8, 600), timeline=2)]
HISTORY = HistoryFile(TimelineId(2), b"1\t0/700000\treason\n")


@pytest.fixture
def shelf() -> WalShelf:
    shelf = WalShelf()
    shelf.add_whole(segment_name(7, 2))
    shelf.add_piece(segment_name(8, 2), 0, 600)
    return shelf


@pytest.fixture
def plan(tmp_path: Path, shelf: WalShelf) -> Path:
    return write_test_plan(tmp_path, shelf, SPANS, [HISTORY])


def fetch(plan: Path, shelf: WalShelf, name: str, *, is_standby: bool = False) -> WalFetchOutcome:
    destination = plan.parent / "RECOVERYXLOG"
    destination.unlink(missing_ok=True)
    return fetch_wal(WalFetchRequest(name, destination, plan, is_standby, lambda header: shelf.read))


def delivered(plan: Path) -> bytes:
    return (plan.parent / "RECOVERYXLOG").read_bytes()


def test_a_file_in_the_spool_is_moved_without_opening_anything(plan: Path, shelf: WalShelf) -> None:
    spooled = plan.parent / "spool" / str(segment_name(7, 2))
    spooled.write_bytes(b"ready")
    plan.write_bytes(b"not even the plan is read")
    assert fetch(plan, shelf, spooled.name) == WalFetchOutcome(0)
    assert delivered(plan) == b"ready"
    assert not spooled.exists()


def test_without_a_feeder_it_opens_the_objects_itself(plan: Path, shelf: WalShelf) -> None:
    assert fetch(plan, shelf, str(segment_name(7, 2))) == WalFetchOutcome(0)
    assert delivered(plan) == segment_content(segment_name(7, 2))
    assert not list((plan.parent / "spool").iterdir())


def test_the_last_segment_is_delivered_padded_to_a_recovery(plan: Path, shelf: WalShelf) -> None:
    assert fetch(plan, shelf, str(segment_name(8, 2))) == WalFetchOutcome(0)
    assert delivered(plan) == segment_content(segment_name(8, 2))[:600] + bytes(SEGMENT_BYTES - 600)


def test_a_standby_gets_whole_segments_and_never_the_padded_one(plan: Path, shelf: WalShelf) -> None:
    assert fetch(plan, shelf, str(segment_name(7, 2)), is_standby=True).exit_code == 0
    refused = fetch(plan, shelf, str(segment_name(8, 2)), is_standby=True)
    assert refused.exit_code == 1
    assert refused.message is not None
    assert "not complete" in refused.message
    assert not (plan.parent / "RECOVERYXLOG").exists()
    assert not list((plan.parent / "spool").iterdir())


def test_a_standby_does_not_take_the_spool_at_its_word(plan: Path, shelf: WalShelf) -> None:
    spooled = plan.parent / "spool" / str(segment_name(8, 2))
    spooled.write_bytes(bytes(SEGMENT_BYTES))
    assert fetch(plan, shelf, spooled.name, is_standby=True).exit_code == 1


def test_the_history_file_comes_from_the_plan(plan: Path, shelf: WalShelf) -> None:
    assert fetch(plan, shelf, "00000002.history") == WalFetchOutcome(0)
    assert delivered(plan) == HISTORY.content
    assert not shelf.reads


@pytest.mark.parametrize(
    "name", ["00000003.history", "00000001.history", str(segment_name(9, 2)), str(segment_name(7, 1))]
)
def test_names_outside_the_path_end_with_one_and_say_why(plan: Path, shelf: WalShelf, name: str) -> None:
    outcome = fetch(plan, shelf, name)
    assert outcome.exit_code == 1
    assert outcome.message
    assert not (plan.parent / "RECOVERYXLOG").exists()


def test_a_segment_that_vanished_after_planning_is_doubt(plan: Path, shelf: WalShelf) -> None:
    shelf.objects.clear()
    outcome = fetch(plan, shelf, str(segment_name(7, 2)))
    assert outcome.exit_code == 200
    assert outcome.message is not None
    assert "cannot be had" in outcome.message
    assert not (plan.parent / "RECOVERYXLOG").exists()


def test_a_wrong_identity_is_doubt(plan: Path) -> None:
    def refuse(header: WalPlanHeader) -> object:
        raise KeyMissing("this identity opens no envelope")

    request = WalFetchRequest(str(segment_name(7, 2)), plan.parent / "x", plan, False, refuse)  # type: ignore[arg-type]
    outcome = fetch_wal(request)
    assert outcome.exit_code == 200
    assert outcome.message is not None
    assert "opens no envelope" in outcome.message


def test_an_unreachable_store_is_doubt_in_recovery_and_not_now_for_a_standby(
    plan: Path, shelf: WalShelf
) -> None:
    for key in list(shelf.objects):
        shelf.fail(key, StoreUnavailable("region down"))
    assert fetch(plan, shelf, str(segment_name(7, 2))).exit_code == 200
    assert fetch(plan, shelf, str(segment_name(7, 2)), is_standby=True).exit_code == 1


def test_a_destination_that_cannot_be_written_is_doubt(plan: Path, shelf: WalShelf) -> None:
    request = WalFetchRequest(
        str(segment_name(7, 2)),
        plan.parent / "no" / "such" / "folder",
        plan,
        False,
        lambda header: shelf.read,
    )
    assert fetch_wal(request).exit_code == 200


def test_a_hit_imports_nothing_heavy() -> None:
    heavy = ["boto3", "psycopg", "pydantic", "rich", "structlog", "numpy", "cryptography", "json", "click"]
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import pitr.wal_fetch; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-c", program], stdout=subprocess.PIPE, check=True)
    assert not set(loaded.stdout.decode().split()) & set(heavy)
