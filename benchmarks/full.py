"""Full base backup: ours (checked, encrypted, signed) beside ``pg_basebackup`` and ``tar | zstd -1``.

All write one compressed copy to one folder with zstd at level 1.  ``pg_basebackup`` neither checks
nor encrypts; ``tar`` of a running cluster is no backup at all, but a floor for reading and zstd.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from benchmarks.cluster import BenchCluster, bench_cluster
from benchmarks.harness import GIB, MIB, Row, ServerCpu, Usage, compare, interleave, ratio_goal, run

_MEMORY_GOAL_MIB = 300


def run_figures(cluster: BenchCluster, work: Path, repeats: int) -> list[Row]:
    report = work / "ours.json"

    def fresh(name: str) -> Path:
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def with_server(argv: list[str | Path], stdout: Path | None = None) -> Usage:
        server = ServerCpu(cluster.postmaster_pid)
        usage = run(argv, stdout=stdout)
        return Usage(usage.wall_s, usage.cpu_s + server.spent_s(), usage.peak_bytes)

    def ours() -> Usage:
        argv: list[str | Path] = [sys.executable, "-m", "benchmarks.ours", "full", cluster.dsn, fresh("ours")]
        return with_server(argv, stdout=report)

    def basebackup() -> Usage:
        tool = cluster.installation.tool("pg_basebackup")
        return with_server(
            [tool, "-d", cluster.dsn, "-D", fresh("peer"), "-Ft", "-X", "none", "-c", "fast",
             "--compress=client-zstd:level=1"]
        )  # fmt: skip

    def tar() -> Usage:
        fresh("tar").mkdir()
        script = 'tar -C "$1" -cf - --exclude pg_wal . 2>/dev/null | zstd -q -1 > "$2"'
        return run(["sh", "-c", script, "sh", cluster.instance.data_dir, work / "tar" / "base.tar.zst"])

    runs = [ours, basebackup] + ([tar] if shutil.which("zstd") else [])
    usages = interleave(repeats, *runs)
    facts = json.loads(report.read_text())
    size = facts["bytes"]
    print(
        f"full: {size / GIB:.2f} GiB read, {facts['stored'] / GIB:.2f} GiB stored, "
        f"compression {size / facts['stored']:.2f}, findings {facts['findings']}",
        file=sys.stderr,
    )
    mine = usages[0]
    rows = []
    for name, peer in zip(("pg_basebackup", "tar | zstd -1"), usages[1:], strict=False):
        rows.append(
            ratio_goal("full: speed", "MiB/s", size / MIB / mine.wall_s, name, size / MIB / peer.wall_s)
        )
        rows.append(compare("full: CPU", "s/GiB", mine.cpu_s * GIB / size, name, peer.cpu_s * GIB / size))
    rows.append(
        compare(
            "full: memory peak", "MiB", mine.peak_bytes / MIB, "pg_basebackup", usages[1].peak_bytes / MIB,
            at_most=_MEMORY_GOAL_MIB,
        )
    )  # fmt: skip
    return rows


def run_all(work: Path, quick: bool) -> list[Row]:
    with bench_cluster(work) as cluster:
        cluster.fill(GIB // 2 if quick else 3 * GIB)
        return run_figures(cluster, work, repeats=3)
