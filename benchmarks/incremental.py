"""Incremental base backups to S3 over TLS, of the same number of edited rows each.

PostgreSQL 17 (WAL summaries) beside ``pg_basebackup --incremental``, at several sizes of the cluster; and 15,
where ours reads and compares all pages, beside pgBackRest: by files, and by its block incremental.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import basebackup, limits, pgbackrest
from benchmarks.basebackup import BaseBackups
from benchmarks.changes import Notes
from benchmarks.harness import GIB, MIB, Row, Usage, ratio_goal
from benchmarks.limits import Limit
from benchmarks.majors import Figures, on_majors
from benchmarks.own import OwnBackups, credentials
from benchmarks.pgbackrest import PgBackRest
from benchmarks.side import Goals, Place, Side, in_turn, side_rows

_CPU = Goals(cpu=0.25)
_STORED = Goals(stored=1.1)
# Ten times the cluster may cost a little more (its files are listed), not ten times as much.
_GROWTH_MAX = 1.5
_MORE_CHANGES = 4
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of the cluster, in bytes: on 15, and ascending on 17; and how many rows are edited each time."""

    on_15: int
    on_17: tuple[int, ...]
    edits: int


_QUICK = _Sizes(64 * MIB, (32 * MIB, 64 * MIB, 128 * MIB), 300)
_WHOLE = _Sizes(3 * GIB, (GIB, 3 * GIB, 10 * GIB), 4000)


def _on_15(place: Place, sizes: _Sizes) -> list[Row]:
    notes = Notes(place.cluster)
    place.cluster.write_notes("notes", sizes.on_15)
    notes.add("notes")
    with OwnBackups(place, "own") as own:
        return _beside_pgbackrest(place, own, notes, sizes.edits)


def _beside_pgbackrest(place: Place, own: OwnBackups, notes: Notes, edits: int) -> list[Row]:
    files = PgBackRest(place, "pgbackrest", level=1)
    blocks = PgBackRest(place, "pgbackrest-block", level=1, is_block=True)
    absent = pgbackrest.missing()
    own.back_up("full")
    if absent is None:
        files.back_up("full")
        blocks.back_up("full")
    sides = [
        Side("ours", lambda: own.back_up("incr")),
        Side("pgBackRest zstd 1", lambda: files.back_up("incr"), absent),
        Side("pgBackRest zstd 1, block incremental", lambda: blocks.back_up("incr"), absent),
    ]
    ours, *peers = in_turn(_REPEATS, sides, lambda: notes.edit(edits))
    assert ours is not None
    rows = []
    for side, peer in zip(sides[1:], peers, strict=True):
        rows += _rows(f"incremental PG15, {own.size_bytes / GIB:.2g} GiB", ours, side, peer, _CPU)
    where = place.cluster.instance.data_dir
    alone = [
        ("reading the disk", limits.measure("read", where, work=place.work)),
        _put_alone(place, ours.stored_bytes),
    ]
    return rows + _beside_limits(f"incremental PG15, {own.size_bytes / GIB:.2g} GiB", ours, alone)


def _put_alone(place: Place, size_bytes: int) -> tuple[str, Limit]:
    url = place.server.url(place.server.make_bucket("limits"))
    key = credentials(place.server)
    return "S3 put", limits.measure("put", url, str(size_bytes), env=key, work=place.work)


def _beside_limits(name: str, ours: Usage, alone: list[tuple[str, Limit]]) -> list[Row]:
    return [_in_seconds(row) for row in limits.limit_rows(name, ours, GIB, alone)]


def _at_size(
    place: Place, own: OwnBackups, notes: Notes, edits: int, size_bytes: int
) -> tuple[list[Row], Usage, Usage]:
    """Return the rows, our median, and what ``_MORE_CHANGES`` times the edits cost us."""
    peer = BaseBackups(place, f"pg-basebackup-{size_bytes // MIB}")
    own.back_up("full")
    absent = basebackup.missing()
    if absent is None:
        peer.back_up("full")
    sides = [
        Side("ours", lambda: own.back_up("incr")),
        Side("pg_basebackup -i and curl, not encrypted", lambda: peer.back_up("incr"), absent),
    ]
    ours, other = in_turn(_REPEATS, sides, lambda: notes.edit(edits))
    assert ours is not None
    name = f"incremental PG17, {own.size_bytes / GIB:.2g} GiB"
    rows = _rows(name, ours, sides[1], other, _STORED)
    rows += _beside_limits(name, ours, [_put_alone(place, ours.stored_bytes)])
    notes.edit(edits * _MORE_CHANGES)
    return rows, ours, own.back_up("incr")


def _rows(name: str, ours: Usage, side: Side, peer: Usage | None, goals: Goals) -> list[Row]:
    return [_in_seconds(row) for row in side_rows(name, GIB, ours, side, peer, goals)]


def _in_seconds(row: Row) -> Row:
    # Not per GiB of the cluster, for it should not depend on that.
    return replace(row, unit="s") if row.unit == "s/GiB" else row


def _on_17(place: Place, sizes: _Sizes) -> list[Row]:
    cluster, rows, reached = place.cluster, list[Row](), 0
    notes = Notes(cluster)
    figures: list[tuple[int, Usage, Usage]] = []
    for number, size_bytes in enumerate(sizes.on_17):
        cluster.write_notes(f"notes_{number}", size_bytes - reached)
        notes.add(f"notes_{number}")
        reached = size_bytes
        with OwnBackups(place, f"own-17-{size_bytes // MIB}") as own:
            more_rows, ours, more = _at_size(place, own, notes, sizes.edits, size_bytes)
        rows += more_rows
        figures.append((own.size_bytes, ours, more))
        place.server.drop_buckets()
    first_bytes, first, _ = figures[0]
    for size_bytes, ours, more in figures[1:]:
        name = f"incremental PG17, growth to {size_bytes / GIB:.2g} GiB: CPU"
        peer = f"ours at {first_bytes / GIB:.2g} GiB"
        rows.append(ratio_goal(name, "s", ours.cpu_s, peer, first.cpu_s))
        # The larger the cluster, the seldomer two of the edited rows share a page: more pages change.
        by_stored = [one.cpu_s * MIB / one.stored_bytes for one in (ours, first)]
        name += " for each MiB of changes stored"
        rows.append(ratio_goal(name, "s", by_stored[0], peer, by_stored[1], at_most=_GROWTH_MAX))
        name = f"incremental PG17, {_MORE_CHANGES} times the edits: CPU"
        rows.append(ratio_goal(name, "s", more.cpu_s, "ours with the edits once", ours.cpu_s))
    return rows


def run_all(work: Path, quick: bool) -> list[Row]:
    sizes = _QUICK if quick else _WHOLE
    print(f"incremental: {sizes.edits} rows edited before each, {_REPEATS} in turn", file=sys.stderr)
    figures: dict[int, Figures] = {
        15: lambda place: _on_15(place, sizes),
        17: lambda place: _on_17(place, sizes),
    }
    return on_majors(work, "incremental", figures)
