"""Retention: which backups and which WAL a window of time still needs, and which may go.  Pure.

Time-based: whatever may serve a target inside the window stays, in whole chains and with the WAL that
leads on from it.  A *way* is what a restore goes along, to one timeline as one archive sees it; the rule
holds for each way on which anything happened inside the window.  WAL goes in whole segments, by name.

It decides from signed times and positions alone.  That the decision loses nothing is proved apart from it,
by the planner itself: ``pitr.retention_proof``.  Reference: docs/format.md §6.6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeAlias

from pitr.abandoned import AbandonedAttempt
from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.wal_records import WalUnit
from pitr.layout import ArchiveId
from pitr.planner import RestorableStretch, restorable_stretches
from pitr.recovery import RecoveryTarget
from pitr.survey import (
    CHAIN_MAX,
    TICK,
    ArchiveEnd,
    ArchiveSurvey,
    Ground,
    KnownBackups,
    Window,
    chain_of,
    survey_ground,
)
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_runs import WalSpan

# The WAL of one writer on one timeline.
Place: TypeAlias = tuple[ArchiveId, TimelineId]


@dataclass(frozen=True, slots=True)
class KeptBackup:
    """A backup that stays, and everything that keeps it."""

    backup: BackupManifest
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExpiredWal:
    """The segments ``first`` to ``last`` of one timeline, both included, and the pieces in them."""

    archive: ArchiveId
    first: SegmentName
    last: SegmentName
    pieces: tuple[int, int] | None
    size_bytes: int

    def holds(self, unit: WalUnit) -> bool:
        """Tell whether the unit is part of what goes."""
        return unit.archive == self.archive and self.first <= unit.key.segment <= self.last


@dataclass(frozen=True, slots=True)
class ExpiryPlan:
    """What goes and what stays.  ``since`` is the window's start; ``holes`` say on which ways nothing goes.

    ``ways`` are those that count, the main one first: to the newest timeline.  ``before`` and ``after`` are
    what can be restored on that one.  ``attempts`` are no backups, and found by listing.
    """

    since: datetime
    kept: tuple[KeptBackup, ...]
    expired: tuple[BackupManifest, ...]
    wal: tuple[ExpiredWal, ...]
    ways: tuple[Place, ...]
    holes: tuple[str, ...]
    before: tuple[RestorableStretch, ...]
    after: tuple[RestorableStretch, ...]
    attempts: tuple[AbandonedAttempt, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing goes."""
        return not self.expired and not self.wal and not self.attempts


@dataclass(slots=True)
class _Way:
    """One way that something inside the window lies on."""

    place: Place
    ground: Ground
    is_frozen: bool = False


@dataclass(slots=True)
class _Decision:
    """What stays, as it is found: the reasons by backup."""

    survey: ArchiveSurvey
    known: KnownBackups
    why: dict[str, list[str]] = field(default_factory=dict)

    def keep(self, backup: BackupManifest, reason: str) -> None:
        """Keep a backup with all that it is built on."""
        self._note(backup, reason)
        chain = chain_of(backup, self.known)
        # Of a broken chain what is left stays as well: another region may make it whole again.
        parents = chain if not isinstance(chain, str) else _found_parents(backup, self.known)
        for parent in parents:
            self._note(parent, f"chain of {backup.backup}")

    def _note(self, backup: BackupManifest, reason: str) -> None:
        reasons = self.why.setdefault(backup.backup, [])
        if reason not in reasons:
            reasons.append(reason)


def plan_expiry(
    survey: ArchiveSurvey, *, window: timedelta, minimum_full_backups: int, now: datetime
) -> ExpiryPlan:
    """Decide what may go.  ``survey`` is of the newest archive, and knows those of the same cluster.

    Nothing is dropped because of a number: ``minimum_full_backups`` only keeps more.  Raises TargetRefused if
    the way to some timeline is not known.
    """
    since = now - window
    decision = _Decision(survey, KnownBackups(survey.backups))
    main, *others = _ways(survey)
    ways = [main, *(way for way in others if _is_live(way, survey, since))]
    for backup in survey.backups:
        if backup.stopped_at >= since:
            decision.keep(backup, "inside the window")
    for way in ways:
        _keep_for_window(decision, way.ground.windows, since)
    _keep_newest(decision, main, minimum_full_backups)
    holes = _freeze_ways_with_holes(decision, ways)
    plan = ExpiryPlan(
        since=since,
        kept=tuple(
            KeptBackup(each, tuple(decision.why[each.backup]))
            for each in survey.backups
            if each.backup in decision.why
        ),
        expired=tuple(each for each in survey.backups if each.backup not in decision.why),
        wal=tuple(_expired_wal(survey, _needed(decision, ways))),
        ways=tuple(way.place for way in ways),
        holes=holes,
        before=restorable_stretches(survey),
        after=(),
    )
    return replace(plan, after=restorable_stretches(what_stays(survey, plan)))


def what_stays(survey: ArchiveSurvey, plan: ExpiryPlan) -> ArchiveSurvey:
    """Return the survey as it will be when the plan is carried out."""
    gone = {each.backup for each in plan.expired}
    return replace(
        survey,
        backups=tuple(each for each in survey.backups if each.backup not in gone),
        units=tuple(unit for unit in survey.units if not any(wal.holds(unit) for wal in plan.wal)),
    )


def seen_from(survey: ArchiveSurvey, archive: ArchiveId) -> ArchiveSurvey:
    """Return the survey as another of the cluster's archives sees it; of that one no head is known."""
    if archive == survey.archive:
        return survey
    end = ArchiveEnd(None, survey.end.is_certain, survey.end.detail)
    return replace(survey, archive=archive, end=end)


def _ways(survey: ArchiveSurvey) -> Iterator[_Way]:
    """Yield the way to every timeline that some archive of the cluster has; the main one first."""
    newest = survey_ground(RecoveryTarget("latest"), survey, None)
    main = _Way((survey.archive, newest.timeline), newest)
    yield main
    for epoch in survey.epochs:
        archive = epoch.archive
        timelines = {unit.timeline for unit in survey.units if unit.archive == archive}
        timelines |= {each.timeline for each in survey.backups if each.archive == archive}
        timelines |= {history.timeline for history in survey.histories.get(archive, ())}
        view = seen_from(survey, archive)
        for timeline in sorted(timelines):
            if (archive, timeline) != main.place:
                target = RecoveryTarget("latest", timeline=timeline)
                yield _Way((archive, timeline), survey_ground(target, view, None))


def _is_live(way: _Way, survey: ArchiveSurvey, since: datetime) -> bool:
    """Tell whether anything on the way happened inside the window; one without any time is taken for such."""
    links = (link for run in way.ground.runs for link in run.links)
    times = [known.max_at for link in links if (known := link.unit.transactions) is not None]
    times += [each.stopped_at for each in survey.backups if _is_on(each, way.ground.way)]
    return max(times, default=since) >= since


def _is_on(backup: BackupManifest, way: Sequence[WalSpan]) -> bool:
    span = next((span for span in way if span.holds(backup.start_lsn)), None)
    return span is not None and (span.archive, span.timeline) == (backup.archive, backup.timeline)


def _keep_for_window(decision: _Decision, windows: Sequence[Window], since: datetime) -> None:
    """Keep what the planner would take for any time from ``since`` on: the newest backup that leads there."""
    open_times: list[_Times] = [_Times(since, None)]
    for window in reversed(windows):
        if window.from_at >= since:
            decision.keep(window.backup, "inside the window")
        elif any(times.meets(window) for times in open_times):
            decision.keep(window.backup, "the window's start")
        open_times = [rest for times in open_times for rest in times.without(window)]
    earlier = [window.backup for window in windows if window.from_at <= since]
    for backup in (earlier[-1:], [each for each in earlier if each.type == "full"][-1:]):
        for each in backup:
            decision.keep(each, "the window's start")


@dataclass(frozen=True, slots=True)
class _Times:
    """The times ``first`` to ``last``, both included; None for every later one."""

    first: datetime
    last: datetime | None

    def meets(self, window: Window) -> bool:
        last = None if window.is_to_end else window.until_at
        if not window.is_to_end and last is None:
            return False
        return (self.last is None or window.from_at <= self.last) and (last is None or self.first <= last)

    def without(self, window: Window) -> Iterator[_Times]:
        """Yield what is left without the times that the window serves."""
        if not self.meets(window):
            yield self
            return
        if self.first < window.from_at:
            yield _Times(self.first, window.from_at - TICK)
        until = None if window.is_to_end else window.until_at
        if until is not None and (self.last is None or until < self.last):
            yield _Times(until + TICK, self.last)


def _keep_newest(decision: _Decision, main: _Way, minimum_full_backups: int) -> None:
    """Keep the newest chain, and the newest full backups up to the least number."""
    backups = decision.survey.backups
    newest = max(backups, key=lambda each: (each.stopped_at, each.backup), default=None)
    usable = [window.backup for window in main.ground.windows]
    for backup in {each.backup: each for each in (newest, *usable[-1:]) if each is not None}.values():
        decision.keep(backup, "the newest")
    full = [each for each in usable if each.type == "full"]
    for backup in full[-max(1, minimum_full_backups) :]:
        decision.keep(backup, f"one of the {max(1, minimum_full_backups)} newest full backups")


def _freeze_ways_with_holes(decision: _Decision, ways: Sequence[_Way]) -> tuple[str, ...]:
    """Keep all backups of a way that lacks WAL after the first kept one; return what is missing."""
    holes: list[str] = []
    is_changed = True
    while is_changed:
        is_changed = False
        for way in ways:
            hole = None if way.is_frozen else _hole(decision, way)
            if hole is None:
                continue
            # Kept backups of this way may lie on others as well, and make these begin earlier.
            way.is_frozen = is_changed = True
            archive, timeline = way.place
            holes.append(f"{hole} on the way to timeline {timeline} of archive {archive}")
            for backup in decision.survey.backups:
                if _is_on(backup, way.ground.way):
                    decision.keep(backup, "WAL is missing inside the window")
    return tuple(holes)


def _hole(decision: _Decision, way: _Way) -> str | None:
    """Return the first stretch of WAL that is missing after the first kept backup of the way."""
    at = _first_kept(decision, way)
    if at is None:
        return None
    for run in way.ground.runs:
        if run.end <= at:
            continue
        if run.start > at:
            return f"WAL from {at} to {run.start} is in no region"
        at = run.end
    head = way.ground.survey.end.head
    if head is None or head.wal_end is None or (head.archive, head.timeline) != way.place:
        return None
    if head.wal_end > at:
        return f"WAL from {at} to the signed end {head.wal_end} is in no region"
    return None


def _first_kept(decision: _Decision, way: _Way) -> LSN | None:
    """Return where the segment begins that the first kept backup of the way starts in; None without one."""
    starts = [
        each.wal_start
        for each in decision.survey.backups
        if each.backup in decision.why and _is_on(each, way.ground.way)
    ]
    return min(starts, default=None)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The segment numbers ``first`` to ``last``, both included; None for all later ones."""

    first: int
    last: int | None

    def meets(self, first: int, last: int) -> bool:
        return first <= last and self.first <= last and (self.last is None or first <= self.last)


def _needed(decision: _Decision, ways: Sequence[_Way]) -> dict[Place, list[_Numbers]]:
    """Return the segments that stay: of each way all from the first kept backup on, without a hole."""
    sizes = {(unit.archive, unit.timeline): unit.segment_bytes for unit in decision.survey.units}
    needed: dict[Place, list[_Numbers]] = {place: [] for place in sizes}
    for way in ways:
        # Without a kept backup nobody can say what of the way is of use: it stays.
        lower = (None if way.is_frozen else _first_kept(decision, way)) or LSN(1)
        for span in way.ground.way:
            place = (span.archive, span.timeline)
            if place in sizes and (span.end is None or lower < span.end):
                size = sizes[place]
                last = None if span.end is None else span.end.last_segment_number(size)
                needed[place].append(_Numbers(max(lower, span.start).offset // size, last))
    for backup in decision.survey.backups:
        # Also where its way is older than the window, or not known: it must become consistent.
        place = (backup.archive, backup.timeline)
        if backup.backup in decision.why and place in sizes:
            size = sizes[place]
            last = backup.stop_lsn.last_segment_number(size)
            needed[place].append(_Numbers(backup.start_lsn.offset // size, last))
    return needed


def _expired_wal(survey: ArchiveSurvey, needed: Mapping[Place, Sequence[_Numbers]]) -> Iterator[ExpiredWal]:
    by_place: dict[Place, dict[int, list[WalUnit]]] = {}
    for unit in survey.units:
        held = by_place.setdefault((unit.archive, unit.timeline), {})
        held.setdefault(unit.key.segment.number(unit.segment_bytes), []).append(unit)
    for place in sorted(by_place):
        numbers: list[int] = []
        for number in sorted(by_place[place]):
            if any(stays.meets(number, number) for stays in needed[place]):
                continue
            # What is needed and is not there must not become part of what is named as gone.
            if numbers and any(stays.meets(numbers[-1] + 1, number - 1) for stays in needed[place]):
                yield _range(by_place[place], numbers)
                numbers = []
            numbers.append(number)
        if numbers:
            yield _range(by_place[place], numbers)


def _range(held: Mapping[int, Sequence[WalUnit]], numbers: Sequence[int]) -> ExpiredWal:
    units = [unit for number in numbers for unit in held[number]]
    pieces = [piece for unit in units if unit.pieces is not None for piece in unit.pieces]
    return ExpiredWal(
        archive=units[0].archive,
        first=units[0].key.segment,
        last=units[-1].key.segment,
        pieces=(min(pieces), max(pieces)) if pieces else None,
        size_bytes=sum(unit.end - unit.start for unit in units),
    )


def _found_parents(backup: BackupManifest, known: KnownBackups) -> list[BackupManifest]:
    found: dict[str, BackupManifest] = {}
    parent = known.get(backup.parent) if backup.parent is not None else None
    while parent is not None and parent.backup not in found and len(found) < CHAIN_MAX:
        found[parent.backup] = parent
        parent = known.get(parent.parent) if parent.parent is not None else None
    return list(found.values())
