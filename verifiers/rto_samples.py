"""Measured recoveries, from the signed reports in the store: what the forecast is learned from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import PitrError
from pitr.layout import report_prefix
from pitr.pipeline.sign import Verifier
from pitr.verified import get_verified
from storage.store import ObjectStore
from verifiers.rto_model import Run, Work
from verifiers.statement import open_report

# The newest tell most.
RUNS_WANTED: Final = 20
# Each costs one read.  Drills of components, each day where nobody says otherwise, are reports too and
# measure no recovery: twenty weekly verifications are among 160.
REPORTS_READ_MAX: Final = 200
_KEYS_LISTED_MAX: Final = 10 * REPORTS_READ_MAX
_READS_AT_ONCE: Final = 8
_REPORT: Final = re.compile(r"[0-9a-f]{16}/report")


def read_runs(
    store: ObjectStore, verifier: Verifier, system_identifier: int, backups: Iterable[BackupManifest]
) -> list[Run]:
    """Return the recoveries that a verifier has measured of a cluster, the newest first.

    ``backups`` tell how many files were restored; where the backup is gone, the newest one's files of a
    mean size are taken.  A report that cannot be read is left out; those that measured no recovery are passed
    by, until RUNS_WANTED are found.  Raises StoreError.
    """
    known = {one.backup: one for one in backups}
    newest = max(known.values(), key=lambda one: one.stopped_at, default=None)
    files_per_byte = 0.0 if newest is None or not newest.size_bytes else newest.files / newest.size_bytes

    def read(key: str) -> Run | None:
        try:
            report = get_verified(store, key, lambda body: open_report(body, verifier))
        except PitrError:
            return None
        return run_of(report.predicate, known, files_per_byte)

    runs: list[Run] = []
    keys = report_keys(store, verifier.key_id, system_identifier)
    with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="forecast") as pool:
        for start in range(0, len(keys), RUNS_WANTED):
            some = keys[start : start + RUNS_WANTED]
            runs += [run for run in pool.map(read, some) if run is not None]
            if len(runs) >= RUNS_WANTED:
                break
    return runs[:RUNS_WANTED]


def report_keys(store: ObjectStore, key_id: str, system_identifier: int) -> list[str]:
    """Return the keys of the newest reports, the newest first.  Raises StoreError."""
    # The numbers in the keys count down, so that the newest come first; the last part names one report.
    prefix = report_prefix(key_id, system_identifier, 1).rsplit("/", 2)[0] + "/"
    found: list[str] = []
    for number, info in enumerate(store.list_objects(prefix)):
        # Those of periods lie beside them, and are signed statements of another kind.
        if _REPORT.fullmatch(info.key.removeprefix(prefix)):
            found.append(info.key)
        if len(found) >= REPORTS_READ_MAX or number >= _KEYS_LISTED_MAX:
            break
    return found


def run_of(
    predicate: Mapping[str, Any], known: dict[str, BackupManifest], files_per_byte: float
) -> Run | None:
    """Return what a report measured; None if the recovery did not come to its end.

    Until a drill decides to recover it waits as its scenario says (``detect``): that is no work.
    """
    timings = predicate["timings"]
    took_ms, size_bytes, wal_bytes = (timings[name] for name in ("recovery_time_ms", "bytes", "wal_bytes"))
    if not took_ms or size_bytes is None or wal_bytes is None:
        return None
    if timings["detect"] is not None:
        took_ms = max(0, took_ms - timings["detect"]["ms"])
    backup = known.get(predicate["source"]["backup_id"])
    files = round(size_bytes * files_per_byte) if backup is None else backup.files
    return Run(Work(size_bytes, files, wal_bytes), took_ms / 1000)
