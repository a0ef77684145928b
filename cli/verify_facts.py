"""What verifications and drills have in common: what killed runs left, the request, the report's facts."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli.context import App
from cli.errors import UsageRefused
from cli.restore_choices import cache_dir
from cli.restore_owner import choose_owner
from cli.settings import Settings
from cli.verify_log import OpenedLog
from cli.verify_settings import VerifySettings
from cli.wiring import preferred_bin_dir
from pitr.datakeys import DataKeys
from pitr.errors import PitrError
from pitr.pipeline.sign import encode_time
from pitr.postgres.installation import find_pg
from pitr.postgres.server_user import readable_installation
from storage.store import StoreError
from verifiers.checks_data import read_assertions
from verifiers.checks_target import Marker
from verifiers.findings import Care, FindingState, Retest, finding_states
from verifiers.log_entry import EntryKind, LogEntry
from verifiers.observed_chains import observed_facts
from verifiers.report_series import close_run, logged_reports, read_report
from verifiers.run_ids import uuid7
from verifiers.scratch import ScratchPlace, ScratchRoot
from verifiers.source_locks import LeastLock
from verifiers.verify_report import Policy, ReportFacts, Sampling, Scope
from verifiers.verify_values import VerifyRequest

if TYPE_CHECKING:
    from cli.planning import Looked
    from cli.wiring import Reader
    from pitr.layout import ArchiveId
    from pitr.repository import Repository
    from pitr.restore_plan import RestorePlan
    from verifiers.audit_log import Logged

# No run takes as long, and an intent without an outcome must not stay in the log for ever.
_ELSEWHERE_MAX: Final = timedelta(days=7)
_MISSED_WORDS = {
    EntryKind.VERIFICATION_MISSED: "nobody verified when it was due",
    EntryKind.DRILL_MISSED: "nobody drilled when it was due",
}


@dataclass(frozen=True, slots=True)
class Occasion:
    """Why a run is: what its report is called, and how it came about."""

    report_type: str
    started_by: str
    is_scheduled: bool
    scheduled_at: datetime | None
    started_at: datetime
    reason: str
    policy: Policy
    sampling: Sampling
    notes: tuple[str, ...] = ()
    care: Care = field(default_factory=Care)
    retests: tuple[Retest, ...] = ()
    participants: tuple[tuple[str, str], ...] = ()
    notified: tuple[str, ...] = ()


# -- the log


def begun_in(root: ScratchRoot) -> dict[str, object]:
    """Return what an intent says of where its run is, by which its own scratch folder's next run knows it."""
    return {"host": socket.gethostname(), "scratch": os.path.realpath(root.path)}


def settle_killed(app: App, root: ScratchRoot, opened: OpenedLog) -> None:
    """Wipe what killed runs left here, and log of each that it came to nothing.

    What another host or folder has begun may go on there, unseen; it is given up after a week without a word.
    """
    left = root.abandoned()
    for one in left:
        one.place.wipe()
        app.output.warn(f"run {one.run_id} was killed; what it had restored was wiped")
    wiped = {one.run_id for one in left}
    now, here = datetime.now(UTC), begun_in(root)
    for intent in opened.log.open_intents():
        host, scratch = intent.text("host"), intent.text("scratch")
        if host is not None and {"host": host, "scratch": scratch} != here:
            if now - intent.at > _ELSEWHERE_MAX:
                days = (now - intent.at).days
                why = f"the run was begun on {host} in {scratch}, and nothing was heard of it for {days} days"
                close_run(opened.log, intent, why, now)
        elif not root.is_held(intent.run_id):
            said = "its scratch place was wiped" if intent.run_id in wiped else "nothing of it was left here"
            close_run(opened.log, intent, f"the run was killed; {said}", now)
    root.drop_locks()


def refuse_host_key(opened: OpenedLog, repository: Repository) -> None:
    """Raise UsageRefused if what signs the reports also writes the archive: a host would prove itself."""
    ours = str(opened.log.signer.public)
    for archive in repository.archives():
        if repository.epoch(archive).signer == ours:
            raise UsageRefused(
                f"the verifier's key is the one that writes archive {archive}",
                detail="who has that host could sign reports",
                hint="pitr verifier init --key FILE, on another machine",
            )


@contextmanager
def unless_begun(place: ScratchPlace) -> Iterator[None]:
    """Wipe the place of a run that is refused before it begins: left, it would look like a killed one."""
    try:
        yield
    except BaseException:
        with suppress(PitrError, OSError):
            place.wipe()
        raise


def give_up(opened: OpenedLog, place: ScratchPlace, intent: LogEntry, cause: BaseException) -> None:
    """Log that a run came to nothing: an intent without an outcome would look like a killed run."""
    with suppress(PitrError, OSError):
        place.wipe()
    with suppress(PitrError, StoreError):
        close_run(opened.log, intent, reason_of(cause), datetime.now(UTC))


def log_missed(
    opened: OpenedLog, kind: EntryKind, at: datetime, system_identifier: int, drill: str | None = None
) -> None:
    """Log that nobody ran when it was due; once, however often it is said."""
    facts = {
        "scheduled_at": encode_time(at),
        "system_identifier": str(system_identifier),
        "reason": _MISSED_WORDS[kind],
        **({} if drill is None else {"drill": drill}),
    }
    name = "missed" if drill is None else f"missed-{drill}"
    opened.log.append(kind, f"{name}-{encode_time(at)}", facts, datetime.now(UTC))


def observe(app: App, repository: Repository, archive: ArchiveId, intent: Logged, opened: OpenedLog) -> None:
    """Log where the host's own chains are: a later rewrite of them shows then."""
    try:
        facts = observed_facts(repository, archive)
        opened.log.append(EntryKind.OBSERVED, intent.entry.run_id, facts, datetime.now(UTC))
    except (PitrError, StoreError) as cause:
        app.output.warn(f"the host's signed chains could not be logged: {cause}")


def export(app: App, opened: OpenedLog, folder: Path) -> Path | None:
    """Write reports and log to a folder, for auditors; None if that failed.

    Then it is told and no more: the report is signed, logged and in the regions, so the run has its outcome.
    """
    from verifiers.report_export import export_reports

    log = opened.log
    try:
        export_reports(log.store, log.repository_id, log.signer.public, folder)
    except (PitrError, StoreError, OSError) as cause:
        app.output.warn(
            f"the report is signed and logged, and could not be exported to {folder}: {reason_of(cause)}"
            f"; next: pitr report export {folder}"
        )
        return None
    return folder


# -- findings


def care_of(config: VerifySettings, owner: str | None, due_s: float | None, now: datetime) -> Care:
    """Return who is to see to new findings: as typed, else as configured."""
    due_at = now + timedelta(seconds=config.due_s if due_s is None else due_s)
    return Care(owner or config.owner or None, due_at)


def read_findings(opened: OpenedLog, system_identifier: int) -> list[FindingState]:
    """Return where the findings of a cluster's reports stand.  Raises NoGoodCopy, StoreError."""
    log = opened.log
    return finding_states(
        read_report(log.store, log.signer.public, one).predicate
        for one in logged_reports(log.entries())
        if one.system_identifier == system_identifier
    )


def find_retests(
    opened: OpenedLog,
    system_identifier: int,
    refs: Sequence[str],
    *,
    action: str | None,
    cause: str | None,
) -> tuple[Retest, ...]:
    """Return the findings that are named ``NUMBER/ID``.  Raises UsageRefused."""
    if not refs:
        return ()
    known = {one.ref: one for one in read_findings(opened, system_identifier)}
    for ref in refs:
        if ref not in known:
            raise UsageRefused(f"there is no finding {ref!r}", hint="pitr drill list --findings")
    return tuple(Retest(known[ref], action, cause) for ref in dict.fromkeys(refs))


# -- the request and the report


def verify_request(
    settings: Settings,
    config: VerifySettings,
    reader: Reader,
    looked: Looked,
    plan: RestorePlan,
    place: ScratchPlace,
    region: str,
) -> VerifyRequest:
    """Return what is to be restored and checked.  Raises ServerRefused, RestoreRefused."""
    assert reader.identity is not None, "it was asked for"
    user = choose_owner(None, ("true",))
    installation = find_pg(plan.backup.server_version // 10_000, preferred=preferred_bin_dir(settings))
    installation = readable_installation(installation, user, cache_dir)
    return VerifyRequest(
        plan=plan,
        repository=reader.repository,
        alone=alone(reader, region),
        region=region,
        data_keys=DataKeys(reader.repository, reader.identity.identity),
        installation=installation,
        user=user,
        superuser=config.superuser or plan.backup.superuser,
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


def report_facts(
    app: App,
    settings: Settings,
    config: VerifySettings,
    occasion: Occasion,
    reader: Reader,
    plan: RestorePlan,
    region: str,
    *,
    postgres: Path | None,
    age_ms: int | None,
    locks: Mapping[str, LeastLock],
) -> ReportFacts:
    """Return what a report says beside what its run found."""
    return ReportFacts(
        report_id=uuid7(datetime.now(UTC), os.urandom(10)),
        report_type=occasion.report_type,
        created_at=max(datetime.now(UTC), occasion.started_at),
        started_at=occasion.started_at,
        scheduled_at=occasion.scheduled_at,
        started_by="pitr daemon" if occasion.is_scheduled else occasion.started_by,
        reason=occasion.reason,
        scope=Scope(
            config.organisation,
            config.system or settings.cluster.name,
            config.asset_id,
            config.criticality_tier,
            config.data_classes,
        ),
        policy=occasion.policy,
        sampling=occasion.sampling,
        plan=plan,
        zone=app.time_zone() or "UTC",
        region=region,
        regions=[one.name for one in settings.regions],
        locks=locks,
        host=socket.gethostname(),
        environment_id=f"scratch of {socket.gethostname()}",
        writer=reader.repository.verifier(plan.backup.archive),
        product_version=product_version(),
        config_sha256=hashlib.sha256(settings.path.read_bytes()).hexdigest(),
        pg_binaries_sha256=None if postgres is None else _file_sha256(postgres),
        verifier_name=f"pitr on {socket.gethostname()}",
        recoverability=(),
        archive_age_ms=age_ms,
        notes=occasion.notes,
        care=occasion.care,
        retests=occasion.retests,
        participants=occasion.participants,
        notified=occasion.notified,
    )


def policy_of(
    config: VerifySettings, settings: Settings, *, drill: str | None = None, every_s: float | None = None
) -> Policy:
    """Return the policy that the configuration amounts to; its digest changes when it does.

    What is asked of a restore is a part of it: whoever takes a query away takes a part of the proof.
    """
    fields: dict[str, object] = {
        "queries": _query_digests(config),
        "marker": [config.marker, config.marker_database, config.marker_every_s],
        "network": config.network,
        "preload_libraries": sorted(config.preload_libraries),
        "every_s": config.every_s if drill is None else every_s,
        "target": config.target,
        "rto_s": config.rto_s,
        "rpo_s": config.rpo_s,
        "deadline_s": config.deadline_s,
        "retention_s": settings.retention.window_s or None,
    }
    if drill is not None:
        fields |= {"drill": drill}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def ms(seconds: float | None) -> int | None:
        return None if seconds is None else round(seconds * 1000)

    return Policy(
        f"{'verify' if drill is None else f'drill-{drill}'}/{settings.cluster.name}",
        digest,
        ms(config.every_s if drill is None else every_s),
        ms(config.rto_s),
        ms(config.rpo_s),
        # 0: no configuration says.
        ms(settings.retention.window_s or None),
    )


def _query_digests(config: VerifySettings) -> list[list[str]] | None:
    """Return each of the owner's queries by name, database and digest; None if there is no such folder."""
    try:
        found = read_assertions(config.checks_dir)
    except (PitrError, OSError, UnicodeError):
        # A verification says so itself; a report of a period may be made where the folder is not.
        return None
    if found is None:
        return None
    return [[one.name, one.database, hashlib.sha256(one.sql.encode()).hexdigest()] for one in found]


def product_version() -> str:
    """Return the version of this program."""
    try:
        return metadata.version("pitr")
    except metadata.PackageNotFoundError:
        return "a checkout"


def alone(reader: Reader, region: str) -> Repository:
    """Return the repository as one region has it."""
    store = next(one.store for one in reader.store.regions if one.name == region)
    return reader.repository.alone(store)


def reason_of(cause: BaseException) -> str:
    """Return in words why a run came to nothing."""
    if isinstance(cause, PitrError):
        return f"{cause.message}: {cause.detail}" if cause.detail else cause.message
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
