"""What is verified: the target and the region, as typed, as the timetable says, or as drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cli.context import App
from cli.errors import UsageRefused
from cli.target import read_target
from cli.verify_settings import VerifySettings
from pitr.planner import restorable_stretches
from pitr.recovery import RecoveryTarget
from verifiers.log_entry import LogEntry
from verifiers.verify_report import Sampling
from verifiers.verify_schedule import due_run, next_region
from verifiers.verify_target import Stretch, merge, random_moment, seed_sha256, stretches_text

if TYPE_CHECKING:
    from pitr.layout import ArchiveId
    from pitr.survey import ArchiveSurvey


@dataclass(frozen=True, slots=True)
class VerifyChoices:
    """What was typed.  ``target`` None: as configured.  ``region`` None: the one whose turn it is."""

    method: Literal["latest", "given", "random"] | None = None
    target: str | None = None
    region: str | None = None
    without_region: str | None = None
    identity: Path | None = None
    archive: str | None = None
    reports_dir: Path | None = None
    is_scheduled: bool = False
    retests: tuple[str, ...] = ()
    corrective_action: str | None = None
    root_cause: str | None = None
    # Name and role of each who takes part, and who is told.
    participants: tuple[tuple[str, str], ...] = ()
    notified: tuple[str, ...] = ()
    owner: str | None = None
    due_s: float | None = None
    # What the report is to say of how it was asked for.
    notes: tuple[str, ...] = ()

    def region_of(self, entries: Sequence[LogEntry], regions: Sequence[str]) -> str:
        """Return the region to read from.  Raises UsageRefused."""
        if self.region is None:
            if not regions:
                raise UsageRefused("no region is left to read from", hint="leave out --without-region")
            return next_region(entries, regions)
        if self.region not in regions:
            raise UsageRefused(
                f"there is no region {self.region!r}", hint=f"choose from {', '.join(regions)}"
            )
        return self.region


@dataclass(frozen=True, slots=True)
class Chosen:
    """The target, how it came about, and what of it is logged before the run."""

    target: RecoveryTarget
    sampling: Sampling
    logged_target: str
    stretches: str | None
    scheduled_at: datetime | None
    missed: tuple[datetime, ...] = ()
    repeats: str | None = None


def choose(
    app: App,
    choices: VerifyChoices,
    config: VerifySettings,
    survey: ArchiveSurvey,
    entries: Sequence[LogEntry],
    archive: ArchiveId,
) -> Chosen | None:
    """Decide; None if it was to run when it is due, and is not.  Raises UsageRefused, TargetRefused."""
    scheduled_at: datetime | None = None
    missed: tuple[datetime, ...] = ()
    repeats: str | None = None
    if choices.is_scheduled and config.every_s is not None:
        found = due_run(entries, archive.system_identifier, config.every_s, datetime.now(UTC))
        if found is None:
            return None
        scheduled_at, missed, repeats = found.scheduled_at, found.missed, found.repeats
    method = choices.method or config.target
    if method == "random":
        seed = os.urandom(32).hex()
        stretches = merge(
            Stretch(one.first.at, one.last.at)
            for one in restorable_stretches(survey)
            if one.first.at is not None and one.last.at is not None and one.first.at <= one.last.at
        )
        target = RecoveryTarget("time", instant=random_moment(seed, stretches))
        sampling = Sampling("random", seed, seed_sha256(seed))
        return Chosen(target, sampling, "random", stretches_text(stretches), scheduled_at, missed, repeats)
    if method == "latest":
        target = RecoveryTarget("latest")
    else:
        assert choices.target is not None, "a given target was typed"
        target = read_target(app, choices.target, is_inclusive=True, timeline="latest")
    return Chosen(target, Sampling(method), str(target), None, scheduled_at, missed, repeats)
