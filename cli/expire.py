"""``pitr expire``: shows what the retention window no longer needs, and with ``--confirm`` drops it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from cli.context import App, common_options, current
from cli.errors import RegionsMissed, UsageRefused
from cli.units import parse_pair, read_duration_option

if TYPE_CHECKING:
    from cli.settings import Settings
    from cli.wiring import Reader
    from pitr.abandoned import AbandonedAttempt
    from pitr.catalogue.expiry_record import ExpireRecord
    from pitr.expire import RegionDeletion
    from pitr.expire_check import SetAside, SoundRegions
    from pitr.expire_record import BesidePlan, ExpiryPolicy, UsedKeys
    from pitr.expiry_reader import ListedExpiry
    from pitr.layout import ArchiveId
    from pitr.region_heads import NamedStore
    from pitr.retention import ExpiryPlan
    from pitr.survey import ArchiveSurvey
    from pitr.verified import RefusedObject
    from storage.regions import Region

_INSTANTS = 64
_SILENT = "the region does not answer"


@dataclass(frozen=True, slots=True)
class _Look:
    """What was read of the regions; ``manifests`` gives the digest of each manifest's object.

    ``forks`` are between the regions, and freeze expiry.  ``refused`` objects do so where they are not the
    trouble of a region that can be set aside.
    """

    survey: ArchiveSurvey
    manifests: dict[str, bytes]
    silent: tuple[str, ...]
    forks: tuple[str, ...]
    refused: tuple[RefusedObject, ...]

    @property
    def archives(self) -> tuple[ArchiveId, ...]:
        return tuple(record.archive for record in self.survey.epochs)


@click.command()
@click.option("--confirm", is_flag=True, help="Do it; without this it only shows what it would do.")
@click.option(
    "--grace",
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="How long what goes stays readable for restores that run.",
)
@click.option(
    "--identity",
    type=click.Path(path_type=Path),
    help="The reader's identity file: its root key signs what is gone.",
)
@click.option(
    "--credentials",
    multiple=True,
    metavar="NAME=FILE",
    help="AWS credentials file that may delete in a region; may be repeated.",
)
@click.option("--archive", metavar="SYSTEM", help="Which cluster, if there are several.")
@common_options
def expire(
    confirm: bool, grace: str, identity: Path | None, credentials: tuple[str, ...], archive: str | None
) -> None:
    """Drop what the retention window no longer needs.

    Shows what keeps each backup, what would go, and what stays restorable; with --confirm it does it. First
    the planner proves that every moment in the window leads to the same restore as before; if anything is
    in doubt nothing is deleted, and the exit code is 7. Where only one region is in doubt it is set aside:
    nothing is deleted there. What is gone is signed first, then manifests go, and after --grace the rest:
    by the next run, as a rule. A run that was killed is finished by the next.
    """
    from cli.expire_view import beside_fields, freed_bytes, plan_fields, show_beside, show_plan
    from cli.reading import choose_archive
    from cli.wiring import open_reader
    from pitr.expire_check import SetAside
    from pitr.expire_record import ExpiryPolicy
    from pitr.retention import plan_expiry

    app = current()
    settings = app.settings()
    grace_s = read_duration_option("--grace", grace)
    if confirm and identity is None:
        raise UsageRefused(
            "only the root key expires",
            detail="a database host can delete nothing, so no key of its own is asked",
            hint="--identity FILE; it belongs on no database host",
        )
    policy = ExpiryPolicy(
        timedelta(seconds=settings.retention.window_s),
        settings.retention.minimum_backups,
        timedelta(seconds=grace_s),
    )
    with open_reader(_with_credentials(settings, credentials), identity_path=identity) as reader:
        now = datetime.now(UTC)
        look = _look(app, reader, choose_archive(reader.repository, archive))
        plan = plan_expiry(
            look.survey, window=policy.window, minimum_full_backups=policy.minimum_full_backups, now=now
        )
        plan = replace(plan, attempts=_abandoned(app, reader, look, now))
        pending = [reader.repository.expiry.newest(each) for each in look.archives]
        freed = freed_bytes(plan, reader.store.regions)
        show_plan(app.output, plan, freed)
        app.partial_result = fields = plan_fields(plan, freed)
        beside = _plan_beside(reader, look, plan, pending)
        show_beside(app.output, beside)
        fields["beside"] = beside_fields(beside)
        regions, keys = _prepare(app, reader, look, plan, pending, now)
        _tell_aside(app, regions, fields)
        if not confirm:
            app.output.line("nothing was deleted; with --confirm it is")
            app.output.finish(fields)
            return
        _confirm(app, settings)
        now = datetime.now(UTC)
        records = _records(reader, look, plan, pending, keys, policy, now, beside)
        outcomes = _carry_out(reader, regions.sound, pending, records, now)
    _tell(app, outcomes, records, [*(SetAside(one, _SILENT) for one in look.silent), *regions.aside], fields)


def _with_credentials(settings: Settings, credentials: Sequence[str]) -> Settings:
    """Return the settings with other credentials: the host's own have no delete."""
    files: dict[str, Path] = {}
    for text in credentials:
        name, file = parse_pair(text, "--credentials NAME=FILE")
        files[name] = Path(file).absolute()
    unknown = files.keys() - {region.name for region in settings.regions}
    if unknown:
        raise UsageRefused(
            f"--credentials names a region that is not configured: {', '.join(sorted(unknown))}"
        )
    regions = tuple(
        replace(region, credentials_file=files.get(region.name, region.credentials_file))
        for region in settings.regions
    )
    return replace(settings, regions=regions)


def _look(app: App, reader: Reader, archive: ArchiveId) -> _Look:
    from cli.forks import warn_of_forks
    from cli.planning import read_regions
    from pitr.catalogue.sqlite import Catalogue
    from pitr.catalogue_survey import survey_archive

    forks = warn_of_forks(reader, archive, app.output)
    catalogue = Catalogue(":memory:")
    try:
        result = read_regions(reader, catalogue, app.output)
        survey = survey_archive(catalogue, archive, reader.answers(result.unseen))
        manifests = {
            found.manifest.backup: found.object_sha256
            for record in survey.epochs
            for found in catalogue.backups(record.archive)
        }
    finally:
        catalogue.close()
    return _Look(survey, manifests, result.unseen, tuple(str(fork) for fork in forks), result.refused)


def _plan_beside(
    reader: Reader, look: _Look, plan: ExpiryPlan, pending: Sequence[ListedExpiry | None]
) -> dict[ArchiveId, BesidePlan]:
    """Return what goes of fences, of a mirror's pairs and of snapshots of Redis, by archive."""
    from pitr.catalogue.expiry_record import GoneBeside
    from pitr.expire_beside import plan_beside
    from pitr.retention_beside import first_moment, first_positions

    positions, moment = first_positions(look.survey, plan), first_moment(plan)
    return {
        archive: plan_beside(
            reader.repository,
            archive,
            GoneBeside() if previous is None else previous.record.beside,
            positions.get(archive),
            moment,
        )
        for archive, previous in zip(look.archives, pending, strict=True)
    }


def _abandoned(app: App, reader: Reader, look: _Look, now: datetime) -> tuple[AbandonedAttempt, ...]:
    """Return the attempts at backups that nobody goes on with any more."""
    from pitr.abandoned import abandoned_before
    from pitr.expire_attempts import find_abandoned
    from storage.store import StoreError

    before = abandoned_before(now, timedelta(seconds=app.settings().backup.deadline_s))
    regions = _answering(reader, look)
    found: list[AbandonedAttempt] = []
    for archive in look.archives:
        try:
            found += find_abandoned(reader.repository, archive, regions, before=before, now=now)
        except StoreError as error:
            # Each region that answers is asked who has a manifest: without one of them nobody can say.
            app.output.warn(f"interrupted backups of archive {archive} stay: {error}")
    return tuple(found)


def _prepare(
    app: App,
    reader: Reader,
    look: _Look,
    plan: ExpiryPlan,
    pending: Sequence[ListedExpiry | None],
    now: datetime,
) -> tuple[SoundRegions, dict[ArchiveId, UsedKeys]]:
    """Prove the plan and look for what freezes expiry; return where it may act, and the data keys in use."""
    from pitr.expire_check import freezing_signals, regions_needed, without_doubtful, without_lacking
    from pitr.expire_record import used_keys
    from pitr.retention import what_stays
    from pitr.retention_proof import prove_plan

    reasons = list(look.forks)
    reasons += freezing_signals(look.survey, now=now, backup_age_max=_backup_age_max(app.settings()))
    window = (now - plan.since).total_seconds()
    instants = [plan.since + timedelta(seconds=random.uniform(0, window)) for _ in range(_INSTANTS)]
    proven = prove_plan(look.survey, plan, now=now, instants=instants)
    app.output.note(f"proved: {proven.targets} targets lead to the same restores without what would go")
    doubts, faults = _doubts(reader, look)
    reasons += faults
    needed = regions_needed(len(reader.store.regions), reader.store.quorum)
    regions = without_doubtful(doubts, _answering(reader, look), needed)
    regions = replace(regions, reasons=(*reasons, *regions.reasons))
    if regions.reasons:
        return regions, {}
    keys = {
        archive: used_keys(reader.repository, archive, plan, previous)
        for archive, previous in zip(look.archives, pending, strict=True)
    }
    kept = {name: used.of_kept for name, used in keys.items()}
    return without_lacking(what_stays(look.survey, plan), kept, regions, needed), keys


def _records(
    reader: Reader,
    look: _Look,
    plan: ExpiryPlan,
    pending: Sequence[ListedExpiry | None],
    keys: Mapping[ArchiveId, UsedKeys],
    policy: ExpiryPolicy,
    now: datetime,
    beside: Mapping[ArchiveId, BesidePlan],
) -> list[ExpireRecord]:
    """Return the records to sign; what they name may be deleted when the policy's grace has passed.

    ``now`` is when they are signed: restores have the grace however long somebody thought about the plan.
    """
    from pitr.expire_record import next_record

    records = [
        next_record(
            reader.repository,
            archive,
            previous,
            plan,
            look.manifests,
            keys[archive],
            reader.store.regions,
            policy=policy,
            now=now,
            beside=beside[archive],
        )
        for archive, previous in zip(look.archives, pending, strict=True)
    ]
    return [record for record in records if record is not None]


def _doubts(reader: Reader, look: _Look) -> tuple[list[RefusedObject], list[str]]:
    """Return the objects that cannot be used, and what else is wrong with the chains."""
    from pitr.verified import RefusedObject
    from verifiers.base import Severity
    from verifiers.chain import check_chain

    doubts, faults = {one.key: one for one in look.refused}, []
    for archive in look.archives:
        for finding in check_chain(reader.repository, archive):
            if finding.severity is not Severity.FAIL:
                continue
            if finding.subject.startswith(("wal/", "heads/")):
                doubts[finding.subject] = RefusedObject(finding.subject, finding.message)
            else:
                faults.append(f"{finding.subject}: {finding.message}")
    return list(doubts.values()), faults


def _backup_age_max(settings: Settings) -> timedelta | None:
    """Return how old the newest backup may be: one that was missed, and one that takes its time."""
    every_s = settings.backup.every_s
    return None if every_s is None else timedelta(seconds=2 * every_s + settings.backup.deadline_s)


def _answering(reader: Reader, look: _Look) -> list[Region]:
    return [region for region in reader.store.regions if region.name not in look.silent]


def _tell_aside(app: App, regions: SoundRegions, fields: dict[str, object]) -> None:
    """Say in which regions nothing is deleted; end here if that is so in all."""
    fields["set_aside"] = [{"region": one.region, "reason": one.reason} for one in regions.aside]
    if regions.reasons:
        _refuse(regions.reasons)
    for one in regions.aside:
        app.output.warn(f"region {one.region} is set aside, nothing is deleted there: {one.reason}")


def _refuse(reasons: Sequence[str]) -> NoReturn:
    from pitr.errors import ExpiryRefused

    raise ExpiryRefused(
        "expiry is frozen; nothing was deleted",
        detail="\n".join(reasons),
        hint="mend it, and run it again; docs/expire.md",
    )


def _confirm(app: App, settings: Settings) -> None:
    if app.is_yes:
        return
    if not app.output.is_interactive():
        raise UsageRefused(
            "expiry must be confirmed",
            detail="nobody can be asked here: this is no terminal",
            hint="add --yes, or leave out --confirm to see the plan",
        )
    name = settings.cluster.name
    answer = click.prompt(f"This cannot be undone. Type the cluster's name ({name})", default="", err=True)
    if answer.strip() != name:
        raise UsageRefused("that is not the cluster's name; nothing was deleted")


def _carry_out(
    reader: Reader,
    sound: Sequence[NamedStore],
    pending: Sequence[ListedExpiry | None],
    records: Sequence[ExpireRecord],
    now: datetime,
) -> list[RegionDeletion]:
    """Sign and put every record in all regions, then delete in those that are sound what it names."""
    from pitr.expire import carry_out, put_record

    assert reader.identity is not None, "the command asks for an identity first"
    signer = reader.identity.identity.root_signer()
    newest = {one.record.archive: one.record for one in pending if one is not None}
    regions, quorum = reader.store.regions, reader.store.quorum
    for record in records:
        body = reader.repository.expiry.sign(record, signer)
        put_record(record, body, regions, root=signer.public, quorum=quorum)
        newest[record.archive] = record
    outcomes: list[RegionDeletion] = []
    for record in newest.values():
        body = reader.repository.expiry.sign(record, signer)
        outcomes += carry_out(record, body, sound, now=now)
    return outcomes


def _tell(
    app: App,
    outcomes: Sequence[RegionDeletion],
    records: Sequence[ExpireRecord],
    aside: Sequence[SetAside],
    fields: dict[str, object],
) -> None:
    from cli.expire_view import outcome_fields, show_outcomes

    show_outcomes(app.output, outcomes, records)
    fields |= outcome_fields(outcomes, records)
    missed = [*(one.region for one in aside), *(one.region for one in outcomes if one.refused or one.is_left)]
    if missed:
        whys = [*(one.first_refusal for one in outcomes), *(one.reason for one in aside)]
        first = next((why for why in whys if why), None)
        raise RegionsMissed(
            f"not deleted everywhere: {', '.join(dict.fromkeys(missed))}",
            detail=first or _SILENT,
            hint="what is gone is signed; the next run tries again, with --credentials that may delete",
        )
    app.output.finish(fields)
