"""LSN, timeline and segment: their text, their order, and what they refuse."""

from __future__ import annotations

import pytest

from pitr.errors import MalformedValue
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName, check_segment_bytes
from pitr.wal.timeline import (
    HISTORY_BYTES_MAX,
    TimelineHistory,
    TimelineId,
    history_file_name,
    parse_history_file_name,
)

MIB = 1 << 20
HISTORY = b"""1\t0/5000000\tno recovery target specified

# a comment
2\t0/7000148\tbefore 2026-11-23 13:05:00+00
"""


def test_lsn_order_is_by_position_not_by_text() -> None:
    assert LSN.parse("0/A") < LSN.parse("0/10") < LSN.parse("1/0")


def test_lsn_text_is_the_servers_with_or_without_padding() -> None:
    assert str(LSN.parse("16/0000B374")) == "16/B374"
    assert LSN.parse("16/b374d848") == LSN.parse("16/B374D848")


@pytest.mark.parametrize(
    "text", ["", "0/0", "16", "16/", "/1", "g/1", "1/123456789", " 1/1", "1/1\n", "-1/1"]
)
def test_what_is_no_lsn_is_refused(text: str) -> None:
    with pytest.raises(MalformedValue):
        LSN.parse(text)


def test_the_last_segment_of_an_end_on_a_boundary_is_the_one_before_it() -> None:
    assert LSN(32 * MIB).last_segment_number(16 * MIB) == 1
    assert LSN(32 * MIB + 1).last_segment_number(16 * MIB) == 2


def test_a_timeline_is_hexadecimal_in_names_beyond_nine() -> None:
    assert str(TimelineId(10)) == "0000000A"
    assert TimelineId.parse("0000001F").number == 31
    assert history_file_name(TimelineId(31)) == "0000001F.history"
    assert parse_history_file_name("0000000B.history") == TimelineId(11)


@pytest.mark.parametrize("name", ["00000000.history", "0000000b.history", "1.history", "0000000B.historyx"])
def test_what_is_no_history_file_name_is_none(name: str) -> None:
    assert parse_history_file_name(name) is None


@pytest.mark.parametrize("name", ["a\u2028b", "a\x0cb", "a\x85b", "a\x1cb", "a\rb"])
def test_a_restore_points_name_ends_no_line_of_a_history_file(name: str) -> None:
    content = f'1\t0/5000000\tat restore point "{name}"\n\n2\t0/6000000\tno recovery target specified\n'
    history = TimelineHistory.parse(TimelineId(3), content.encode())
    assert [(one.timeline.number, one.lsn) for one in history.switches] == [
        (1, LSN.parse("0/5000000")),
        (2, LSN.parse("0/6000000")),
    ]


def test_a_history_says_which_timeline_holds_a_position() -> None:
    history = TimelineHistory.parse(TimelineId(3), HISTORY)
    assert history.timeline_at(LSN.parse("0/4FFFFFF")) == TimelineId(1)
    assert history.timeline_at(LSN.parse("0/5000000")) == TimelineId(2)
    assert history.timeline_at(LSN.parse("0/7000147")) == TimelineId(2)
    assert history.timeline_at(LSN.parse("0/7000148")) == TimelineId(3)
    assert history.end_of(TimelineId(2)) == LSN.parse("0/7000148")
    assert history.end_of(TimelineId(3)) is None
    with pytest.raises(MalformedValue):
        history.end_of(TimelineId(4))


@pytest.mark.parametrize(
    "content",
    [b"x 0/1", b"1", b"1 0/zz", b"3 0/5", b"1 0/5\n1 0/6", b"1 0/6\n2 0/5", b"#" * (HISTORY_BYTES_MAX + 1)],
)
def test_a_history_that_cannot_be_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedValue):
        TimelineHistory.parse(TimelineId(3), content)


@pytest.mark.parametrize("segment_bytes", [MIB, 16 * MIB, 64 * MIB, 1024 * MIB])
def test_a_segment_name_and_its_number_agree_at_every_segment_size(segment_bytes: int) -> None:
    for number in (0, 1, (1 << 32) // segment_bytes - 1, (1 << 32) // segment_bytes, 123_456):
        name = SegmentName.of(TimelineId(11), number, segment_bytes)
        assert SegmentName.parse(str(name)) == name
        assert name.number(segment_bytes) == number
        assert name.end(segment_bytes).offset - name.start_offset(segment_bytes) == segment_bytes


def test_the_segment_after_the_last_of_a_log_file_starts_the_next() -> None:
    assert str(SegmentName.of(TimelineId(1), 255, 16 * MIB)) == "0000000100000000000000FF"
    assert str(SegmentName.of(TimelineId(1), 256, 16 * MIB)) == "000000010000000100000000"
    assert (
        str(SegmentName.holding(TimelineId(1), LSN.parse("1/FFFFFF"), 16 * MIB)) == "000000010000000100000000"
    )


def test_a_name_that_no_segment_of_that_size_has_is_refused() -> None:
    with pytest.raises(MalformedValue):
        SegmentName.parse("000000010000000000000100").number(16 * MIB)


@pytest.mark.parametrize(
    "text", ["", "0" * 24, "00000001000000000000000g", "0000000100000000000000ff", "0" * 25]
)
def test_what_is_no_segment_name_is_refused(text: str) -> None:
    with pytest.raises(MalformedValue):
        SegmentName.parse(text)


@pytest.mark.parametrize("segment_bytes", [0, -16, MIB // 2, 3 * MIB, 2048 * MIB])
def test_what_is_no_segment_size_is_refused(segment_bytes: int) -> None:
    with pytest.raises(MalformedValue):
        check_segment_bytes(segment_bytes)
