"""The daemon's timetable of verifications and drills: what the configuration makes of it."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from fix_config import BASE, least_tables

from cli.config_schema import check_tables
from cli.settings import Settings
from cli.timetable import Timetable
from cli.verify_keeper import VerifyKeeper
from pitr.errors import PitrError

# Notes when it begins and ends, and says that nothing was due.
PROGRAM = """
import pathlib, sys, time
notes = pathlib.Path(sys.argv[1])
with notes.open("a") as file: file.write("begun\\n")
time.sleep(float(sys.argv[2]))
with notes.open("a") as file: file.write("ended\\n")
print('{"data": {"is_not_due": true}}')
"""


# Is killed the first time, as for want of memory; the second time it comes to a verdict.
KILLED = """
import json, os, pathlib, signal, sys
notes = pathlib.Path(sys.argv[1])
is_first = not notes.exists()
with notes.open("a") as file: file.write("begun " + " ".join(sys.argv[2:]) + "\\n")
if is_first: os.kill(os.getpid(), signal.SIGKILL)
said = {"verdict": "PASSED", "report": "r", "number": 1, "recovery_time_ms": 1, "checks": [], "findings": []}
print(json.dumps({"data": said}))
"""


def keeper_of(verify: dict[str, Any] | None, command: Sequence[str] | None = None) -> VerifyKeeper:
    tables = least_tables()
    if verify is not None:
        tables["verify"] = {"identity_file": "identity.toml", **verify}
    settings = check_tables(tables, base=BASE, path=BASE / "pitr.toml")
    assert isinstance(settings, Settings)
    return VerifyKeeper(settings, structlog.get_logger(), command=command)


def tasks_of(verify: dict[str, Any] | None) -> dict[str, float | None]:
    tasks = keeper_of(verify).tasks()
    assert all(task.last_success_at() is None for task in tasks)
    return {task.name: task.every_s for task in tasks}


def test_without_the_table_nothing_is_on_the_timetable() -> None:
    assert tasks_of(None) == {}


def test_a_verifier_verifies_weekly_and_tries_the_components_daily() -> None:
    assert tasks_of({}) == {"verification": 604_800.0, "drill-components": 86_400.0}


def test_each_drill_has_a_task_of_its_own_also_where_nothing_is_verified() -> None:
    drills = {"components": "never", "failover": "30d", "disaster": "91d"}
    assert tasks_of({"every": "never", "drills": drills}) == {
        "drill-failover": 2_592_000.0,
        "drill-disaster": 7_862_400.0,
    }


def test_a_verification_and_a_drill_that_are_due_at_once_run_one_after_the_other(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    tasks = keeper_of({}, (sys.executable, "-c", PROGRAM, str(notes), "1")).tasks()
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(task.run, threading.Event()) for task in tasks]:
            done.result(60.0)
    assert notes.read_text().split() == ["begun", "ended"] * 2


def test_a_verification_that_was_killed_is_run_again_and_said_to_have_failed(tmp_path: Path) -> None:
    notes, ends = tmp_path / "notes", queue.Queue[tuple[str, str | None]]()
    (task, _) = keeper_of({}, (sys.executable, "-c", KILLED, str(notes))).tasks()
    assert task.retry_max_s == 6 * 3600.0
    timetable = Timetable(
        [replace(task, retry_first_s=0.1)],
        now=lambda: datetime.now(UTC),
        report=lambda _name, how, error: ends.put((how, error)),
    )
    timetable.start()
    try:
        how, error = ends.get(timeout=60.0)
        assert (how, "came to no verdict: exit code -9" in str(error)) == ("failed", True)
        assert ends.get(timeout=60.0) == ("done", None)
    finally:
        timetable.stop(10.0)
    runs = notes.read_text().splitlines()
    assert len(runs) == 2
    assert all(one.endswith("verify --scheduled") for one in runs)


def test_one_that_waits_for_its_turn_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    notes, cancelled = tmp_path / "notes", threading.Event()
    first, second = keeper_of({}, (sys.executable, "-c", PROGRAM, str(notes), "3")).tasks()
    cancelled.set()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(first.run, threading.Event())
        while not notes.exists():
            assert not running.done()
        with pytest.raises(PitrError, match="cancelled while another one ran"):
            second.run(cancelled)
        running.result(60.0)
    assert notes.read_text().split() == ["begun", "ended"]
