"""A watchdog in a thread of the test's own, over a real server: what it says and notes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import structlog
from structlog.testing import CapturingLogger

from cli.watchdog_run import Watchdog
from pitr.commit_release import ReleasePolicy
from pitr.postgres.address import ConfiguredAddress, ServerAddress
from pitr.protection import Protect
from pitr.release_journal import ReleaseJournal, ReleaseStep

PRIMARY = ReleasePolicy(Protect.PRIMARY, 1.0, hold_s=2.0)


class Watched:
    """A watchdog in a thread of its own, and what it has said and noted."""

    def __init__(self, address: ServerAddress, folder: Path, policy: ReleasePolicy) -> None:
        self._lines = CapturingLogger()
        log = structlog.wrap_logger(
            self._lines, processors=[], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        self.journal = ReleaseJournal(folder / "releases.jsonl")
        self._stopping = threading.Event()
        watchdog = Watchdog(
            address,
            "pitr",
            policy,
            self.journal,
            log,
            now=lambda: datetime.now(UTC),
            monotonic=time.monotonic,
            refused_pause_s=1.0,
        )
        self._thread = threading.Thread(target=watchdog.run, args=[self._stopping])
        self._thread.start()

    def steps(self) -> list[ReleaseStep]:
        return [note.step for note in self.journal.notes()]

    def said(self, text: str) -> int:
        return sum(text in str(call.kwargs["event"]) for call in self._lines.calls)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextmanager
def watching(where: str | ServerAddress, folder: Path, policy: ReleasePolicy = PRIMARY) -> Iterator[Watched]:
    address = ConfiguredAddress(where) if isinstance(where, str) else where
    watched = Watched(address, folder, policy)
    try:
        yield watched
    finally:
        watched.stop()
