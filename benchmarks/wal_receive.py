"""WAL: receive, compress, seal and ship it to three regions, beside ``pg_receivewal --compress=none``.

The same WAL is caught up by both from the start: a slot each, made before pgbench writes.  The
daemon's figure holds all it does meanwhile, whole segments included; the peer writes one plain copy.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.cluster import BenchCluster, bench_cluster
from benchmarks.harness import GIB, MIB, Row, compare, cpu_of, peak_of, ratio_goal
from benchmarks.site import BenchSite

_GOAL_CPU_S_PER_GIB = 4.0
_MEMORY_GOAL_MIB = 300


def _wal_position(cluster: BenchCluster) -> int:
    return int(str(cluster.execute("SELECT pg_current_wal_flush_lsn() - '0/0'")[0][0]))


def _write(cluster: BenchCluster, size_bytes: int) -> None:
    """Let pgbench write about ``size_bytes`` of WAL."""
    begin = _wal_position(cluster)
    while _wal_position(cluster) - begin < size_bytes:
        if cluster.pgbench("-n", "-N", "-c", "4", "-T", "5").wait(timeout=120) != 0:
            raise RuntimeError("pgbench failed")


def _ours(site: BenchSite, end: int, size_bytes: int) -> tuple[float, float, int]:
    began = time.monotonic()
    site.start()
    site.wait(lambda: site.durable() >= end, timeout_s=900)
    wall_s = time.monotonic() - began
    # What it does for the segments behind the acknowledgement is part of the work.
    settled, before = cpu_of(site.pid), -1.0
    while settled - before > 0.02:
        time.sleep(2.0)
        before, settled = settled, cpu_of(site.pid)
    figures = wall_s, settled * GIB / size_bytes, peak_of(site.pid)
    site.stop()
    return figures


def _peer(cluster: BenchCluster, folder: Path, end: int, size_bytes: int) -> tuple[float, float, int]:
    folder.mkdir()
    argv = [
        str(cluster.installation.tool("pg_receivewal")),
        "-d",
        cluster.dsn,
        "-D",
        str(folder),
        "-S",
        "peer",
    ]
    began = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    position = (
        "SELECT coalesce(max(write_lsn - '0/0'), 0) FROM pg_stat_replication"
        " WHERE application_name = 'pg_receivewal'"
    )
    try:
        while int(str(cluster.execute(position)[0][0])) < end:
            if process.poll() is not None or time.monotonic() - began > 900:
                raise RuntimeError("pg_receivewal does not get there")
            time.sleep(0.05)
        return time.monotonic() - began, cpu_of(process.pid) * GIB / size_bytes, peak_of(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def run_all(work: Path, quick: bool) -> list[Row]:
    with bench_cluster(work, settings={"fsync": "off", "max_wal_size": "16GB"}) as cluster:
        cluster.pgbench("-i", "-q", "-s", "20").wait(timeout=300)
        site = BenchSite(cluster, work / "site")
        cluster.execute("SELECT pg_create_physical_replication_slot('peer', true)")
        begin = _wal_position(cluster)
        _write(cluster, GIB // 4 if quick else GIB)
        cluster.execute("SELECT pg_switch_wal()")
        end = _wal_position(cluster)
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
