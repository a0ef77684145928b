"""The spans of one way of WAL: which can be restored, from which regions, and why others cannot.  Pure.

A way is cut where its answer changes: at holes, at the consistency point of the first backup after each,
where a region begins or ends to suffice alone, where a timeline or an epoch was left.  A span can be restored
exactly if the planner plans a target in it, for both ask the same ``Ground``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from itertools import pairwise

from pitr.catalogue.backup_record import BackupManifest
from pitr.layout import ArchiveId
from pitr.survey import Ground
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_runs import WalRun, WalSpan


class Cause(StrEnum):
    """Why a span cannot be restored; or, for those of the last three lines, why no default target is in it.

    The text is published (docs/timeline.md): programs rely on it.
    """

    WAL_MISSING = "wal-missing"
    WAL_DAMAGED = "wal-damaged"
    WAL_LOST = "wal-lost"
    PAST_UNPROVEN = "past-unproven"
    EXPIRED = "expired"
    NO_BACKUP = "no-backup"
    BACKUP_UNUSABLE = "backup-unusable"
    HISTORY_MISSING = "history-missing"
    SUPERSEDED_EPOCH = "superseded-epoch"
    OTHER_TIMELINE = "other-timeline"
    ORPHANED_END = "orphaned-by-failover"


class Lack(StrEnum):
    """Why one region alone does not suffice for a span that can be restored."""

    WAL_MISSING = "wal-missing"
    BEHIND = "behind"
    NO_BACKUP = "no-backup"


@dataclass(frozen=True, slots=True)
class KnownCause:
    """What some record says of a stretch of WAL: expired, damaged, dropped by policy, orphaned."""

    archive: ArchiveId
    timeline: TimelineId
    start: LSN
    end: LSN
    cause: Cause
    detail: str

    def holds(self, owner: WalSpan, start: LSN, end: LSN) -> bool:
        """Tell whether it speaks of all the WAL from ``start`` to ``end``."""
        is_there = (self.archive, self.timeline) == (owner.archive, owner.timeline)
        return is_there and self.start <= start and end <= self.end


@dataclass(frozen=True, slots=True)
class SegmentRange:
    """The WAL segments, all or in part, that a stretch lies in."""

    first: SegmentName
    last: SegmentName
    count: int


@dataclass(frozen=True, slots=True)
class RegionLack:
    """One region that does not suffice alone, and why."""

    region: str
    lack: Lack


@dataclass(frozen=True, slots=True)
class TimelineSpan:
    """WAL of one archive and timeline from ``start`` to ``end``, all of which has one answer.

    Of one that can be restored, both ends can, as ``lsn:``.  ``regions``: each of them alone has all that it
    takes (of one that cannot be restored: all of its WAL).  ``first_at`` and ``last_at``: the least and the
    greatest known time of a transaction in the units that it lies in; of a hole, the last one before and the
    first after.
    ``aside``: why it is not on the way that was asked for; whoever wants it names its timeline or archive.
    """

    archive: ArchiveId
    timeline: TimelineId
    start: LSN
    end: LSN
    is_restorable: bool
    cause: Cause | None = None
    detail: str | None = None
    aside: Cause | None = None
    regions: tuple[str, ...] = ()
    lacking: tuple[RegionLack, ...] = ()
    segments: SegmentRange | None = None
    first_at: datetime | None = None
    last_at: datetime | None = None

    def holds(self, lsn: LSN) -> bool:
        """Tell whether a target is in it; both ends are."""
        return self.start <= lsn <= self.end


@dataclass(frozen=True, slots=True)
class WaySources:
    """All that is known of one way.  ``alone``: what each region by itself has of it.

    ``expired``: archives of which backups have expired.  ``known``: the first that speaks of a span counts.
    """

    ground: Ground
    alone: Mapping[str, Ground]
    known: Sequence[KnownCause] = ()
    expired: Collection[ArchiveId] = frozenset()


def spans_of_way(sources: WaySources, since: LSN | None = None) -> tuple[TimelineSpan, ...]:
    """Return the spans of a way in its order, each beginning where the one before it ends.

    ``since`` leaves out what is before it.
    """
    return tuple(_Way(sources).spans(since))


def backups_on(ground: Ground) -> tuple[BackupManifest, ...]:
    """Return the backups that were taken on the way, usable or not, by their consistency points."""
    found = [
        each
        for each in ground.survey.backups
        if any(
            span.holds(each.start_lsn) and (span.archive, span.timeline) == (each.archive, each.timeline)
            for span in ground.way
        )
        and not _is_cut(each, ground.way)
    ]
    return tuple(sorted(found, key=lambda each: (each.stop_lsn, each.backup)))


def _is_cut(backup: BackupManifest, way: Sequence[WalSpan]) -> bool:
    span = next((span for span in way if span.holds(backup.start_lsn)), None)
    return span is not None and span.end is not None and span.end < backup.stop_lsn


@dataclass(frozen=True, slots=True)
class _Stretch:
    """From the first consistency point in a run to the run's end: the LSNs that can be restored."""

    first: LSN
    last: LSN


def _stretches(ground: Ground) -> tuple[_Stretch, ...]:
    first: dict[LSN, LSN] = {}
    ends: dict[LSN, LSN] = {}
    for window in ground.windows:
        run = window.run
        first[run.start] = min(first.get(run.start, run.end), window.backup.stop_lsn)
        ends[run.start] = run.end
    return tuple(_Stretch(first[at], ends[at]) for at in sorted(first))


class _Way:
    """One way while it is cut."""

    def __init__(self, sources: WaySources) -> None:
        self._sources = sources
        self._ground = sources.ground
        self._runs = sources.ground.runs
        self._stretches = _stretches(sources.ground)
        self._alone = {name: _stretches(ground) for name, ground in sources.alone.items()}
        self._backups = backups_on(sources.ground)
        self._reasons = {skipped.backup: skipped.reason for skipped in sources.ground.unusable}
        self._run_starts = [run.start for run in self._runs]

    def spans(self, since: LSN | None) -> Iterator[TimelineSpan]:
        places = self._cuts(since)
        cells = [self._cell(start, end) for start, end in pairwise(places)]
        # A backup may end where its WAL does: then there is one moment, and no stretch.
        points = [one.first for one in self._stretches if one.first == one.last]
        cells += [self._cell(at, at) for at in points if not places or places[0] <= at <= places[-1]]
        cells.sort(key=lambda cell: (cell.start, cell.end))
        for cell in _joined(cells):
            yield self._told(cell)

    def _cuts(self, since: LSN | None) -> list[LSN]:
        cuts: set[LSN] = set()
        for run in self._runs:
            cuts |= {run.start, run.end}
        for one in (*self._stretches, *(one for alone in self._alone.values() for one in alone)):
            cuts |= {one.first, one.last}
        for ground in self._sources.alone.values():
            for run in ground.runs:
                cuts |= {run.start, run.end}
        for backup in self._backups:
            cuts |= {backup.start_lsn, backup.stop_lsn}
        way = self._ground.way
        for span in way[1:]:
            cuts.add(span.start)
        for known in self._sources.known:
            for span in way:
                if (span.archive, span.timeline) == (known.archive, known.timeline):
                    cuts |= {at for at in (known.start, known.end) if span.holds(at) or span.end == at}
        head = self._ground.survey.end.head
        if head is not None and (head.archive, head.timeline) == (way[-1].archive, way[-1].timeline):
            cuts |= {at for at in (head.wal_end,) if at is not None and way[-1].start <= at}
            if not cuts and head.wal_start is not None:
                cuts.add(head.wal_start)
        if since is not None:
            cuts = {at for at in cuts if at > since} | {since}
        return sorted(cuts)

    def _cell(self, start: LSN, end: LSN) -> TimelineSpan:
        owner = next(span for span in self._ground.way if span.holds(start) or span is self._ground.way[-1])
        span = TimelineSpan(owner.archive, owner.timeline, start, end, is_restorable=False)
        if any(one.first <= start and end <= one.last for one in self._stretches):
            alone = {
                name: any(one.first <= start and end <= one.last for one in stretches)
                for name, stretches in self._alone.items()
            }
            return replace(
                span,
                is_restorable=True,
                regions=tuple(sorted(name for name, suffices in alone.items() if suffices)),
                lacking=tuple(
                    RegionLack(name, _lack(self._sources.alone[name].runs, start, end))
                    for name in sorted(alone)
                    if not alone[name]
                ),
            )
        run = self._run_at(start)
        if run is None:
            return self._missing(owner, span)
        held = [name for name, one in self._sources.alone.items() if _holds_wal(one.runs, start, end)]
        return replace(self._without_backup(run, owner, span), regions=tuple(sorted(held)))

    def _run_at(self, at: LSN) -> WalRun | None:
        number = bisect_right(self._run_starts, at) - 1
        return self._runs[number] if number >= 0 and at < self._runs[number].end else None

    def _missing(self, owner: WalSpan, span: TimelineSpan) -> TimelineSpan:
        for known in self._sources.known:
            if known.holds(owner, span.start, span.end):
                return replace(span, cause=known.cause, detail=known.detail)
        return replace(span, cause=Cause.WAL_MISSING)

    def _without_backup(self, run: WalRun, owner: WalSpan, span: TimelineSpan) -> TimelineSpan:
        """Say why WAL that is stored leads nowhere: each backup that could have served it is of no use."""
        before = [each for each in self._backups if each.stop_lsn <= span.start]
        useless = [each for each in before if run.start <= each.stop_lsn]
        if useless:
            name = useless[-1].backup
            detail = f"backup {name} cannot be used: {self._reasons.get(name, 'its WAL is missing')}"
            return replace(span, cause=Cause.BACKUP_UNUSABLE, detail=detail)
        if not before and owner.archive in self._sources.expired:
            return replace(span, cause=Cause.EXPIRED, detail="the backups before it have expired")
        number = self._runs.index(run)
        following = next((one.first for one in self._stretches if run.start <= one.first <= run.end), None)
        if number > 0:
            why = f"no backup was taken since the hole from {self._runs[number - 1].end} to {run.start}"
        elif before:
            why = f"no backup was taken since the hole before {run.start}"
        else:
            why = "there is no base backup before it"
        detail = why if following is None else f"{why}; the next one is consistent from {following} on"
        return replace(span, cause=Cause.NO_BACKUP, detail=detail)

    def _told(self, span: TimelineSpan) -> TimelineSpan:
        """Return the span with what can only be said of it as a whole: segments, times, regions."""
        run = self._run_at(span.start) or self._run_ending_at(span)
        if run is not None:
            first_at, last_at = _times(run, span.start, span.end)
            return replace(span, first_at=first_at, last_at=last_at)
        earlier = [run for run in self._runs if run.end <= span.start]
        later = [run for run in self._runs if run.start >= span.end]
        segments = self._segments(span)
        detail = span.detail
        if span.cause is Cause.WAL_MISSING:
            names = ", ".join(sorted(self._sources.alone)) or "every region"
            detail = f"it is in none of: {names}"
            head = self._ground.survey.end.head
            if not later and head is not None and head.wal_end is not None and head.wal_end >= span.end:
                detail += f"; a signed head says that WAL up to {head.wal_end} was at quorum"
        return replace(
            span,
            detail=detail,
            segments=segments,
            first_at=_times(earlier[-1], earlier[-1].start, earlier[-1].end)[1] if earlier else None,
            last_at=_times(later[0], later[0].start, later[0].end)[0] if later else None,
        )

    def _run_ending_at(self, span: TimelineSpan) -> WalRun | None:
        return next((run for run in self._runs if span.start == span.end == run.end), None)

    def _segments(self, span: TimelineSpan) -> SegmentRange | None:
        survey = self._ground.survey
        size = next((unit.segment_bytes for unit in survey.units), None)
        if size is None:
            size = next((backup.segment_bytes for backup in survey.backups), None)
        if size is None:
            return None
        first, last = span.start.offset // size, span.end.last_segment_number(size)
        return SegmentRange(
            SegmentName.of(span.timeline, first, size),
            SegmentName.of(span.timeline, last, size),
            last - first + 1,
        )


def _holds_wal(runs: Iterable[WalRun], start: LSN, end: LSN) -> bool:
    return any(run.start <= start and end <= run.end for run in runs)


def _lack(runs: Sequence[WalRun], start: LSN, end: LSN) -> Lack:
    if _holds_wal(runs, start, end):
        return Lack.NO_BACKUP
    return Lack.WAL_MISSING if runs and runs[-1].end > start else Lack.BEHIND


def _joined(cells: Iterable[TimelineSpan]) -> Iterator[TimelineSpan]:
    """Join neighbours that have one answer."""
    last: TimelineSpan | None = None
    for cell in cells:
        if last is not None and replace(last, end=cell.end) == replace(cell, start=last.start):
            last = replace(last, end=cell.end)
            continue
        if last is not None:
            yield last
        last = cell
    if last is not None:
        yield last


def _times(run: WalRun, start: LSN, end: LSN) -> tuple[datetime | None, datetime | None]:
    """Return the least and the greatest known time of a transaction that ends in part of a run."""
    least: datetime | None = None
    greatest: datetime | None = None
    number = bisect_right(run.links, start, key=lambda link: link.until)
    for link in run.links[number:]:
        if link.start >= end:
            break
        times = link.unit.transactions
        if times is None or not link.is_whole:
            continue
        least = times.min_at if least is None else min(least, times.min_at)
        greatest = times.max_at if greatest is None else max(greatest, times.max_at)
    return least, greatest
