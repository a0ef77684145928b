"""What the map of timelines is made of: for ``pitr timeline``, and for what a report says can be restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from pitr.errors import PitrError
from pitr.event_reader import EventReader
from pitr.pipeline.sign import encode_time
from pitr.region_holdings import find_holdings
from pitr.survey import ArchiveEnd
from pitr.timeline_causes import damaged_wal, expired_wal, unproven_past
from pitr.timeline_events import event_causes
from pitr.timeline_map import MapSources, TimelineMap, map_timelines
from storage.store import StoreError

if TYPE_CHECKING:
    from cli.output import Output
    from cli.planning import Looked
    from cli.wiring import Reader
    from pitr.catalogue.records import HeadRecord
    from pitr.catalogue_rebuild import RebuildResult
    from pitr.layout import ArchiveId
    from pitr.survey import ArchiveSurvey
    from verifiers.verify_report import ReportFacts

# The newest; events are some in a year.
_EVENTS_MAX = 10_000
# Spans of a report, the newest: a map has a few dozen.
SPANS_MAX = 500


def map_sources(
    reader: Reader,
    survey: ArchiveSurvey,
    heads: Mapping[ArchiveId, HeadRecord],
    result: RebuildResult,
    output: Output,
) -> MapSources:
    """Read what a survey lacks: who holds which backup, events, expiry.  Raises StoreError, NotAuthentic."""
    answers = reader.answers(result.unseen)
    own = [one for one in result.archives if one.system_identifier == survey.archive.system_identifier]
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
    known += unproven_past(survey.epochs, survey.histories, survey.units)
    return MapSources(
        survey=survey,
        ends={one: ArchiveEnd.of(heads.get(one), answers) for one in own},
        regions=tuple(one.name for one in reader.store.regions if one.name not in unseen),
        backup_regions=holdings.regions,
        known=tuple(known),
        expired=frozenset(record.archive for record in records if record.backups),
    )


def with_map(facts: ReportFacts, reader: Reader, looked: Looked, output: Output) -> ReportFacts:
    """Return what a report says with what can be restored along its way, or why that is not known."""
    try:
        sources = map_sources(reader, looked.survey, looked.heads, looked.read, output)
        spans = report_spans(map_timelines(sources, facts.plan.timeline))
    except (PitrError, StoreError) as cause:
        note = f"what else can be restored was not found out: {cause}"
        return replace(facts, notes=(*facts.notes, note))
    notes = [*facts.notes, *gap_notes(spans)]
    if len(spans) > SPANS_MAX:
        notes.append(f"the map of what can be restored has its newest {SPANS_MAX} spans alone")
    return replace(facts, recoverability=spans[-SPANS_MAX:], notes=tuple(notes))


def gap_notes(spans: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a report says of moments that cannot be restored; another moment proves none.  Pure."""
    gaps = [span for span in spans if span["state"] == "gap"]
    if not gaps:
        return []
    newest = gaps[-1]
    since = newest["from_at"] or f"lsn:{newest['start_lsn']}"
    count = "a stretch" if len(gaps) == 1 else f"{len(gaps)} stretches"
    said = f"since the oldest backup {count} of time cannot be restored, the newest from {since} on"
    return [said if newest["cause"] is None else f"{said}: {newest['cause']}"]


def report_spans(made: TimelineMap) -> list[dict[str, Any]]:
    """Return what a report says can be restored: the way's spans since its oldest backup.  Pure.

    What has expired was meant to go, and is left out; so is WAL from before the oldest backup.
    """
    gaps = {*made.gaps}
    spans = [span for span in made.spans if span.is_restorable or span in gaps]
    return [
        {
            "start_lsn": str(span.start),
            "end_lsn": str(span.end),
            "timeline": str(span.timeline),
            "state": "restorable" if span.is_restorable else "gap",
            "cause": None if span.cause is None else str(span.cause),
            "regions": list(span.regions),
            "from_at": None if span.first_at is None else encode_time(span.first_at),
            "to_at": None if span.last_at is None else encode_time(span.last_at),
        }
        for span in spans
    ]
