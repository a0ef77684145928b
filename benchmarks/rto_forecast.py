"""How well recovery time is forecast: restores of several sizes and lengths of WAL, each from the others.

Not a name of its own: the figures of ``verify`` take it in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import MIB, Row, RunFailed, compare
from benchmarks.majors import on_majors
from benchmarks.own import credentials
from benchmarks.side import Place
from benchmarks.site import BenchSite
from verifiers.rto_model import Run, Work, held_out_error

GOAL_PERCENT = 20.0
_BUCKET = "own"
_RESTORE_TIMEOUT_S = 3600.0


def run_all(work: Path, quick: bool) -> list[Row]:
    """Measure by real restores on 17, and return the row."""
    sizes, steps = ((48 * MIB, 96 * MIB), 3) if quick else ((512 * MIB, 1024 * MIB, 2048 * MIB), 4)
    return on_majors(work, "verify", {17: lambda place: forecast_rows(measure(place, sizes, steps))})


def forecast_rows(runs: Sequence[Run]) -> list[Row]:
    """Return the row: the median error, in percent, of forecasts of each run from the others."""
    error = held_out_error(runs)
    if error is None:
        raise RunFailed("verify: a forecast needs two measured recoveries at least")
    name = f"verify: RTO forecast error, held out of {len(runs)} runs"
    return [compare(name, "%", error * 100, "(none)", None, at_most=GOAL_PERCENT)]


def measure(place: Place, sizes: Sequence[int], steps: int) -> list[Run]:
    """Restore each size with ``steps`` lengths of WAL, and return how long that took."""
    cluster = place.cluster
    url, keys = place.server.url(place.server.make_bucket(_BUCKET)), credentials(place.server)
    site = BenchSite(cluster, place.work / "forecast", urls=[url], environment=keys)
    cluster.execute("CREATE TABLE churn (n int PRIMARY KEY, filler text)")
    cluster.execute("INSERT INTO churn SELECT n, repeat('x', 500) FROM generate_series(1, 20000) n")
    runs = []
    with site:
        for number, size_bytes in enumerate(sizes):
            _grow(place, number, size_bytes)
            site.run_configured("backup", "--type", "full", "--json")
            for step in range(steps):
                for _ in range(step * step):
                    cluster.execute("UPDATE churn SET filler = md5(random()::text) || filler")
                    cluster.execute("UPDATE churn SET filler = left(filler, 500)")
                end = cluster.wal_position()
                site.wait(lambda end=end: site.durable() >= end)
                runs.append(_restore(site, url, keys, place.work / "into"))
    return runs


def _grow(place: Place, number: int, size_bytes: int) -> None:
    place.cluster.write_notes(f"filler_{number}", size_bytes)


def _restore(site: BenchSite, url: str, keys: dict[str, str], into: Path) -> Run:
    words: list[str | Path] = ["restore", "--identity", site.identity, "--to", "latest", "--from", url]
    words += ["--into", into, "--yes", "--json", "--no-verify"]
    try:
        done = subprocess.run(
            [str(word) for word in site.words(*words)],
            env={**os.environ, **keys},
            capture_output=True,
            text=True,
            timeout=_RESTORE_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise RunFailed(f"restore: {done.stderr[-2000:]}")
        said = json.loads(done.stdout)["data"]
    finally:
        for folder in (into, into.with_name("into.pitr")):
            shutil.rmtree(folder, ignore_errors=True)
        into.with_name("into.recovery-certificate.json").unlink(missing_ok=True)
    work = Work(said["size_bytes"], said["files"], said["wal_bytes"])
    return Run(work, float(said["recovery_time_s"]))
