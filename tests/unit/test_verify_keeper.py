"""The daemon's timetable of verifications and drills: what the configuration makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from cli.config_schema import check_tables
from cli.settings import Settings
from cli.verify_keeper import VerifyKeeper
from pitr.pipeline.keys import Identity
from pitr.pipeline.sign import Signer

BASE = Path("/etc/pitr")


def tasks_of(verify: dict[str, Any] | None) -> dict[str, float | None]:
    recipient = Identity.generate(lambda count: bytes(range(count))).recipient()
    tables: dict[str, Any] = {
        "cluster": {"name": "clinic", "dsn": "host=/run/postgresql"},
        "repository": {"id": "0" * 32, "quorum": 1},
        "region": [{"name": "eu", "url": "file:///srv/eu"}],
        "keys": {
            "signing_key_file": "host.key",
            "root": str(Signer(bytes(32)).public),
            "recipients": [str(recipient)],
        },
        "daemon": {"state_dir": "state"},
    }
    if verify is not None:
        tables["verify"] = {"identity_file": "identity.toml", **verify}
    settings = check_tables(tables, base=BASE, path=BASE / "pitr.toml")
    assert isinstance(settings, Settings)
    tasks = VerifyKeeper(settings, structlog.get_logger()).tasks()
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
