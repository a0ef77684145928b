"""Full base backups to S3 over TLS: ours (pages checked, encrypted, signed) beside pgBackRest, barman-cloud
and ``pg_basebackup``, and beside ``tar | zstd -1``.

PostgreSQL 15 for the pairs with pgBackRest, since Debian's knows no later one; 17 for those with PostgreSQL's
own tool.  WAL is left out by all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import barman_cloud, basebackup, limits, pgbackrest, plain_tar
from benchmarks.barman_cloud import BarmanCloud
from benchmarks.basebackup import BaseBackups
from benchmarks.harness import GIB, MIB, Row, compare
from benchmarks.majors import Figures, on_majors
from benchmarks.own import OwnBackups, credentials
from benchmarks.pgbackrest import DEFAULT_LEVEL, PgBackRest
from benchmarks.side import Goals, Place, Side, in_turn, side_rows

_REPEATS = 3
_SAME_LEVEL = Goals(cpu=0.95)
# Ours as it is set up, at level 1, beside pgBackRest as it is set up, at level 3.
_DEFAULTS = Goals(cpu=0.75)


def _on_15(place: Place, own: OwnBackups) -> list[Row]:
    same = PgBackRest(place, "pgbackrest-1", level=1)
    default = PgBackRest(place, "pgbackrest-default", level=DEFAULT_LEVEL)
    barman = BarmanCloud(place, "barman")
    absent = pgbackrest.missing()
    sides = [
        Side("ours", lambda: own.back_up("full")),
        Side("pgBackRest zstd 1", lambda: same.back_up("full"), absent),
        Side(f"pgBackRest zstd {DEFAULT_LEVEL}, its default", lambda: default.back_up("full"), absent),
        Side("barman-cloud lz4, not encrypted", barman.full, barman_cloud.missing()),
    ]
    ours, *peers = in_turn(_REPEATS, sides)
    assert ours is not None
    size, name = own.size_bytes, "full PG15"
    _tell(name, size, ours.stored_bytes)
    rows = [compare(f"{name}: CPU of the daemon's start, once", "s", own.start_cpu_s, "(none)", None)]
    rows += side_rows(name, size, ours, sides[1], peers[0], _SAME_LEVEL)
    rows += side_rows(name, size, ours, sides[2], peers[1], _DEFAULTS)
    rows += side_rows(name, size, ours, sides[3], peers[2])
    where, key = place.cluster.instance.data_dir, credentials(place.server)
    url = place.server.url(place.server.make_bucket("limits"))
    alone = [
        ("zstd 1", limits.measure("zstd", where, work=place.work)),
        ("reading the disk", limits.measure("read", where, work=place.work)),
        ("S3 put", limits.measure("put", url, str(ours.stored_bytes), env=key, work=place.work)),
    ]
    return rows + limits.limit_rows(name, ours, size, alone)


def _on_17(place: Place, own: OwnBackups) -> list[Row]:
    peer = BaseBackups(place, "pg-basebackup")
    sides = [
        Side("ours", lambda: own.back_up("full")),
        Side("pg_basebackup and curl, not encrypted", lambda: peer.back_up("full"), basebackup.missing()),
        Side(
            plain_tar.PACKED,
            lambda: plain_tar.pack(place.cluster.instance.data_dir, place.work / "plain.tar.zst"),
            plain_tar.missing(),
        ),
    ]
    ours, other, plain = in_turn(_REPEATS, sides)
    assert ours is not None
    size, name = own.size_bytes, "full PG17"
    _tell(name, size, ours.stored_bytes)
    return side_rows(name, size, ours, sides[1], other) + side_rows(name, size, ours, sides[2], plain)


def _tell(name: str, size_bytes: int, stored_bytes: int) -> None:
    print(
        f"{name}: {size_bytes / GIB:.2f} GiB read, {stored_bytes / GIB:.2f} GiB stored,"
        f" compression {size_bytes / stored_bytes:.2f}",
        file=sys.stderr,
    )


def run_all(work: Path, quick: bool) -> list[Row]:
    size_bytes = 96 * MIB if quick else 3 * GIB

    def filled(figures: Callable[[Place, OwnBackups], list[Row]]) -> Figures:
        def run(place: Place) -> list[Row]:
            place.cluster.fill(size_bytes)
            with OwnBackups(place, "own") as own:
                return figures(place, own)

        return run

    return on_majors(work, "full", {15: filled(_on_15), 17: filled(_on_17)})
