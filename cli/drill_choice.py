"""What a drill is about, as typed, as configured, or as its turn has it: target, lost region, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cli.context import App
from cli.errors import UsageRefused
from cli.reading import Source
from cli.settings import Settings
from cli.target import read_target
from cli.verify_facts import Occasion
from cli.verify_settings import VerifySettings
from pitr.recovery import RecoveryTarget
from verifiers.drill_scenario import AUTO, BEFORE_CORRUPTION, Action, DrillKind, Scenario
from verifiers.findings import Retest
from verifiers.log_entry import LogEntry
from verifiers.ransomware import clean_point_of, first_alarming, last_clean
from verifiers.scratch import ScratchPlace
from verifiers.verify_schedule import Due, due_run, next_cut

if TYPE_CHECKING:
    from pitr.catalogue.backup_record import BackupManifest
    from pitr.layout import ArchiveId


@dataclass(frozen=True, slots=True)
class DrillChoices:
    """What was typed.  ``scenario`` None: components.  ``target`` None: the scenario's."""

    kind: DrillKind
    scenario: Scenario | None
    target: str | None = None
    corrupted_at: str | None = None
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


@dataclass(frozen=True, slots=True)
class DrillTarget:
    """Where the restore goes to; ``backup`` is set where only that one will do."""

    target: RecoveryTarget
    backup: str | None = None
    clean_point: str | None = None
    is_attack: bool = False


@dataclass(frozen=True, slots=True)
class DrillReady:
    """A drill that is known whole, before its intent is logged.

    ``region`` is read first, ``cut`` is lost.  ``target`` None: nothing is restored.
    """

    archive: ArchiveId
    regions: tuple[str, ...]
    region: str
    cut: str | None
    target: DrillTarget | None
    scheduled_at: datetime | None
    retests: tuple[Retest, ...]
    repeats: str | None = None


@dataclass(frozen=True, slots=True)
class DrillRun:
    """All that the parts of a drill are given."""

    app: App
    settings: Settings
    config: VerifySettings
    choices: DrillChoices
    ready: DrillReady
    occasion: Occasion
    place: ScratchPlace
    source: Source


def due_drill(
    kind: DrillKind,
    config: VerifySettings,
    entries: Sequence[LogEntry],
    system_identifier: int,
    now: datetime,
) -> Due | None:
    """Return the time that a scheduled drill is for; None if none is due."""
    every_s = config.drills.every_s.get(kind)
    if every_s is None:
        return None
    return due_run(entries, system_identifier, every_s, now, drill=kind)


def choose_cut(
    choices: DrillChoices, config: VerifySettings, entries: Sequence[LogEntry], regions: Sequence[str]
) -> str | None:
    """Return the region that is lost; None where the scenario loses none.  Raises UsageRefused."""
    step = None if choices.scenario is None else choices.scenario.step(Action.CUT_REGION)
    if step is None:
        if choices.without_region is not None:
            raise UsageRefused("this drill loses no region", hint="leave out --without-region")
        return None
    named = choices.without_region or (None if step.region == AUTO else step.region)
    if named is None and choices.kind is DrillKind.DISASTER:
        named = config.drills.primary_region or regions[0]
    if named is None:
        named = config.drills.region or next_cut(entries, regions)
    if named not in regions:
        raise UsageRefused(f"there is no region {named!r}", hint=f"choose from {', '.join(regions)}")
    if len(regions) < 2:
        raise UsageRefused(
            f"{named} is the only region: without it there is nothing to restore from",
            hint="pitr drill start full restores with all regions",
        )
    return named


def choose_target(app: App, choices: DrillChoices, backups: Sequence[BackupManifest]) -> DrillTarget:
    """Return where to restore to.  Raises UsageRefused, TargetRefused."""
    assert choices.scenario is not None, "components are not restored"
    step = choices.scenario.step(Action.RESTORE)
    assert step is not None, "the scenario was checked"
    if step.target != BEFORE_CORRUPTION:
        if choices.corrupted_at is not None:
            raise UsageRefused(
                "this scenario restores to no moment before a corruption", hint="leave out --corrupted-at"
            )
        text = choices.target or step.target or "latest"
        return DrillTarget(read_target(app, text, is_inclusive=True, timeline="latest"))
    if choices.target is not None:
        raise UsageRefused("--at and this scenario's target exclude each other", hint="--corrupted-at TIME")
    if choices.corrupted_at is not None:
        target = read_target(app, choices.corrupted_at, is_inclusive=False, timeline="latest")
        point = None if target.kind in ("latest", "immediate") else str(target)
        return DrillTarget(target, None, point, is_attack=True)
    bad = first_alarming(backups)
    if bad is None:
        raise UsageRefused(
            "no backup shows a sign of corruption, so nobody knows when it was",
            hint="say when: --corrupted-at TIME",
        )
    clean = last_clean(backups, bad)
    if clean is None:
        raise UsageRefused(
            f"no backup before {bad.backup}, which shows signs of corruption, is clean",
            hint="say which moment was good: --corrupted-at TIME",
        )
    return DrillTarget(RecoveryTarget("immediate"), clean.backup, clean_point_of(clean), is_attack=True)
