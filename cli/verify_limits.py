"""What a report says in words beside what its run saw: locks that do not hold, and what was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cli.context import App
from cli.forecast import forecast_text, work_of
from cli.settings import RegionSettings
from pitr.errors import PitrError
from pitr.layout import checkpoint_key
from pitr.planner import plan_restore
from pitr.recovery import RecoveryTarget
from storage.locks import lock_of
from storage.regions import Region
from storage.store import ObjectMissing, StoreError
from storage.url import asks_lock
from verifiers.check_maker import clean
from verifiers.rto_model import learn
from verifiers.rto_samples import read_runs

if TYPE_CHECKING:
    from cli.planning import Looked
    from cli.verify_log import OpenedLog
    from verifiers.audit_log import AuditLog, Logged


def more_limits(
    app: App, regions: Sequence[RegionSettings], looked: Looked | None, opened: OpenedLog, intent: Logged
) -> list[str]:
    """Return the sentences; what cannot be asked for is one as well.  Raises nothing.

    ``looked`` None: nothing is forecast.
    """
    asking = {one.name for one in regions if asks_lock(one.url)}
    key = checkpoint_key(opened.log.key_id, intent.checkpoint.checkpoint.size)
    said = lock_limits((one for one in opened.store.regions if one.name in asking), key)
    if looked is not None:
        said += forecast_limits(app, looked, opened.log)
    return [clean(one) for one in said]


def lock_limits(regions: Iterable[Region], key: str) -> list[str]:
    """Say of which regions, whose urls ask for an Object Lock, ``key`` is not known to be locked there."""
    said = []
    for region in regions:
        try:
            why = None if lock_of(region.store, key) is not None else "no lock of it is told"
        except ObjectMissing:
            why = "it is not there (yet)"
        except StoreError as cause:
            why = f"it cannot be asked for: {cause}"
        if why is not None:
            said.append(
                f"the url of region {region.name} asks for an Object Lock, and the checkpoint over this run's"
                f" intent is not known to be locked there: {why}"
            )
    return said


def forecast_limits(app: App, looked: Looked, log: AuditLog) -> list[str]:
    """Say how long recovery of the latest moment is forecast to take; nothing before any was measured."""
    system = looked.archive.system_identifier
    try:
        plan = plan_restore(RecoveryTarget("latest"), looked.survey)
        model = learn(read_runs(log.store, log.signer.public, system, looked.survey.backups))
    except (PitrError, StoreError) as cause:
        app.output.note(f"no recovery time can be forecast: {cause}")
        return []
    if model is None:
        return []
    forecast = forecast_text(model.forecast(work_of(plan)))
    others = "no other moment was recovered to, so how long that takes was not measured"
    return [f"{others}; before this run the latest moment was forecast to take {forecast}"]
