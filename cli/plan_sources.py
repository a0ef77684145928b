"""What a plan would read from, and how long its recovery would take: the rows under a plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cli.context import App
    from cli.output import Output
    from cli.reading import Source
    from cli.region_standing import RegionStanding
    from cli.wiring import Reader
    from pitr.catalogue.backup_record import BackupManifest
    from pitr.restore_plan import RestorePlan
    from verifiers.rto_model import Forecast


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, all backups that the regions hold, and the regions that did not answer all that was asked."""

    plan: RestorePlan
    backups: tuple[BackupManifest, ...]
    silent: tuple[str, ...]


def show_regions(
    output: Output, standings: Sequence[RegionStanding], silent: Sequence[str]
) -> list[dict[str, object]]:
    """Say which regions are read, in their order, and which are no help; return it for JSON."""
    fields: list[dict[str, object]] = []
    for one in standings:
        state = "does not answer" if one.counts and one.name in silent else str(one.standing)
        fields.append({"region": one.name, "is_read": one.counts and one.name not in silent, "state": state})
    read = [str(one["region"]) for one in fields if one["is_read"]]
    text = ", ".join(read) + (", the next where one lacks an object" if len(read) > 1 else "")
    others = [f"{one['region']} {one['state']}" for one in fields if not one["is_read"]]
    output.line(f"{'regions'.ljust(9)} {'; '.join(filter(None, [text, *others]))}")
    return fields


def show_forecast(
    app: App, reader: Reader, source: Source, plan: RestorePlan, backups: Iterable[BackupManifest]
) -> dict[str, object] | None:
    """Say how long the recovery would take by what was measured; return it for JSON."""
    from cli.forecast import forecast_fields, forecast_text, work_of

    forecast = _forecast(app, reader, source, plan, backups)
    app.output.line(f"{'forecast'.ljust(9)} {forecast_text(forecast)}")
    return forecast_fields(forecast, work_of(plan))


def _forecast(
    app: App, reader: Reader, source: Source, plan: RestorePlan, backups: Iterable[BackupManifest]
) -> Forecast | None:
    """Return how long the recovery will take; None where that cannot be told, which is no reason to fail."""
    from cli.config import find_config_or_none
    from cli.forecast import learn_from, work_of
    from pitr.errors import PitrError
    from storage.store import StoreError

    has_config = app.config_path is not None or find_config_or_none(None) is not None
    public_key = app.settings().verify_or_default.public_key_file if has_config and not source.urls else None
    try:
        model = learn_from(reader.store, public_key, plan.archive.system_identifier, backups)
    except (PitrError, StoreError) as error:
        app.output.note(f"no recovery time can be forecast: {error}")
        return None
    return None if model is None else model.forecast(work_of(plan))
