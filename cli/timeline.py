"""``pitr timeline``: which moments can be restored, from which regions; and why others cannot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import common_options, current
from cli.errors import GapFound
from cli.reading import Source, choose_archive, open_source, source_of, source_options
from cli.target import read_timeline

if TYPE_CHECKING:
    from cli.output import Output
    from cli.wiring import Reader
    from pitr.timeline_map import MapSources, TimelineMap

# The newest; events are some in a year.
_EVENTS_MAX = 10_000


@click.command()
@click.option("--gaps-only", is_flag=True, help="Show what cannot be restored only.")
@click.option(
    "--timeline",
    "wanted",
    default="latest",
    show_default=True,
    metavar="N|latest|current",
    help="The timeline whose way is asked for.",
)
@source_options
@common_options
def timeline(
    gaps_only: bool,
    wanted: str,
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
) -> None:
    """Map what can be restored, from where, and why the rest cannot.

    Every span of WAL is on the map: whether it can be restored, which regions suffice alone, its timeline and
    writer epoch, and why it cannot be restored. Signed records are enough: no WAL is opened. Exit code 0 if
    every moment since the oldest backup can be restored along the way that was asked for, else 4.
    """
    from cli.copy_faults import telling_faults
    from cli.timeline_fields import gap_text, map_fields
    from cli.timeline_view import show_map
    from pitr.timeline_map import map_timelines

    app = current()
    followed = read_timeline(wanted)
    source = source_of(source_urls, source_identity, source_region, source_archive)
    fields: dict[str, object] = {}
    app.partial_result = fields
    with open_source(app, source) as reader, telling_faults(app.output, reader.store, fields):
        made = map_timelines(_gather(reader, source, app.output), followed)
    fields |= map_fields(made, gaps_only=gaps_only)
    if not made.end.is_certain:
        app.output.warn(f"the end of the archive is not certain: {made.end.detail}")
    show_map(app.output, made, gaps_only=gaps_only)
    if not made.is_whole:
        raise GapFound(
            "there is no backup that can be restored"
            if made.first is None
            else f"some moments since the oldest backup cannot be restored: {_count(len(made.gaps), 'gap')}",
            detail="\n".join(gap_text(gap) for gap in made.gaps[:_GAPS_TOLD_MAX])
            or "no usable backup is on this way",
            hint=_hint(made),
        )
    app.output.finish(fields)


# More would be no message but a list, and the map above is one.
_GAPS_TOLD_MAX = 5


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _hint(made: TimelineMap) -> str:
    if not made.spans or not made.spans[-1].is_restorable:
        return "pitr backup: from a new base backup on, every moment can be restored again"
    return "if a region that was not read holds the WAL, read it too; else the gap leaves with the window"


def _gather(reader: Reader, source: Source, output: Output) -> MapSources:
    """Read all that the map is made of.  Raises StoreError, NotAuthentic, NotInitialised."""
    from itertools import chain

    from cli.forks import warn_of_forks
    from cli.planning import read_regions
    from pitr.catalogue.sqlite import Catalogue
    from pitr.catalogue_survey import survey_archive
    from pitr.event_reader import EventReader
    from pitr.region_holdings import find_holdings
    from pitr.survey import ArchiveEnd
    from pitr.timeline_causes import damaged_wal, expired_wal
    from pitr.timeline_events import event_causes
    from pitr.timeline_map import MapSources

    archive = choose_archive(reader.repository, source.archive)
    warn_of_forks(reader, archive, output)
    catalogue = Catalogue(":memory:")
    try:
        result = read_regions(reader, catalogue, output)
        answers = reader.answers(result.unseen)
        survey = survey_archive(catalogue, archive, answers)
        own = [one for one in result.archives if one.system_identifier == archive.system_identifier]
        heads = {one: catalogue.head(one) for one in own}
    finally:
        catalogue.close()
    holdings = find_holdings(survey.backups, reader.store.regions)
    unseen = {*result.unseen, *holdings.unseen}
    for name in sorted(unseen):
        output.warn(f"region {name} did not answer: what it holds is not known")
    sizes = chain(
        (unit.segment_bytes for unit in survey.units), (backup.segment_bytes for backup in survey.backups)
    )
    segment_bytes = next(sizes, None)
    records = [found.record for one in own if (found := reader.repository.expiry.newest(one)) is not None]
    events = EventReader(reader.repository)
    pages = [events.page(one, limit=_EVENTS_MAX) for one in own]
    for fault in chain.from_iterable(page.faults for page in pages):
        output.warn(f"signed events: {fault}")
    known = [*event_causes(one.record for page in pages for one in page.events)]
    if segment_bytes is not None:
        known += [*expired_wal(records, segment_bytes), *damaged_wal(result.refused, segment_bytes)]
    return MapSources(
        survey=survey,
        ends={
            one: ArchiveEnd.of(None if found is None else found.head, answers) for one, found in heads.items()
        },
        regions=tuple(one.name for one in reader.store.regions if one.name not in unseen),
        backup_regions=holdings.regions,
        known=tuple(known),
        expired=frozenset(record.archive for record in records if record.backups),
    )
