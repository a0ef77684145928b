"""One verification from its intent to its report: chosen, logged, run, signed, put, exported.

The intent stands in the log before anything is restored; whatever ends the run after that is logged as well,
by this run or, if it was killed, by the next one.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cli.context import App
from cli.errors import UsageRefused
from cli.planning import look, plan_from
from cli.reading import Source, choose_archive
from cli.restore_choices import cache_dir
from cli.restore_owner import choose_owner
from cli.settings import Settings
from cli.verify_choice import Chosen, VerifyChoices, choose
from cli.verify_consolidate import consolidate_proved
from cli.verify_log import OpenedLog, open_log
from cli.verify_settings import VerifySettings
from cli.wiring import open_reader, preferred_bin_dir
from pitr.datakeys import DataKeys
from pitr.errors import NotInitialised, PitrError, TargetRefused
from pitr.pipeline.sign import encode_time
from pitr.postgres.installation import find_pg
from pitr.postgres.server_user import readable_installation
from pitr.recovery import RecoveryTarget
from storage.store import StoreError
from verifiers.checks_data import read_assertions
from verifiers.checks_source import Comparison
from verifiers.checks_target import Marker
from verifiers.fingerprint import get_fingerprint, next_fingerprint
from verifiers.log_entry import EntryKind
from verifiers.observed_chains import observed_facts
from verifiers.report_series import close_run, issue_report
from verifiers.run_ids import uuid7
from verifiers.scratch import ScratchPlace, ScratchRoot, check_room
from verifiers.source_locks import LeastLock, least_locks
from verifiers.verify_report import Policy, ReportFacts, Scope, draft_report, intent_facts
from verifiers.verify_run import verify
from verifiers.verify_values import Verified, VerifyRequest

if TYPE_CHECKING:
    from cli.planning import Looked
    from cli.wiring import Reader
    from pitr.repository import Repository
    from pitr.restore_plan import RestorePlan
    from verifiers.audit_log import Logged
    from verifiers.statement import SignedStatement

_HASH_CHUNK: Final = 1 << 20


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
        with root.slot() as slot, open_log(self._settings, self._config, slot) as opened:
            self._settle(root, opened)
            return self._verify(root, opened)

    # -- what killed runs left

    def _settle(self, root: ScratchRoot, opened: OpenedLog) -> None:
        """Wipe what a killed run left, and log of each that it came to nothing."""
        left = root.abandoned()
        for one in left:
            one.place.wipe()
            self._app.output.warn(f"run {one.run_id} was killed; what it had restored was wiped")
        wiped = {one.run_id for one in left}
        for intent in opened.log.open_intents():
            if not root.is_held(intent.run_id):
                said = (
                    "its scratch place was wiped" if intent.run_id in wiped else "nothing of it was left here"
                )
                close_run(opened.log, intent, f"the run was killed; {said}", datetime.now(UTC))

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
            archive = choose_archive(reader.repository, source.archive)
            looked = look(reader, source, self._app.output)
            if not looked.survey.backups:
                place.wipe()
                raise NotInitialised("there is no backup to verify", hint="pitr backup")
            chosen = choose(self._app, choices, config, looked.survey, opened.log.entries(), archive)
            if chosen is None:
                place.wipe()
                return None
            for at in chosen.missed:
                self._log_missed(opened, at, archive.system_identifier)
            intent = opened.log.intend(
                chosen.kind,
                run_id,
                intent_facts(
                    system_identifier=archive.system_identifier,
                    region=region,
                    without_region=choices.without_region,
                    scheduled_at=chosen.scheduled_at,
                    target=chosen.logged_target,
                    sampling=chosen.sampling,
                    stretches=chosen.stretches,
                ),
                datetime.now(UTC),
            )
            # What was announced begins after it, whatever this host's clock does.
            self._started_at = max(datetime.now(UTC), intent.entry.at)
            try:
                return self._announced(reader, source, looked, chosen, intent, place, opened, region)
            except BaseException as cause:
                # Also when somebody interrupts it: an intent without an outcome would look like a killed run.
                with suppress(PitrError, OSError):
                    place.wipe()
                with suppress(PitrError, StoreError):
                    close_run(opened.log, intent.entry, _reason(cause), datetime.now(UTC))
                raise

    def _log_missed(self, opened: OpenedLog, at: datetime, system_identifier: int) -> None:
        facts = {
            "scheduled_at": encode_time(at),
            "system_identifier": str(system_identifier),
            "reason": "nobody verified when it was due",
        }
        opened.log.append(
            EntryKind.VERIFICATION_MISSED, f"missed-{encode_time(at)}", facts, datetime.now(UTC)
        )

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
    ) -> VerifyDone:
        """Carry out what the log says now."""
        config, choices = self._config, self._choices
        plan = plan_from(looked, reader, source, chosen.target, self._app.output)
        check_room(place.path, plan.backup.size_bytes)
        request = self._request(reader, looked, plan, place, region)
        request = self._with_comparison(request, reader, source, looked, opened)
        self._app.output.note(f"verifying {plan.target} from region {region}, backup {plan.backup.backup}")
        found = verify(request, begun=self._begun, on_progress=self._on_progress)
        head = looked.heads.get(looked.archive)
        age_ms = None
        if head is not None:
            age_ms = max(0, round((self._started_at - head.at).total_seconds() * 1000))
        facts = self._facts(request, chosen, plan, region, age_ms, least_locks(reader.store.regions, plan))
        now = max(datetime.now(UTC), facts.created_at)
        report = issue_report(opened.log, intent, draft_report(facts, found), now)
        self._observe(reader, looked, intent, opened)
        consolidated = None
        if config.consolidate and choices.without_region is None:
            consolidated = consolidate_proved(
                self._app, self._settings, config, reader, plan, report, opened.log
            )
        folder = choices.reports_dir or config.reports_dir
        if folder is not None:
            self._export(opened, folder)
        from cli.lagging import lagging_regions

        lagging = lagging_regions(opened.store, wait_s=5.0)
        return VerifyDone(intent.entry.run_id, report, found, plan, region, folder, lagging, consolidated)

    def _observe(self, reader: Reader, looked: Looked, intent: Logged, opened: OpenedLog) -> None:
        """Log where the host's own chains are: a later rewrite of them shows then."""
        try:
            facts = observed_facts(reader.repository, looked.archive)
            opened.log.append(EntryKind.OBSERVED, intent.entry.run_id, facts, datetime.now(UTC))
        except (PitrError, StoreError) as cause:
            self._app.output.warn(f"the host's signed chains could not be logged: {cause}")

    def _with_comparison(
        self, request: VerifyRequest, reader: Reader, source: Source, looked: Looked, opened: OpenedLog
    ) -> VerifyRequest:
        """Add the next fingerprint after the target, if a way leads there from the same backup."""
        plan, log = request.plan, opened.log
        system, public = plan.archive.system_identifier, log.signer.public
        if plan.stop is None:
            return request
        lsn = next_fingerprint(reader.store, public, system, plan.stop.replay_end)
        if lsn is None:
            return request
        fingerprint = get_fingerprint(reader.store, public, log.repository_id, system, lsn)
        target = RecoveryTarget("lsn", lsn=lsn, is_inclusive=False, timeline=plan.timeline)
        try:
            onward = plan_from(looked, reader, source, target, self._app.output, backup_id=plan.backup.backup)
        except TargetRefused as cause:
            return replace(request, why_no_comparison=f"no way leads to the fingerprint at {lsn}: {cause}")
        return replace(request, comparison=Comparison(fingerprint, onward))

    def _export(self, opened: OpenedLog, folder: Path) -> None:
        from verifiers.report_export import export_reports

        log = opened.log
        export_reports(log.store, log.repository_id, log.signer.public, folder)

    def _request(
        self, reader: Reader, looked: Looked, plan: RestorePlan, place: ScratchPlace, region: str
    ) -> VerifyRequest:
        config = self._config
        assert reader.identity is not None, "it was asked for"
        user = choose_owner(None, ("true",))
        installation = find_pg(
            plan.backup.server_version // 10_000, preferred=preferred_bin_dir(self._settings)
        )
        installation = readable_installation(installation, user, cache_dir())
        return VerifyRequest(
            plan=plan,
            repository=reader.repository,
            alone=_alone(reader, region),
            region=region,
            data_keys=DataKeys(reader.repository, reader.identity.identity),
            installation=installation,
            user=user,
            superuser=config.superuser,
            place=place,
            deadline_s=config.deadline_s,
            product_version=product_version(),
            backups=looked.survey.backups,
            assertions=read_assertions(config.checks_dir),
            marker=(
                None
                if config.marker is None
                else Marker(config.marker, config.marker_database, config.marker_every_s)
            ),
            preload_allowed=config.preload_libraries,
            wants_network_cut=config.network == "none",
        )

    def _facts(
        self,
        request: VerifyRequest,
        chosen: Chosen,
        plan: RestorePlan,
        region: str,
        age_ms: int | None,
        locks: Mapping[str, LeastLock],
    ) -> ReportFacts:
        config, settings = self._config, self._settings
        notes = list(self._choices.notes)
        if self._choices.without_region is not None:
            notes.append(f"region {self._choices.without_region} was cut off: nothing was read from it")
        return ReportFacts(
            report_id=uuid7(datetime.now(UTC), os.urandom(10)),
            report_type="weekly_verification",
            created_at=max(datetime.now(UTC), self._started_at),
            started_at=self._started_at,
            scheduled_at=chosen.scheduled_at,
            started_by="pitr daemon" if self._choices.is_scheduled else "pitr verify",
            reason="scheduled" if self._choices.is_scheduled else "asked for",
            scope=Scope(
                config.organisation,
                config.system or settings.cluster.name,
                config.asset_id,
                config.criticality_tier,
                config.data_classes,
            ),
            policy=policy_of(config, settings),
            sampling=chosen.sampling,
            plan=plan,
            zone=self._app.time_zone() or "UTC",
            region=region,
            regions=[one.name for one in settings.regions],
            locks=locks,
            host=socket.gethostname(),
            environment_id=f"scratch of {socket.gethostname()}",
            writer=request.repository.verifier(plan.backup.archive),
            product_version=request.product_version,
            config_sha256=hashlib.sha256(settings.path.read_bytes()).hexdigest(),
            pg_binaries_sha256=_file_sha256(request.installation.tool("postgres")),
            verifier_name=f"pitr on {socket.gethostname()}",
            archive_age_ms=age_ms,
            notes=tuple(notes),
        )


def policy_of(config: VerifySettings, settings: Settings) -> Policy:
    """Return the policy that the configuration amounts to; its digest changes when it does."""
    import json

    fields = {
        "every_s": config.every_s,
        "target": config.target,
        "rto_s": config.rto_s,
        "rpo_s": config.rpo_s,
        "deadline_s": config.deadline_s,
        "retention_s": settings.retention.window_s or None,
    }
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def ms(seconds: float | None) -> int | None:
        return None if seconds is None else round(seconds * 1000)

    return Policy(
        f"verify/{settings.cluster.name}",
        digest,
        ms(config.every_s),
        ms(config.rto_s),
        ms(config.rpo_s),
        # 0: no configuration says.
        ms(settings.retention.window_s or None),
    )


def product_version() -> str:
    """Return the version of this program."""
    try:
        return metadata.version("pitr")
    except metadata.PackageNotFoundError:
        return "a checkout"


def _alone(reader: Reader, region: str) -> Repository:
    store = next(one.store for one in reader.store.regions if one.name == region)
    return reader.repository.alone(store)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(cause: BaseException) -> str:
    if isinstance(cause, PitrError):
        return f"{cause.message}: {cause.detail}" if cause.detail else cause.message
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
