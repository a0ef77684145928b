"""Recovery through the archive: 72 real segments from S3 over TLS, beside ``cp`` from a local directory.

From the server's start until replay pauses at the last commit, on the same restored files with the same
settings; the WAL is that of pgbench's transactions, of batch updates and of vacuum.  On PostgreSQL 15 beside
pgBackRest's asynchronous ``archive-get`` as well, from the same server.
"""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import pgbackrest
from benchmarks.cluster import BenchCluster
from benchmarks.harness import MIB, Row, RunFailed, Usage, compare, ratio_goal, run
from benchmarks.majors import on_majors
from benchmarks.own import credentials
from benchmarks.pgbackrest import PgBackRest
from benchmarks.recovering import recover_copy, stop_server
from benchmarks.side import Place, Side, in_turn
from benchmarks.site import BenchSite
from pitr.fetch_desk import Desk, fetch_script, script_command

_BUCKET = "own"
_SEGMENT_BYTES = 16 * MIB
_GOAL_BESIDE_CP = 1.05
_GOAL_HIT_MS = 10.0
_SETTINGS = {"wal_keep_size": "8GB", "synchronous_commit": "off"}
# pgbench's transactions, committed one by one in the server: a client only makes the load last longer.
_TRADE = """
CREATE PROCEDURE trade(transactions int, scale int) LANGUAGE plpgsql AS $$
DECLARE
    account int; teller int; branch int; delta int;
BEGIN
    FOR number IN 1..transactions LOOP
        account := 1 + floor(random() * 100000 * scale);
        teller := 1 + floor(random() * 10 * scale);
        branch := 1 + floor(random() * scale);
        delta := floor(random() * 10000) - 5000;
        UPDATE pgbench_accounts SET abalance = abalance + delta WHERE aid = account;
        UPDATE pgbench_tellers SET tbalance = tbalance + delta WHERE tid = teller;
        UPDATE pgbench_branches SET bbalance = bbalance + delta WHERE bid = branch;
        INSERT INTO pgbench_history (tid, bid, aid, delta, mtime)
            VALUES (teller, branch, account, delta, now());
        COMMIT;
    END LOOP;
END $$
"""


@dataclass(frozen=True, slots=True)
class _Size:
    segments: int
    scale: int
    transactions: int
    repeats: int
    hits: int


_FULL = _Size(segments=72, scale=10, transactions=8_000, repeats=3, hits=60)
_QUICK = _Size(segments=16, scale=5, transactions=5_000, repeats=1, hits=30)


def run_all(work: Path, quick: bool) -> list[Row]:
    size = _QUICK if quick else _FULL

    def figures(place: Place) -> list[Row]:
        return _figures(place, size)

    rows = on_majors(work, "replay", {15: figures, 17: figures}, settings=_SETTINGS)
    return rows + _hit_rows(work, size.hits)


def _figures(place: Place, size: _Size) -> list[Row]:
    cluster, server, major = place.cluster, place.server, place.cluster.installation.major
    url, keys = server.url(server.make_bucket(_BUCKET)), credentials(server)
    if cluster.pgbench("-i", "-q", "-s", str(size.scale)).wait(timeout=900) != 0:
        raise RunFailed("pgbench -i failed")
    site = BenchSite(cluster, place.work / "site", urls=[url], environment=keys)
    with site:
        site.run_configured("backup", "--type", "full", "--json")
        first = _position(cluster) // _SEGMENT_BYTES
        _load(cluster, size, until=(first + size.segments) * _SEGMENT_BYTES)
        end = str(cluster.execute("SELECT pg_create_restore_point('end')")[0][0])
        cluster.execute("SELECT pg_switch_wal()")
        last = _position(cluster) // _SEGMENT_BYTES
        stored = server.folder_of(_BUCKET)
        site.wait(lambda: _whole_segments(stored) >= last - first, timeout_s=900)
    wal = place.work / "wal"
    _copy_wal(cluster, wal)
    into, files = place.work / "into", place.work / "files"

    def restore(target: Path, action: str) -> tuple[Usage, float]:
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(target.with_name(f"{target.name}.pitr"), ignore_errors=True)
        words: list[str | Path] = [
            "restore",
            "--identity",
            site.identity,
            "--to",
            f"lsn:{end}",
            "--from",
            url,
        ]
        words += ["--into", target, "--action", action, "--no-verify", "--workers", "2", "--yes", "--json"]
        said = place.work / "restore.json"
        usage = run(site.words(*words), env=keys, stdout=said)
        return usage, float(json.loads(said.read_text())["data"]["seconds"].get("recover", 0.0))

    alone, _ = restore(files, "none")

    def ours() -> Usage:
        usage, recover_s = restore(into, "pause")
        # What is left of the restore's own CPU is what feeding took.
        return replace(usage, wall_s=recover_s, cpu_s=usage.cpu_s - alone.cpu_s + stop_server(into))

    def with_command(command: str) -> Callable[[], Usage]:
        return lambda: recover_copy(cluster, files, place.work / "copy", command)

    sides = [
        Side("ours", ours),
        Side("cp from a local directory", with_command(f"cp {shlex.quote(str(wal))}/%f %p")),
        _peer(place, major, wal, with_command),
    ]
    found = in_turn(size.repeats, sides)
    name = f"replay PG{major}, {last - first} segments"
    return _rows(name, sides, found)


def _rows(name: str, sides: Sequence[Side], found: Sequence[Usage | None]) -> list[Row]:
    mine, local, other = found
    assert mine is not None
    if local is None:
        raise RunFailed("the recovery by cp failed")
    rows = [
        ratio_goal(f"{name}: wall", "s", mine.wall_s, sides[1].name, local.wall_s, at_most=_GOAL_BESIDE_CP),
        ratio_goal(f"{name}: CPU", "s", mine.cpu_s, sides[1].name, local.cpu_s),
    ]
    peer = sides[2]
    if other is None:
        absent = f"{peer.name} {peer.missing or 'failed'}"
        return [*rows, compare(f"{name}: wall", "s", mine.wall_s, absent, None)]
    rows += [
        ratio_goal(f"{name}: wall", "s", mine.wall_s, peer.name, other.wall_s),
        ratio_goal(f"{name}: CPU", "s", mine.cpu_s, peer.name, other.cpu_s),
        ratio_goal(f"{name}: wall of {peer.name}", "s", other.wall_s, sides[1].name, local.wall_s),
    ]
    return rows


def _peer(place: Place, major: int, wal: Path, with_command: Callable[[str], Callable[[], Usage]]) -> Side:
    name = "pgBackRest archive-get, asynchronous"
    if major > pgbackrest.NEWEST_MAJOR:
        return Side(name, with_command(""), f"of Debian 12 knows no PostgreSQL {major}")
    if pgbackrest.missing() is not None:
        return Side(name, with_command(""), pgbackrest.missing())
    rival = PgBackRest(place, "pgbackrest", level=1)
    for segment in sorted(wal.iterdir()):
        rival.push(segment)
    rival.hand_over()
    get = with_command(rival.restore_command("{data}"))

    def fresh() -> Usage:
        rival.empty_spool()
        return get()

    return Side(name, fresh)


def _load(cluster: BenchCluster, size: _Size, *, until: int) -> None:
    """Write WAL up to an offset: in each round small transactions, one large one and a vacuum."""
    cluster.execute(_TRADE)
    number = 0
    while _position(cluster) < until:
        cluster.execute(f"CALL trade({size.transactions}, {size.scale})")
        cluster.execute(f"UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % 5 = {number % 5}")
        cluster.execute("VACUUM pgbench_accounts")
        number += 1


def _position(cluster: BenchCluster) -> int:
    return int(str(cluster.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")[0][0]))


def _whole_segments(bucket: Path) -> int:
    return len({path.parent.name for path in bucket.rglob("s-*")})


def _copy_wal(cluster: BenchCluster, wal: Path) -> None:
    """Keep the server's segments where anybody can read them."""
    wal.mkdir(mode=0o755)
    current = str(cluster.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")[0][0])
    for segment in (cluster.instance.data_dir / "pg_wal").glob("0" * 7 + "1" + "[0-9A-F]" * 16):
        if segment.name < current:
            shutil.copy(segment, wal / segment.name)
            (wal / segment.name).chmod(0o644)


def _hit_rows(work: Path, hits: int) -> list[Row]:
    """Measure the command alone, as PostgreSQL starts it, on segments that lie in the spool."""
    folder, place, kept = work / "hits", work / "hits" / "pg_wal", work / "hits" / "segment"
    desk = Desk(folder / "work")
    for part in (desk.spool, desk.ask, desk.answers, place):
        part.mkdir(parents=True)
    program = [sys.executable, "-m", "cli.main", "wal", "fetch"]
    desk.script.write_text(fetch_script(desk, folder / "plan", program))
    kept.write_bytes(b"\x5a" * _SEGMENT_BYTES)
    name, to = f"{1:08X}{0:08X}{42:08X}", "pg_wal/RECOVERYXLOG"
    fetch = script_command(desk.script).replace("%f", name).replace("%p", to).replace("%%", "%")
    commands = [fetch, f"cp {shlex.quote(str(kept))} {to}", ":"]
    took: list[list[float]] = [[] for _ in commands]
    for _ in range(hits):
        # Its size only: what is dirty in memory would slow down everything here.
        with (desk.spool / name).open("wb") as spooled:
            spooled.truncate(_SEGMENT_BYTES)
        for times, command in zip(took, commands, strict=True):
            (place / "RECOVERYXLOG").unlink(missing_ok=True)
            begun = time.monotonic()
            subprocess.run(["/bin/sh", "-c", command], cwd=folder, check=True)
            times.append((time.monotonic() - begun) * 1000)
    mine, local, empty = (statistics.median(times) for times in took)
    row = "replay: restore_command on a hit, p50"
    return [
        compare(row, "ms", mine, "cp of 16 MiB", local, at_most=_GOAL_HIT_MS),
        compare(row, "ms", mine, "a shell that does nothing", empty),
    ]
