"""Fences, against a reader's model: whatever a restore that stays can read is kept, and little more.

Worlds are those of ``test_retention_model``: epochs, timelines, orphaned tails.  A reader goes downwards from
the place that was restored to, through the archives of the way, and looks at so many fences at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice

import fix_archive as fix
from fix_retention import Case, cases
from fix_worlds import FIRST, LAST, SLOT_BYTES
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pitr.layout import ArchiveId
from pitr.retention import ExpiryPlan, seen_from
from pitr.retention_beside import (
    FencesAt,
    Position,
    SnapshotAt,
    expired_snapshots,
    first_not_below,
    first_positions,
    kept_fences,
)
from pitr.wal.lsn import LSN
from pitr.wal_runs import WalSpan, way_to

_SLOW = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Stored:
    """The objects of fences of one archive, the oldest first; each is the places of its fences."""

    objects: list[list[Position]]

    def header(self, sequence: int) -> FencesAt:
        places = self.objects[sequence - 1]
        return FencesAt(sequence, len(places), places[-1], sequence.to_bytes(16, "big"))

    def downwards(self, place: Position) -> Iterator[int]:
        """Yield the number of the object of each fence that is not after a place, the newest first."""
        for sequence in range(len(self.objects), 0, -1):
            yield from (sequence for fence in reversed(self.objects[sequence - 1]) if fence <= place)

    def kept_from(self, position: Position | None, read_max: int) -> int:
        last = len(self.objects)
        above = last + 1 if position is None else first_not_below(1, last, position, self.header)
        below = (self.header(sequence) for sequence in range(above - 1, 0, -1))
        kept = kept_fences(1, below, above, read_max=read_max)
        between = range(kept.first, above)
        assert kept.key_ids == {self.header(sequence).key_id for sequence in between}
        fences = sum(len(self.objects[sequence - 1]) for sequence in between[1:])
        assert fences < read_max, "no more are kept than are read"
        return kept.first


@st.composite
def stored_fences(draw: st.DrawFn, case: Case) -> dict[ArchiveId, Stored]:
    found = {}
    for writer in case.world.writers.values():
        places: list[Position] = []
        for timeline, _ in writer.timelines:
            offsets = draw(st.sets(st.integers(FIRST * 4, LAST * 4), max_size=12))
            places += [(timeline, LSN(at * SLOT_BYTES // 4)) for at in sorted(offsets)]
        objects = []
        while places:
            size = draw(st.integers(1, 4))
            objects.append(places[:size])
            places = places[size:]
        found[fix.archive_of(writer.epoch)] = Stored(objects)
    return found


def ways_of(case: Case, plan: ExpiryPlan) -> Iterator[tuple[WalSpan, ...]]:
    for archive, timeline in plan.ways:
        view = seen_from(case.world.survey(), archive)
        yield way_to(view.archive, timeline, view.epochs, view.histories)


def read(
    way: Sequence[WalSpan], end: LSN, stored: dict[ArchiveId, Stored]
) -> Iterator[tuple[ArchiveId, int]]:
    """Yield what a plan looks at for a restore to ``end``, as ``pitr events plan --at`` does."""
    spans = [span for span in way if span.start < end]
    for archive in dict.fromkeys(span.archive for span in reversed(spans)):
        last = next(span for span in reversed(spans) if span.archive == archive)
        limit = end if last.end is None or last.end > end else last.end
        yield from (
            (archive, sequence) for sequence in stored[archive].downwards((last.timeline.number, limit))
        )


@_SLOW
@given(cases(is_aligned=True), st.data(), st.integers(1, 8))
def test_whatever_a_restore_that_stays_reads_is_kept(case: Case, data: st.DataObject, read_max: int) -> None:
    plan, stored = case.plan, data.draw(stored_fences(case))
    positions = first_positions(case.world.survey(), plan)
    first = {
        archive: objects.kept_from(positions.get(archive), read_max) for archive, objects in stored.items()
    }
    event("something goes" if max(first.values()) > 1 else "all stays")
    for way in ways_of(case, plan):
        starts = [
            kept.backup.stop_lsn
            for kept in plan.kept
            for span in way
            if (span.archive, span.timeline) == (kept.backup.archive, kept.backup.timeline)
            and span.holds(kept.backup.start_lsn)
        ]
        if not starts:
            continue
        for slot in range(min(starts).offset // SLOT_BYTES, LAST + 1):
            end = max(LSN(slot * SLOT_BYTES), min(starts))
            for archive, sequence in islice(read(way, end, stored), read_max):
                assert sequence >= first[archive], (way, end)


def test_bad_headers_keep_more_and_never_less() -> None:
    stored = Stored([[(1, LSN(number * 100))] for number in range(1, 21)])
    assert stored.kept_from((1, LSN(1_050)), 3) == 8
    assert stored.kept_from(None, 3) == 18
    below = [None if one == 9 else stored.header(one) for one in range(10, 0, -1)]
    assert kept_fences(1, below, 11, read_max=3).first == 7
    assert first_not_below(1, 20, (1, LSN(1_050)), stored.header) == 11
    # Number 10 is bad, and the next one does not lie below.
    assert first_not_below(1, 20, (1, LSN(1_050)), lambda at: stored.header(11 if at == 10 else at)) == 10


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 30)), max_size=12), st.integers(0, 30))
def test_a_snapshot_stays_that_any_moment_is_restored_with(made: list[tuple[str, int]], first: int) -> None:
    begin = fix.at_second(0)
    snapshots = [
        SnapshotAt(f"{number:03d}", name, begin + timedelta(seconds=at), bytes(16))
        for number, (name, at) in enumerate(made)
    ]
    gone = {one.snapshot for one in expired_snapshots(snapshots, begin + timedelta(seconds=first))}
    needed = set()
    for name in ("a", "b"):
        mine = [one for one in snapshots if one.name == name]
        for moment in range(first, 32):
            whole = [one for one in mine if one.ended_at <= begin + timedelta(seconds=moment)]
            if whole:
                needed.add(max(whole, key=lambda one: (one.ended_at, one.snapshot)).snapshot)
        needed |= {one.snapshot for one in mine if one.ended_at > begin + timedelta(seconds=first)}
    assert gone == {one.snapshot for one in snapshots} - needed
