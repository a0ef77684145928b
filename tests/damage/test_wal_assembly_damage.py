"""Segments are put together right or not at all, and a damaged plan answers nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from fix_wal_path import (
    SEGMENT_BYTES,
    SYSTEM,
    WalShelf,
    lsn_in,
    segment_content,
    segment_name,
    span,
    write_test_plan,
)

from pitr.errors import ArchiveDiverged, KeyMissing, MalformedValue, NotAuthentic, WalMissing
from pitr.wal_assembly import SegmentFile, assemble_segment
from pitr.wal_fetch import WalFetchRequest, fetch_wal
from pitr.wal_plan_file import PlanSegments, find_segment, read_header
from storage.store import StoreError, StoreRefused, StoreUnavailable

HALF = SEGMENT_BYTES // 2
NAME = segment_name(7)
LAST = segment_name(8)
SPANS = [span(lsn_in(7), lsn_in(8, HALF))]


@pytest.fixture
def shelf() -> WalShelf:
    """Segment 7 whole and in overlapping pieces, the last one in pieces only."""
    shelf = WalShelf()
    shelf.add_whole(NAME)
    shelf.add_piece(NAME, 0, HALF, sequence=1)
    shelf.add_piece(NAME, HALF - 8192, SEGMENT_BYTES, sequence=2)
    shelf.add_piece(LAST, 0, 1000, sequence=3)
    shelf.add_piece(LAST, 1000, HALF + 77, sequence=4)
    return shelf


def assemble(plan: Path, shelf: WalShelf, number: int = 7) -> SegmentFile:
    path = read_header(plan).path
    segment = find_segment(plan, segment_name(number))
    return assemble_segment(segment, path, shelf.read, plan.parent / "spool" / str(segment.name))


def is_clean(plan: Path) -> bool:
    return not list((plan.parent / "spool").iterdir())


def test_a_whole_segment_is_preferred_to_its_pieces(tmp_path: Path, shelf: WalShelf) -> None:
    made = assemble(write_test_plan(tmp_path, shelf, SPANS), shelf)
    assert made.path.read_bytes() == segment_content(NAME)
    assert not made.is_padded
    assert len(shelf.reads) == 1


@pytest.mark.parametrize(
    "fault",
    [NotAuthentic("wrong tag"), KeyMissing("no identity"), StoreUnavailable("down"), StoreRefused("denied")],
    ids=lambda fault: type(fault).__name__,
)
def test_pieces_stand_in_for_a_whole_segment_that_cannot_be_used(
    tmp_path: Path, shelf: WalShelf, fault: Exception
) -> None:
    plan = write_test_plan(tmp_path, shelf, SPANS)
    shelf.fail(next(iter(shelf.objects)), fault)
    assert assemble(plan, shelf).path.read_bytes() == segment_content(NAME)


def test_the_last_segment_is_padded_with_zeros(tmp_path: Path, shelf: WalShelf) -> None:
    made = assemble(write_test_plan(tmp_path, shelf, SPANS), shelf, 8)
    content = made.path.read_bytes()
    assert made.is_padded
    assert made.wal_bytes == HALF + 77
    assert content[: HALF + 77] == segment_content(LAST)[: HALF + 77]
    assert content[HALF + 77 :] == bytes(HALF - 77)


def test_a_segment_before_the_last_is_never_padded(tmp_path: Path, shelf: WalShelf) -> None:
    plan = write_test_plan(tmp_path, shelf, SPANS)
    for key in [key for key in shelf.objects if key.segment == NAME]:
        if shelf.objects[key] == segment_content(NAME)[:HALF]:
            continue
        del shelf.objects[key]
    with pytest.raises(WalMissing, match=str(NAME)):
        assemble(plan, shelf)
    assert is_clean(plan)


def test_an_unreachable_region_is_not_a_hole(tmp_path: Path, shelf: WalShelf) -> None:
    plan = write_test_plan(tmp_path, shelf, SPANS)
    for key in list(shelf.objects):
        shelf.fail(key, StoreUnavailable("region down"))
    with pytest.raises(StoreUnavailable, match="region down"):
        assemble(plan, shelf)


def test_overlapping_pieces_that_differ_are_refused(tmp_path: Path, shelf: WalShelf) -> None:
    plan = write_test_plan(tmp_path, shelf, SPANS)
    whole, _, second, *_ = list(shelf.objects)
    shelf.fail(whole, NotAuthentic("wrong tag"))
    body = bytearray(shelf.objects[second])
    body[100] ^= 1
    shelf.objects[second] = bytes(body)
    with pytest.raises(ArchiveDiverged, match="different WAL"):
        assemble(plan, shelf)
    assert is_clean(plan)


def test_an_object_of_another_length_than_it_claims_is_not_used(tmp_path: Path, shelf: WalShelf) -> None:
    plan = write_test_plan(tmp_path, shelf, SPANS)
    whole = next(iter(shelf.objects))
    shelf.objects[whole] = shelf.objects[whole][:-1]
    assert assemble(plan, shelf).path.read_bytes() == segment_content(NAME)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (segment_content(segment_name(9)), "stands at"),
        (segment_content(NAME, timeline=2), "timeline 2"),
        (segment_content(NAME, system=SYSTEM + 1), "cluster"),
        (bytes(SEGMENT_BYTES), "zeros"),
        (b"\xff" * SEGMENT_BYTES, "no WAL page"),
    ],
)
def test_wal_of_another_place_is_refused(tmp_path: Path, shelf: WalShelf, content: bytes, words: str) -> None:
    plan = write_test_plan(tmp_path, shelf, SPANS)
    shelf.objects[next(iter(shelf.objects))] = content
    with pytest.raises(MalformedValue, match=words):
        assemble(plan, shelf)
    assert is_clean(plan)


def test_wal_of_an_earlier_timeline_may_begin_a_switched_segment(tmp_path: Path) -> None:
    shelf = WalShelf()
    name = segment_name(7, 2)
    shelf.objects[shelf.add_whole(name)] = segment_content(name, timeline=1)
    plan = write_test_plan(tmp_path, shelf, [span(lsn_in(7), lsn_in(8), timeline=2)])
    made = assemble_segment(
        find_segment(plan, name), read_header(plan).path, shelf.read, tmp_path / "spool" / "made"
    )
    assert made.wal_bytes == SEGMENT_BYTES


def exit_code_of(plan: Path, shelf: WalShelf, name: str) -> int:
    request = WalFetchRequest(name, plan.parent / "RECOVERYXLOG", plan, False, lambda header: shelf.read)
    return fetch_wal(request).exit_code


def test_every_cut_of_the_plan_is_doubt_for_every_name(tmp_path: Path, shelf: WalShelf) -> None:
    plan = write_test_plan(tmp_path, shelf, SPANS)
    whole = plan.read_bytes()
    lines = [0, 1, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) - 1]
    for length in lines:
        plan.write_bytes(whole[:length])
        for name in (str(NAME), str(LAST), str(segment_name(9)), "00000002.history"):
            assert exit_code_of(plan, shelf, name) > 128, (length, name)


@pytest.mark.parametrize(
    "edit", [(b"pitr-wal-plan/1", b"pitr-wal-plan/2"), (b'"spans":[[', b'"spans":[[1,'), (b"{", b"[")]
)
def test_a_plan_that_is_no_plan_is_doubt(tmp_path: Path, shelf: WalShelf, edit: tuple[bytes, bytes]) -> None:
    plan = write_test_plan(tmp_path, shelf, SPANS)
    plan.write_bytes(plan.read_bytes().replace(*edit, 1))
    assert exit_code_of(plan, shelf, "00000002.history") > 128
    plan.unlink()
    assert exit_code_of(plan, shelf, "00000002.history") > 128


def test_a_changed_segment_line_is_noticed(tmp_path: Path, shelf: WalShelf) -> None:
    plan = write_test_plan(tmp_path, shelf, SPANS)
    PlanSegments(plan)
    body = plan.read_bytes()
    plan.write_bytes(body[:-20] + bytes([body[-20] ^ 1]) + body[-19:])
    with pytest.raises(MalformedValue, match="changed"):
        PlanSegments(plan)


class _Bug(Exception):
    """An error that nobody foresaw."""


@pytest.mark.parametrize(
    "fault",
    [StoreError("odd"), _Bug("bug"), MemoryError(), RecursionError()],
    ids=lambda fault: type(fault).__name__,
)
def test_an_unforeseen_error_is_doubt_and_not_exit_code_one(
    tmp_path: Path, shelf: WalShelf, fault: Exception
) -> None:
    plan = write_test_plan(tmp_path, shelf, SPANS)
    for key in list(shelf.objects):
        shelf.fail(key, fault)
    assert exit_code_of(plan, shelf, str(NAME)) > 128
