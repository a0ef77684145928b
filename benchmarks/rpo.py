"""RPO: the age of the oldest commit that is not yet at quorum, sampled from outside while pgbench runs.

A sample reads the server's clock, where its WAL ends, and what the daemon acknowledged as flushed
(durable in 2 of 3 regions).  The age is the time since the first earlier sample beyond that position.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from pathlib import Path

import psycopg

from benchmarks.cluster import bench_cluster
from benchmarks.harness import Row, compare
from benchmarks.site import BenchSite

_GOAL_P99_S = 1.1
_SAMPLE_S = 0.01
_SQL = (
    "SELECT extract(epoch FROM clock_timestamp())::float8, (pg_current_wal_flush_lsn() - '0/0')::bigint,"
    " (SELECT coalesce(max(flush_lsn - '0/0'), 0)::bigint FROM pg_stat_replication"
    "  WHERE application_name LIKE 'pitr%')"
)


def ages(dsn: str, seconds: float) -> list[float]:
    """Sample for so many seconds; return the ages in seconds, 0 when all was at quorum."""
    waiting: deque[tuple[float, int]] = deque()
    found: list[float] = []
    deadline = time.monotonic() + seconds
    with psycopg.connect(dsn, autocommit=True) as connection:
        while time.monotonic() < deadline:
            row = connection.execute(_SQL).fetchone()
            assert row is not None
            now, written, durable = row
            if not waiting or written > waiting[-1][1]:
                waiting.append((now, written))
            while waiting and waiting[0][1] <= durable:
                waiting.popleft()
            found.append(now - waiting[0][0] if waiting else 0.0)
            time.sleep(_SAMPLE_S)
    return found


def run_all(work: Path, quick: bool) -> list[Row]:
    seconds = 20 if quick else 60
    with bench_cluster(work) as cluster:
        cluster.pgbench("-i", "-q", "-s", "10").wait(timeout=300)
        with BenchSite(cluster, work / "site"):
            load = cluster.pgbench("-n", "-c", "8", "-j", "2", "-T", str(seconds + 4))
            time.sleep(2)
            sampled = sorted(ages(cluster.dsn, seconds))
            load.wait(timeout=60)
    cuts = statistics.quantiles(sampled, n=100)
    name = "rpo: 8 clients, 1 s pieces, 3 regions,"
    return [
        compare(f"{name} p50", "s", cuts[49], "(none)", None),
        compare(f"{name} p99", "s", cuts[98], "(none)", None, at_most=_GOAL_P99_S),
        compare(f"{name} max", "s", sampled[-1], "(none)", None),
    ]
