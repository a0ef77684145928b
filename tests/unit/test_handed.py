"""What becomes of a file that PostgreSQL's archiver hands over, decided from names, histories and the end."""

from __future__ import annotations

import struct

import pytest

from pitr.wal.follow import ArchiveFork, ReceivedEnd
from pitr.wal.handed import (
    Feed,
    HandedKind,
    HandedName,
    Known,
    Refuse,
    Step,
    Wait,
    first_page_fault,
    next_step,
    parse_handed_name,
    step_on_fork,
)
from pitr.wal.lsn import LSN
from pitr.wal.pieces import RunStart
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineHistory, TimelineId, TimelineSwitch

MIB = 1 << 20
ONE, TWO, THREE = TimelineId(1), TimelineId(2), TimelineId(3)


def at(mib: float) -> LSN:
    return LSN(int(mib * MIB))


def named(timeline: int, segment: int, suffix: str = "") -> HandedName:
    found = parse_handed_name(f"{timeline:08X}{0:08X}{segment:08X}{suffix}")
    assert found is not None
    return found


def step(name: HandedName, end: tuple[TimelineId, float] | None, *histories: TimelineHistory) -> Step:
    received = None if end is None else ReceivedEnd(end[0], at(end[1]))
    known = {history.timeline: history for history in histories}
    return next_step(name, received, known, segment_bytes=MIB)


# Timeline 2 left 1 in the midst of segment 5; 3 left 2 in segment 8.
TO_TWO = TimelineHistory(TWO, (TimelineSwitch(ONE, at(5.5)),))
TO_THREE = TimelineHistory(THREE, (TimelineSwitch(ONE, at(5.5)), TimelineSwitch(TWO, at(8.25))))


def run(timeline: TimelineId, start: float, known_to: float | None, *, follows: bool = True) -> RunStart:
    return RunStart(timeline, at(start), None if known_to is None else at(known_to), follows=follows)


def test_names_are_those_that_postgres_hands_over() -> None:
    kinds = {
        "000000010000000000000005": HandedKind.SEGMENT,
        "000000010000000000000005.partial": HandedKind.PARTIAL,
        "0000000B.history": HandedKind.HISTORY,
        "000000010000000000000005.00000028.backup": HandedKind.LABEL,
    }
    for text, kind in kinds.items():
        found = parse_handed_name(text)
        assert found is not None
        assert found.kind is kind
    for text in ("", "x", "000000000000000000000005", ".000000010000000000000005", "00000000.history"):
        assert parse_handed_name(text) is None
    assert named(11, 5).timeline == TimelineId(11)


def test_histories_come_before_the_wal_that_they_explain_and_partials_before_the_next_timeline() -> None:
    texts = ["000000020000000000000005", "000000010000000000000005.partial", "00000002.history"]
    names = sorted((parse_handed_name(text) for text in texts), key=lambda name: name.order)  # type: ignore[union-attr]
    assert [name.text for name in names if name is not None] == list(reversed(texts))


@pytest.mark.parametrize(
    ("name", "end", "expected"),
    [
        (named(1, 4), None, Feed(run(ONE, 4, None, follows=False), at(5))),
        (named(1, 4), (ONE, 4), Feed(run(ONE, 4, None), at(5), is_next=True)),
        (named(1, 4), (ONE, 4.5), Feed(run(ONE, 4, 4.5), at(5))),
        (named(1, 4), (ONE, 5), Known(at(5))),
        (named(1, 2), (ONE, 5), Known(at(3))),
        (named(1, 6), (ONE, 5), Wait("WAL from 0/500000 to 0/600000 is missing", is_gap=True)),
    ],
)
def test_on_one_timeline(name: HandedName, end: tuple[TimelineId, float] | None, expected: Step) -> None:
    assert step(name, end) == expected


@pytest.mark.parametrize(
    ("name", "end", "expected"),
    [
        # Up to the switch only: after it the file holds what lay there before.
        (named(1, 5, ".partial"), (ONE, 5), Feed(run(ONE, 5, None), at(5.5), is_next=True)),
        (named(1, 5, ".partial"), (ONE, 5.5), Known(at(5.5))),
        (named(1, 5, ".partial"), (TWO, 7), Known(at(5.5))),
        (named(2, 5), (ONE, 5.5), Feed(run(TWO, 5, None), at(6))),
        # Nobody handed over the partial one: the new timeline's first segment repeats it.
        (named(2, 5), (ONE, 5.25), Feed(run(ONE, 5, 5.25), at(5.5))),
        (named(2, 5), (ONE, 5), Feed(run(ONE, 5, None), at(5.5))),
        (named(2, 5), (ONE, 4), Wait("WAL from 0/400000 to 0/580000 is missing", is_gap=True)),
        (named(2, 6), (ONE, 5.5), Wait("WAL from 0/580000 to 0/600000 is missing", is_gap=True)),
        (named(2, 4), (ONE, 5.5), Refuse("timeline 00000002 begins at 0/580000")),
        (named(1, 3), (TWO, 7), Known(at(4))),
        # The old primary went on after the promotion.
        (named(1, 5), (TWO, 7), Refuse("the archive left timeline 00000001 at 0/580000")),
        (named(1, 9), (TWO, 7), Refuse("the archive left timeline 00000001 at 0/580000")),
    ],
)
def test_at_a_promotion(name: HandedName, end: tuple[TimelineId, float], expected: Step) -> None:
    assert step(name, end, TO_TWO) == expected


def test_what_left_the_archive_below_its_end_is_refused() -> None:
    found = step(named(2, 5), (ONE, 5.75), TO_TWO)
    assert isinstance(found, Refuse)
    assert "below its end" in found.reason
    assert "pitr adopt --as restore" in found.reason


# The archive had more of timeline 1 than the new primary, and a person said that it was a failover.
FORK = ArchiveFork(ONE, at(5.5), ONE, at(7), TWO, at(5.5))


@pytest.mark.parametrize(
    ("name", "since", "expected"),
    [
        (named(2, 5), 3, Feed(run(TWO, 5, None), at(6))),
        # What is whole before the fork begins after it: the new timeline begins a stretch of its own.
        (named(2, 5), 6, Feed(run(TWO, 5, None, follows=False), at(6))),
        (named(2, 6), 3, Wait("WAL from 0/580000 to 0/600000 is missing")),
        (named(2, 4), 3, Refuse("timeline 00000002 begins at 0/580000")),
        (named(3, 8), 3, Wait("WAL of timeline 00000002 is missing")),
    ],
)
def test_after_a_failover_that_lost_wal(name: HandedName, since: float, expected: Step) -> None:
    assert name.segment is not None
    end = name.segment.end(MIB)
    assert step_on_fork(name, FORK, at(since), end, segment_bytes=MIB) == expected


def test_a_timeline_between_is_waited_for_and_an_unknown_one_too() -> None:
    assert step(named(3, 8), (ONE, 5.5), TO_TWO, TO_THREE) == Wait(
        "WAL of timeline 00000002 is missing", is_gap=True
    )
    assert isinstance(step(named(3, 8), (TWO, 8.25), TO_TWO, TO_THREE), Feed)
    assert step(named(3, 8), (TWO, 8.25), TO_TWO) == Wait(
        "the history file of timeline 00000003 has not come"
    )
    assert step(named(1, 5, ".partial"), (ONE, 5)) == Wait("no history file says where it ends")


def test_a_timeline_of_another_past_is_refused() -> None:
    other = TimelineHistory(THREE, (TimelineSwitch(ONE, at(2.5)),))
    found = step(named(3, 6), (TWO, 8), TO_TWO, other)
    assert isinstance(found, Refuse)


def test_the_first_page_says_whose_segment_it_is() -> None:
    def page(address: int = 5 * MIB, system: int = 77, size: int = MIB, flags: int = 2) -> bytes:
        return struct.pack("<HHIQI4xQII", 0xD116, flags, 1, address, 0, system, size, 8192)

    def fault(content: bytes) -> str | None:
        segment = SegmentName.parse("000000010000000000000005")
        return first_page_fault(content, segment, system_identifier=77, segment_bytes=MIB)

    assert fault(page()) is None
    for bad in (
        page(address=6 * MIB),
        page(system=78),
        page(size=2 * MIB),
        page(flags=0),
        page()[:30],
        bytes(40),
    ):
        assert fault(bad) is not None


def test_a_partial_segment_in_which_two_timelines_were_begun_ends_where_the_first_of_them_did() -> None:
    """Two failovers within one segment, the second from a standby that lagged: both servers hand it over."""
    lagged = TimelineHistory(THREE, (TimelineSwitch(ONE, at(5.25)),))
    for end in ((TWO, 7.0), (THREE, 7.0), (ONE, 5.5)):
        assert step(named(1, 5, ".partial"), end, TO_TWO, lagged) == Known(at(5.25))
    # What lies after it on the way to timeline 2 comes with that timeline's first segment.
    assert step(named(1, 5, ".partial"), (ONE, 5), TO_TWO, lagged) == Feed(
        run(ONE, 5, None), at(5.25), is_next=True
    )
    assert step(named(2, 5), (ONE, 5.25), TO_TWO, lagged) == Feed(run(ONE, 5, 5.25), at(5.5))
