"""``pitr timeline``: which moments can be restored, from which regions; and why others cannot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import common_options, current
from cli.errors import GapFound
from cli.reading import Source, open_source, source_of, source_options
from cli.target import read_timeline

if TYPE_CHECKING:
    from cli.output import Output
    from cli.wiring import Reader
    from pitr.timeline_map import MapSources, TimelineMap


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
    from cli.map_sources import map_sources
    from cli.planning import look

    looked = look(reader, source, output)
    return map_sources(reader, looked.survey, looked.heads, looked.read, output)
