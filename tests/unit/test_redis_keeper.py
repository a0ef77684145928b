"""The daemon's snapshots of Redis: on the timetable where a site says how often, and told when they fail."""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from fix_config import BASE, least_tables
from fix_ports import HOST, free_port

from cli.config_redis import RedisSettings
from cli.config_schema import check_tables
from cli.doctor_redis import examine_redis
from cli.redis_keeper import RedisKeeper
from cli.redis_site import writing_repository
from cli.settings import Settings
from pitr.derived.policy import Namespace, Policy
from pitr.errors import AlreadyRunning, PitrError
from verifiers.base import Severity

# Says what it was asked for, and what it is told to.
PROGRAM = """
import json, pathlib, sys
pathlib.Path(sys.argv[1]).write_text(json.dumps(sys.argv[3:]))
answer = json.loads(sys.argv[2])
print(json.dumps(answer))
raise SystemExit(0 if answer["ok"] else 3)
"""


def keeper_of(folder: Path, answer: dict[str, Any], *sites: dict[str, Any]) -> RedisKeeper:
    tables = least_tables(redis=list(sites))
    settings = check_tables(tables, base=BASE, path=BASE / "pitr.toml")
    assert isinstance(settings, Settings), settings
    command = (sys.executable, "-c", PROGRAM, str(folder / "asked"), json.dumps(answer))
    return RedisKeeper(settings, structlog.get_logger(), command=command)


WARDS = {"name": "wards", "addresses": ["h:1"], "snapshot_every": "1h", "deadline": "10m"}
CARTS = {"name": "carts", "addresses": ["h:2"]}


def test_a_site_that_says_how_often_is_on_the_timetable_and_its_snapshot_is_known(tmp_path: Path) -> None:
    answer = {"ok": True, "data": {"snapshots": [{"snapshot": "s-1", "bytes": 7}]}}
    keeper = keeper_of(tmp_path, answer, WARDS, CARTS)
    (task,) = keeper.tasks()
    assert (task.name, task.every_s, task.last_success_at()) == ("redis-snapshot-wards", 3600.0, None)
    assert task.deadline_s > 600
    assert [(one.name, one.age_s) for one in keeper.ages()] == [("wards", None)]
    before = datetime.now(UTC)
    task.run(threading.Event())
    asked = json.loads((tmp_path / "asked").read_text())
    assert asked == [
        *("-c", str(BASE / "pitr.toml"), "--json", "--progress", "none"),
        *("redis", "snapshot", "--name", "wards"),
    ]
    last = task.last_success_at()
    assert last is not None
    assert last >= before
    (age,) = keeper.ages()
    assert age.age_s is not None


def test_one_that_fails_is_told_with_its_reason_and_is_no_snapshot(tmp_path: Path) -> None:
    answer = {"ok": False, "error": {"message": "slots move", "why": "master h:1"}}
    keeper = keeper_of(tmp_path, answer, WARDS)
    (task,) = keeper.tasks()
    with pytest.raises(PitrError, match="Redis wards has no new snapshot: slots move; master h:1"):
        task.run(threading.Event())
    assert task.last_success_at() is None


def test_the_doctor_says_which_site_does_not_answer_and_what_no_snapshot_is_taken_of() -> None:
    queue = Namespace("queue:", Policy.RESTORE)
    away = RedisSettings("wards", ((HOST, free_port()),), (queue,), timeout_s=1.0)
    site, snapshots = examine_redis((away,))
    assert (site.id, site.severity, site.subject) == ("redis.site", Severity.FAIL, "wards")
    assert (snapshots.id, snapshots.severity) == ("redis.snapshots", Severity.WARN)
    assert "queue:" in snapshots.message
    often = RedisSettings("wards", away.addresses, (queue,), timeout_s=1.0, snapshot_every_s=60.0)
    assert [one.severity for one in examine_redis((often,))] == [Severity.FAIL, Severity.OK]
    none = RedisSettings("wards", away.addresses, (Namespace("c:", Policy.DROP),), timeout_s=1.0)
    assert [one.severity for one in examine_redis((none,))] == [Severity.FAIL, Severity.OK]


# Notes when it begins and ends.
SLOW = """
import pathlib, sys, time
notes = pathlib.Path(sys.argv[1])
with notes.open("a") as file: file.write("begun\\n")
time.sleep(1)
with notes.open("a") as file: file.write("ended\\n")
print('{"data": {}}')
"""


def test_two_sites_that_are_due_at_once_are_read_one_after_the_other(tmp_path: Path) -> None:
    carts = {**CARTS, "snapshot_every": "1h"}
    settings = check_tables(least_tables(redis=[WARDS, carts]), base=BASE, path=BASE / "pitr.toml")
    assert isinstance(settings, Settings), settings
    notes = tmp_path / "notes"
    command = (sys.executable, "-c", SLOW, str(notes))
    tasks = RedisKeeper(settings, structlog.get_logger(), command=command).tasks()
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(task.run, threading.Event()) for task in tasks]:
            done.result(60.0)
    assert notes.read_text().split() == ["begun", "ended"] * 2


def test_a_second_process_that_takes_a_snapshot_is_told_of_the_first(tmp_path: Path) -> None:
    regions = [{"name": "eu", "url": (tmp_path / "eu").as_uri()}]
    tables = least_tables(region=regions, daemon={"state_dir": str(tmp_path / "state")})
    settings = check_tables(tables, base=BASE, path=BASE / "pitr.toml")
    assert isinstance(settings, Settings), settings
    with (
        writing_repository(settings),
        pytest.raises(AlreadyRunning, match="another pitr redis snapshot"),
        writing_repository(settings),
    ):
        pass
