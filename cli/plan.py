"""``pitr plan TARGET``: how a target would be restored, and nothing else."""

from __future__ import annotations

from pathlib import Path

import click

from cli.context import common_options, current
from cli.reading import open_source, source_of, source_options
from cli.target import local_zone, read_target, target_options


@click.command()
@click.argument("target")
@target_options
@source_options
@common_options
def plan(
    target: str,
    exclusive: bool,
    timeline: str,
    backup_id: str | None,
    damaged: tuple[str, ...],
    source_urls: tuple[str, ...],
    source_identity: Path | None,
    source_region: str | None,
    source_archive: str | None,
) -> None:
    """Say how a target would be restored, and change nothing.

    On a host, which cannot read what it wrote, this gives the interval in which recovery would
    stop; with --identity the exact LSN. TARGET: latest, immediate, lsn:X/Y, xid:N, name:TEXT, a time with
    its zone, or "10 minutes ago".
    """
    from cli.copy_faults import telling_faults
    from cli.plan_sources import show_forecast, show_regions
    from cli.plan_view import plan_fields, show_plan
    from cli.planning import look, plan_from

    app = current()
    parsed = read_target(app, target, is_inclusive=not exclusive, timeline=timeline)
    source = source_of(source_urls, source_identity, source_region, source_archive)
    fields: dict[str, object] = {}
    with open_source(app, source) as reader, telling_faults(app.output, reader.store, fields):
        looked = look(reader, source, app.output, without=damaged)
        made = plan_from(looked, reader, source, parsed, app.output, backup_id=backup_id)
        zone = app.time_zone() or local_zone()
        show_plan(app.output, made, zone)
        fields["regions"] = show_regions(app.output, reader.standings, looked.read.unseen)
        fields["forecast"] = show_forecast(app, reader, source, made, looked.survey.backups)
    app.output.finish({"plan": plan_fields(made, zone), **fields})
