"""Restore of a full backup: ours (fetched, opened, checked, synced) beside unpacking a compressed tar.

``--action none --no-verify``: the files and nothing else, as the peer does.  Both end with a sync.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks.cluster import bench_cluster
from benchmarks.harness import GIB, MIB, Row, Usage, compare, interleave, ratio_goal, run
from benchmarks.site import BenchSite

_MEMORY_GOAL_MIB = 300


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def run_all(work: Path, quick: bool) -> list[Row]:
    with bench_cluster(work) as cluster:
        cluster.fill(GIB // 2 if quick else 3 * GIB)
        with BenchSite(cluster, work / "site") as site:
            site.run_configured("backup", "--json")
        tool = cluster.installation.tool("pg_basebackup")
        run([tool, "-d", cluster.dsn, "-D", work / "peer", "-Ft", "-X", "none", "-c", "fast",
             "--compress=client-zstd:level=1"])  # fmt: skip
        size = _size_of(cluster.instance.data_dir / "base")
        into = work / "into"

        def clear() -> None:
            for folder in (into, work / "into.pitr", work / "unpacked"):
                shutil.rmtree(folder, ignore_errors=True)

        def ours() -> Usage:
            clear()
            words: list[str | Path] = ["restore", "--identity", site.identity, "--to", "immediate"]
            for url in site.urls:
                words += ["--from", url]
            return run(
                site.words(*words, "--into", into, "--action", "none", "--no-verify", "--yes", "--json")
            )

        def peer() -> Usage:
            clear()
            (work / "unpacked").mkdir()
            script = 'zstd -q -d -c "$1" | tar -C "$2" -xf - && sync -f "$2"'
            return run(["sh", "-c", script, "sh", work / "peer" / "base.tar.zst", work / "unpacked"])

        mine, other = interleave(3, ours, peer)
    print(f"restore: {size / GIB:.2f} GiB of relations", file=sys.stderr)
    name = "zstd -d | tar"
    return [
        ratio_goal("restore: speed", "MiB/s", size / MIB / mine.wall_s, name, size / MIB / other.wall_s),
        compare("restore: CPU", "s/GiB", mine.cpu_s * GIB / size, name, other.cpu_s * GIB / size),
        compare("restore: memory peak", "MiB", mine.peak_bytes / MIB, name, other.peak_bytes / MIB,
                at_most=_MEMORY_GOAL_MIB),
    ]  # fmt: skip
