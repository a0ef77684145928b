"""One drill from its intent to its report, on scratch: production and the store lose nothing by it.

The intent stands in the log before the failure is declared.  From the cut until the restore has ended nothing
is asked of the region that is lost; the outcome is logged after that, as a verification's is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cli.context import App
from cli.drill_choice import DrillChoices, DrillReady, DrillRun, choose_cut, choose_target, due_drill
from cli.drill_parts import run_components
from cli.drill_restore import run_restore
from cli.errors import UsageRefused
from cli.planning import look
from cli.reading import Source
from cli.settings import Settings
from cli.verify_facts import (
    Occasion,
    begun_in,
    care_of,
    export,
    find_retests,
    give_up,
    log_missed,
    observe,
    policy_of,
    refuse_host_key,
    settle_killed,
    unless_begun,
)
from cli.verify_limits import more_limits
from cli.verify_log import OpenedLog, open_log
from cli.verify_settings import VerifySettings
from cli.wiring import host_repository, open_reader
from pitr.errors import NotInitialised
from pitr.pipeline.sign import encode_time
from verifiers.drill_scenario import DrillKind
from verifiers.log_entry import EntryKind
from verifiers.report_series import issue_report
from verifiers.run_ids import uuid7
from verifiers.run_intent import intended_checks
from verifiers.scratch import ScratchPlace, ScratchRoot
from verifiers.verify_report import Sampling
from verifiers.verify_schedule import next_region

if TYPE_CHECKING:
    from verifiers.audit_log import Logged
    from verifiers.statement import SignedStatement

_LAG_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class DrillDone:
    """A drill that came to a report."""

    run_id: str
    kind: DrillKind
    report: SignedStatement
    region: str
    without_region: str | None
    reports_dir: Path | None
    lagging: Sequence[str]


class DrillFlow:
    """One drill.  ``on_progress`` is called from several threads."""

    def __init__(
        self,
        app: App,
        settings: Settings,
        config: VerifySettings,
        choices: DrillChoices,
        on_progress: Any = lambda _progress: None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._config = config
        self._choices = choices
        self._on_progress = on_progress
        self._started_at = datetime.now(UTC)

    def run(self) -> DrillDone | None:
        """Drill; None if it is scheduled and not due.

        Raises AlreadyRunning, UsageRefused, TargetRefused, RestoreRefused, KeyMissing, StoreError.
        """
        identity = self._choices.identity or self._config.identity_file
        if identity is None:
            raise UsageRefused(
                "a drill needs the reader's identity", hint="--identity FILE, or [verify] identity_file"
            )
        root = ScratchRoot(self._config.scratch_dir)
        root.prepare()
        with root.slot(), open_log(self._settings, self._config) as opened:
            settle_killed(self._app, root, opened)
            run_id = uuid7(self._started_at, os.urandom(10))
            source = Source(identity_path=identity, archive=self._choices.archive)
            with root.place(run_id, self._started_at) as place:
                with unless_begun(place):
                    ready = self._prepare(opened, source)
                    intent = None if ready is None else self._intend(opened, run_id, ready)
                if ready is None or intent is None:
                    place.wipe()
                    return None
                return self._announced(opened, place, source, ready, intent)

    # -- before the intent

    def _prepare(self, opened: OpenedLog, source: Source) -> DrillReady | None:
        """Decide all, with every region there; None if nothing is due."""
        choices, config = self._choices, self._config
        entries = opened.log.entries()
        with open_reader(self._settings, identity_path=source.identity_path) as reader:
            looked = look(reader, source, self._app.output)
            refuse_host_key(opened, reader.repository)
        if not looked.survey.backups:
            raise NotInitialised("there is no backup to drill with", hint="pitr backup")
        system = looked.archive.system_identifier
        scheduled_at = repeats = None
        if choices.is_scheduled:
            found = due_drill(choices.kind, config, entries, system, datetime.now(UTC))
            if found is None:
                return None
            scheduled_at, repeats = found.scheduled_at, found.repeats
            for at in found.missed:
                log_missed(opened, EntryKind.DRILL_MISSED, at, system, drill=choices.kind)
        regions = [one.name for one in self._settings.regions]
        cut = choose_cut(choices, config, entries, regions)
        target = None
        if choices.scenario is not None:
            target = choose_target(self._app, choices, looked.survey.backups)
        return DrillReady(
            looked.archive,
            tuple(regions),
            next_region(entries, [name for name in regions if name != cut]),
            cut,
            target,
            scheduled_at,
            find_retests(
                opened,
                system,
                choices.retests,
                action=choices.corrective_action,
                cause=choices.root_cause,
            ),
            repeats,
        )

    def _intend(self, opened: OpenedLog, run_id: str, ready: DrillReady) -> Logged:
        facts = {**self._intent_facts(ready), **begun_in(ScratchRoot(self._config.scratch_dir))}
        return opened.log.intend(EntryKind.DRILL_INTENDED, run_id, facts, datetime.now(UTC))

    def _announced(
        self, opened: OpenedLog, place: ScratchPlace, source: Source, ready: DrillReady, intent: Logged
    ) -> DrillDone:
        """Carry out what the log says now."""
        # What was announced begins after it, whatever this host's clock does.
        self._started_at = max(datetime.now(UTC), intent.entry.at)
        try:
            occasion = self._occasion(ready)
            run = DrillRun(
                self._app, self._settings, self._config, self._choices, ready, occasion, place, source
            )
            if ready.target is None:
                draft = run_components(run, opened.log.signer.public)
                place.wipe()
            else:
                draft = run_restore(run, self._on_progress)
            return self._report(opened, intent, ready, draft)
        except BaseException as cause:
            give_up(opened, place, intent.entry, cause)
            raise

    def _report(
        self, opened: OpenedLog, intent: Logged, ready: DrillReady, draft: dict[str, Any]
    ) -> DrillDone:
        now = max(datetime.now(UTC), datetime.fromisoformat(draft["identity"]["created_at"]))
        # Of a drill it is the failure that was measured, and no forecast.
        draft["result"]["limits"] += more_limits(self._app, self._settings.regions, None, opened, intent)
        report = issue_report(opened.log, intent, draft, now)
        observe(self._app, host_repository(self._settings, opened.store), ready.archive, intent, opened)
        folder = self._choices.reports_dir or self._config.reports_dir
        if folder is not None:
            folder = export(self._app, opened, folder)
        from cli.lagging import lagging_regions

        lagging = lagging_regions(opened.store, wait_s=_LAG_WAIT_S)
        return DrillDone(
            intent.entry.run_id, self._choices.kind, report, ready.region, ready.cut, folder, lagging
        )

    def _occasion(self, ready: DrillReady) -> Occasion:
        choices, config = self._choices, self._config
        scenario = choices.scenario
        said = "each part that a recovery needs" if scenario is None else scenario.description
        notes = [] if ready.cut is None else [f"region {ready.cut} was cut off: nothing was read from it"]
        return Occasion(
            report_type=choices.kind.report_type,
            started_by="pitr drill",
            is_scheduled=choices.is_scheduled,
            scheduled_at=ready.scheduled_at,
            started_at=self._started_at,
            reason=f"drill {choices.kind}: {said or choices.kind}",
            policy=policy_of(
                config,
                self._settings,
                drill=choices.kind,
                every_s=config.drills.every_s.get(choices.kind),
            ),
            sampling=Sampling(
                "latest" if ready.target is None or ready.target.target.kind == "latest" else "given"
            ),
            notes=tuple(notes),
            care=care_of(config, choices.owner, choices.due_s, self._started_at),
            retests=ready.retests,
            participants=choices.participants,
            notified=choices.notified,
        )

    def _intent_facts(self, ready: DrillReady) -> Mapping[str, object]:
        scenario = self._choices.scenario
        return {
            "system_identifier": str(ready.archive.system_identifier),
            "drill": str(self._choices.kind),
            "report_type": self._choices.kind.report_type,
            "scenario": None if scenario is None else scenario.name,
            "scenario_sha256": None if scenario is None else scenario.sha256,
            "region": ready.region,
            "without_region": ready.cut,
            "target": None if ready.target is None else str(ready.target.target),
            "checks": "" if ready.target is None else intended_checks(_drill_checks(ready)),
            "scheduled_at": None if ready.scheduled_at is None else encode_time(ready.scheduled_at),
            "retests": [one.finding.ref for one in ready.retests],
            **({} if ready.repeats is None else {"repeats": ready.repeats}),
        }


def _drill_checks(ready: DrillReady) -> list[str]:
    return ["D12"] if ready.cut is None else ["D11", "D12"]
