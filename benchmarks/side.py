"""One tool's runs on one cluster and one S3 server, measured alike for all; and the rows that come of them.

CPU is that of the tool's processes with all children, and PostgreSQL's share while it runs (the
checkpoint, a walsender).  The S3 server's is left out: it is the same program for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.cluster import BenchCluster
from benchmarks.harness import GIB, MIB, Row, RunFailed, ServerCpu, Usage, median
from benchmarks.s3 import S3Server

MEMORY_GOAL_MIB = 300


@dataclass(frozen=True, slots=True)
class Place:
    """Where all tools of one comparison work: the cluster that is read, the server that stores."""

    cluster: BenchCluster
    server: S3Server
    work: Path

    def measure(self, bucket: str, tool: Callable[[], Usage]) -> Usage:
        """Run a tool; its cost, PostgreSQL's share added, and what ``bucket`` has more than before."""
        before = self.server.stored_bytes(bucket)
        postgres = ServerCpu(self.cluster.postmaster_pid)
        usage = tool()
        spent_s = usage.cpu_s + postgres.spent_s()
        return replace(usage, cpu_s=spent_s, stored_bytes=self.server.stored_bytes(bucket) - before)


@dataclass(frozen=True, slots=True)
class Side:
    """A tool in a comparison.  ``missing``: what to install, if it is not there."""

    name: str
    run: Callable[[], Usage]
    missing: str | None = None


def in_turn(
    repeats: int, sides: Sequence[Side], before_each: Callable[[], None] = lambda: None
) -> list[Usage | None]:
    """Run all sides A B A B …, each round after ``before_each``; the medians, None for what is not there.

    A peer that fails is told and left out; ours that fails ends the run.
    """
    found: list[list[Usage]] = [[] for _ in sides]
    broken: set[int] = {index for index, side in enumerate(sides) if side.missing is not None}
    for _ in range(repeats):
        before_each()
        for index, side in enumerate(sides):
            if index in broken:
                continue
            try:
                found[index].append(side.run())
            except RunFailed as failure:
                if index == 0:
                    raise
                print(f"{side.name}: {failure}")
                broken.add(index)
    return [median(usages) if usages and index not in broken else None for index, usages in enumerate(found)]


@dataclass(frozen=True, slots=True)
class Goals:
    """Upper bounds of ours / peer, None without a goal."""

    cpu: float | None = None
    wall: float | None = None
    stored: float | None = None


def side_rows(
    name: str, size_bytes: int, ours: Usage, side: Side, peer: Usage | None, goals: Goals = Goals()
) -> list[Row]:
    """Return the rows of one pair: CPU, wall, speed, memory peak, and bytes stored where something was."""
    peer_name = side.name if side.missing is None else f"{side.name} {side.missing}"
    if peer is None and side.missing is None:
        peer_name = f"{side.name} failed"
    gib = size_bytes / GIB

    def row(what: str, unit: str, of: Callable[[Usage], float], goal: float | None = None) -> Row:
        mine, other = of(ours), None if peer is None else of(peer)
        ratio = None if not other else mine / other
        return Row(
            f"{name}: {what}", unit, round(mine, 3), peer_name, None if other is None else round(other, 3),
            None if ratio is None else round(ratio, 3), "" if goal is None else f"ratio <= {goal:g}",
            None if goal is None or ratio is None else ratio <= goal,
        )  # fmt: skip

    rows = [
        row("CPU", "s/GiB", lambda one: one.cpu_s / gib, goals.cpu),
        row("wall", "s", lambda one: one.wall_s, goals.wall),
        row("speed", "MB/s", lambda one: size_bytes / 1e6 / one.wall_s),
    ]
    peak = row("memory peak", "MiB", lambda one: one.peak_bytes / MIB)
    bound = f"<= {MEMORY_GOAL_MIB} MiB"
    rows.append(replace(peak, goal=bound, holds=ours.peak_bytes <= MEMORY_GOAL_MIB * MIB))
    if ours.stored_bytes:
        rows.append(row("stored", "MiB", lambda one: one.stored_bytes / MIB, goals.stored))
    return rows
