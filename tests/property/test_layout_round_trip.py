"""Keys: what is written is read back, sorts as promised, and nothing else is taken for a key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pitr import layout
from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId

SEGMENT_BYTES = 16 * 1024 * 1024
archives = st.builds(layout.ArchiveId, st.integers(1, 2**64 - 1), st.integers(1, 99_999_999))
timelines = st.builds(TimelineId, st.integers(1, 2**32 - 1))
lsns = st.builds(LSN, st.integers(1, 2**63))
attempts = st.text("0123456789abcdef", min_size=8, max_size=8)


@given(archives, timelines, lsns, st.integers(1, 4 << 20), st.integers(1, 10**16 - 1), attempts)
def test_a_piece_key_reads_back_as_written(
    archive: layout.ArchiveId, timeline: TimelineId, start: LSN, size_bytes: int, sequence: int, attempt: str
) -> None:
    segment = SegmentName.holding(timeline, start, SEGMENT_BYTES)
    key = layout.PieceKey(archive, segment, start, start + size_bytes, sequence, attempt)
    assert layout.parse_wal_key(str(key)) == key
    assert str(key).startswith(layout.segment_prefix(archive, segment))


@given(archives, timelines, lsns, attempts)
def test_a_segment_key_reads_back_as_written(
    archive: layout.ArchiveId, timeline: TimelineId, lsn: LSN, attempt: str
) -> None:
    key = layout.SegmentKey(archive, SegmentName.holding(timeline, lsn, SEGMENT_BYTES), attempt)
    assert layout.parse_wal_key(str(key)) == key


@given(archives, timelines, lsns, lsns)
def test_wal_keys_of_a_timeline_sort_by_position(
    archive: layout.ArchiveId, timeline: TimelineId, one: LSN, other: LSN
) -> None:
    keys = [
        str(
            layout.PieceKey(
                archive, SegmentName.holding(timeline, lsn, SEGMENT_BYTES), lsn, lsn + 1, 1, "0" * 8
            )
        )
        for lsn in (one, other)
    ]
    assert (keys[0] < keys[1]) == (one < other)


@given(archives, st.integers(1, 2**62), st.integers(1, 2**62))
def test_a_newer_head_sorts_before_an_older_one(archive: layout.ArchiveId, one: int, other: int) -> None:
    keys = [layout.head_key(archive, sequence) for sequence in (one, other)]
    assert (keys[0] < keys[1]) == (one > other)
    assert [layout.head_sequence(key) for key in keys] == [one, other]


@given(archives, st.integers(1, 2**62), st.integers(1, 2**62))
def test_a_newer_expire_record_sorts_first_and_an_index_says_its_pieces(
    archive: layout.ArchiveId, one: int, other: int
) -> None:
    keys = [layout.expiry_key(archive, sequence) for sequence in (one, other)]
    assert (keys[0] < keys[1]) == (one > other)
    assert [layout.expiry_sequence(key) for key in keys] == [one, other]
    first, last = one % 10**16, other % 10**16
    assert layout.wal_index_range(layout.wal_index_key(archive, first, last)) == (first, last)


@given(archives)
def test_an_archive_id_reads_back_as_written(archive: layout.ArchiveId) -> None:
    assert layout.ArchiveId.parse(str(archive)) == archive


GOOD = "wal/7/00000001/00000001/000000010000000000000002/"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "wal",
        GOOD,
        GOOD + "s-0000000g",
        GOOD + "s-00000000x",
        GOOD + "p-0000000002000000-0000000002000010-1-00000000",
        "wal/7/00000001/00000002/000000010000000000000002/s-00000000",
        "wal/7/1/00000001/000000010000000000000002/s-00000000",
        "wal/0/00000001/00000001/000000010000000000000002/s-00000000",
        "wal/+7/00000001/00000001/000000010000000000000002/s-00000000",
        "wal/٧/00000001/00000001/000000010000000000000002/s-00000000",
        "backups/7/00000001/00000001/000000010000000000000002/s-00000000",
    ],
)
def test_what_is_no_wal_key_is_refused(key: str) -> None:
    with pytest.raises(MalformedValue):
        layout.parse_wal_key(key)


@pytest.mark.parametrize(
    "key", ["heads/7/00000001/zz", "heads/7/00000001/", "heads/7/1/7ffffffffffffffe", "x"]
)
def test_what_is_no_head_key_is_refused(key: str) -> None:
    with pytest.raises(MalformedValue):
        layout.head_sequence(key)
