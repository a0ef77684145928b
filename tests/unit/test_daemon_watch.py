"""The daemon's slow looks go on, whatever one of them meets."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fix_repository import RepositoryHouse

from cli.daemon_watch import Watch
from cli.regions import open_writing
from storage.memory import MemoryStore
from storage.regions import Region
from storage.repair import RepairQueue

WAIT_S = 20.0


class Log:
    """Keeps what is logged, for a test that waits for it."""

    def __init__(self) -> None:
        self.lines: queue.Queue[tuple[str, str, object]] = queue.Queue()

    def debug(self, text: str, **_more: object) -> None:
        """Nothing is looked for in it."""

    def info(self, text: str, **more: object) -> None:
        self.lines.put(("info", text, more.get("reason")))

    def warning(self, text: str, **more: object) -> None:
        self.lines.put(("warning", text, more.get("reason")))

    def next_warning(self) -> tuple[str, object]:
        while True:
            level, text, reason = self.lines.get(timeout=WAIT_S)
            if level == "warning":
                return text, reason


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def log(tmp_path: Path, store: MemoryStore) -> Iterator[Log]:
    """The log of a watch that runs; its server is not there."""
    house = RepositoryHouse(store)
    store.put("epochs/strange", b"?")
    log = Log()
    repairs = RepairQueue(tmp_path / "repair.sqlite")
    regions = open_writing([Region("eu", store)], 1, repairs)
    cluster = SimpleNamespace(dsn=f"host={tmp_path}", slot="pitr")
    settings = SimpleNamespace(cluster=cluster, wal=SimpleNamespace(source="stream"))
    watch = Watch(
        cast(Any, settings),
        house.repository,
        house.archive,
        regions,
        repairs,
        cast(Any, SimpleNamespace(slot_retained_bytes=None)),
        cast(Any, SimpleNamespace(record=lambda _record: None)),
        cast(Any, log),
        cast(Any, SimpleNamespace(session=lambda: settings.cluster.dsn)),
    )
    watch.start()
    yield log
    watch.stop()
    regions.close()
    repairs.close()


def test_a_strange_key_among_the_epochs_is_told_and_ends_nothing(log: Log) -> None:
    text, reason = log.next_warning()
    assert text == "names among the epochs that are none"
    assert reason == "epochs/strange"
