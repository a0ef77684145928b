"""How long a recovery will take, as commands and the daemon tell it: learned from the signed reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cli.config import may_be_there
from cli.output import format_seconds
from verifiers.rto_model import RtoModel, Work, learn

if TYPE_CHECKING:
    from pathlib import Path

    from pitr.catalogue.backup_record import BackupManifest
    from pitr.pipeline.sign import Verifier
    from pitr.restore_plan import RestorePlan
    from storage.store import ObjectStore
    from verifiers.rto_model import Forecast

NO_RUNS = "no runs yet: pitr verify measures the first"


def learn_from(
    store: ObjectStore, public_key: Path | None, system_identifier: int, backups: Iterable[BackupManifest]
) -> RtoModel | None:
    """Return the model of what was measured of a cluster; None where nothing was.

    The reports of the configured verifier count, or, where ``public_key`` is not there, those of the only one
    that there is.  Raises StoreError, PitrError.
    """
    from verifiers.rto_samples import read_runs

    verifier = _verifier(store, public_key)
    if verifier is None:
        return None
    return learn(read_runs(store, verifier, system_identifier, backups))


def _verifier(store: ObjectStore, public_key: Path | None) -> Verifier | None:
    from cli.report_log import read_public
    from verifiers.log_reader import log_key_ids, logged_key

    if public_key is not None and may_be_there(public_key):
        return read_public(public_key)
    key_ids = log_key_ids(store)
    return logged_key(store, key_ids[0]) if len(key_ids) == 1 else None


def work_of(plan: RestorePlan) -> Work:
    """Return what a plan has to do; where its stop is not known, at most."""
    used = plan.used_links
    wal_bytes = used[-1].until - used[0].start if used else 0
    return Work(plan.backup.size_bytes, plan.backup.files, wal_bytes)


def forecast_text(forecast: Forecast | None) -> str:
    """Return a forecast for people."""
    if forecast is None:
        return NO_RUNS
    runs = f"{forecast.runs} measured {'recovery' if forecast.runs == 1 else 'recoveries'}"
    error = "its error is not known" if forecast.error is None else f"± {forecast.error:.0%}"
    return f"about {format_seconds(forecast.seconds)} ({error}, from {runs})"


def forecast_fields(forecast: Forecast | None, work: Work) -> dict[str, object] | None:
    """Return a forecast for programs."""
    if forecast is None:
        return None
    return {
        "seconds": round(forecast.seconds, 3),
        "error": None if forecast.error is None else round(forecast.error, 4),
        "runs": forecast.runs,
        "restored_bytes": work.size_bytes,
        "files": work.files,
        "wal_bytes": work.wal_bytes,
    }
