"""Measure whole processes in turn, and say how ours stands to the peer.

The machines are noisy, so what counts is the ratio of medians of interleaved repeats in one
run.  CPU seconds are user + system of the process and its children; where the server works
for a tool (a walsender), its share is counted with ``ServerCpu``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

GIB = 1 << 30
MIB = 1 << 20
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
RUN_TIMEOUT_S = 1800.0
# Between two looks at a tool's memory.
_SAMPLE_S = 0.05


@dataclass(frozen=True, slots=True)
class Usage:
    """What one whole process cost, and what it stored.  ``peak_bytes`` is of all its processes together."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    stored_bytes: int = 0

    def then(self, other: Usage) -> Usage:
        """Return what both cost, one after the other."""
        return Usage(
            self.wall_s + other.wall_s,
            self.cpu_s + other.cpu_s,
            max(self.peak_bytes, other.peak_bytes),
            self.stored_bytes + other.stored_bytes,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.  ``ratio`` is ours / peer; ``holds`` says whether the goal was met, None without a goal.

    ``ours`` is None where nothing could be measured, and ``peer_name`` says what is missing.
    """

    name: str
    unit: str
    ours: float | None
    peer_name: str
    peer: float | None
    ratio: float | None
    goal: str
    holds: bool | None


class RunFailed(Exception):
    """A measured process failed; its figures mean nothing."""


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    user: int | None = None,
    group: int | None = None,
    stdout: Path | None = None,
    timeout_s: float = RUN_TIMEOUT_S,
) -> Usage:
    """Run a process to its end and return its cost.  Raises RunFailed with its last words."""
    started_at = time.monotonic()
    with Path(stdout or os.devnull).open("wb") as sink:
        process = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            user=user,
            group=group,
            extra_groups=[] if user is not None else None,
        )
    assert process.stderr is not None
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    peak = _TreePeak(process.pid)
    try:
        words = process.stderr.read()
        _, status, rusage = os.wait4(process.pid, 0)
    finally:
        timer.cancel()
        peak_bytes = peak.stop()
        process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RunFailed(f"{argv[0]} ended with {process.returncode}: {words.decode(errors='replace')[-800:]}")
    return Usage(time.monotonic() - started_at, rusage.ru_utime + rusage.ru_stime, peak_bytes)


class _TreePeak:
    """The largest sum of the peaks (VmHWM) of a process and its descendants that live at one time.

    ``ru_maxrss`` will not do: it knows the largest process only, and begins with what the forking one had.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self._peak_bytes

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self._peak_bytes = max(self._peak_bytes, _tree_bytes(self._pid))


def _tree_bytes(pid: int) -> int:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return peak_of(pid) + sum(_tree_bytes(int(child)) for child in children)
    except (OSError, RunFailed):
        return 0  # it ended between two reads


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds, by whom they were spent."""

    user_s: float
    system_s: float

    def since(self, before: Cpu) -> Cpu:
        return Cpu(self.user_s - before.user_s, self.system_s - before.system_s)

    @property
    def total_s(self) -> float:
        return self.user_s + self.system_s


def cpu_parts_of(pid: int) -> Cpu:
    """Return the CPU seconds so far of a live process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system, children_user, children_system = (int(field) / _TICKS_PER_S for field in fields[11:15])
    return Cpu(user + children_user, system + children_system)


def cpu_of(pid: int) -> float:
    """Return both parts of ``cpu_parts_of`` in one."""
    return cpu_parts_of(pid).total_s


def peak_of(pid: int) -> int:
    """Return the peak resident memory of a live process, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RunFailed(f"no memory peak for process {pid}")


class ServerCpu:
    """CPU seconds that a server spent between two readings, its live and ended backends included."""

    def __init__(self, postmaster_pid: int) -> None:
        self._postmaster = postmaster_pid
        self._before = self._read()

    def _read(self) -> float:
        total = cpu_of(self._postmaster)
        children = Path(f"/proc/{self._postmaster}/task/{self._postmaster}/children").read_text().split()
        for child in children:
            try:
                total += cpu_of(int(child))
            except FileNotFoundError:
                continue  # it ended between the two reads; the postmaster's own figure has it next time
        return total

    def spent_s(self) -> float:
        return self._read() - self._before


def interleave(repeats: int, *runs: Callable[[], Usage]) -> list[Usage]:
    """Run A B A B … and return the median of each, so that a slow minute hits all of them."""
    results: list[list[Usage]] = [[] for _ in runs]
    for _ in range(repeats):
        for index, one in enumerate(runs):
            results[index].append(one())
    return [median(usages) for usages in results]


def median(usages: Sequence[Usage]) -> Usage:
    """Return the median of each figure."""
    return Usage(
        statistics.median(u.wall_s for u in usages),
        statistics.median(u.cpu_s for u in usages),
        int(statistics.median(u.peak_bytes for u in usages)),
        int(statistics.median(u.stored_bytes for u in usages)),
    )


def compare(
    name: str, unit: str, ours: float, peer_name: str, peer: float | None, *, at_most: float | None = None
) -> Row:
    """Return a row whose goal, if any, bounds our own figure from above."""
    ratio = round(ours / peer, 3) if peer else None
    goal = "" if at_most is None else f"<= {at_most:g} {unit}"
    holds = None if at_most is None else ours <= at_most
    return Row(
        name, unit, round(ours, 3), peer_name, None if peer is None else round(peer, 3), ratio, goal, holds
    )


def ratio_goal(
    name: str,
    unit: str,
    ours: float,
    peer_name: str,
    peer: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """Return a row whose goal bounds the ratio ours / peer."""
    ratio = ours / peer
    if at_least is not None:
        goal, holds = f"ratio >= {at_least:g}", ratio >= at_least
    elif at_most is not None:
        goal, holds = f"ratio <= {at_most:g}", ratio <= at_most
    else:
        goal, holds = "", None
    return Row(name, unit, round(ours, 3), peer_name, round(peer, 3), round(ratio, 3), goal, holds)


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    cells = [("figure", "unit", "ours", "peer", "", "ratio", "goal", "")]
    for row in rows:
        verdict = "" if row.holds is None else ("holds" if row.holds else "MISSED")
        peer = "" if row.peer is None else f"{row.peer:g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        cells.append(
            (
                row.name,
                row.unit,
                "" if row.ours is None else f"{row.ours:g}",
                peer,
                row.peer_name,
                ratio,
                row.goal,
                verdict,
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows beside what ran them; figures without their machine say little."""
    machine = {
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB),
        "python": sys.version.split()[0],
    }
    path.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
