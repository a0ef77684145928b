"""Two pieces of one number: which of them the chain leads over."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr.catalogue.records import HeadRecord
from pitr.catalogue.wal_records import IndexedHeader, PieceHeader, SegmentHeader
from pitr.layout import ArchiveId, PieceKey
from pitr.wal.lsn import LSN
from pitr.wal.pacing import PUTS_MAX
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_chain import (
    contested,
    doubtful,
    foreign_pieces,
    is_foreign_segment,
    left_by_crash,
    needed_numbers,
    unacknowledged,
)

ARCHIVE = ArchiveId(7, 1)
ONE = TimelineId(1)
SEGMENT_BYTES = 16 << 20
REPOSITORY = "00112233445566778899aabbccddeeff"
AT = datetime(2026, 11, 30, tzinfo=UTC)


def piece(
    number: int, writer: int, previous: IndexedHeader | None, size: int = 100, *, at: datetime = AT
) -> IndexedHeader:
    start = LSN(SEGMENT_BYTES + number * 1000)
    header = PieceHeader(
        repository=REPOSITORY,
        archive=ARCHIVE,
        timeline=ONE,
        segment_bytes=SEGMENT_BYTES,
        start=start,
        end=start + size,
        sequence=number,
        previous=None if previous is None else previous.header_sha256,
        content_hmac=bytes(32),
        key_id=bytes(16),
        received_at=at,
    )
    segment = SegmentName.holding(ONE, start, SEGMENT_BYTES)
    key = PieceKey(ARCHIVE, segment, start, start + size, number, f"{writer:08x}")
    return IndexedHeader(key, hashlib.sha256(f"{writer} {number}".encode()).digest(), header)


def chain(
    writer: int, first: int, last: int, before: IndexedHeader | None, *, at_s: float = 0.0
) -> list[IndexedHeader]:
    made: list[IndexedHeader] = []
    for number in range(first, last + 1):
        at = AT + timedelta(seconds=at_s + number - first)
        made.append(piece(number, writer, made[-1] if made else before, at=at))
    return made


def head_at(entry: IndexedHeader | None) -> HeadRecord | None:
    if entry is None:
        return None
    assert isinstance(entry.header, PieceHeader)
    return HeadRecord(
        repository=REPOSITORY,
        archive=ARCHIVE,
        sequence=1,
        previous=None,
        at=AT,
        timeline=ONE,
        wal_start=LSN(SEGMENT_BYTES),
        wal_end=entry.header.end,
        piece_sequence=entry.header.sequence,
        piece_sha256=entry.header_sha256,
        backups_count=0,
        backups_sha256=bytes(32),
    )


def foreign(headers: Sequence[IndexedHeader], head: HeadRecord | None) -> set[IndexedHeader]:
    keys = [entry.key for entry in headers]
    numbers = doubtful(keys, head)
    near = needed_numbers(numbers)
    seen = [one for one in headers if isinstance(one.header, PieceHeader) and one.header.sequence in near]
    found = foreign_pieces(seen, head, numbers)
    return {one for one in headers if one.key in found}


@given(
    common=st.integers(0, 4),
    own=st.integers(1, 6),
    other=st.integers(1, 6),
    signed=st.integers(0, 6),
)
def test_what_the_second_writer_made_is_foreign_wherever_the_newest_head_is(
    common: int, own: int, other: int, signed: int
) -> None:
    base = chain(0, 1, common, None)
    before = base[-1] if base else None
    right = chain(1, common + 1, common + own, before)
    wrong = chain(2, common + 1, common + other, before)
    head = right[min(signed, own) - 1] if signed else before
    found = foreign([*base, *right, *wrong], head_at(head))
    if signed:
        assert found == set(wrong)
    else:
        # Nothing is signed after the fork: one of the two goes on, and the other is left out as a whole.
        assert found in (set(wrong), set(right))


def test_a_later_piece_settles_what_lies_long_before_the_newest_head() -> None:
    base = chain(0, 1, 2, None)
    right = chain(1, 3, 9, base[-1])
    wrong = chain(2, 3, 4, base[-1])
    assert foreign([*base, *right, *wrong], head_at(right[-1])) == set(wrong)


def test_of_two_that_go_on_from_one_the_longer_is_taken() -> None:
    base = chain(0, 1, 2, None)
    short, long = piece(3, 1, base[-1], 100), piece(3, 2, base[-1], 200)
    assert foreign([*base, short, long], head_at(base[-1])) == {short}


def test_a_longer_piece_that_nothing_goes_on_from_hides_nothing_that_came_since() -> None:
    base = chain(0, 1, 2, None)
    left, right = piece(3, 1, base[-1], 900), chain(2, 3, 9, base[-1])
    assert foreign([*base, left, *right], head_at(base[-1])) == {left}


def test_where_nothing_tells_nothing_is_left_out() -> None:
    before = piece(1, 0, None)
    right, wrong = chain(1, 2, 5, before), chain(2, 2, 3, before)
    # Piece 4, which would tell, is lost, and the head is further on.
    assert not foreign([before, *right[:2], *wrong], head_at(right[-1]))


def test_one_piece_of_each_number_costs_no_look() -> None:
    keys = [entry.key for entry in chain(1, 1, 5, None)]
    assert not contested(keys)
    assert not doubtful(keys, None)


@pytest.mark.parametrize(
    ("count", "at_s", "is_explained"),
    [
        (PUTS_MAX, 100.0, True),
        (1, 102.5, True),
        # More than can be under way, beside those of the other writer, after them, before what they follow.
        (PUTS_MAX + 1, 100.0, False),
        (PUTS_MAX, 990.0, False),
        (3, 2000.0, False),
        (3, -5.0, False),
    ],
)
def test_what_a_crash_left_that_lost_the_spool_is_no_second_writers(
    count: int, at_s: float, is_explained: bool
) -> None:
    base = chain(0, 1, 3, None)
    left = chain(2, 4, 3 + count, base[-1], at_s=at_s)
    right = chain(1, 4, 40, base[-1], at_s=1000.0)
    every = [*base, *left, *right]
    assert foreign(every, head_at(right[-1])) == set(left)
    keys = {entry.key for entry in left if isinstance(entry.key, PieceKey)}
    assert left_by_crash(every, keys) == (keys if is_explained else set())
    # What they follow may have expired.
    assert left_by_crash([*left, *right], keys) == (keys if is_explained or at_s < 0 else set())


@pytest.mark.parametrize("number", [5, 6, 3 + PUTS_MAX, 4 + PUTS_MAX])
def test_what_was_under_way_behind_a_piece_that_never_came_is_no_second_writers(number: int) -> None:
    base = chain(0, 1, 3, None)
    never = chain(2, 4, number, base[-1], at_s=100.0)
    right = chain(1, 4, 40, base[-1], at_s=1000.0)
    every = [*base, never[-1], *right]
    assert foreign(every, head_at(right[-1])) == {never[-1]}
    keys = {entry.key for entry in never[-1:] if isinstance(entry.key, PieceKey)}
    assert left_by_crash(every, keys) == (keys if number < 4 + PUTS_MAX else set())


def test_a_whole_segment_of_foreign_pieces_is_foreign() -> None:
    right, wrong = chain(1, 1, 3, None), chain(2, 1, 3, None)
    start = LSN(SEGMENT_BYTES)

    def segment(entries: list[IndexedHeader]) -> SegmentHeader:
        digest = hashlib.sha256(b"".join(entry.header_sha256 for entry in entries)).digest()
        name = SegmentName.holding(ONE, start, SEGMENT_BYTES)
        return SegmentHeader(
            repository=REPOSITORY,
            archive=ARCHIVE,
            timeline=ONE,
            segment_bytes=SEGMENT_BYTES,
            segment=name,
            start=start,
            end=start + SEGMENT_BYTES,
            first_piece=1,
            last_piece=3,
            pieces_sha256=digest,
            content_hmac=bytes(32),
            key_id=bytes(16),
        )

    digests = {number: entry.header_sha256 for number, entry in enumerate(right, 1)}
    assert not is_foreign_segment(segment(right), digests)
    assert is_foreign_segment(segment(wrong), digests)
    # Pieces that were retired cannot be compared, and a segment is not thrown away for that.
    assert not is_foreign_segment(segment(wrong), {1: digests[1]})
    assert not is_foreign_segment(replace(segment(right), last_piece=3), digests)


@pytest.mark.parametrize(
    ("signed", "there", "left_out"),
    [
        (8, [9, 10], []),
        (8, [9, 10, 12, 13], [12, 13]),
        (8, [10, 24], [10, 24]),
        # The writer went on, so it knew that piece 9 was at quorum: it is lost, and that is a hole.
        (8, [10, 25], []),
        # What the head has signed is no end either.
        (8, [5, 7, 8, 9], []),
        (None, [2, 3], []),
    ],
)
def test_what_was_under_way_behind_a_piece_that_never_came_is_left_out(
    signed: int | None, there: list[int], left_out: list[int]
) -> None:
    made = [piece(number, 1, piece(1, 1, None)) for number in there]
    keys = [entry.key for entry in made if isinstance(entry.key, PieceKey)]
    head = None if signed is None else head_at(piece(signed, 1, piece(1, 1, None)))
    assert sorted(one.sequence for one in unacknowledged(keys, head)) == left_out
