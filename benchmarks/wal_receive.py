"""WAL: receive, compress, seal and ship it to three regions, beside ``pg_receivewal --compress=none``.

Each of our daemons streams and is idle when it is held (SIGSTOP); then the WAL is written, once for
all repeats; then daemons and peer catch it up in turn.  So a daemon's start, which it has once in its
life, is a figure of its own.  Ours ends when everything is in all three regions, whole segments
included, and the spool is empty; the peer writes one plain copy.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster import BenchCluster, bench_cluster
from benchmarks.harness import GIB, MIB, Cpu, Row, compare, cpu_parts_of, peak_of, ratio_goal, run
from benchmarks.site import BenchSite
from pitr.pipeline.frames import compress_frames

_GOAL_CPU_S_PER_GIB = 4.0
_MEMORY_GOAL_MIB = 300
_SEGMENT_BYTES = 16 * MIB
_CATCH_UP_S = 900.0
# A daemon that just began to stream reads its last segment again and writes a head.
_BECOME_IDLE_S = 4.0
# Many daemons wait at a time; a sender must not take one that is held for dead.
_SETTINGS = {
    "fsync": "off",
    "max_wal_size": "16GB",
    "wal_sender_timeout": "0",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
}


@dataclass(frozen=True, slots=True)
class _Ours:
    started: Cpu
    caught_up: Cpu
    wall_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class _Peer:
    cpu_s_per_gib: float
    bytes_per_s: float
    peak_bytes: int


def _write(cluster: BenchCluster, size_bytes: int) -> None:
    """Write some WAL of many small transactions, and ``size_bytes`` of large ones."""
    if cluster.pgbench("-n", "-N", "-c", "4", "-t", "4000").wait(timeout=300) != 0:
        raise RuntimeError("pgbench failed")
    cluster.write_notes("written", size_bytes)


def _ours(site: BenchSite, started: Cpu, acknowledged: int, end: int) -> _Ours:
    began = time.monotonic()
    site.resume()
    site.wait(lambda: site.durable() >= acknowledged, timeout_s=_CATCH_UP_S)
    wall_s = time.monotonic() - began
    site.wait(lambda: site.is_settled(end), timeout_s=_CATCH_UP_S)
    figures = _Ours(started, cpu_parts_of(site.pid).since(started), wall_s, peak_of(site.pid))
    site.stop()
    return figures


def _peer(cluster: BenchCluster, folder: Path, slot: str, end: int) -> _Peer:
    folder.mkdir()
    where = f"SELECT restart_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = '{slot}'"
    size = end - int(str(cluster.execute(where)[0][0])) // _SEGMENT_BYTES * _SEGMENT_BYTES
    tool = cluster.installation.tool("pg_receivewal")
    text = f"{end >> 32:X}/{end & 0xFFFF_FFFF:X}"
    usage = run([tool, "-d", cluster.dsn, "-D", folder, "-S", slot, "--endpos", text, "--no-loop"])
    return _Peer(usage.cpu_s * GIB / size, size / usage.wall_s, usage.peak_bytes)


def _zstd(folder: Path) -> tuple[float, float]:
    """Compress what a peer received, and do nothing else: CPU s/GiB, and the ratio."""
    size = packed = 0
    spent_s = 0.0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        before_s = time.process_time()
        packed += sum(len(frame) for frame in compress_frames(content))
        spent_s += time.process_time() - before_s
        size += len(content)
    return spent_s * GIB / size, size / packed


def run_all(work: Path, quick: bool) -> list[Row]:
    repeats = 3
    ours: list[_Ours] = []
    peers: list[_Peer] = []
    zstds: list[tuple[float, float]] = []
    with bench_cluster(work, settings=_SETTINGS) as cluster, ExitStack() as ending:
        cluster.pgbench("-i", "-q", "-s", "20").wait(timeout=300)
        sites: list[tuple[BenchSite, Cpu]] = []
        for number in range(repeats):
            site = BenchSite(cluster, work / f"site-{number}", slot=f"pitr_{number}")
            ending.callback(site.stop)
            site.start()
            time.sleep(_BECOME_IDLE_S)
            sites.append((site, cpu_parts_of(site.pid)))
            site.pause()
        cluster.execute("CHECKPOINT")
        for number in range(repeats):
            cluster.execute(f"SELECT pg_create_physical_replication_slot('peer_{number}', true)")
        begin = cluster.wal_position()
        _write(cluster, GIB // 4 if quick else GIB)
        acknowledged = cluster.wal_position()
        # More follows, so that the peer does not wait at the very end for the server to say so.
        cluster.execute("CREATE TABLE behind AS SELECT generate_series(1, 100000)")
        end = cluster.wal_position()
        for number, (site, started) in enumerate(sites):
            peers.append(_peer(cluster, work / f"peer-{number}", f"peer_{number}", acknowledged))
            ours.append(_ours(site, started, acknowledged, end))
            zstds.append(_zstd(work / f"peer-{number}"))
    ratio = zstds[0][1]
    print(
        f"wal-receive: {(end - begin) / MIB:.0f} MiB of WAL, {ratio:.2f}-fold under zstd 1, to three"
        f" directories, quorum 2, {repeats} repeats in turn",
        file=sys.stderr,
    )
    return _rows(ours, peers, zstds, acknowledged - begin, (end - begin) / GIB)


def _rows(
    ours: list[_Ours],
    peers: list[_Peer],
    zstds: list[tuple[float, float]],
    acknowledged_bytes: int,
    gib: float,
) -> list[Row]:
    def cpu(part: Callable[[_Ours], float]) -> float:
        return statistics.median(part(one) / gib for one in ours)

    total, tool = cpu(lambda one: one.caught_up.total_s), "pg_receivewal"
    user, system = cpu(lambda one: one.caught_up.user_s), cpu(lambda one: one.caught_up.system_s)
    peer_speed = statistics.median(peer.bytes_per_s for peer in peers)
    speed = statistics.median(acknowledged_bytes / one.wall_s for one in ours)
    peak = statistics.median(one.peak_bytes for one in ours)
    peer_peak = statistics.median(peer.peak_bytes for peer in peers)
    zstd = statistics.median(spent for spent, _ in zstds)
    return [
        compare(
            "wal-receive: CPU", "s/GiB", total, tool, statistics.median(peer.cpu_s_per_gib for peer in peers),
            at_most=_GOAL_CPU_S_PER_GIB,
        ),
        compare("wal-receive: CPU", "s/GiB", total, "zstd 1 alone", zstd),
        compare("wal-receive: of it user", "s/GiB", user, "(none)", None),
        compare("wal-receive: of it system", "s/GiB", system, "(none)", None),
        compare(
            "wal-receive: CPU of the daemon's start, once", "s",
            statistics.median(one.started.total_s for one in ours), "(none)", None,
        ),
        ratio_goal("wal-receive: speed", "MiB/s", speed / MIB, tool, peer_speed / MIB),
        compare(
            "wal-receive: memory peak", "MiB", peak / MIB, tool, peer_peak / MIB, at_most=_MEMORY_GOAL_MIB
        ),
    ]  # fmt: skip
