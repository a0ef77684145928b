"""What is known of an archive, and what each of its backups can be taken to.  Pure.

An ``ArchiveSurvey`` is gathered from the catalogue or straight from the regions; along the way to
one timeline it becomes ``Ground``: runs of WAL, and for each usable backup a window of LSNs and times.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.records import EpochRecord, HeadRecord
from pitr.catalogue.wal_records import WalUnit
from pitr.layout import ArchiveId
from pitr.quorum import Answers
from pitr.recovery import RecoveryTarget, instant_text
from pitr.restore_plan import RestorableMoment, SkippedBackup, TargetNotRestorable
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from pitr.wal_runs import Histories, WalRun, WalSpan, find_runs, way_to

# Longer chains are no use to anybody; the writer begins a new one much earlier.
CHAIN_MAX = 1000
# Commit times have microseconds, so this is the least step between two moments.
TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class ArchiveEnd:
    """What is known of the end of an archive: the newest signed head, and who was asked for more.

    ``is_certain``: so many regions answered that none of the others can hold WAL that is at quorum and
    that we have not seen.  A head says how far its region had got, never that nothing came after it.
    """

    head: HeadRecord | None
    is_certain: bool
    detail: str

    @classmethod
    def of(cls, head: HeadRecord | None, answers: Answers) -> ArchiveEnd:
        """Judge the end from the newest head and from how many regions answered."""
        signed = None if head is None else head.quorum
        last = "no signed head was found" if head is None else f"last signed head {instant_text(head.at)}"
        return cls(head, answers.are_enough(signed), f"{answers.describe(signed)}; {last}")


@dataclass(frozen=True, slots=True)
class ArchiveSurvey:
    """All that is known of one archive and of those that it comes from."""

    archive: ArchiveId
    epochs: tuple[EpochRecord, ...]
    histories: Histories
    backups: tuple[BackupManifest, ...]
    units: tuple[WalUnit, ...]
    end: ArchiveEnd


@dataclass(frozen=True, slots=True)
class Window:
    """What one backup can be taken to: LSNs from its consistency to ``run.end``, and times.

    ``until_at`` None with ``is_to_end`` means every later time; without it no time at all.
    """

    backup: BackupManifest
    run: WalRun
    from_at: datetime
    until_at: datetime | None
    is_to_end: bool
    parents: tuple[BackupManifest, ...] = ()

    def holds_time(self, instant: datetime) -> bool:
        if instant < self.from_at:
            return False
        return self.is_to_end or (self.until_at is not None and instant <= self.until_at)

    def holds_lsn(self, lsn: LSN) -> bool:
        return self.backup.stop_lsn <= lsn <= self.run.end


@dataclass(frozen=True, slots=True)
class Ground:
    """A survey, seen along the way to one timeline."""

    survey: ArchiveSurvey
    timeline: TimelineId
    way: tuple[WalSpan, ...]
    runs: tuple[WalRun, ...]
    windows: tuple[Window, ...]
    unusable: tuple[SkippedBackup, ...]


class KnownBackups:
    """Backups by their names, and by those of the backups that they stand for."""

    def __init__(self, backups: Iterable[BackupManifest]) -> None:
        self._by_name: Final[dict[str, BackupManifest]] = {}
        self._standing: Final[dict[str, BackupManifest]] = {}
        for each in backups:
            self._by_name[each.backup] = each
            if each.stands_for is not None:
                self._standing.setdefault(each.stands_for, each)

    def get(self, name: str) -> BackupManifest | None:
        """Return the backup of this name itself."""
        return self._by_name.get(name)

    def standing_for(self, name: str) -> BackupManifest | None:
        """Return the full backup that stands for the one of this name."""
        return self._standing.get(name)

    def named(self, name: str) -> BackupManifest | None:
        """Return a backup by its name, or the full one that stands for it: that needs nothing before it."""
        itself = self.get(name)
        if itself is not None and itself.parent is None:
            return itself
        return self.standing_for(name) or itself


def leave_out(survey: ArchiveSurvey, backups: Collection[str]) -> ArchiveSurvey:
    """Return the survey without these backups, nor what only they lead to.  Raises TargetNotRestorable."""
    unknown = sorted(set(backups) - {each.backup for each in survey.backups})
    if unknown:
        raise TargetNotRestorable(f"there is no backup {unknown[0]} that could be left out")
    return replace(survey, backups=tuple(each for each in survey.backups if each.backup not in backups))


def survey_ground(target: RecoveryTarget, survey: ArchiveSurvey, backup: str | None) -> Ground:
    """Return the ground for a target; ``backup`` leaves out all others.  Raises TargetRefused."""
    # Of two that hold the same, the one that was made of the other needs nothing before it.
    backups = sorted(
        survey.backups, key=lambda found: (found.stop_lsn, found.stands_for is not None, found.backup)
    )
    if backup is not None:
        backups = [found for found in backups if found.backup == backup]
        if not backups:
            raise TargetNotRestorable(f"there is no backup {backup}")
    timeline = _target_timeline(target, survey, backups)
    way = way_to(survey.archive, timeline, survey.epochs, survey.histories)
    runs = find_runs(way, survey.units)
    known = KnownBackups(survey.backups)
    timed = {run.start: _TimedRun(run) for run in runs}
    windows: list[Window] = []
    unusable: list[SkippedBackup] = []
    for found in backups:
        verdict = _window(found, known, way, timed, survey.end)
        if isinstance(verdict, Window):
            windows.append(verdict)
        else:
            unusable.append(SkippedBackup(found.backup, verdict))
    return Ground(survey, timeline, way, runs, tuple(windows), tuple(unusable))


def _target_timeline(
    target: RecoveryTarget, survey: ArchiveSurvey, backups: Sequence[BackupManifest]
) -> TimelineId:
    if isinstance(target.timeline, TimelineId):
        return target.timeline
    if target.timeline == "current" and backups:
        return backups[-1].timeline
    if survey.end.head is not None and survey.end.head.archive == survey.archive:
        return survey.end.head.timeline
    own = {unit.timeline for unit in survey.units if unit.archive == survey.archive}
    own |= {found.timeline for found in backups if found.archive == survey.archive}
    # As PostgreSQL takes "latest" (timeline.c, findNewestTimeLine): the highest number.
    if own:
        return max(own)
    parents = [e.parent for e in survey.epochs if e.archive == survey.archive and e.parent is not None]
    return parents[0].timeline if parents else TimelineId(1)


class _TimedRun:
    """A run whose times are looked up without going through all of it for each of many backups."""

    def __init__(self, run: WalRun) -> None:
        self.run: Final = run
        self._starts: Final = [link.start.offset for link in run.links]
        self._untils: Final = [link.until.offset for link in run.links]
        # Of each link the latest known time in it or in any later one.
        latest: list[datetime | None] = []
        for link in reversed(run.links):
            seen = [at for at in (link.known_max_at, latest[-1] if latest else None) if at is not None]
            latest.append(max(seen, default=None))
        self._latest: Final = latest[::-1]

    def latest_from(self, lsn: LSN) -> datetime | None:
        """Return the latest known time in the links that begin at ``lsn`` or later."""
        first = bisect_left(self._starts, lsn.offset)
        return self._latest[first] if first < len(self._latest) else None

    def times_within(self, start: LSN, end: LSN) -> list[datetime]:
        """Return the latest known time of each link that lies between the two."""
        within = self.run.links[
            bisect_left(self._starts, start.offset) : bisect_right(self._untils, end.offset)
        ]
        return [at for link in within if (at := link.known_max_at) is not None]


def _window(
    backup: BackupManifest,
    known: KnownBackups,
    way: Sequence[WalSpan],
    timed: Mapping[LSN, _TimedRun],
    end: ArchiveEnd,
) -> Window | str:
    """Return what the backup can be taken to, or why it is of no use on this way."""
    chain = chain_of(backup, known)
    if isinstance(chain, str):
        return chain
    span = next((span for span in way if span.holds(backup.start_lsn)), None)
    if span is None or (span.archive, span.timeline) != (backup.archive, backup.timeline):
        return f"it is not on the way to the target: it was taken on timeline {backup.timeline}"
    if span.end is not None and span.end < backup.stop_lsn:
        return (
            f"the way to the target leaves timeline {backup.timeline} at {span.end}, before it was complete"
        )
    first = backup.wal_start
    runs = [each.run for each in timed.values()]
    run = next((run for run in runs if run.start <= first < run.end), None)
    if run is None or run.end < backup.stop_lsn:
        missing = first if run is None else run.end
        return f"WAL from {missing} on is missing, before its consistency point {backup.stop_lsn}"
    times = timed[run.start]
    latest = times.latest_from(backup.stop_lsn)
    ended = times.times_within(backup.start_lsn, backup.stop_lsn)
    return Window(
        backup=backup,
        run=run,
        # A transaction that ended before the consistency point cannot be left out.
        from_at=max([backup.stopped_at, *ended]),
        until_at=latest - TICK if latest is not None else None,
        is_to_end=_reaches_end(run, runs, way, end),
        parents=chain,
    )


def chain_of(backup: BackupManifest, known: KnownBackups) -> tuple[BackupManifest, ...] | str:
    """Return the backups that this one is built on, the newest first; or why they are not all there."""
    parents: list[BackupManifest] = []
    child = backup
    while child.parent is not None:
        parent = known.named(child.parent)
        if parent is None:
            return f"backup {child.parent}, which it is built on, is missing"
        # A signed manifest may still be wrong: a chain that does not lead back in time would never end.
        if (
            parent.start_lsn > child.start_lsn
            or parent.stop_lsn > child.start_lsn
            or len(parents) >= CHAIN_MAX
        ):
            return f"backup {child.backup} cannot be built on {parent.backup}"
        if parent.archive.system_identifier != backup.archive.system_identifier:
            return f"backup {parent.backup}, which it is built on, is of another cluster"
        parents.append(parent)
        child = parent
    return tuple(parents)


def _reaches_end(run: WalRun, runs: Sequence[WalRun], way: Sequence[WalSpan], end: ArchiveEnd) -> bool:
    """Tell whether the run goes to the certain end of the archive, on the way to the target."""
    if not end.is_certain or run is not runs[-1]:
        return False
    last = way[-1]
    if run.end <= last.start:
        return False
    head = end.head
    if head is None or head.wal_end is None or (head.archive, head.timeline) != (last.archive, last.timeline):
        return True
    return head.wal_end <= run.end


def last_moment(window: Window, shift: timedelta = timedelta()) -> RestorableMoment:
    """Return the last moment of a window; its time is left out where no time leads there."""
    at = window.until_at
    if at is not None and window.is_to_end:
        at += TICK
    return RestorableMoment(window.run.end, at + shift if at is not None and window.holds_time(at) else None)


def first_moment(window: Window, shift: timedelta = timedelta()) -> RestorableMoment:
    """Return the first moment of a window; its time is left out where no time leads there."""
    at = window.from_at
    return RestorableMoment(window.backup.stop_lsn, at + shift if window.holds_time(at) else None)
