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

from benchmarks.cluster import BenchCluster, bench_cluster
from benchmarks.harness import Row, compare
from benchmarks.site import BenchSite

_CLIENTS = (1, 8, 32)
_PIECE_AGES_S = ("1.0", "0.2")
# With pieces of a second.
_GOAL_AT = "1.0"
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


def _rows(dsn: str, cluster: BenchCluster, clients: int, piece_age_s: str, seconds: int) -> list[Row]:
    load = cluster.pgbench("-n", "-c", str(clients), "-j", "2", "-T", str(seconds + 4))
    time.sleep(2)
    sampled = sorted(ages(dsn, seconds))
    load.wait(timeout=60)
    cuts = statistics.quantiles(sampled, n=100)
    name = f"rpo: {clients} client{'s' if clients > 1 else ''}, {piece_age_s} s pieces, 3 regions,"
    at_most = _GOAL_P99_S if piece_age_s == _GOAL_AT else None
    return [
        compare(f"{name} p50", "s", cuts[49], "(none)", None),
        compare(f"{name} p99", "s", cuts[98], "(none)", None, at_most=at_most),
        compare(f"{name} max", "s", sampled[-1], "(none)", None),
    ]


def run_all(work: Path, quick: bool) -> list[Row]:
    seconds = 12 if quick else 60
    rows: list[Row] = []
    with bench_cluster(work) as cluster:
        cluster.pgbench("-i", "-q", "-s", "10").wait(timeout=300)
        for piece_age_s in _PIECE_AGES_S:
            site = BenchSite(
                cluster, work / f"site-{piece_age_s}", slot=f"pitr_{piece_age_s.replace('.', '_')}"
            )
            site.edit_config("piece_age_s = 1.0", f"piece_age_s = {piece_age_s}")
            with site:
                for clients in _CLIENTS:
                    rows += _rows(cluster.dsn, cluster, clients, piece_age_s, seconds)
    return rows
