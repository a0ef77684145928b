"""RPO: the age of the oldest commit that is not yet at quorum, sampled from outside while pgbench runs.

A sample reads the server's clock, where its WAL ends, and what the daemon acknowledged as flushed
(durable in 2 of 3 regions).  The age is the time since the first earlier sample beyond that position.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg

from benchmarks.cluster import BenchCluster, bench_cluster
from benchmarks.harness import MIB, Row, compare, cpu_parts_of, peak_of
from benchmarks.site import BenchSite

_CLIENTS = (1, 8, 32)
_PIECE_AGES_S = ("1.0", "0.2")
# With pieces of a second.
_GOAL_AT = "1.0"
_GOAL_P99_S = 1.1
_MEMORY_GOAL_MIB = 300
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


@dataclass(frozen=True, slots=True)
class _Sampled:
    """One stretch of load: ages in seconds, the daemon's CPU in cores, and its memory peak so far."""

    p50_s: float
    p99_s: float
    max_s: float
    cores: float
    peak_bytes: int


def _is_durable(site: BenchSite, end: int) -> bool:
    return site.durable() >= end


def _sample(cluster: BenchCluster, site: BenchSite, clients: int, seconds: int) -> _Sampled:
    load = cluster.pgbench("-n", "-c", str(clients), "-j", "2", "-T", str(seconds + 4))
    time.sleep(2)
    before, began_s = cpu_parts_of(site.pid), time.monotonic()
    sampled = sorted(ages(cluster.dsn, seconds))
    cores = cpu_parts_of(site.pid).since(before).total_s / (time.monotonic() - began_s)
    load.wait(timeout=60)
    cuts = statistics.quantiles(sampled, n=100)
    return _Sampled(cuts[49], cuts[98], sampled[-1], cores, peak_of(site.pid))


def _rows(clients: int, piece_age_s: str, found: list[_Sampled]) -> list[Row]:
    def median(part: Callable[[_Sampled], float]) -> float:
        return statistics.median(map(part, found))

    name = f"rpo: {clients} client{'s' if clients > 1 else ''}, {piece_age_s} s pieces, 3 regions,"
    at_most = _GOAL_P99_S if piece_age_s == _GOAL_AT else None
    peak = median(lambda one: one.peak_bytes) / MIB
    return [
        compare(f"{name} p50", "s", median(lambda one: one.p50_s), "(none)", None),
        compare(f"{name} p99", "s", median(lambda one: one.p99_s), "(none)", None, at_most=at_most),
        compare(f"{name} max of all", "s", max(one.max_s for one in found), "(none)", None),
        compare(f"{name} the daemon's CPU", "cores", median(lambda one: one.cores), "(none)", None),
        compare(f"{name} memory peak", "MiB", peak, "(none)", None, at_most=_MEMORY_GOAL_MIB),
    ]


def run_all(work: Path, quick: bool) -> list[Row]:
    seconds, repeats = (12, 1) if quick else (60, 3)
    found: dict[tuple[str, int], list[_Sampled]] = {}
    with bench_cluster(work) as cluster:
        cluster.pgbench("-i", "-q", "-s", "10").wait(timeout=300)
        sites: dict[str, BenchSite] = {}
        for piece_age_s in _PIECE_AGES_S:
            slot = f"pitr_{piece_age_s.replace('.', '_')}"
            sites[piece_age_s] = site = BenchSite(cluster, work / f"site-{piece_age_s}", slot=slot)
            site.edit_config("piece_age_s = 1.0", f"piece_age_s = {piece_age_s}")
        for _ in range(repeats):
            for piece_age_s, site in sites.items():
                with site:
                    # What was written while another daemon had its turn.
                    end = cluster.wal_position()
                    site.wait(partial(_is_durable, site, end))
                    for clients in _CLIENTS:
                        sampled = _sample(cluster, site, clients, seconds)
                        found.setdefault((piece_age_s, clients), []).append(sampled)
    return [row for (age, clients), sampled in found.items() for row in _rows(clients, age, sampled)]
