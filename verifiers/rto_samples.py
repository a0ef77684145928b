"""Measured recoveries, from the signed reports in the store: what the forecast is learned from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import PitrError
from pitr.layout import report_prefix
from pitr.pipeline.sign import Verifier
from pitr.verified import get_verified
from storage.store import ObjectStore
from verifiers.rto_model import Run, Work
from verifiers.statement import open_report

# Each costs one read, and the newest tell most.
REPORTS_READ_MAX: Final = 20
_KEYS_LISTED_MAX: Final = 10 * REPORTS_READ_MAX
_REPORT: Final = "/report"


def read_runs(
    store: ObjectStore, verifier: Verifier, system_identifier: int, backups: Iterable[BackupManifest]
) -> list[Run]:
    """Return the recoveries that a verifier has measured of a cluster, the newest first.

    ``backups`` tell how many files were restored; where the backup is gone, the newest one's files of a
    mean size are taken.  A report that cannot be read is left out.  Raises StoreError.
    """
    known = {one.backup: one for one in backups}
    newest = max(known.values(), key=lambda one: one.stopped_at, default=None)
    files_per_byte = 0.0 if newest is None or not newest.size_bytes else newest.files / newest.size_bytes
    runs = []
    for key in report_keys(store, verifier.key_id, system_identifier):
        try:
            report = get_verified(store, key, lambda body: open_report(body, verifier))
        except PitrError:
            continue
        run = run_of(report.predicate, known, files_per_byte)
        if run is not None:
            runs.append(run)
    return runs


def report_keys(store: ObjectStore, key_id: str, system_identifier: int) -> list[str]:
    """Return the keys of the newest reports, the newest first.  Raises StoreError."""
    # The numbers in the keys count down, so that the newest come first; the last part names one report.
    prefix = report_prefix(key_id, system_identifier, 1).rsplit("/", 2)[0] + "/"
    found: list[str] = []
    for number, info in enumerate(store.list_objects(prefix)):
        if info.key.endswith(_REPORT):
            found.append(info.key)
        if len(found) >= REPORTS_READ_MAX or number >= _KEYS_LISTED_MAX:
            break
    return found


def run_of(
    predicate: Mapping[str, Any], known: dict[str, BackupManifest], files_per_byte: float
) -> Run | None:
    """Return what a report measured; None if the recovery did not come to its end."""
    timings = predicate["timings"]
    took_ms, size_bytes, wal_bytes = (timings[name] for name in ("recovery_time_ms", "bytes", "wal_bytes"))
    if not took_ms or size_bytes is None or wal_bytes is None:
        return None
    backup = known.get(predicate["source"]["backup_id"])
    files = round(size_bytes * files_per_byte) if backup is None else backup.files
    return Run(Work(size_bytes, files, wal_bytes), took_ms / 1000)
