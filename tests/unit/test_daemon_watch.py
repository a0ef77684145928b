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

    def error(self, text: str, **more: object) -> None:
        self.lines.put(("error", text, more.get("reason")))

    def next_error(self) -> tuple[str, object]:
        return self._next("error")

    def next_warning(self) -> tuple[str, object]:
        return self._next("warning")

    def _next(self, wanted: str) -> tuple[str, object]:
        while True:
            level, text, reason = self.lines.get(timeout=WAIT_S)
            if level == wanted:
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
        cast(Any, SimpleNamespace(record=lambda _record: 1 // 0)),
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


def test_what_nobody_foresaw_ends_one_look_and_the_next_ones_are_taken(log: Log) -> None:
    text, reason = log.next_error()
    assert text == "the record of regions failed, and is tried again"
    assert str(reason).startswith("ZeroDivisionError")
    # What comes after it in the same round.
    assert log.next_warning()[0] == "names among the epochs that are none"
