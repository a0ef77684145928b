"""Cutting received WAL into pieces, and counting them as durable strictly in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN
from pitr.wal.pieces import AcknowledgeWindow, PieceCutter, RawPiece, RunStart
from pitr.wal.timeline import TimelineId

MIB = 1 << 20
START = LSN(16 * MIB)
ONE = TimelineId(1)


def cutter(
    *, piece_bytes: int = 1000, piece_age_s: float = 1.0, piece_bytes_max: int | None = None
) -> PieceCutter:
    return PieceCutter(
        segment_bytes=MIB,
        piece_bytes=piece_bytes,
        piece_age_s=piece_age_s,
        piece_bytes_max=piece_bytes_max,
    )


def run(start: LSN = START, *, known_to: LSN | None = None, follows: bool = True) -> RunStart:
    return RunStart(ONE, start, known_to, follows)


def take_all(cutter: PieceCutter, now_s: float) -> list[RawPiece]:
    pieces = []
    while (piece := cutter.take(now_s)) is not None:
        pieces.append(piece)
    return pieces


def content_of(piece: RawPiece) -> bytes:
    return b"".join(piece.chunks)


def test_a_piece_is_cut_when_its_first_byte_is_old_enough() -> None:
    cut = cutter()
    cut.begin(run())
    cut.add(b"a", 5.0)
    cut.add(b"b", 5.9)
    assert cut.take(5.99) is None
    assert cut.ready_at() == 6.0
    piece = cut.take(6.0)
    assert piece is not None
    assert (content_of(piece), piece.start, piece.end, piece.received_s) == (b"ab", START, START + 2, 5.0)
    # Idle is free: with nothing held there is nothing to wait for.
    assert cut.ready_at() is None


def test_a_piece_is_cut_when_it_is_large_enough_and_is_no_larger() -> None:
    cut = cutter()
    cut.begin(run())
    cut.add(bytes(2500), 0.0)
    assert [piece.end - piece.start for piece in take_all(cut, 0.0)] == [1000, 1000]
    assert cut.held_bytes == 500


def test_a_piece_takes_along_what_waits_with_it() -> None:
    cut = cutter(piece_bytes_max=4000)
    cut.begin(run())
    cut.add(bytes(999), 0.0)
    assert cut.take(0.0) is None
    cut.add(bytes(8501), 0.0)
    assert [piece.end - piece.start for piece in take_all(cut, 0.0)] == [4000, 4000, 1500]


def test_a_piece_that_takes_along_more_still_ends_with_its_segment_and_where_known_wal_ends() -> None:
    cut = cutter(piece_bytes_max=2 * MIB)
    cut.begin(run(known_to=START + 3000))
    cut.add(bytes(MIB + 1200), 0.0)
    assert [piece.end.offset - START.offset for piece in take_all(cut, 0.0)] == [3000, MIB, MIB + 1200]


def test_a_piece_cannot_grow_to_less_than_it_is() -> None:
    with pytest.raises(MalformedValue):
        cutter(piece_bytes_max=999)


def test_a_piece_ends_with_its_segment() -> None:
    cut = cutter(piece_bytes=MIB)
    cut.begin(run())
    cut.add(bytes(MIB - 10), 0.0)
    cut.add(bytes(20), 0.0)
    (piece,) = take_all(cut, 0.5)
    assert piece.end == START + MIB
    (rest,) = take_all(cut, 1.0)
    assert (rest.start, rest.end) == (START + MIB, START + MIB + 10)


def test_known_wal_is_cut_apart_from_what_follows_it() -> None:
    cut = cutter()
    cut.begin(run(known_to=START + 300))
    cut.add(bytes(700), 0.0)
    cut.close()
    known, new = take_all(cut, 0.0)
    assert (known.is_known, known.end) == (True, START + 300)
    assert (new.is_known, new.start, new.end) == (False, START + 300, START + 700)
    assert known.begins is not None
    assert new.begins is None


def test_the_end_of_a_run_is_cut_at_once_and_the_next_run_apart() -> None:
    cut = cutter()
    cut.begin(run())
    cut.add(b"old", 0.0)
    cut.begin(run(START + MIB, follows=False))
    cut.add(b"new", 0.0)
    (old,) = take_all(cut, 0.0)
    assert content_of(old) == b"old"
    (new,) = take_all(cut, 1.0)
    assert new.start == START + MIB
    assert new.begins is not None
    assert not new.begins.follows


def test_a_hole_is_not_forgotten_with_a_run_of_which_nothing_came() -> None:
    cut = cutter()
    cut.begin(run())
    cut.add(b"a", 0.0)
    cut.begin(run(START + MIB, follows=False))
    cut.begin(run(START + MIB))
    cut.add(b"b", 0.0)
    cut.close()
    _, after = take_all(cut, 0.0)
    assert after.begins is not None
    assert not after.begins.follows


def test_a_run_begins_on_a_segments_boundary() -> None:
    with pytest.raises(MalformedValue):
        cutter().begin(run(START + 8))


@given(
    st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=40),
    st.tuples(st.integers(1, 5000), st.integers(0, 9000)),
    st.integers(0, 3000),
    st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_pieces_are_the_received_wal_whatever_the_chunks(
    chunks: list[bytes], sizes_bytes: tuple[int, int], known_bytes: int, takes: list[bool]
) -> None:
    piece_bytes, more_bytes = sizes_bytes
    cut = cutter(piece_bytes=piece_bytes, piece_age_s=3.0, piece_bytes_max=piece_bytes + more_bytes)
    cut.begin(run(known_to=START + known_bytes if known_bytes else None))
    pieces: list[RawPiece] = []
    for now, (chunk, is_taken) in enumerate(zip(chunks, takes, strict=False)):
        cut.add(chunk, float(now))
        if is_taken:
            pieces += take_all(cut, float(now))
    cut.close()
    pieces += take_all(cut, 0.0)
    assert b"".join(content_of(piece) for piece in pieces) == b"".join(chunks)
    at = START
    for piece in pieces:
        assert piece.start == at
        at = piece.end
        assert 0 < piece.end - piece.start <= piece_bytes + more_bytes
        assert piece.is_known == (piece.end <= START + known_bytes)
    assert cut.held_bytes == 0


def test_pieces_count_as_durable_in_order_only() -> None:
    window = AcknowledgeWindow(3, first=5)
    assert [window.admits(sequence) for sequence in (5, 6, 7, 8)] == [True, True, True, False]
    assert list(window.finish(7)) == []
    assert list(window.finish(5)) == [5]
    assert window.admits(8)
    assert not window.admits(9)
    assert list(window.finish(6)) == [6, 7]
    assert window.next == 8


@pytest.mark.parametrize("sequence", [4, 6])
def test_a_piece_that_counts_already_is_refused(sequence: int) -> None:
    window = AcknowledgeWindow(3, first=5)
    window.finish(6)
    with pytest.raises(MalformedValue):
        window.finish(sequence)


@given(st.permutations(range(1, 9)), st.integers(1, 8))
def test_no_order_of_puts_makes_a_later_piece_durable_first(order: list[int], size: int) -> None:
    window, durable, finished = AcknowledgeWindow(size, first=1), list[int](), set[int]()
    waiting = list(order)
    while waiting:
        sequence = next(one for one in waiting if window.admits(one))
        waiting.remove(sequence)
        finished.add(sequence)
        durable += window.finish(sequence)
        assert set(durable) <= finished
    assert durable == list(range(1, 9))


def test_a_window_may_be_narrower_for_a_while() -> None:
    window = AcknowledgeWindow(3, 5)
    assert [window.admits(sequence, 2) for sequence in (5, 6, 7)] == [True, True, False]
    assert not window.admits(8, 9)
