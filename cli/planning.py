"""From the regions to a plan: what commands that read have in common."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cli.output import Output
from cli.reading import Source, choose_archive
from cli.wiring import Reader
from pitr.catalogue.sqlite import Catalogue
from pitr.catalogue_rebuild import NamedRegion, RebuildResult, rebuild
from pitr.catalogue_survey import survey_archive

if TYPE_CHECKING:
    from cli.forks import ForkSeen
    from pitr.catalogue.records import HeadRecord
    from pitr.catalogue.wal_records import WalUnit
    from pitr.layout import ArchiveId
    from pitr.recovery import RecoveryTarget
    from pitr.restore_plan import RestorePlan
    from pitr.survey import ArchiveSurvey

_REFUSED_SHOWN_MAX = 10


def read_regions(reader: Reader, catalogue: Catalogue, output: Output) -> RebuildResult:
    """Fill a catalogue from the regions, and warn of what cannot be used and of who does not answer.

    Where fewer regions answer than must know of everything at quorum, what a region's last signed head
    does not speak of is left out: later objects may be missing there without anyone knowing.
    """
    named = [NamedRegion(region.name, region.store) for region in reader.store.regions]
    answers = reader.answers()
    result = rebuild(reader.repository, catalogue, answers=answers, regions=named)
    for one in reader.standings:
        if not one.counts:
            output.warn(f"region {one.name} {one.standing}")
    for archive in result.archives:
        found = catalogue.head(archive)
        signed = None if found is None else found.head.quorum
        if not answers.are_enough(signed):
            output.warn(
                f"archive {archive}: {answers.describe(signed)};"
                " what came after the last signed end there is left out"
            )
    for refused in result.refused[:_REFUSED_SHOWN_MAX]:
        output.warn(f"{refused.key} cannot be used: {refused.reason}")
    if len(result.refused) > _REFUSED_SHOWN_MAX:
        output.warn(f"and {len(result.refused) - _REFUSED_SHOWN_MAX} more objects cannot be used")
    return result


@dataclass(frozen=True, slots=True)
class Looked:
    """What the regions say of one archive, read once for any number of plans."""

    archive: ArchiveId
    forks: tuple[ForkSeen, ...]
    survey: ArchiveSurvey
    heads: Mapping[ArchiveId, HeadRecord]
    read: RebuildResult


def look(reader: Reader, source: Source, output: Output, *, without: Collection[str] = ()) -> Looked:
    """Read the regions; ``without`` names backups that are not to be used.  Raises as ``make_plan``."""
    from cli.forks import warn_of_forks
    from pitr.survey import leave_out

    archive = choose_archive(reader.repository, source.archive)
    forks = warn_of_forks(reader, archive, output)
    catalogue = Catalogue(":memory:")
    try:
        result = read_regions(reader, catalogue, output)
        survey = leave_out(survey_archive(catalogue, archive, reader.answers(result.unseen)), without)
        heads = {other: found.head for other in result.archives if (found := catalogue.head(other))}
    finally:
        catalogue.close()
    return Looked(archive, forks, survey, heads, result)


def make_plan(
    reader: Reader,
    source: Source,
    target: RecoveryTarget,
    output: Output,
    *,
    backup_id: str | None = None,
    without: Collection[str] = (),
) -> RestorePlan:
    """Return the plan for a target: with its exact stop if there is an identity to read WAL with.

    ``without`` names backups that are not to be used.

    Unless ``source`` names the epoch, a target that could be meant in an older one too is refused.

    Raises TargetRefused, StoreError, NotAuthentic, KeyMissing.
    """
    looked = look(reader, source, output, without=without)
    return plan_from(looked, reader, source, target, output, backup_id=backup_id)


def plan_from(
    looked: Looked,
    reader: Reader,
    source: Source,
    target: RecoveryTarget,
    output: Output,
    *,
    backup_id: str | None = None,
) -> RestorePlan:
    """Return the plan from what was read already.  Raises as ``make_plan``."""
    from cli.forks import refuse_forked
    from pitr.datakeys import DataKeys
    from pitr.epoch_choice import judge_epoch
    from pitr.planner import plan_restore
    from pitr.stop import resolve_plan

    survey = looked.survey

    def judged(plan: RestorePlan) -> RestorePlan:
        warning = None if source.names_epoch else judge_epoch(plan, survey.epochs, looked.heads)
        if warning is not None:
            output.warn(warning)
        return plan

    if reader.identity is None:
        return judged(plan_restore(target, survey, backup=backup_id))
    keys = DataKeys(reader.repository, reader.identity.identity)

    def read_wal(unit: WalUnit) -> bytes:
        return reader.repository.read_wal(unit.key, keys)

    return judged(refuse_forked(resolve_plan(target, survey, read_wal, backup=backup_id), looked.forks))
