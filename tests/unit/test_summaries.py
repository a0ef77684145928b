"""The rules that make an incremental backup right, one by one (``pitr.postgres.summaries`` numbers them)."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from fix_summaries import COPY_END, COPY_HEADER, Row, copied, in_chunks, relation, row, rows_of

from pitr.backup_changes import await_summaries
from pitr.postgres.datadir import DataFile
from pitr.postgres.summaries import (
    SUMMARY_ROW,
    ChangedPart,
    Changes,
    NotIncremental,
    Stretch,
    Summary,
    choose_summaries,
    plan_file,
    way_from,
)
from pitr.postgres.summary_source import SummarizerState, parse_rows
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, TimelineSwitch

ONE, TWO, THREE = TimelineId(1), TimelineId(2), TimelineId(3)
SEGMENT = 1000
PATH = "base/5/16384"


def summary(start: int, end: int, timeline: TimelineId = ONE) -> Summary:
    return Summary(timeline, LSN(start), LSN(end))


def stretch(start: int, end: int, timeline: TimelineId = ONE) -> Stretch:
    return Stretch(timeline, LSN(start), LSN(end))


def history(timeline: TimelineId, *switches: tuple[TimelineId, int]) -> TimelineHistory:
    return TimelineHistory(timeline, tuple(TimelineSwitch(left, LSN(at)) for left, at in switches))


def changes_of(*summaries: Sequence[Row]) -> Changes:
    changes = Changes()
    for rows in summaries:
        changes.add_rows(rows_of(rows))
    changes.finish()
    return changes


def plan(
    file: DataFile, *summaries: Sequence[Row], is_in_parent: bool = True
) -> tuple[list[int], int] | None:
    """Return the changed blocks and how many the parent keeps; None for a whole file."""
    part = plan_file(file, changes_of(*summaries), is_in_parent=is_in_parent, relation_segment_blocks=SEGMENT)
    return None if part is None else (part.blocks.tolist(), part.parent_blocks)


# --- 1. coverage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "chosen"),
    [
        pytest.param([(100, 200), (200, 300)], [(100, 200), (200, 300)], id="exact"),
        pytest.param([(200, 300), (100, 200)], [(100, 200), (200, 300)], id="in any order"),
        pytest.param(
            [(1, 50), (50, 150), (150, 400), (400, 500)],
            [(50, 150), (150, 400)],
            id="reaching over both ends",
        ),
        pytest.param([(90, 220), (100, 200), (200, 300)], [(90, 220), (200, 300)], id="overlapping"),
        pytest.param([(100, 300), (150, 250)], [(100, 300)], id="one within another"),
    ],
)
def test_summaries_that_leave_no_hole_are_taken_in_order(
    available: list[tuple[int, int]], chosen: list[tuple[int, int]]
) -> None:
    found = choose_summaries([stretch(100, 300)], [summary(*each) for each in available])
    assert found == tuple(summary(*each) for each in chosen)


@pytest.mark.parametrize(
    ("available", "at"),
    [
        pytest.param([], 100, id="none"),
        pytest.param([(101, 200), (200, 300)], 100, id="the first byte"),
        pytest.param([(100, 200), (201, 300)], 200, id="the middle"),
        pytest.param([(100, 200), (200, 299)], 299, id="the last byte"),
        pytest.param([(50, 100), (300, 400)], 100, id="all of it"),
    ],
)
def test_a_hole_in_the_summaries_is_refused_and_named(available: list[tuple[int, int]], at: int) -> None:
    with pytest.raises(NotIncremental, match=f"hole at {LSN(at)}"):
        choose_summaries([stretch(100, 300)], [summary(*each) for each in available])


def test_summaries_of_another_timeline_do_not_count() -> None:
    with pytest.raises(NotIncremental, match="timeline 00000001 have a hole"):
        choose_summaries([stretch(100, 300)], [summary(100, 300, TWO)])


def test_each_stretch_of_the_way_is_covered_by_its_own_timeline() -> None:
    way = [stretch(100, 200), stretch(200, 300, TWO)]
    taken = choose_summaries(way, [summary(200, 300, TWO), summary(50, 400), summary(100, 250, TWO)])
    assert taken == (summary(50, 400), summary(100, 250, TWO), summary(200, 300, TWO))
    with pytest.raises(NotIncremental, match="timeline 00000002"):
        choose_summaries(way, [summary(50, 400)])


# --- 2. lineage --------------------------------------------------------------------------------------------


def test_the_way_begins_at_the_parents_start_and_not_at_its_stop() -> None:
    assert way_from(ONE, LSN(100), LSN(150), history(ONE), LSN(300)) == (stretch(100, 300),)


def test_the_way_leads_across_several_switches() -> None:
    server = history(THREE, (ONE, 200), (TWO, 250))
    expected = (stretch(100, 200), stretch(200, 250, TWO), stretch(250, 300, THREE))
    assert way_from(ONE, LSN(100), LSN(150), server, LSN(300)) == expected
    later = (stretch(220, 250, TWO), stretch(250, 300, THREE))
    assert way_from(TWO, LSN(220), LSN(230), server, LSN(300)) == later
    assert way_from(THREE, LSN(260), LSN(270), server, LSN(300)) == (stretch(260, 300, THREE),)


def test_a_parent_that_ended_right_at_the_switch_is_built_on() -> None:
    found = way_from(ONE, LSN(100), LSN(200), history(TWO, (ONE, 200)), LSN(300))
    assert found == (stretch(100, 200), stretch(200, 300, TWO))


@pytest.mark.parametrize(
    ("timeline", "start", "stop", "server", "why"),
    [
        pytest.param(TWO, 100, 150, history(ONE), "not in the server's history", id="a timeline of nobody"),
        pytest.param(
            TWO, 220, 230, history(THREE, (ONE, 210)), "not in the server's history", id="a sibling timeline"
        ),
        pytest.param(
            ONE,
            100,
            201,
            history(TWO, (ONE, 200)),
            "left timeline 00000001",
            id="left before the parent's end",
        ),
        pytest.param(ONE, 100, 301, history(ONE), "after this backup starts", id="ended after the new start"),
        pytest.param(
            TWO, 190, 230, history(TWO, (ONE, 200)), "before its timeline", id="started before its timeline"
        ),
    ],
)
def test_a_parent_that_the_server_does_not_come_from_is_refused(
    timeline: TimelineId, start: int, stop: int, server: TimelineHistory, why: str
) -> None:
    with pytest.raises(NotIncremental, match=why):
        way_from(timeline, LSN(start), LSN(stop), server, LSN(300))


# --- 3. databases ------------------------------------------------------------------------------------------


def test_all_of_a_database_that_was_made_or_dropped_is_whole() -> None:
    made = [row(0, 0, limit=True)]
    assert plan(relation(PATH, 10), made) is None
    assert plan(relation("base/5/1259_init", 1), made) is None
    assert plan(relation("base/6/16384", 10), made) == ([], 10)
    # The same database in another tablespace is another folder.
    assert plan(relation("pg_tblspc/16500/PG_17_202406281/5/16384", 10), made) == ([], 10)


# --- 4. limits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "summaries", "expected"),
    [
        pytest.param(10, [[row(16384, 3), row(16384, 7)]], ([3, 7], 10), id="no limit"),
        pytest.param(10, [[row(16384, 4, limit=True)]], ([], 4), id="cut and grown by zeros"),
        pytest.param(
            10,
            [[row(16384, 4, limit=True), row(16384, 8)]],
            ([8], 4),
            id="a block after the cut, in one summary",
        ),
        pytest.param(
            10,
            [[row(16384, 8), row(16384, 4, limit=True)]],
            ([8], 4),
            id="limits come first within a summary",
        ),
        pytest.param(
            10,
            [[row(16384, 2), row(16384, 8)], [row(16384, 4, limit=True)]],
            ([2], 4),
            id="a cut drops older blocks",
        ),
        pytest.param(10, [[row(16384, 4, limit=True)], [row(16384, 8)]], ([8], 4), id="a later block stays"),
        pytest.param(
            10,
            [[row(16384, 4, limit=True)], [row(16384, 6, limit=True), row(16384, 5)]],
            ([5], 4),
            id="the least limit counts",
        ),
        pytest.param(
            10,
            [[row(16384, 5)], [row(16384, 6, limit=True)], [row(16384, 4, limit=True)], [row(16384, 4)]],
            ([4], 4),
            id="cut twice",
        ),
        pytest.param(4, [[row(16384, 4, limit=True)]], ([], 4), id="cut and not grown"),
        pytest.param(3, [[row(16384, 3), row(16384, 9)]], ([], 3), id="blocks behind the end"),
        pytest.param(10, [[row(16384, 0, limit=True)]], None, id="limit 0"),
        pytest.param(10, [[row(16384, 0, limit=True)], [row(16384, 3)]], None, id="made anew and written to"),
    ],
)
def test_no_older_block_behind_a_limit_is_taken(
    blocks: int, summaries: list[list[Row]], expected: tuple[list[int], int] | None
) -> None:
    assert plan(relation(PATH, blocks), *summaries) == expected


def test_a_limit_counts_from_the_relations_first_segment() -> None:
    cut = [
        row(16384, SEGMENT + 4, limit=True),
        row(16384, SEGMENT + 6),
        row(16384, 7),
        row(16384, 2 * SEGMENT),
    ]
    assert plan(relation(PATH, SEGMENT), cut) == ([7], SEGMENT)
    assert plan(relation(f"{PATH}.1", SEGMENT), cut) == ([6], 4)
    # Behind the limit: whatever the parent has is of another life.
    assert plan(relation(f"{PATH}.2", 10), cut) is None
    at_the_border = [row(16384, SEGMENT, limit=True)]
    assert plan(relation(PATH, SEGMENT), at_the_border) == ([], SEGMENT)
    assert plan(relation(f"{PATH}.1", 3), at_the_border) is None


def test_forks_and_relations_do_not_mix() -> None:
    rows = [row(16384, 1), row(16384, 2, fork="init"), row(16385, 3), row(16384, 4, database=6)]
    assert plan(relation(PATH, 10), rows) == ([1], 10)
    assert plan(relation(f"{PATH}_init", 10), rows) == ([2], 10)
    assert plan(relation("base/5/16385", 10), rows) == ([3], 10)
    assert plan(relation("base/6/16384", 10), rows) == ([4], 10)
    assert plan(relation("base/5/16386", 10), rows) == ([], 10)


# --- 5. whole files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(DataFile(b"pg_xact/0000", 8192, None), id="no relation"),
        pytest.param(DataFile(b"base/5/PG_VERSION", 3, None), id="no page"),
        pytest.param(relation(f"{PATH}_fsm", 3), id="a free space map, which is not logged"),
        pytest.param(relation(f"{PATH}_vm", 3), id="a visibility map, whose clearing names no block"),
        pytest.param(relation(PATH, 0), id="empty"),
        pytest.param(relation(PATH, 3, rest_bytes=1), id="a part of a page"),
        pytest.param(relation(PATH, SEGMENT + 1), id="longer than a segment"),
    ],
)
def test_a_file_of_which_wal_does_not_tell_all_is_whole(file: DataFile) -> None:
    assert plan(file) is None


def test_a_file_that_the_parent_lacks_is_whole() -> None:
    assert plan(relation(PATH, 10), is_in_parent=False) is None
    assert plan(relation(PATH, 10)) == ([], 10)


def test_a_file_of_which_most_changed_is_whole() -> None:
    nine = [row(16384, block) for block in range(9)]
    assert plan(relation(PATH, 10), nine) == (list(range(9)), 10)
    assert plan(relation(PATH, 10), [*nine, row(16384, 9)]) is None
    # Named in two summaries, a block has changed once.
    assert plan(relation(PATH, 10), nine, nine) == (list(range(9)), 10)


# --- 8. hint bits, and how changes are asked ---------------------------------------------------------------


def test_a_page_image_for_a_hint_bit_is_a_change_like_any_other() -> None:
    """A summary does not say why a block was logged, so nothing can be left out for it."""
    part = plan_file(
        relation(PATH, 10), changes_of([row(16384, 3)]), is_in_parent=True, relation_segment_blocks=SEGMENT
    )
    assert part is not None
    assert part.blocks.dtype == np.uint32
    assert part.blocks.tolist() == [3]


def test_several_threads_may_ask_once_the_changes_are_finished() -> None:
    changes = changes_of(*[[row(16384, block)] for block in range(0, 600, 2)])
    barrier, found = threading.Barrier(4), []

    def ask() -> None:
        barrier.wait(10)
        found.append(
            plan_file(relation(PATH, SEGMENT), changes, is_in_parent=True, relation_segment_blocks=SEGMENT)
        )

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [isinstance(part, ChangedPart) and len(part.blocks) for part in found] == [300] * 4


def test_changes_of_very_many_forks_fit_into_memory() -> None:
    """Objects for each were measured at 800 bytes, half a gigabyte for 600,000 files."""
    forks = 100_000
    rows = np.zeros(forks, dtype=SUMMARY_ROW)
    rows[:] = rows_of([row(16384, 3)])[0]
    rows["filenode"] = np.arange(1, forks + 1)
    limits = rows.copy()
    limits["is_limit"] = 1
    tracemalloc.start()
    try:
        changes = Changes()
        changes.add_rows(limits)
        changes.add_rows(rows)
        changes.finish()
        kept_bytes, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 64 * forks
    assert most_bytes < 250 * forks
    last = plan_file(
        relation(f"base/5/{forks}", 9), changes, is_in_parent=True, relation_segment_blocks=SEGMENT
    )
    assert last is not None
    assert (last.blocks.tolist(), last.parent_blocks) == ([3], 3)


# --- what the server sends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 19, 46, 65_536])
def test_rows_come_back_however_they_are_cut(chunk: int) -> None:
    rows = rows_of([row(16384, block, limit=block == 3) for block in range(50)])
    parsed = list(parse_rows(in_chunks(copied(rows), chunk)))
    assert np.array_equal(np.concatenate(parsed), rows)


def test_a_summary_of_no_rows_is_none() -> None:
    (parsed,) = parse_rows(in_chunks(copied(rows_of([])), 5))
    assert len(parsed) == 0
    changes = Changes()
    changes.add_rows(parsed)
    changes.finish()


def test_rows_larger_than_memory_should_hold_come_in_batches() -> None:
    rows = np.zeros(300_000, dtype=SUMMARY_ROW)
    rows[:] = rows_of([row(16384, 0)])[0]
    rows["block"] = np.arange(len(rows))
    content = copied(rows)
    assert len(content) > 9 * 1024 * 1024
    parsed = list(parse_rows(in_chunks(content, 100_003)))
    assert len(parsed) >= 3
    assert max(len(batch) for batch in parsed) * SUMMARY_ROW.itemsize < 5 * 1024 * 1024
    assert np.array_equal(np.concatenate(parsed), rows)


_GOOD = copied(rows_of([row(16384, 1), row(16384, 2)]))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(COPY_HEADER, id="no end"),
        pytest.param(_GOOD[:-1], id="cut in the end"),
        pytest.param(_GOOD[:-2], id="cut before the end"),
        pytest.param(_GOOD[:-9], id="cut in a row"),
        pytest.param(_GOOD[1:], id="cut at the start"),
        pytest.param(_GOOD + b"\0", id="more after the end"),
        pytest.param(b"XGCOPY" + _GOOD[6:], id="another signature"),
        pytest.param(COPY_HEADER[:-1] + b"\x04" + bytes(4) + _GOOD[19:], id="an extension of the header"),
        pytest.param(COPY_HEADER + bytes(10) + COPY_END, id="a row of another width"),
    ],
)
def test_what_is_no_copy_of_a_summary_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"COPY|width"):
        list(parse_rows(in_chunks(content, 11)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("columns", 5),
        ("columns", -1),
        ("filenode_bytes", -1),
        ("block_bytes", 4),
        ("is_limit_bytes", -1),
        ("fork", 4),
        ("fork", -1),
        ("block", -1),
        ("block", 1 << 32),
        ("is_limit", 2),
    ],
)
def test_a_row_that_postgresql_never_sends_is_refused(field: str, value: int) -> None:
    rows = rows_of([row(16384, 1), row(16384, 2), row(16384, 3)])
    rows[field][1] = value
    with pytest.raises(ValueError, match="WAL summary"):
        Changes().add_rows(rows)


# --- waiting for the summarizer ----------------------------------------------------------------------------


class Summarizer:
    """A server that says one state after another, and the last one for ever."""

    def __init__(self, *states: tuple[int | None, int | None]) -> None:
        self._states = list(states)
        self.looks = 0

    def __call__(self) -> SummarizerState:
        self.looks += 1
        summarized, pending = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        return SummarizerState(
            None if summarized is None else LSN(summarized), None if pending is None else LSN(pending)
        )


def test_the_summarizer_is_waited_for_while_it_reads() -> None:
    """A summary of many gigabytes is written once: meanwhile only the pending LSN moves."""
    reading = [(100, 100 + step // 500) for step in range(5000)]
    await_summaries(Summarizer(*reading, (300, 300)), LSN(300), lambda _seconds: None)
    await_summaries(Summarizer((None, None), (None, 50), (300, 300)), LSN(300), lambda _seconds: None)


def test_a_summarizer_that_stands_still_is_not_waited_for_for_ever() -> None:
    stuck = Summarizer((100, 120))
    with pytest.raises(NotIncremental, match=r"stays at 0/64\b"):
        await_summaries(stuck, LSN(300), lambda _seconds: None)
    assert stuck.looks < 1000


def test_a_cancelled_backup_does_not_wait_for_the_summarizer() -> None:
    cancelled = Summarizer((100, 120))
    with pytest.raises(NotIncremental):
        await_summaries(cancelled, LSN(300), lambda _seconds: True)
    assert cancelled.looks == 1
