"""The restore plan: what a restore will do, as a value that can be shown, stored and carried out.

``pitr.planner`` makes one from what is stored; ``pitr.stop`` adds the exact stop, which only a reader
who can open WAL knows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import TargetRefused
from pitr.layout import ArchiveId
from pitr.recovery import RecoveryTarget, instant_text
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from pitr.wal.transactions import TransactionEnd
from pitr.wal_runs import WalLink, WalSpan


@dataclass(frozen=True, slots=True)
class RestorableMoment:
    """A moment that can be restored: as ``lsn:`` and, where ``at`` is given, as that time as well."""

    lsn: LSN
    at: datetime | None = None

    def __str__(self) -> str:
        return f"lsn:{self.lsn}" if self.at is None else f"{instant_text(self.at)} (lsn:{self.lsn})"


class TargetNotRestorable(TargetRefused):
    """The archive does not hold what the target needs.  Names the nearest moments that it can restore."""

    def __init__(
        self,
        message: str,
        *,
        detail: str | None = None,
        before: RestorableMoment | None = None,
        after: RestorableMoment | None = None,
        hint: str | None = None,
    ) -> None:
        nearest = [f"before: {before}"] if before else []
        nearest += [f"after: {after}"] if after else []
        offer = f"nearest restorable moment {', '.join(nearest)}" if nearest else "take a new backup"
        super().__init__(message, detail=detail, hint=hint or offer)
        self.before = before
        self.after = after


@dataclass(frozen=True, slots=True)
class SkippedBackup:
    """A newer backup that the plan does not use, and why; ``is_later``: it was taken after the target."""

    backup: str
    reason: str
    is_later: bool = False


@dataclass(frozen=True, slots=True)
class StopPoint:
    """Where recovery stops, exactly.

    ``target_lsn`` and ``is_inclusive`` are PostgreSQL's recovery_target_lsn and
    recovery_target_inclusive; ``target_lsn`` is None for the backup's consistency point.
    ``replay_end`` is where replay must have arrived then (pg_last_wal_replay_lsn), ``read_end`` the end
    of the WAL that recovery reads to know it.  ``last_commit`` is the last transaction that stays,
    ``next_commit`` the first that goes, as far as they were looked at.
    """

    target_lsn: LSN | None
    is_inclusive: bool
    replay_end: LSN
    read_end: LSN
    last_commit: TransactionEnd | None = None
    next_commit: TransactionEnd | None = None


@dataclass(frozen=True, slots=True)
class CommitsAround:
    """The last commit before the place where recovery stops, and the first after it, in the order of WAL.

    None: there is none in the WAL that leads from the backup to where it first is missing.
    ``is_searched`` is false where so much WAL without a commit lies around the stop that not all was read.
    """

    before: TransactionEnd | None
    after: TransactionEnd | None
    is_searched: bool = True


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """One backup, the way of WAL from it, and where on it recovery stops.

    ``links`` cover the way from the start of the backup's first segment without a hole; before the
    stop is known they go to the end of the run.  ``candidates`` are those that may hold the stop, in
    their order: the first that does decides.  ``is_past_end``: nothing in the archive is known to be
    later than the target, so recovery goes to the archive's end unless a candidate says otherwise.
    ``parents`` are the backups that an incremental ``backup`` is built on, the newest first.
    ``commits`` are those around the stop; None while that is not known.
    """

    target: RecoveryTarget
    archive: ArchiveId
    timeline: TimelineId
    backup: BackupManifest
    spans: tuple[WalSpan, ...]
    links: tuple[WalLink, ...]
    candidates: tuple[WalLink, ...]
    is_past_end: bool
    skipped: tuple[SkippedBackup, ...] = ()
    warnings: tuple[str, ...] = ()
    stop: StopPoint | None = None
    parents: tuple[BackupManifest, ...] = ()
    commits: CommitsAround | None = None

    @property
    def wal_end(self) -> LSN:
        """Return the end of the WAL that the plan has."""
        return self.links[-1].until

    @property
    def wal_bytes(self) -> int:
        """Return the bytes of WAL on the way, from the first segment's start; sealed they are fewer."""
        return self.wal_end - self.links[0].start

    @property
    def segments(self) -> int:
        """Return the number of WAL segments that recovery will ask for."""
        size = self.backup.segment_bytes
        return self.wal_end.last_segment_number(size) - self.links[0].start.offset // size + 1

    @property
    def backup_bytes(self) -> int:
        """Return the most sealed bytes that are fetched for the backup; of its parents it is often less."""
        return sum(backup.stored_bytes for backup in (self.backup, *self.parents))

    @property
    def used_links(self) -> tuple[WalLink, ...]:
        """Return the WAL that recovery reads; before the stop is known, what it reads at most."""
        if self.stop is not None:
            return self.links
        end = self.candidates[-1].until if self.candidates else self.backup.stop_lsn
        return tuple(link for link in self.links if link.start < end)

    @property
    def regions(self) -> tuple[str, ...]:
        """Return the regions known to hold all WAL of the plan; empty where that is not known."""
        used = self.used_links
        held = set(used[0].unit.regions)
        for link in used:
            held &= set(link.unit.regions)
        return tuple(sorted(held))

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """Return ``warnings``, and which regions lack WAL that this plan, as far as it is known, uses."""
        used = self.used_links
        lacking = [
            (name, sum(name not in link.unit.regions for link in used))
            for name in sorted({name for link in used for name in link.unit.regions})
        ]
        return self.warnings + tuple(
            f"region {name} lacks {count} of {len(used)} WAL objects of the plan"
            for name, count in lacking
            if count
        )

    def span_at(self, end: LSN) -> WalSpan:
        """Return the span that replay is on when it has arrived at ``end``."""
        return next((span for span in reversed(self.spans) if span.start < end), self.spans[0])

    def with_stop(self, stop: StopPoint, *warnings: str) -> RestorePlan:
        """Return the plan with its exact stop, without the WAL that recovery will not read."""
        links = tuple(
            link if link.until <= stop.read_end else replace(link, until=stop.read_end, is_whole=False)
            for link in self.links
            if link.start < stop.read_end
        )
        spans = tuple(span for span in self.spans if span.start < stop.read_end)
        return replace(
            self, links=links, spans=spans, candidates=(), stop=stop, warnings=self.warnings + warnings
        )
