"""Which answer each name gets: the difference between "no such file" and doubt decides over data loss."""

from __future__ import annotations

import pytest
from fix_wal_path import ARCHIVE, SEGMENT_BYTES, WalShelf, lsn_in, segment_name, span

from pitr.errors import MalformedValue, WalMissing
from pitr.layout import ArchiveId
from pitr.wal.timeline import TimelineId
from pitr.wal_path import (
    Decision,
    Doubt,
    HistoryFile,
    OutsidePath,
    PathSpan,
    ServeHistory,
    ServeSegment,
    WalPath,
    decide,
    exit_code,
)
from pitr.wal_sources import find_segments, first_hole, lay_path

# Timeline 1 from segment 5, left in mid-segment 8 for timeline 3, planned to end in segment 11.
HISTORY_3 = HistoryFile(TimelineId(3), b"1\t0/880000\tno recovery target specified\n")
SPANS = [span(lsn_in(5, 40), lsn_in(8, 0x80000)), span(lsn_in(8, 0x80000), lsn_in(11, 500), timeline=3)]
PATH = lay_path(SPANS, [HISTORY_3], segment_bytes=SEGMENT_BYTES)


def name_of(number: int, timeline: int) -> str:
    return str(segment_name(number, timeline))


def test_the_path_takes_a_switched_segment_from_the_new_timeline() -> None:
    assert PATH.spans == (PathSpan(TimelineId(1), 5, 7), PathSpan(TimelineId(3), 8, 11))
    assert [str(name) for name in PATH.segment_names()] == [
        *(name_of(number, 1) for number in (5, 6, 7)),
        *(name_of(number, 3) for number in (8, 9, 10, 11)),
    ]


def test_a_switch_on_a_segment_boundary_leaves_the_old_timeline_its_last_segment() -> None:
    spans = [span(lsn_in(5), lsn_in(8)), span(lsn_in(8), lsn_in(9, 8), timeline=2)]
    path = lay_path(spans, [], segment_bytes=SEGMENT_BYTES)
    assert path.spans == (PathSpan(TimelineId(1), 5, 7), PathSpan(TimelineId(2), 8, 9))


def test_two_switches_in_one_segment_leave_only_the_newest_timeline() -> None:
    spans = [
        span(lsn_in(5), lsn_in(8, 100)),
        span(lsn_in(8, 100), lsn_in(8, 200), timeline=2),
        span(lsn_in(8, 200), lsn_in(8, 300), timeline=3),
    ]
    path = lay_path(spans, [], segment_bytes=SEGMENT_BYTES)
    assert path.spans == (PathSpan(TimelineId(1), 5, 7), PathSpan(TimelineId(3), 8, 8))


def test_a_writer_epoch_that_goes_on_with_the_timeline_makes_one_span() -> None:
    later = ArchiveId(ARCHIVE.system_identifier, 2)
    spans = [span(lsn_in(5), lsn_in(8, 100)), span(lsn_in(8, 100), lsn_in(10), archive=later)]
    path = lay_path(spans, [], segment_bytes=SEGMENT_BYTES)
    assert path.spans == (PathSpan(TimelineId(1), 5, 9),)


def test_an_end_on_a_boundary_needs_no_segment_behind_it() -> None:
    path = lay_path([span(lsn_in(5), lsn_in(7))], [], segment_bytes=SEGMENT_BYTES)
    assert str(path.last_segment) == name_of(6, 1)
    assert isinstance(decide(name_of(7, 1), path), OutsidePath)


@pytest.mark.parametrize("gap", [-1, 1])
def test_spans_that_do_not_join_make_no_path(gap: int) -> None:
    with pytest.raises(MalformedValue, match="breaks"):
        lay_path(
            [span(lsn_in(5), lsn_in(7)), span(lsn_in(7) + gap, lsn_in(8))], [], segment_bytes=SEGMENT_BYTES
        )


def test_a_path_of_two_clusters_is_refused() -> None:
    foreign = ArchiveId(ARCHIVE.system_identifier + 1, 1)
    spans = [span(lsn_in(5), lsn_in(7)), span(lsn_in(7), lsn_in(8), archive=foreign)]
    with pytest.raises(MalformedValue, match="several clusters"):
        lay_path(spans, [], segment_bytes=SEGMENT_BYTES)


def test_every_name_of_every_timeline_around_the_path_is_decided() -> None:
    on_path = {(number, 1) for number in (5, 6, 7)} | {(number, 3) for number in (8, 9, 10, 11)}
    for timeline in (1, 2, 3, 4, 0x10):
        for number in range(1, 15):
            decision = decide(name_of(number, timeline), PATH)
            if (number, timeline) in on_path:
                segment = segment_name(number, timeline)
                assert decision == ServeSegment(segment, is_last=number == 11)
            elif timeline == 1 and number < 5:
                assert isinstance(decision, Doubt), (number, timeline)
            else:
                assert isinstance(decision, OutsidePath), (number, timeline)


@pytest.mark.parametrize("timeline", [1, 2, 4, 0xFFFFFFFF])
def test_a_history_file_off_the_path_is_outside(timeline: int) -> None:
    assert isinstance(decide(f"{TimelineId(timeline)}.history", PATH), OutsidePath)


def test_the_history_file_of_the_target_is_served_from_the_plan() -> None:
    assert decide("00000003.history", PATH) == ServeHistory(HISTORY_3)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "RECOVERYXLOG",
        "00000001",
        name_of(5, 1)[:-1],
        name_of(5, 1) + "0",
        name_of(5, 1).replace("5", "g"),
        name_of(10, 3).lower(),
        "0000000000000000000000005",
        "000000000000000000000005",
        "00000000.history",
        "00000003.history.gz",
        "../00000003.history",
        "0000000100000000FFFFFFFF",
        name_of(5, 1) + "\n",
    ],
)
def test_a_name_that_postgresql_never_asks_for_is_doubt(name: str) -> None:
    assert isinstance(decide(name, PATH), Doubt)


@pytest.mark.parametrize("suffix", [".partial", ".00000028.backup"])
def test_files_that_no_plan_holds_are_outside(suffix: str) -> None:
    assert isinstance(decide(name_of(6, 1) + suffix, PATH), OutsidePath)


SERVED: tuple[Decision, ...] = (
    ServeSegment(segment_name(5), is_last=False),
    ServeSegment(segment_name(11, 3), is_last=True),
    ServeHistory(HISTORY_3),
)


def test_only_names_outside_the_path_make_exit_code_one_in_a_recovery_to_a_target() -> None:
    for decision in SERVED:
        assert exit_code(decision, is_delivered=True, is_standby=False) == 0
        assert exit_code(decision, is_delivered=False, is_standby=False) > 128
    assert exit_code(OutsidePath("off"), is_delivered=False, is_standby=False) == 1
    assert exit_code(Doubt("why"), is_delivered=False, is_standby=False) > 128


def test_a_standby_is_never_shut_down_by_doubt() -> None:
    for decision in (*SERVED, OutsidePath("off"), Doubt("why")):
        assert exit_code(decision, is_delivered=False, is_standby=True) == 1
    assert exit_code(SERVED[0], is_delivered=True, is_standby=True) == 0


def test_nothing_but_a_served_file_is_ever_delivered() -> None:
    for decision in (OutsidePath("off"), Doubt("why")):
        for is_standby in (False, True):
            assert exit_code(decision, is_delivered=True, is_standby=is_standby) != 0


def filled_shelf() -> WalShelf:
    shelf = WalShelf()
    for number in (5, 6, 7):
        shelf.add_whole(segment_name(number))
    shelf.add_piece(segment_name(8), 0, 0x80000)
    for number in (8, 9, 10):
        shelf.add_whole(segment_name(number, 3))
    shelf.add_piece(segment_name(11, 3), 0, 400)
    shelf.add_piece(segment_name(11, 3), 400, 900, sequence=2)
    return shelf


def test_all_segments_of_the_path_get_their_objects() -> None:
    segments = list(find_segments(PATH, SPANS, filled_shelf().list_wal))
    assert [segment.name for segment in segments] == list(PATH.segment_names())
    assert [len(segment.sources) for segment in segments] == [1, 1, 1, 2, 1, 1, 2]
    assert segments[-1].needed_end == PATH.end


def test_each_missing_object_is_a_hole_that_is_named() -> None:
    for key in filled_shelf().objects:
        shelf = filled_shelf()
        del shelf.objects[key]
        if key.segment == segment_name(8):  # the new timeline's own copy of the switched segment is there
            assert len(list(find_segments(PATH, SPANS, shelf.list_wal))) == 7
            continue
        with pytest.raises(WalMissing, match=str(key.segment)):
            list(find_segments(PATH, SPANS, shelf.list_wal))


def test_a_new_timeline_that_was_archived_from_its_switch_on_is_completed_from_its_parent() -> None:
    shelf = filled_shelf()
    shelf.objects = {key: body for key, body in shelf.objects.items() if key.segment != segment_name(8, 3)}
    shelf.add_piece(segment_name(8, 3), 0x80000, SEGMENT_BYTES)
    segments = {segment.name: segment for segment in find_segments(PATH, SPANS, shelf.list_wal)}
    switched = segments[segment_name(8, 3)]
    assert [source.key.segment.timeline.number for source in switched.sources] == [3, 1]
    assert first_hole(switched, SEGMENT_BYTES) is None


def test_what_a_parent_wrote_after_the_switch_is_not_used() -> None:
    shelf = filled_shelf()
    shelf.add_whole(segment_name(8))
    segments = {segment.name: segment for segment in find_segments(PATH, SPANS, shelf.list_wal)}
    of_parent = [s for s in segments[segment_name(8, 3)].sources if s.key.segment.timeline.number == 1]
    assert of_parent
    assert all(source.until == lsn_in(8, 0x80000) for source in of_parent)


def test_a_path_must_end_in_its_last_segment() -> None:
    with pytest.raises(MalformedValue, match="outside its last segment"):
        WalPath(1, SEGMENT_BYTES, (PathSpan(TimelineId(1), 5, 6),), (), lsn_in(5, 9))


def test_a_number_that_any_branch_has_is_shown_to_a_server_that_looks_for_a_free_one() -> None:
    other = HistoryFile(TimelineId(4), b"1\t0/500000\tno recovery target specified\n")
    path = lay_path(SPANS, [HISTORY_3], segment_bytes=SEGMENT_BYTES, taken=[other])
    assert decide("00000003.history", path) == ServeHistory(HISTORY_3)
    assert decide("00000004.history", path) == ServeHistory(other)
    assert isinstance(decide("00000005.history", path), OutsidePath)


def test_a_standby_which_follows_the_newest_timeline_is_shown_its_own_only() -> None:
    other = HistoryFile(TimelineId(4), b"3\t0/B00000\tno recovery target specified\n")
    path = lay_path(SPANS, [HISTORY_3], segment_bytes=SEGMENT_BYTES, taken=[other])
    assert decide("00000003.history", path, is_standby=True) == ServeHistory(HISTORY_3)
    assert isinstance(decide("00000004.history", path, is_standby=True), OutsidePath)
