"""One verification from its intent to its report: chosen, logged, run, signed, put, exported.

The intent stands in the log before anything is restored; whatever ends the run after that is logged as well,
by this run or, if it was killed, by the next one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cli.context import App
from cli.errors import UsageRefused
from cli.map_sources import with_map
from cli.planning import look, plan_from
from cli.reading import Source, choose_archive
from cli.settings import Settings
from cli.verify_choice import Chosen, VerifyChoices, choose
from cli.verify_consolidate import consolidate_proved
from cli.verify_events import events_look
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
    report_facts,
    settle_killed,
    unless_begun,
    verify_request,
)
from cli.verify_limits import more_limits
from cli.verify_log import OpenedLog, open_log
from cli.verify_settings import VerifySettings
from cli.wiring import open_reader
from pitr.errors import NotInitialised
from pitr.recovery import RecoveryTarget
from verifiers.checks_source import choose_comparison
from verifiers.findings import Retest
from verifiers.fingerprint import get_fingerprint, next_fingerprints
from verifiers.log_entry import EntryKind
from verifiers.report_series import issue_report
from verifiers.run_ids import uuid7
from verifiers.run_intent import intent_facts
from verifiers.scratch import ScratchPlace, ScratchRoot, check_room
from verifiers.source_locks import least_locks
from verifiers.verify_report import draft_report
from verifiers.verify_run import verify
from verifiers.verify_values import Verified, VerifyRequest

if TYPE_CHECKING:
    from cli.planning import Looked
    from cli.wiring import Reader
    from pitr.restore_plan import RestorePlan
    from pitr.wal.lsn import LSN
    from verifiers.audit_log import Logged
    from verifiers.fingerprint import Fingerprint
    from verifiers.statement import SignedStatement

# How many are tried; each costs a plan.
_FINGERPRINTS_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class VerifyDone:
    """A verification that came to a report."""

    run_id: str
    report: SignedStatement
    found: Verified
    plan: RestorePlan
    region: str
    reports_dir: Path | None
    lagging: Sequence[str]
    # The full backup that was made of the chain which was proved.
    consolidated: str | None = None


class VerifyFlow:
    """One run.  ``on_progress`` is called from several threads."""

    def __init__(
        self,
        app: App,
        settings: Settings,
        config: VerifySettings,
        choices: VerifyChoices,
        on_progress: Any = lambda _progress: None,
    ) -> None:
        self._app = app
        self._settings = settings
        self._config = config
        self._choices = choices
        self._on_progress = on_progress
        self._begun = time.monotonic()
        self._started_at = datetime.now(UTC)

    def run(self) -> VerifyDone | None:
        """Verify; None if it is scheduled and not due.

        Raises AlreadyRunning, TargetRefused, RestoreRefused, KeyMissing, StoreError.
        """
        root = ScratchRoot(self._config.scratch_dir)
        root.prepare()
        with root.slot(), open_log(self._settings, self._config) as opened:
            settle_killed(self._app, root, opened)
            return self._verify(root, opened)

    # -- the run

    def _verify(self, root: ScratchRoot, opened: OpenedLog) -> VerifyDone | None:
        config, choices = self._config, self._choices
        self._begun = time.monotonic()
        run_id = uuid7(self._started_at, os.urandom(10))
        identity = choices.identity or config.identity_file
        if identity is None:
            raise UsageRefused(
                "a verification needs the reader's identity",
                hint="--identity FILE, or [verify] identity_file",
            )
        regions = [one.name for one in self._settings.regions if one.name != choices.without_region]
        region = choices.region_of(opened.log.entries(), regions)
        reading = open_reader(
            self._settings, identity_path=identity, first=region, without=choices.without_region
        )
        with reading as reader, root.place(run_id, self._started_at) as place:
            source = Source(identity_path=identity, archive=choices.archive)
            with unless_begun(place):
                looked = look(reader, source, self._app.output)
                ready = self._announce(root, reader, source, looked, opened, region, run_id)
            if ready is None:
                place.wipe()
                return None
            chosen, retests, intent = ready
            # What was announced begins after it, whatever this host's clock does.
            self._started_at = max(datetime.now(UTC), intent.entry.at)
            try:
                return self._announced(reader, source, looked, chosen, intent, place, opened, region, retests)
            except BaseException as cause:
                give_up(opened, place, intent.entry, cause)
                raise

    def _announce(
        self,
        root: ScratchRoot,
        reader: Reader,
        source: Source,
        looked: Looked,
        opened: OpenedLog,
        region: str,
        run_id: str,
    ) -> tuple[Chosen, tuple[Retest, ...], Logged] | None:
        """Decide what is verified, and log it; None if nothing is due."""
        choices = self._choices
        archive = choose_archive(reader.repository, source.archive)
        refuse_host_key(opened, reader.repository)
        if not looked.survey.backups:
            raise NotInitialised("there is no backup to verify", hint="pitr backup")
        chosen = choose(self._app, choices, self._config, looked.survey, opened.log.entries(), archive)
        if chosen is None:
            return None
        retests = find_retests(
            opened,
            archive.system_identifier,
            choices.retests,
            action=choices.corrective_action,
            cause=choices.root_cause,
        )
        for at in chosen.missed:
            log_missed(opened, EntryKind.VERIFICATION_MISSED, at, archive.system_identifier)
        intent = opened.log.intend(
            EntryKind.VERIFICATION_INTENDED,
            run_id,
            {
                **intent_facts(
                    system_identifier=archive.system_identifier,
                    region=region,
                    without_region=choices.without_region,
                    scheduled_at=chosen.scheduled_at,
                    target=chosen.logged_target,
                    sampling=chosen.sampling,
                    stretches=chosen.stretches,
                ),
                **begun_in(root),
                **({} if chosen.repeats is None else {"repeats": chosen.repeats}),
            },
            datetime.now(UTC),
        )
        return chosen, retests, intent

    def _announced(
        self,
        reader: Reader,
        source: Source,
        looked: Looked,
        chosen: Chosen,
        intent: Logged,
        place: ScratchPlace,
        opened: OpenedLog,
        region: str,
        retests: tuple[Retest, ...],
    ) -> VerifyDone:
        """Carry out what the log says now."""
        config, choices = self._config, self._choices
        plan = plan_from(looked, reader, source, chosen.target, self._app.output)
        check_room(place.path, plan.backup.size_bytes)
        request = verify_request(self._settings, self._config, reader, looked, plan, place, region)
        events = events_look(self._settings, reader, source, self._app.output)
        request = self._with_comparison(replace(request, events=events), reader, source, looked, opened)
        self._app.output.note(f"verifying {plan.target} from region {region}, backup {plan.backup.backup}")
        found = verify(request, begun=self._begun, on_progress=self._on_progress)
        head = looked.heads.get(looked.archive)
        age_ms = None
        if head is not None:
            age_ms = max(0, round((self._started_at - head.at).total_seconds() * 1000))
        facts = report_facts(
            self._app,
            self._settings,
            self._config,
            self._occasion(chosen, retests),
            reader,
            plan,
            region,
            postgres=request.installation.tool("postgres"),
            age_ms=age_ms,
            locks=least_locks(reader.store.regions, plan),
        )
        facts = with_map(facts, reader, looked, self._app.output)
        now = max(datetime.now(UTC), facts.created_at)
        draft = draft_report(facts, found)
        draft["result"]["limits"] += more_limits(self._app, self._settings.regions, looked, opened, intent)
        report = issue_report(opened.log, intent, draft, now)
        observe(self._app, reader.repository, looked.archive, intent, opened)
        consolidated = None
        if config.consolidate and choices.without_region is None:
            consolidated = consolidate_proved(
                self._app, self._settings, config, reader, plan, report, opened.log
            )
        folder = choices.reports_dir or config.reports_dir
        if folder is not None:
            folder = export(self._app, opened, folder)
        from cli.lagging import lagging_regions

        lagging = lagging_regions(opened.store, wait_s=5.0)
        return VerifyDone(intent.entry.run_id, report, found, plan, region, folder, lagging, consolidated)

    def _with_comparison(
        self, request: VerifyRequest, reader: Reader, source: Source, looked: Looked, opened: OpenedLog
    ) -> VerifyRequest:
        """Add the next fingerprint after the target that a way leads to from the same backup."""
        plan, log = request.plan, opened.log
        system, public = plan.archive.system_identifier, log.signer.public
        if plan.stop is None:
            return request
        lsns = next_fingerprints(
            reader.store, public, system, plan.stop.replay_end, count_max=_FINGERPRINTS_MAX
        )

        def read(lsn: LSN) -> Fingerprint:
            return get_fingerprint(reader.store, public, log.repository_id, system, lsn)

        def lead(lsn: LSN) -> RestorePlan:
            target = RecoveryTarget("lsn", lsn=lsn, is_inclusive=False, timeline=plan.timeline)
            return plan_from(looked, reader, source, target, self._app.output, backup_id=plan.backup.backup)

        found = choose_comparison(lsns, read, lead)
        if isinstance(found, str):
            return replace(request, why_no_comparison=found)
        return replace(request, comparison=found)

    def _occasion(self, chosen: Chosen, retests: tuple[Retest, ...]) -> Occasion:
        config, choices = self._config, self._choices
        notes = list(choices.notes)
        if choices.without_region is not None:
            notes.append(f"region {choices.without_region} was cut off: nothing was read from it")
        return Occasion(
            report_type="weekly_verification",
            started_by="pitr verify",
            is_scheduled=choices.is_scheduled,
            scheduled_at=chosen.scheduled_at,
            started_at=self._started_at,
            reason="scheduled" if choices.is_scheduled else "asked for",
            policy=policy_of(config, self._settings),
            sampling=chosen.sampling,
            notes=tuple(notes),
            care=care_of(config, choices.owner, choices.due_s, self._started_at),
            retests=retests,
            participants=choices.participants,
            notified=choices.notified,
        )
