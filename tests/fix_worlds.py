"""Worlds of WAL for planner and retention: epochs, timelines, holes; and a model that walks every slot.

The model knows what the planner must infer: each record and its time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import fix_archive as fix
from hypothesis import strategies as st

from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.records import EpochParent, EpochRecord
from pitr.catalogue.wal_records import TransactionTimes, WalUnit
from pitr.survey import ArchiveEnd, ArchiveSurvey
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineHistory, TimelineId, TimelineSwitch

SLOTS = 4  # of WAL in a segment; each holds at most one record here
SLOT_BYTES = fix.SEGMENT_BYTES // SLOTS
FIRST = SLOTS  # segment 0 never has WAL
LAST = FIRST + 6 * SLOTS
TICK = timedelta(microseconds=1)


def lsn(slot: int) -> LSN:
    return LSN(slot * SLOT_BYTES)


@dataclass
class Writer:
    """One epoch: where it came from, its timelines with their first slots, and what it wrote."""

    epoch: int
    parent: int | None
    fork: int
    timelines: list[tuple[int, int]]
    history: list[tuple[int, int]]
    records: dict[tuple[int, int], int] = field(default_factory=dict)  # (timeline, slot) -> second


@dataclass
class World:
    writers: dict[int, Writer]
    units: list[WalUnit]
    backups: list[BackupManifest]
    end: ArchiveEnd
    archive: int
    timeline: int

    def survey(self) -> ArchiveSurvey:
        epochs, histories = [], {}
        for w in self.writers.values():
            parent = None
            if w.parent is not None:
                origin = self.owner_timeline(w.parent, w.fork - 1)
                parent = EpochParent(w.parent, TimelineId(origin), lsn(w.fork))
            epochs.append(
                EpochRecord(fix.REPOSITORY, fix.archive_of(w.epoch), fix.BEGIN, "ed25519:x", parent)
            )
            histories[fix.archive_of(w.epoch)] = [
                TimelineHistory(
                    TimelineId(t),
                    tuple(TimelineSwitch(TimelineId(a), lsn(s)) for a, s in self.history_of(w, t)),
                )
                for t, _ in w.timelines
                if t > 1
            ]
        return ArchiveSurvey(
            archive=fix.archive_of(self.archive),
            epochs=tuple(epochs),
            histories=histories,
            backups=tuple(self.backups),
            units=tuple(self.units),
            end=self.end,
        )

    def history_of(self, w: Writer, timeline: int) -> list[tuple[int, int]]:
        switches = list(w.history)
        for (t, _), (_, until) in zip(w.timelines, w.timelines[1:], strict=False):
            if t == timeline:
                break
            switches.append((t, until))
        return [s for s in switches if s[0] < timeline]

    def owner_timeline(self, epoch: int, slot: int) -> int:
        """Timeline of ``slot`` on the way to the newest timeline of ``epoch``."""
        w = self.writers[epoch]
        newest = w.timelines[-1][0]
        for t, until in self.history_of(w, newest):
            if slot < until:
                return t
        return newest

    # The model proper ---------------------------------------------------------------------------

    def way(self, slot: int) -> tuple[int, int]:
        """Who wrote the slot, on the way to the target timeline, and on which timeline."""
        epoch = self.archive
        while self.writers[epoch].parent is not None and slot < self.writers[epoch].fork:
            epoch = self.writers[epoch].parent
        for t, until in self.history_of(self.writers[self.archive], self.timeline):
            if slot < until:
                return epoch, t
        return epoch, self.timeline

    def is_stored(self, slot: int) -> bool:
        epoch, timeline = self.way(slot)
        for u in self.units:
            holds = u.start <= lsn(slot) and lsn(slot + 1) <= u.end
            if holds and (u.archive.epoch, u.timeline.number) == (epoch, timeline):
                return True
            # The next span's copy of the segment's beginning.
            following = next((s for s in range(slot, LAST) if self.way(s) != (epoch, timeline)), None)
            is_copy = following is not None and slot // SLOTS == following // SLOTS
            if holds and is_copy and (u.archive.epoch, u.timeline.number) == self.way(following):
                return True
        return False

    def record(self, slot: int) -> int | None:
        epoch, timeline = self.way(slot)
        return self.writers[epoch].records.get((timeline, slot))

    def parents(self, b: BackupManifest) -> list[BackupManifest] | None:
        """The backups that one is built on, the newest first; None if they are not all there."""
        parents: list[BackupManifest] = []
        while b.parent is not None:
            found = [each for each in self.backups if each.backup == b.parent]
            if not found or found[0].stop_lsn > b.start_lsn:
                return None
            b = found[0]
            parents.append(b)
        return parents

    def run_end(self, b: BackupManifest) -> int | None:
        """First slot that is missing after the backup; None if the backup is of no use."""
        if self.parents(b) is None:
            return None
        start, stop = b.start_lsn.offset // SLOT_BYTES, b.stop_lsn.offset // SLOT_BYTES
        if self.way(start) != (b.archive.epoch, b.timeline.number):
            return None
        if any(self.way(s) != self.way(start) for s in range(start, stop)):
            return None
        slot = start - start % SLOTS
        while slot < LAST and self.is_stored(slot):
            slot += 1
        return slot if slot >= stop else None

    def is_end(self, slot: int) -> bool:
        if not self.end.is_certain or any(self.is_stored(s) for s in range(slot, LAST)):
            return False
        final = self.way(LAST)
        if self.way(slot - 1) != final:
            return False
        head = self.end.head
        if head is None or head.wal_end is None:
            return True
        if (head.archive.epoch, head.timeline.number) != final:
            return True
        return head.wal_end <= lsn(slot)

    def stop_for(self, b: BackupManifest, instant: datetime) -> int | None:
        """Slot of the record before which recovery from ``b`` stops; LAST for the end; None: not possible."""
        end = self.run_end(b)
        if end is None or b.stopped_at > instant:
            return None
        start, stop = b.start_lsn.offset // SLOT_BYTES, b.stop_lsn.offset // SLOT_BYTES
        for slot in range(start, end):
            second = self.record(slot)
            if second is not None and fix.at_second(second) > instant:
                return slot if slot >= stop else None
        return LAST if self.is_end(end) else None

    def newest_for(self, instant: datetime) -> BackupManifest | None:
        usable = [b for b in self.backups if self.stop_for(b, instant) is not None]
        return max(usable, key=lambda b: (b.stop_lsn, b.backup), default=None)


@st.composite
def worlds(draw: st.DrawFn, *, is_aligned: bool) -> World:
    step = SLOTS if is_aligned else 1
    places = st.integers(FIRST // step + 1, LAST // step - 1).map(lambda n: n * step)
    writers: dict[int, Writer] = {}
    for epoch in range(1, draw(st.integers(1, 3)) + 1):
        parent = draw(st.sampled_from(sorted(writers))) if writers else None
        fork = draw(places) if parent is not None else FIRST
        history: list[tuple[int, int]] = []
        first = 1
        if parent is not None:
            old = writers[parent]
            for t, until in [
                *old.history,
                *((t, u) for (t, _), (_, u) in zip(old.timelines, old.timelines[1:], strict=False)),
            ]:
                if until < fork:
                    history.append((t, until))
            current = next((t for t, u in reversed(old.timelines) if u < fork), old.timelines[0][0])
            before = [t for t, u in old.history if u >= fork]
            current = before[0] if before else current
            if draw(st.booleans()):
                history.append((current, fork))
                first = current + 1
            else:
                first = current
        timelines = [(first, fork)]
        for place in sorted(draw(st.lists(places, max_size=2, unique=True))):
            if place > fork:
                timelines.append((timelines[-1][0] + 1, place))
        writers[epoch] = Writer(epoch, parent, fork, timelines, history)
    archive = draw(st.sampled_from([max(writers), *sorted(writers)]))
    timeline = draw(
        st.sampled_from([writers[archive].timelines[-1][0], *(t for t, _ in writers[archive].timelines)])
    )
    world = World(writers, [], [], ArchiveEnd(None, draw(st.integers(0, 3)) > 0, "asked"), archive, timeline)
    for writer in writers.values():
        _write(draw, world, writer)
    _take_backups(draw, world, step)
    if draw(st.integers(0, 2)) == 0:
        newest = writers[archive].timelines[-1][0]
        end = lsn(draw(st.integers(FIRST, LAST)))
        head = fix.head_of(epoch=archive, timeline=newest, wal_start=lsn(FIRST), wal_end=max(end, lsn(FIRST)))
        world.end = replace(world.end, head=head)
    return world


def _write(draw: st.DrawFn, world: World, writer: Writer) -> None:
    """Write each timeline of an epoch, some way past where it was left, and archive most of it."""
    for number, (timeline, begin) in enumerate(writer.timelines):
        left = writer.timelines[number + 1][1] if number + 1 < len(writer.timelines) else LAST
        until = min(LAST, left + draw(st.integers(0, SLOTS)))
        for slot in range(begin, until):
            if draw(st.integers(0, 2)) == 0:
                writer.records[timeline, slot] = slot * 10 + draw(st.integers(-25, 25))
        copied = begin - begin % SLOTS
        for slot in range(copied, begin):
            inherited = _inherited(world, writer, number, slot)
            if inherited is not None:
                writer.records[timeline, slot] = inherited
        for segment in range(copied // SLOTS, (until + SLOTS - 1) // SLOTS):
            slots = [s for s in range(segment * SLOTS, (segment + 1) * SLOTS) if copied <= s < until]
            _archive(draw, world, writer, timeline, slots)


def _inherited(world: World, writer: Writer, number: int, slot: int) -> int | None:
    if number > 0:
        for timeline, begin in reversed(writer.timelines[:number]):
            if begin <= slot:
                return writer.records.get((timeline, slot))
    epoch = writer
    while epoch.parent is not None and slot < epoch.fork:
        epoch = world.writers[epoch.parent]
    for t, until in writer.history:
        if slot < until:
            return epoch.records.get((t, slot))
    return epoch.records.get((writer.timelines[0][0], slot)) if epoch is not writer else None


def _archive(draw: st.DrawFn, world: World, writer: Writer, timeline: int, slots: list[int]) -> None:
    # Mostly whole: in a world full of holes nothing is restorable, and nothing is tested.
    how = draw(st.sampled_from(["segment", "pieces", "both"] * 8 + ["holes", "lost"]))
    if how in ("segment", "both"):
        _store(world, writer, timeline, slots, is_segment=True)
    if how in ("pieces", "both", "holes"):
        cut = draw(st.integers(1, 3))
        for first in range(0, len(slots), cut):
            if how != "holes" or draw(st.booleans()):
                _store(world, writer, timeline, slots[first : first + cut], is_segment=False)


def _store(world: World, writer: Writer, timeline: int, slots: list[int], *, is_segment: bool) -> None:
    seconds = [writer.records[timeline, s] for s in slots if (timeline, s) in writer.records]
    times: TransactionTimes | None = fix.times(min(seconds), max(seconds)) if seconds else None
    world.units.append(
        fix.unit_of(
            lsn(slots[0]),
            lsn(slots[-1] + 1),
            times,
            epoch=writer.epoch,
            timeline=timeline,
            sequence=len(world.units) + 1,
            is_segment=is_segment,
        )
    )


def _take_backups(draw: st.DrawFn, world: World, step: int) -> None:
    for number in range(draw(st.integers(2, 6))):
        writer = world.writers[draw(st.sampled_from(sorted(world.writers)))]
        timeline, begin = draw(st.sampled_from(writer.timelines))
        first = -(-begin // SLOTS) * SLOTS
        if first >= LAST - SLOTS:
            continue
        # Early ones leave more WAL to go through.
        latest = LAST // SLOTS - 1
        start = (
            min(draw(st.integers(first // SLOTS, latest)), draw(st.integers(first // SLOTS, latest))) * SLOTS
        )
        stop = min(LAST, start + max(step, draw(st.integers(1, 6)) // step * step))
        stopped_at = fix.at_second(stop * 10 + draw(st.integers(-30, 30)))
        world.backups.append(
            fix.backup_of(
                lsn(start),
                lsn(stop),
                stopped_at=stopped_at,
                epoch=writer.epoch,
                timeline=timeline,
                number=number,
            )
        )
    for number, child in enumerate(world.backups):
        # Mostly what a host would build on; also what is missing, and what came later.
        earlier = [each.backup for each in world.backups if each.stop_lsn <= child.start_lsn]
        parents = [None, None, None, *earlier, fix.backup_id(99)]
        parents += [each.backup for each in world.backups if each is not child][:1]
        parent = draw(st.sampled_from(parents))
        if parent is not None:
            world.backups[number] = replace(child, type="incr", parent=parent)
