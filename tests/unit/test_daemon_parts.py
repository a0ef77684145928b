"""The daemon's parts, as they are made."""

from __future__ import annotations

from pathlib import Path

import structlog
from fix_config import BASE, least_tables

from cli.config_schema import check_tables
from cli.daemon_parts import open_queue
from cli.settings import Settings
from storage.repair import Repair, RepairQueue


def test_what_a_region_lacked_that_is_not_configured_any_more_leaves_room_for_the_others(
    tmp_path: Path,
) -> None:
    tables = least_tables(daemon={"state_dir": str(tmp_path)})
    settings = check_tables(tables, base=BASE, path=BASE / "pitr.toml")
    assert isinstance(settings, Settings), settings
    before = RepairQueue(settings.daemon.repair_queue_path)
    before.record(
        [
            Repair(region, before.next_sequence(), key, 4, bytes(32), after_all=False)
            for region in ("eu", "gone")
            for key in "kl"
        ]
    )
    before.close()
    logged: list[dict[str, object]] = []

    def log(_logger: object, _level: str, event: dict[str, object]) -> str:
        logged.append(event)
        raise structlog.DropEvent

    queue = open_queue(settings, structlog.wrap_logger(None, processors=[log]))
    assert (queue.regions(), queue.pending("eu"), queue.pending("gone")) == (["eu"], 2, 0)
    queue.close()
    again = RepairQueue(settings.daemon.repair_queue_path)
    assert again.regions() == ["eu"]
    again.close()
    assert [(one["event"], one["region"], one["forgotten"]) for one in logged] == [
        ("a region is not configured any more", "gone", 2)
    ]
