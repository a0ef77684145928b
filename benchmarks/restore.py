"""Restore of a chain from S3 over TLS: ours (opened, checked, synced), beside pgBackRest on PostgreSQL 15,
and beside fetching and ``pg_combinebackup`` on 17.

``--action none --no-verify``: the files and nothing else, as the peers do.  All sync what they wrote.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import basebackup, limits, pgbackrest, plain_tar
from benchmarks.basebackup import BaseBackups
from benchmarks.changes import Notes
from benchmarks.harness import GIB, MIB, Row, Usage, run
from benchmarks.majors import on_majors
from benchmarks.own import credentials
from benchmarks.pgbackrest import PgBackRest
from benchmarks.side import Goals, Place, Side, in_turn, side_rows
from benchmarks.site import BenchSite

_BUCKET = "own"
_REPEATS = 3
_BESIDE_PGBACKREST = Goals(cpu=0.8)
_BESIDE_COMBINE = Goals(wall=0.8)


def run_all(work: Path, quick: bool) -> list[Row]:
    size_bytes, edits = (96 * MIB, 300) if quick else (3 * GIB, 4000)

    def figures(place: Place) -> list[Row]:
        place.cluster.fill(size_bytes)
        notes = Notes(place.cluster)
        notes.add("notes")
        return _figures(place, notes, edits)

    return on_majors(work, "restore", {15: figures, 17: figures})


def _figures(place: Place, notes: Notes, edits: int) -> list[Row]:
    cluster, major = place.cluster, place.cluster.installation.major
    url, keys = place.server.url(place.server.make_bucket(_BUCKET)), credentials(place.server)
    site = BenchSite(cluster, place.work / "site", urls=[url], environment=keys)
    into, scratch = place.work / "into", place.work / "layers"
    back_up, side, goals = _peer(place, major, into, scratch)
    with site:
        for number in range(4):
            kind = "full" if number == 0 else "incr"
            site.run_configured("backup", "--type", kind, "--json")
            if side.missing is None:
                back_up(kind)
            if number < 3:
                notes.edit(edits)

    def ours() -> Usage:
        words: list[str | Path] = ["restore", "--identity", site.identity, "--to", "immediate", "--from", url]
        words += ["--into", into, "--action", "none", "--no-verify", "--workers", "2", "--yes", "--json"]
        return run(site.words(*words), env=keys)

    def clear() -> None:
        for folder in (into, place.work / "into.pitr", scratch):
            shutil.rmtree(folder, ignore_errors=True)

    def cleared(restore: Callable[[], Usage]) -> Callable[[], Usage]:
        def cleared_first() -> Usage:
            clear()
            return restore()

        return cleared_first

    side = Side(side.name, cleared(side.run), side.missing)
    archive = place.work / "plain.tar.zst"
    if plain_tar.missing() is None:
        plain_tar.pack(cluster.instance.data_dir, archive)
    plain = Side(plain_tar.UNPACKED, cleared(lambda: plain_tar.unpack(archive, into)), plain_tar.missing())
    mine, other, unpacked = in_turn(_REPEATS, [Side("ours", cleared(ours)), side, plain])
    assert mine is not None
    clear()
    size = _size_of(cluster.instance.data_dir / "base")
    stored = place.server.stored_bytes(_BUCKET)
    name = f"restore PG{major}, a full and 3 incremental"
    print(f"{name}: {size / GIB:.2f} GiB of relations, {stored / GIB:.2f} GiB stored", file=sys.stderr)
    rows = side_rows(name, size, mine, side, other, goals)
    rows += side_rows(name, size, mine, plain, unpacked)
    if major >= 17:
        limit_url = place.server.url(place.server.make_bucket("limits"))
        limits.measure("put", limit_url, str(stored), env=keys, work=place.work)
        get = limits.measure("get", limit_url, str(stored), env=keys, work=place.work)
        unzstd = limits.measure("unzstd", cluster.instance.data_dir, work=place.work)
        write = limits.measure("write", scratch, str(size), work=place.work)
        alone = [("S3 get", get), ("zstd -d", unzstd), ("writing and syncing", write)]
        rows += limits.limit_rows(name, mine, size, alone)
    return rows


def _peer(place: Place, major: int, into: Path, scratch: Path) -> tuple[Callable[[str], Usage], Side, Goals]:
    """Return how the peer of a major version backs up, how it restores, and our goals beside it."""
    if major < 17:
        rival = PgBackRest(place, "pgbackrest", level=1)
        side = Side("pgBackRest zstd 1", lambda: rival.restore(into), pgbackrest.missing())
        return rival.back_up, side, _BESIDE_PGBACKREST
    chain = BaseBackups(place, "pg-basebackup")
    name = "curl, zstd, tar and pg_combinebackup, not encrypted"
    side = Side(name, lambda: chain.restore(into, scratch), basebackup.missing())
    return chain.back_up, side, _BESIDE_COMBINE


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
