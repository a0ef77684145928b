"""``pitr plan TARGET``: how a target would be restored, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.context import App, common_options, current
from cli.reading import Source, open_source, source_of, source_options
from cli.target import local_zone, read_target, target_options

if TYPE_CHECKING:
    from cli.wiring import Reader
    from pitr.catalogue.backup_record import BackupManifest
    from pitr.restore_plan import RestorePlan
    from verifiers.rto_model import Forecast


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
    from cli.forecast import forecast_fields, forecast_text, work_of
    from cli.plan_view import plan_fields, show_plan
    from cli.planning import look, plan_from

    app = current()
    parsed = read_target(app, target, is_inclusive=not exclusive, timeline=timeline)
    source = source_of(source_urls, source_identity, source_region, source_archive)
    fields: dict[str, object] = {}
    with open_source(app, source) as reader, telling_faults(app.output, reader.store, fields):
        looked = look(reader, source, app.output, without=damaged)
        made = plan_from(looked, reader, source, parsed, app.output, backup_id=backup_id)
        forecast = _forecast(app, reader, source, made, looked.survey.backups)
    zone = app.time_zone() or local_zone()
    show_plan(app.output, made, zone)
    app.output.line(f"{'forecast'.ljust(9)} {forecast_text(forecast)}")
    told = forecast_fields(forecast, work_of(made))
    app.output.finish({"plan": plan_fields(made, zone), "forecast": told, **fields})


def _forecast(
    app: App, reader: Reader, source: Source, plan: RestorePlan, backups: Iterable[BackupManifest]
) -> Forecast | None:
    """Return how long the recovery will take; None where that cannot be told, which is no reason to fail."""
    from cli.forecast import learn_from, work_of
    from pitr.errors import PitrError
    from storage.store import StoreError

    public_key = None if source.urls else app.settings().verify_or_default.public_key_file
    try:
        model = learn_from(reader.store, public_key, plan.archive.system_identifier, backups)
    except (PitrError, StoreError) as error:
        app.output.note(f"no recovery time can be forecast: {error}")
        return None
    return None if model is None else model.forecast(work_of(plan))
