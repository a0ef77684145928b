"""RepairQueue: order, bounds, restarts, kill -9 and damaged files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage.repair import Repair, RepairQueue, RepairQueueDamaged, RepairQueueFull
from storage.store import StoreRefused

AT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def repair(queue: RepairQueue, region: str, key: str, *, after_all: bool = False) -> Repair:
    return Repair(region, queue.next_sequence(), key, 4, bytes(32), after_all)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[RepairQueue]:
    queue = RepairQueue(tmp_path / "repair", entries_max=10, now=lambda: AT)
    yield queue
    queue.close()


def test_entries_come_back_in_order_after_a_restart(tmp_path: Path) -> None:
    with_entries = RepairQueue(tmp_path / "repair", now=lambda: AT)
    assert with_entries.is_new
    first, second = repair(with_entries, "c", "z"), repair(with_entries, "c", "a", after_all=True)
    with_entries.record([second, first])
    with_entries.close()
    queue = RepairQueue(tmp_path / "repair")
    assert not queue.is_new
    assert queue.first("c", 10) == [first, second]
    assert queue.oldest_sequence("c") == first.sequence
    assert queue.next_sequence() > second.sequence
    assert queue.counts("c").oldest_at == AT
    queue.close()


def test_done_and_forgotten_entries_are_gone(queue: RepairQueue) -> None:
    queue.record([repair(queue, region, key) for key in "kl" for region in "bc"])
    queue.done("b", "k")
    queue.done("b", "k")
    assert [entry.key for entry in queue.first("b", 10)] == ["l"]
    assert queue.regions() == ["b", "c"]
    queue.forget("l")
    assert (queue.oldest_sequence("b"), queue.regions()) == (None, ["c"])
    queue.forget_region("c")
    assert (queue.counts("c").pending, queue.regions()) == (0, [])


def test_an_object_waits_once_and_keeps_its_place(queue: RepairQueue) -> None:
    first = repair(queue, "c", "k")
    queue.record([first])
    queue.record([repair(queue, "c", "k")])
    assert queue.first("c", 10) == [first]
    assert queue.counts("c").pending == queue.pending("c") == 1
    assert queue.pending("b") == 0


def test_a_stuck_entry_is_not_offered_but_still_holds_up_what_follows(queue: RepairQueue) -> None:
    first = repair(queue, "c", "k")
    queue.record([first, repair(queue, "c", "l")])
    queue.set_stuck("c", "k", "conflict")
    assert [entry.key for entry in queue.first("c", 10)] == ["l"]
    assert queue.oldest_sequence("c") == first.sequence
    assert (queue.counts("c").pending, queue.counts("c").stuck) == (2, 1)
    queue.retry_stuck()
    assert [entry.key for entry in queue.first("c", 10)] == ["k", "l"]


def test_a_full_queue_takes_all_or_nothing(queue: RepairQueue) -> None:
    queue.record([repair(queue, "c", f"k{number}") for number in range(9)])
    with pytest.raises(RepairQueueFull, match="is full: 9 objects wait"):
        queue.record([repair(queue, "c", "x"), repair(queue, "c", "y")])
    assert queue.counts("c").pending == 9
    queue.record([repair(queue, "c", "x")])


def test_a_second_process_is_refused(queue: RepairQueue, tmp_path: Path) -> None:
    queue.record([repair(queue, "c", "k")])
    code = (
        "import sys; from pathlib import Path; from storage.repair import RepairQueue;"
        "RepairQueue(Path(sys.argv[1]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "repair")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 1
    assert "is in use by another process" in found.stderr


def test_what_was_recorded_survives_kill_9(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from storage.repair import Repair, RepairQueue
queue = RepairQueue(Path(sys.argv[1]))
while True:
    sequence = queue.next_sequence()
    queue.record([Repair("c", sequence, f"k{sequence}", 4, bytes(32), False)])
    if sequence % 3 == 0:
        queue.done("c", f"k{sequence}")
    print(sequence, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "repair")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        acknowledged = [int(process.stdout.readline()) for _ in range(50)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait(60)
    queue = RepairQueue(tmp_path / "repair")
    held = {entry.key for entry in queue.first("c", 1_000_000)}
    assert queue.was_cut
    queue.close()
    again = RepairQueue(tmp_path / "repair")
    assert not again.was_cut
    again.close()
    assert {f"k{sequence}" for sequence in acknowledged if sequence % 3} <= held


@pytest.mark.parametrize("damage", ["garbage", "cut", "flip", "foreign"])
def test_a_damaged_file_is_refused_with_words_and_can_be_replaced(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "repair"
    queue = RepairQueue(path)
    queue.record([repair(queue, "c", f"key-{number:060}") for number in range(500)])
    queue.close()
    body = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"not a database, but long enough to be looked at " * 100)
    elif damage == "cut":
        path.write_bytes(body[: len(body) // 2])
    elif damage == "flip":
        page = 4096 * 2
        path.write_bytes(
            body[:page] + bytes(byte ^ 0xFF for byte in body[page : page + 64]) + body[page + 64 :]
        )
    else:
        import sqlite3

        path.unlink()
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE other (x)")
        connection.close()
    with pytest.raises(RepairQueueDamaged, match=r"repair"):
        RepairQueue(path)
    replaced = RepairQueue.replace_damaged(path)
    assert replaced.must_reconcile
    assert replaced.regions() == []
    assert (tmp_path / "repair.damaged-1").exists()
    replaced.close()
    again = RepairQueue(path)
    assert again.must_reconcile
    again.set_must_reconcile(False)
    again.close()


def test_a_queue_that_cannot_be_made_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="cannot be written"):
        RepairQueue(tmp_path / "missing" / "repair")
