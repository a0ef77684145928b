"""WAL: receive, compress, seal and ship it to three regions, beside ``pg_receivewal --compress=none``.

The same WAL is caught up by both from the start: a slot each, made before pgbench writes.  The
daemon's figure holds all it does meanwhile, whole segments included; the peer writes one plain copy.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.cluster import BenchCluster, bench_cluster
from benchmarks.harness import GIB, MIB, Row, compare, cpu_of, peak_of, ratio_goal, run
from benchmarks.site import BenchSite

_GOAL_CPU_S_PER_GIB = 4.0
_MEMORY_GOAL_MIB = 300
# Whole segments are put behind the acknowledgement; this is ample for what is left of them.
_SETTLE_S = 8.0


def _wal_position(cluster: BenchCluster) -> int:
    return int(str(cluster.execute("SELECT pg_current_wal_flush_lsn() - '0/0'")[0][0]))


def _write(cluster: BenchCluster, size_bytes: int) -> None:
    """Write some WAL of many small transactions, and ``size_bytes`` of large ones."""
    if cluster.pgbench("-n", "-N", "-c", "4", "-T", "10").wait(timeout=120) != 0:
        raise RuntimeError("pgbench failed")
    cluster.write_notes("written", size_bytes)


def _ours(site: BenchSite, end: int, size_bytes: int) -> tuple[float, float, int]:
    began = time.monotonic()
    site.start()
    site.wait(lambda: site.durable() >= end, timeout_s=900)
    wall_s = time.monotonic() - began
    # What it does for the segments behind the acknowledgement is part of the work.
    time.sleep(_SETTLE_S)
    settled = cpu_of(site.pid)
    figures = wall_s, settled * GIB / size_bytes, peak_of(site.pid)
    site.stop()
    return figures


def _peer(cluster: BenchCluster, folder: Path, end: int, size_bytes: int) -> tuple[float, float, int]:
    folder.mkdir()
    tool = cluster.installation.tool("pg_receivewal")
    text = f"{end >> 32:X}/{end & 0xFFFF_FFFF:X}"
    usage = run([tool, "-d", cluster.dsn, "-D", folder, "-S", "peer", "--endpos", text, "--no-loop"])
    return usage.wall_s, usage.cpu_s * GIB / size_bytes, usage.peak_bytes


def run_all(work: Path, quick: bool) -> list[Row]:
    with bench_cluster(work, settings={"fsync": "off", "max_wal_size": "16GB"}) as cluster:
        cluster.pgbench("-i", "-q", "-s", "20").wait(timeout=300)
        site = BenchSite(cluster, work / "site")
        cluster.execute("SELECT pg_create_physical_replication_slot('peer', true)")
        begin = _wal_position(cluster)
        _write(cluster, GIB // 4 if quick else GIB)
        end = _wal_position(cluster)
        # More follows, so that neither waits at the very end for the server to say so.
        cluster.execute("CREATE TABLE behind AS SELECT generate_series(1, 100000)")
        size = end - begin
        print(f"wal-receive: {size / MIB:.0f} MiB of WAL to three directories, quorum 2", file=sys.stderr)
        peer_wall, peer_cpu, peer_peak = _peer(cluster, work / "peer", end, size)
        wall, cpu, peak = _ours(site, end, size)
    return [
        compare("wal-receive: CPU", "s/GiB", cpu, "pg_receivewal", peer_cpu, at_most=_GOAL_CPU_S_PER_GIB),
        ratio_goal("wal-receive: speed", "MiB/s", size / MIB / wall, "pg_receivewal", size / MIB / peer_wall),
        compare(
            "wal-receive: memory peak", "MiB", peak / MIB, "pg_receivewal", peer_peak / MIB,
            at_most=_MEMORY_GOAL_MIB,
        ),
    ]  # fmt: skip
