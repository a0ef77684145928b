"""The map of an archive: every timeline of every writer epoch, and what of each can be restored.  Pure.

One way is the one that was asked for, as ``pitr plan`` would take it.  Every stretch of WAL is on the map
once: on that way, or aside of it as its own timeline sees it; to restore that a person names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from pitr.errors import TargetRefused
from pitr.layout import ArchiveId
from pitr.recovery import RecoveryTarget, TargetTimeline
from pitr.restore_plan import RestorableMoment
from pitr.survey import ArchiveEnd, ArchiveSurvey, Ground, first_moment, last_moment, survey_ground
from pitr.timeline_spans import (
    Cause,
    KnownCause,
    TimelineSpan,
    WaySources,
    backups_on,
    spans_of_way,
)
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from pitr.wal_runs import WalSpan


@dataclass(frozen=True, order=True, slots=True)
class BranchId:
    """One line of WAL: what one archive holds of one timeline."""

    archive: ArchiveId
    timeline: TimelineId


@dataclass(frozen=True, slots=True)
class BranchPoint:
    """Where a branch leaves another."""

    branch: BranchId
    lsn: LSN


@dataclass(frozen=True, slots=True)
class Branch:
    """One branch with its spans in their order.  ``parent`` None: nothing is known to be before it.

    ``is_on_way``: the way that was asked for goes over it, up to ``left_at`` or, with None, to its end.
    """

    id: BranchId
    parent: BranchPoint | None
    is_on_way: bool
    left_at: LSN | None
    spans: tuple[TimelineSpan, ...]


@dataclass(frozen=True, slots=True)
class TimeRange:
    """Times that can be restored, both ends too; ``until`` None: every later one, for the end is certain."""

    since: datetime
    until: datetime | None

    def holds(self, instant: datetime) -> bool:
        """Tell whether a time target is in it."""
        return self.since <= instant and (self.until is None or instant <= self.until)


@dataclass(frozen=True, slots=True)
class TimelineMap:
    """The map.  ``spans`` and ``times`` are those of the way that was asked for, from ``first`` to ``last``.

    ``oldest_backup``: the consistency point of the oldest backup on it, whether that can be used or not.
    """

    way: BranchId
    end: ArchiveEnd
    spans: tuple[TimelineSpan, ...]
    times: tuple[TimeRange, ...]
    branches: tuple[Branch, ...]
    first: RestorableMoment | None
    last: RestorableMoment | None
    oldest_backup: LSN | None

    @property
    def gaps(self) -> tuple[TimelineSpan, ...]:
        """Return what cannot be restored since the oldest backup; what has expired was meant to go."""
        since = self.oldest_backup
        return tuple(
            span
            for span in self.spans
            if since is not None
            and not span.is_restorable
            and span.cause is not Cause.EXPIRED
            and since < span.end
        )

    @property
    def is_whole(self) -> bool:
        """Tell whether every moment since the oldest backup can be restored, and there is one."""
        return not self.gaps and self.first is not None

    def is_restorable(self, lsn: LSN) -> bool:
        """Tell whether this LSN on the way can be restored."""
        return any(span.is_restorable and span.holds(lsn) for span in self.spans)

    def holds_time(self, instant: datetime) -> bool:
        """Tell whether this time on the way can be restored."""
        return any(one.holds(instant) for one in self.times)


@dataclass(frozen=True, slots=True)
class MapSources:
    """What the map is made of.

    ``ends``: of all archives of the cluster.  ``regions`` were looked at; ``backup_regions``: of each backup,
    those that hold all of it.  ``expired``: archives of which backups have expired.
    """

    survey: ArchiveSurvey
    ends: Mapping[ArchiveId, ArchiveEnd]
    regions: Sequence[str] = ()
    backup_regions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    known: Sequence[KnownCause] = ()
    expired: frozenset[ArchiveId] = frozenset()


def map_timelines(sources: MapSources, timeline: TargetTimeline = "latest") -> TimelineMap:
    """Return the map, as seen from the way to ``timeline``.

    Raises TargetRefused if that way is not known.
    """
    ground = survey_ground(RecoveryTarget("latest", timeline=timeline), sources.survey, None)
    asked = BranchId(ground.survey.archive, ground.timeline)
    spans = spans_of_way(_way_sources(sources, ground))
    backups = backups_on(ground)
    on_way = {BranchId(span.archive, span.timeline): span for span in ground.way}
    branches = [
        _branch(sources, each, on_way, spans, ground) for each in sorted(_branches(sources) | {asked})
    ]
    # A branch of which nothing is left, such as an epoch that never wrote, is none to be shown.
    shown = tuple(each for each in branches if each.spans or each.id == asked)
    windows = ground.windows
    first = min(windows, key=lambda window: window.backup.stop_lsn, default=None)
    last = max(windows, key=lambda window: (window.run.end, window.backup.stop_lsn), default=None)
    return TimelineMap(
        way=asked,
        end=ground.survey.end,
        spans=spans,
        times=_times(ground),
        branches=shown,
        first=None if first is None else first_moment(first),
        last=None if last is None else last_moment(last),
        oldest_backup=backups[0].stop_lsn if backups else None,
    )


def _way_sources(sources: MapSources, ground: Ground) -> WaySources:
    target = RecoveryTarget("latest", timeline=ground.timeline)
    alone = {
        name: survey_ground(target, _alone(sources, ground.survey, name), None) for name in sources.regions
    }
    return WaySources(ground, alone, sources.known, sources.expired)


def _alone(sources: MapSources, survey: ArchiveSurvey, region: str) -> ArchiveSurvey:
    """Return what is left of a survey where one region alone is left."""
    return replace(
        survey,
        backups=tuple(
            each for each in survey.backups if region in sources.backup_regions.get(each.backup, ())
        ),
        units=tuple(unit for unit in survey.units if region in unit.regions),
    )


def _branches(sources: MapSources) -> set[BranchId]:
    """Return every branch of which something is stored."""
    heads = [
        end.head for end in sources.ends.values() if end.head is not None and end.head.wal_end is not None
    ]
    found = {BranchId(unit.archive, unit.timeline) for unit in sources.survey.units}
    found |= {BranchId(backup.archive, backup.timeline) for backup in sources.survey.backups}
    return found | {BranchId(head.archive, head.timeline) for head in heads}


def _branch(
    sources: MapSources,
    branch: BranchId,
    on_way: Mapping[BranchId, WalSpan],
    spans: Sequence[TimelineSpan],
    asked_ground: Ground,
) -> Branch:
    asked = BranchId(asked_ground.survey.archive, asked_ground.timeline)
    passed = on_way.get(branch)
    left_at = None if passed is None else passed.end
    own = [span for span in spans if BranchId(span.archive, span.timeline) == branch]
    ground = asked_ground if branch == asked else _ground_of(sources, branch)
    if isinstance(ground, TargetRefused):
        return Branch(
            branch, None, passed is not None, left_at, (*own, *_without_way(sources, branch, ground))
        )
    parent = _parent(ground)
    if passed is not None and left_at is None:
        return Branch(branch, parent, True, None, tuple(own))
    since = ground.way[-1].start if left_at is None else left_at
    beyond: Sequence[TimelineSpan] = ()
    if left_at is None or _is_written_after(sources, branch, left_at):
        beyond = spans_of_way(_way_sources(sources, ground), since)
    aside = Cause.SUPERSEDED_EPOCH if branch.archive.epoch < asked.archive.epoch else Cause.OTHER_TIMELINE
    told = [replace(span, aside=_aside(sources, span, aside)) for span in beyond]
    return Branch(branch, parent, passed is not None, left_at, (*own, *told))


def _ground_of(sources: MapSources, branch: BranchId) -> Ground | TargetRefused:
    end = sources.ends.get(branch.archive, ArchiveEnd(None, False, "nobody was asked"))
    survey = replace(sources.survey, archive=branch.archive, end=end)
    try:
        return survey_ground(RecoveryTarget("latest", timeline=branch.timeline), survey, None)
    except TargetRefused as refused:
        return refused


def _parent(ground: Ground) -> BranchPoint | None:
    if len(ground.way) < 2:
        return None
    before, last = ground.way[-2:]
    return BranchPoint(BranchId(before.archive, before.timeline), last.start)


def _is_written_after(sources: MapSources, branch: BranchId, lsn: LSN) -> bool:
    end = sources.ends.get(branch.archive)
    head = None if end is None else end.head
    signed = (
        head.wal_end
        if head is not None and BranchId(head.archive, head.timeline) == branch and head.wal_end is not None
        else lsn
    )
    units = sources.survey.units
    return signed > lsn or any(
        unit.end > lsn and BranchId(unit.archive, unit.timeline) == branch for unit in units
    )


def _aside(sources: MapSources, span: TimelineSpan, otherwise: Cause) -> Cause:
    """Return why a span is aside: what a record says of it goes before what can be told from the way."""
    for known in sources.known:
        is_there = (known.archive, known.timeline) == (span.archive, span.timeline)
        if known.cause is Cause.ORPHANED_END and is_there and known.start <= span.start < known.end:
            return Cause.ORPHANED_END
    return otherwise


def _without_way(sources: MapSources, branch: BranchId, refused: TargetRefused) -> tuple[TimelineSpan, ...]:
    """Return one span of all WAL of a branch that nobody knows the way to."""
    units = [unit for unit in sources.survey.units if BranchId(unit.archive, unit.timeline) == branch]
    if not units:
        return ()
    return (
        TimelineSpan(
            branch.archive,
            branch.timeline,
            min(unit.start for unit in units),
            max(unit.end for unit in units),
            is_restorable=False,
            cause=Cause.HISTORY_MISSING,
            detail=refused.message,
            regions=tuple(sorted(set.intersection(*(set(unit.regions) for unit in units)))),
        ),
    )


def _times(ground: Ground) -> tuple[TimeRange, ...]:
    """Return the times that some backup on the way can be taken to, joined where they meet."""
    ranges = [
        TimeRange(window.from_at, None if window.is_to_end else window.until_at)
        for window in ground.windows
        if window.is_to_end or (window.until_at is not None and window.from_at <= window.until_at)
    ]
    joined: list[TimeRange] = []
    for one in sorted(ranges, key=lambda each: each.since):
        last = joined[-1] if joined else None
        if last is None or (last.until is not None and last.until < one.since):
            joined.append(one)
        elif last.until is not None and (one.until is None or one.until > last.until):
            joined[-1] = replace(last, until=one.until)
    return tuple(joined)
