"""docs/timeline.md shows a map and promises a shape: the map is drawn here, the shape is compared."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import fix_archive as fix

from cli.output import Output
from cli.timeline_fields import map_fields
from cli.timeline_view import show_map
from pitr.catalogue.records import EpochRecord
from pitr.survey import ArchiveEnd, ArchiveSurvey
from pitr.timeline_map import MapSources, TimelineMap, map_timelines
from pitr.timeline_spans import Cause, Lack
from pitr.wal.lsn import LSN

PAGE = (Path(__file__).parents[2] / "docs" / "timeline.md").read_text("utf-8")
SEG = fix.SEGMENT_BYTES
REGIONS = ("ap", "eu", "us")


def _map() -> TimelineMap:
    """Segments 2 to 7 without 4, a backup in 2 and in 5, and a region that lags since 7."""
    units = tuple(
        fix.unit_of(
            LSN(number * SEG),
            LSN((number + 1) * SEG),
            fix.times(10 * number),
            sequence=number,
            is_segment=True,
            regions=REGIONS if number < 7 else REGIONS[1:],
        )
        for number in (2, 3, 5, 6, 7)
    )
    backups = tuple(
        fix.backup_of(
            LSN(number * SEG + 40),
            LSN(number * SEG + 1000),
            stopped_at=fix.at_second(10 * number + 1),
            number=number,
        )
        for number in (2, 5)
    )
    epoch = EpochRecord(fix.REPOSITORY, fix.archive_of(1), fix.BEGIN, "ed25519:x")
    end = ArchiveEnd(None, True, "3 of 3 regions answered")
    survey = ArchiveSurvey(fix.archive_of(1), (epoch,), {}, backups, units, end)
    holders = {backup.backup: REGIONS for backup in backups}
    return map_timelines(MapSources(survey, {fix.archive_of(1): end}, REGIONS, holders))


def test_the_example_is_what_the_command_writes() -> None:
    written = io.StringIO()
    show_map(Output(stdout=written), _map(), gaps_only=False)
    shown = "".join(f"    {line}\n" for line in written.getvalue().splitlines())
    assert f"    $ pitr timeline\n{shown}\n" in PAGE, shown


def test_the_page_names_every_cause_and_every_field() -> None:
    for name in (*Cause, *Lack):
        assert f"| `{name}` |" in PAGE, name
    fields = json.loads(json.dumps(map_fields(_map())))
    named = set(re.findall(r"`([a-z_]+)`", PAGE.split("## JSON")[1]))
    used: set[str] = set()
    pending: list[object] = [fields]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            used |= one.keys()
            pending += one.values()
        elif isinstance(one, list):
            pending += one
    assert used <= named
    assert len(used) > 25
