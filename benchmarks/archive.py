"""Archive: the same WAL segments by archive_command: ours, pgBackRest's, barman-cloud's; on one S3 server.

Ours three times: the daemon streams the segments while the gate is called (it was held, so that all of them
are before it); the gate is the only source; and the gate is asked for what is durable already, a hit.
PostgreSQL's share is counted with each: ours reads over a walsender.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import barman_cloud, pgbackrest
from benchmarks.cluster import BenchCluster, bench_cluster
from benchmarks.harness import MIB, Row, RunFailed, ServerCpu, compare, cpu_of, ratio_goal
from benchmarks.pgbackrest import PgBackRest
from benchmarks.s3 import S3Server, s3_server
from benchmarks.side import Place
from benchmarks.site import BenchSite
from pitr.gate_script import archive_command

_GOAL_CPU_RATIO = 0.65
_GOAL_WALL_S = 2.5
_HIT_GOAL_MS = 4.0
_CALLS_TIMEOUT_S = 1800.0
_BECOME_IDLE_S = 4.0
_SETTINGS = {"max_wal_size": "16GB", "wal_keep_size": "4GB", "wal_sender_timeout": "0", "fsync": "off"}


@dataclass(frozen=True, slots=True)
class _Calls:
    """What one run over all segments cost, with PostgreSQL's share and the daemon's."""

    wall_s: float
    cpu_s: float
    each_s: tuple[float, ...]


class _GateSite(BenchSite):
    """A daemon whose only source is the gate."""

    def durable(self) -> int:
        return int((self.gate_dir / "daemon").exists())

    @property
    def gate_dir(self) -> Path:
        return _gate_dir(self)

    def take_no_stream(self, slot: str) -> None:
        self.edit_config('source = "stream"', 'source = "archive"')
        self.cluster.execute(f"SELECT pg_drop_replication_slot('{slot}')")


def _gate_dir(site: BenchSite) -> Path:
    return site.state_dir / "gate"


def _names(cluster: BenchCluster, count: int) -> list[str]:
    """Write WAL until ``count`` segments are complete; return their names, in order."""
    begin = str(cluster.execute("SELECT pg_walfile_name(pg_switch_wal())")[0][0])
    if cluster.pgbench("-n", "-N", "-c", "4", "-t", "4000").wait(timeout=300) != 0:
        raise RunFailed("pgbench failed")
    cluster.write_notes("written", count * 24 * MIB)
    cluster.execute("SELECT pg_switch_wal()")
    cluster.execute("CHECKPOINT")
    last = str(cluster.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")[0][0])
    wal = cluster.instance.data_dir / "pg_wal"
    found = sorted(path.name for path in wal.iterdir() if len(path.name) == 24 and begin < path.name < last)
    if len(found) < count:
        raise RunFailed(f"{len(found)} segments were written, {count} are wanted")
    for name in found[:count]:
        # What waits; pgBackRest's asynchronous process and our gate look for it.
        (wal / "archive_status" / f"{name}.ready").touch()
    return found[:count]


def _call(cluster: BenchCluster, command: str, names: list[str], daemon: int | None = None) -> _Calls:
    postgres, before = ServerCpu(cluster.postmaster_pid), 0.0 if daemon is None else cpu_of(daemon)
    words: list[str | Path] = [
        sys.executable,
        "-m",
        "benchmarks.archive_calls",
        command,
        cluster.instance.data_dir,
        *names,
    ]
    done = subprocess.run(words, capture_output=True, timeout=_CALLS_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise RunFailed(f"{command}: {done.stderr.decode(errors='replace')[-800:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    own_s = 0.0 if daemon is None else cpu_of(daemon) - before
    return _Calls(found["wall_s"], found["cpu_s"] + own_s + postgres.spent_s(), tuple(found["each_s"]))


def _peers(place: Place) -> dict[str, tuple[str | None, str]]:
    """Return each peer's command, None if it is not there, and what to say of it then."""
    found: dict[str, tuple[str | None, str]] = {}
    for name, is_async in (("pgBackRest sync, zstd 1", False), ("pgBackRest async, zstd 1", True)):
        absent = pgbackrest.missing()
        command = None
        if absent is None:
            tool = PgBackRest(place, f"pgbackrest-{int(is_async)}", level=1, is_async=is_async)
            command = tool.archive_command()
        found[name] = command, absent or ""
    absent = barman_cloud.missing()
    command = None if absent else barman_cloud.BarmanCloud(place, "barman").archive_command()
    found["barman-cloud lz4, not encrypted"] = command, absent or ""
    return found


def _site(kind: type[BenchSite], cluster: BenchCluster, server: S3Server, work: Path, slot: str) -> BenchSite:
    url = server.url(server.make_bucket(work.name))
    return kind(cluster, work, slot=slot, urls=[url], environment=server.environment)


def run_all(work: Path, quick: bool) -> list[Row]:
    count = 16 if quick else 72
    with (
        s3_server(work) as server,
        bench_cluster(work, major=15, settings=_SETTINGS) as cluster,
        ExitStack() as ending,
    ):
        cluster.pgbench("-i", "-q", "-s", "20").wait(timeout=300)
        place = Place(cluster, server, work)
        streams = _site(BenchSite, cluster, server, work / "streams", "pitr_streams")
        alone = _site(_GateSite, cluster, server, work / "alone", "pitr_alone")
        assert isinstance(alone, _GateSite)
        alone.take_no_stream("pitr_alone")
        peers = _peers(place)
        for site in (streams, alone):
            ending.callback(site.stop)
            site.start()
        time.sleep(_BECOME_IDLE_S)
        streams.pause()
        names = _names(cluster, count)
        streams.resume()
        beside = _call(cluster, archive_command(_gate_dir(streams)), names, streams.pid)
        hits = _call(cluster, archive_command(_gate_dir(streams)), names)
        streams.stop()
        source = _call(cluster, archive_command(alone.gate_dir), names, alone.pid)
        alone.stop()
        figures: dict[str, _Calls | str] = {}
        for name, (command, absent) in peers.items():
            try:
                figures[name] = absent if command is None else _call(cluster, command, names)
            except RunFailed as failure:
                figures[name] = f"failed: {failure}"
    return _rows(count, beside, source, hits, figures)


def _rows(
    count: int, beside: _Calls, source: _Calls, hits: _Calls, peers: dict[str, _Calls | str]
) -> list[Row]:
    def cpu_ms(calls: _Calls) -> float:
        return calls.cpu_s * 1000 / count

    rows: list[Row] = []
    ways: list[tuple[str, _Calls]] = [("beside the stream", beside), ("the only source", source)]
    for way, ours in ways:
        for name, peer in peers.items():
            if isinstance(peer, str):
                rows.append(Row(f"archive, {way}", "", None, f"{name} {peer}", None, None, "", None))
                continue
            goal = _GOAL_CPU_RATIO if name.startswith("pgBackRest sync") else None
            rows.append(
                ratio_goal(
                    f"archive, {way}: CPU a segment", "ms", cpu_ms(ours), name, cpu_ms(peer), at_most=goal
                )
            )
            rows.append(
                compare(
                    f"archive, {way}: wall of {count} segments", "s", ours.wall_s, name, peer.wall_s,
                    at_most=_GOAL_WALL_S * count / 70 if goal is not None else None,
                )
            )  # fmt: skip
    p50: Callable[[tuple[float, ...]], float] = lambda each: statistics.median(each) * 1000  # noqa: E731
    rows.append(compare("archive: a hit, p50", "ms", p50(hits.each_s), "(none)", None, at_most=_HIT_GOAL_MS))
    rows.append(compare("archive: a hit, CPU", "ms", cpu_ms(hits), "(none)", None))
    return rows
