"""What a benchmark's row says: its fields, its ratio, and what a whole process costs with its children."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from benchmarks import plain_tar
from benchmarks.__main__ import NAMES
from benchmarks.harness import MIB, RunFailed, Usage, compare, interleave, ratio_goal, run, show, write
from benchmarks.side import Goals, Side, side_rows


def test_rows_are_written_with_their_fields_and_their_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        compare("rpo: p99", "s", 1.2, "(none)", None, at_most=1.1),
        ratio_goal("restore: wall", "s", 3.0, "pg_basebackup", 4.0, at_most=0.8),
    ]
    write(rows, tmp_path / "results.json")
    show(rows)
    missed, held = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert list(missed) == ["name", "unit", "ours", "peer_name", "peer", "ratio", "goal", "holds"]
    assert (missed["ratio"], missed["goal"], missed["holds"]) == (None, "<= 1.1 s", False)
    assert (held["ratio"], held["goal"], held["holds"]) == (0.75, "ratio <= 0.8", True)
    assert "MISSED" in capsys.readouterr().out


def test_a_pair_tells_cpu_speed_memory_and_what_is_missing() -> None:
    ours, peer = Usage(2.0, 4.0, 400 * MIB, 10 * MIB), Usage(1.0, 8.0, 10 * MIB, 20 * MIB)
    side = Side("tar", lambda: peer)
    rows = {row.name: row for row in side_rows("full", 1 << 30, ours, side, peer, Goals(cpu=0.6))}
    assert (rows["full: CPU"].ours, rows["full: CPU"].ratio, rows["full: CPU"].holds) == (4.0, 0.5, True)
    assert (rows["full: speed"].unit, rows["full: speed"].ours) == ("MB/s", 536.871)
    assert rows["full: memory peak"].holds is False
    absent = side_rows("full", 1 << 30, ours, Side("tar", lambda: peer, "not installed"), None)
    assert {(row.peer_name, row.peer, row.ratio) for row in absent} == {("tar not installed", None, None)}


def test_every_name_can_be_run() -> None:
    assert {"rpo", "wal-receive", "full", "restore"} <= set(NAMES)
    for name in NAMES:
        assert callable(importlib.import_module(f"benchmarks.{name.replace('-', '_')}").run_all)


def test_a_process_costs_what_its_children_cost_too() -> None:
    # The shell itself does nothing; 64 MiB and some CPU are its child's.
    work = "x = bytearray(64 << 20); sum(range(30_000_000))"
    usage = run(["sh", "-c", '"$0" -c "$1"; true', sys.executable, work])
    assert usage.cpu_s > 0.05
    assert usage.peak_bytes > 64 * MIB
    with pytest.raises(RunFailed, match="ended with 3: why"):
        run(["sh", "-c", "echo why >&2; exit 3"])


def test_runs_alternate_and_the_median_of_each_counts() -> None:
    order: list[str] = []
    walls = {"a": iter((1.0, 9.0, 2.0)), "b": iter((5.0, 4.0, 6.0))}

    def one(name: str) -> Usage:
        order.append(name)
        return Usage(next(walls[name]), 0.0, 0)

    medians = interleave(3, lambda: one("a"), lambda: one("b"))
    assert "".join(order) == "ababab"
    assert [usage.wall_s for usage in medians] == [2.0, 5.0]


@pytest.mark.needs_apt
def test_the_simplest_copy_comes_back(tmp_path: Path) -> None:
    (tmp_path / "data" / "base").mkdir(parents=True)
    (tmp_path / "data" / "base" / "1").write_bytes(b"page" * 4096)
    packed = plain_tar.pack(tmp_path / "data", tmp_path / "packed")
    assert 0 < packed.stored_bytes < 16_384
    plain_tar.unpack(tmp_path / "packed", tmp_path / "into")
    assert (tmp_path / "into" / "base" / "1").read_bytes() == b"page" * 4096
