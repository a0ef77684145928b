"""Commits that wait for two of three regions on S3 over TLS, 0, 30 or 80 ms away: how long, and how many.

Beside them plain commits (``synchronous_commit`` with nobody to wait for), and those that wait for
``pg_receivewal --synchronous``, which writes to a local disk.  Latencies are pgbench's own, per transaction.
The region's time is that of single puts of 8 KiB through the same proxy, one after the other.
"""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster import BenchCluster, bench_cluster
from benchmarks.delay import far_away
from benchmarks.harness import Row, RunFailed, compare
from benchmarks.s3 import S3Server, s3_server
from benchmarks.site import BenchSite

_DELAYS_MS = (0, 30, 80)
_CLIENTS = (1, 8, 32)
_GOAL_RATIO = 1.1
_GOAL_AT = (80, 8)
_PUTS = 30
_PUT_BYTES = 8192


@dataclass(frozen=True, slots=True)
class _Load:
    """One run of pgbench: transactions a second, and the latencies' median and 99th percentile in ms."""

    tps: float
    p50_ms: float
    p99_ms: float


def _measure(cluster: BenchCluster, clients: int, seconds: int, folder: Path) -> _Load:
    prefix = folder / f"log-{secrets.token_hex(4)}"
    options = [
        "-n",
        "-N",
        "-c",
        str(clients),
        "-j",
        "2",
        "-T",
        str(seconds),
        "-l",
        "--log-prefix",
        str(prefix),
    ]
    if cluster.pgbench(*options).wait(timeout=seconds + 120) != 0:
        raise RunFailed("pgbench failed")
    latencies = [
        int(line.split()[2]) / 1000
        for file in folder.glob(f"{prefix.name}*")
        for line in file.read_text().splitlines()
    ]
    if len(latencies) < 2:
        raise RunFailed(f"{len(latencies)} transactions in {seconds} s")
    cuts = statistics.quantiles(latencies, n=100)
    return _Load(len(latencies) / seconds, cuts[49], cuts[98])


def _wait_for(cluster: BenchCluster, names: str) -> None:
    cluster.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    cluster.execute("SELECT pg_reload_conf()")


@contextmanager
def _waiting_for(cluster: BenchCluster, names: str) -> Iterator[None]:
    """Let commits wait for ``names`` inside, once they have said that they are there."""
    _wait_for(cluster, names)
    sql = (
        f"SELECT count(*) FROM pg_stat_replication WHERE application_name = '{names}' AND sync_state = 'sync'"
    )
    deadline = time.monotonic() + 60
    while not cluster.execute(sql)[0][0]:
        if time.monotonic() > deadline:
            raise RunFailed(f"{names} is not waited for")
        time.sleep(0.2)
    # The daemon looks each second whether it is waited for.
    time.sleep(3)
    try:
        yield
    finally:
        _wait_for(cluster, "")


@contextmanager
def _receivewal(cluster: BenchCluster, folder: Path) -> Iterator[None]:
    folder.mkdir()
    process = subprocess.Popen(
        [cluster.installation.tool("pg_receivewal"), "-D", folder, "--synchronous", "-d", cluster.dsn],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def _put_ms(server: S3Server, port: int) -> float:
    """Return the median time of a put to a region behind ``port``, on an open connection."""
    bucket = server.make_bucket(f"probe-{secrets.token_hex(4)}")
    own, server.port = server.port, port
    try:
        store = server.store(bucket, server.certificates.ca_file)
    finally:
        server.port = own
    times: list[float] = []
    for number in range(_PUTS):
        began = time.monotonic()
        store.put(f"probe/{number}", os.urandom(_PUT_BYTES))
        times.append((time.monotonic() - began) * 1000)
    store.close()
    return statistics.median(times[5:])


def _rows(
    delay_ms: int, clients: int, ours: _Load, plain: _Load, peer: _Load, put_ms: float
) -> Sequence[Row]:
    name = f"sync: {clients} clients, regions {delay_ms} ms away,"
    at_most = round(_GOAL_RATIO * put_ms, 1) if (delay_ms, clients) == _GOAL_AT else None
    return [
        compare(f"{name} latency p50", "ms", ours.p50_ms, "a put to one region", put_ms, at_most=at_most),
        compare(f"{name} latency p99", "ms", ours.p99_ms, "pg_receivewal --synchronous", peer.p99_ms),
        compare(f"{name} transactions", "1/s", ours.tps, "pg_receivewal --synchronous", peer.tps),
        compare(f"{name} transactions", "1/s", ours.tps, "plain commits", plain.tps),
    ]


def run_all(work: Path, quick: bool) -> list[Row]:
    seconds = 6 if quick else 20
    rows: list[Row] = []
    logs = work / "logs"
    logs.mkdir()
    with bench_cluster(work) as cluster, s3_server(work) as server, ExitStack() as proxies:
        if cluster.pgbench("-i", "-q", "-s", "20").wait(timeout=300) != 0:
            raise RunFailed("pgbench -i failed")
        plain = {clients: _measure(cluster, clients, seconds, logs) for clients in _CLIENTS}
        with _receivewal(cluster, work / "received"), _waiting_for(cluster, "pg_receivewal"):
            peer = {clients: _measure(cluster, clients, seconds, logs) for clients in _CLIENTS}
        for delay_ms in _DELAYS_MS:
            port = proxies.enter_context(far_away(server.port, delay_ms / 1000))
            put_ms = _put_ms(server, port)
            buckets = [server.make_bucket(f"r{number}-{delay_ms}ms") for number in range(3)]
            urls = [server.url(one).replace(f":{server.port}&", f":{port}&") for one in buckets]
            site = BenchSite(
                cluster,
                work / f"site-{delay_ms}",
                slot=f"pitr_{delay_ms}",
                urls=urls,
                environment=server.environment,
            )
            with site, _waiting_for(cluster, "pitr"):
                for clients in _CLIENTS:
                    ours = _measure(cluster, clients, seconds, logs)
                    rows += _rows(delay_ms, clients, ours, plain[clients], peer[clients], put_ms)
    return rows
