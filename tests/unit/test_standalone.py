"""What a base backup without a daemon leaves out."""

from __future__ import annotations

from typing import Any

import structlog
from fix_config import BASE, least_tables

from cli.config_schema import check_tables
from cli.own_processes import OwnProcesses
from cli.settings import Settings
from cli.standalone import for_one_backup


def test_it_begins_no_verification_and_no_snapshot_of_redis_which_its_end_would_cut_off() -> None:
    redis: list[dict[str, Any]] = [{"name": "wards", "addresses": ["h:1"], "snapshot_every": "1h"}]
    tables = least_tables(redis=redis, verify={"identity_file": "identity.toml"})
    settings = check_tables(tables, base=BASE, path=BASE / "pitr.toml")
    assert isinstance(settings, Settings), settings
    log = structlog.get_logger()
    names = {task.name for task in OwnProcesses(settings, log).tasks()}
    assert names == {"verification", "drill-components", "redis-snapshot-wards"}
    alone = for_one_backup(settings)
    assert OwnProcesses(alone, log).tasks() == []
    assert (alone.backup.every_s, alone.daemon.metrics_port) == (None, None)
