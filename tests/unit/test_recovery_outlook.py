"""The daemon's outlook: the forecast that it shows, and the backup that it takes earlier, not too often."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import fix_archive as fix
import structlog
from fix_reports import SYSTEM, ReportHouse
from structlog.testing import CapturingLogger

from cli.backup_runner import SCHEDULED_LABEL, BackupRunner
from cli.recovery_outlook import RecoveryOutlook
from pitr.backup_choice import BackupKind
from pitr.backup_tally import BackupProgress
from pitr.catalogue.backup_record import BackupManifest
from pitr.wal.lsn import LSN
from storage.memory import MemoryStore
from storage.store import ObjectStore
from verifiers.rto_objective import INTERVAL_MIN_S

GIB = 1 << 30
WAL_START = LSN(1 << 30)


@dataclass
class Host:
    """A daemon's backups, its clock, and what the outlook showed and asked for."""

    store: ObjectStore
    objective_s: float | None
    durable: LSN
    at: float = 7200.0
    shown: list[dict[str, object] | None] = field(default_factory=list)
    taken: list[tuple[str, str]] = field(default_factory=list)
    lines: CapturingLogger = field(default_factory=CapturingLogger)
    asked: int = 0

    def __post_init__(self) -> None:
        made = fix.backup_of(WAL_START, WAL_START + 10, stopped_at=fix.at_second(60))
        self.last = replace(made, size_bytes=4_000_000_000)
        self.runner = BackupRunner(self._take)
        self.runner.remember([self.last])
        self.outlook = RecoveryOutlook(
            self.store,
            SYSTEM,
            None,
            self.objective_s,
            backups=self.runner,
            log=structlog.wrap_logger(
                self.lines, processors=[], wrapper_class=structlog.make_filtering_bound_logger(0)
            ),
            show=self.shown.append,
            durable=lambda: self.durable,
            begin=self._begin,
            now=lambda: fix.at_second(0) + timedelta(seconds=self.at),
        )

    def _begin(self) -> None:
        self.asked += 1

    def _take(
        self,
        label: str,
        kind: BackupKind,
        cancel: threading.Event,
        progress: Callable[[BackupProgress], None],
        note: Callable[[str], None],
    ) -> BackupManifest:
        self.taken.append((label, kind))
        return self.last


def test_what_was_measured_is_forecast_for_the_latest_moment(tmp_path: Path) -> None:
    # The reports tell of 245 s for 4 GB and 160 MB of WAL, and of 120 of them until somebody looked.
    host = Host(ReportHouse(tmp_path / "reports").store, None, WAL_START + 160_000_000)
    host.outlook.look()
    (shown,) = host.shown
    assert shown is not None
    assert 100 < float(str(shown["seconds"])) < 150
    assert (shown["runs"], shown["wal_bytes"]) == (3, 160_000_000 + WAL_START.offset % (16 << 20))
    assert host.asked == 0


def test_an_objective_that_is_not_held_takes_an_incremental_and_says_why(tmp_path: Path) -> None:
    host = Host(ReportHouse(tmp_path / "reports").store, 300.0, WAL_START + 20 * GIB)
    host.outlook.look()
    assert host.asked == 1
    host.runner.run(threading.Event())
    ((label, kind),) = host.taken
    assert kind == "incr"
    assert "over the 300 s of rto_objective" in label
    # It brought nothing: the next one is not before the least interval.
    host.at += INTERVAL_MIN_S - 1
    host.outlook.look()
    assert host.asked == 1
    host.at += 1
    host.outlook.look()
    assert host.asked == 2


def test_without_an_objective_or_a_run_none_is_taken(tmp_path: Path) -> None:
    for store, objective_s in ((ReportHouse(tmp_path / "reports").store, None), (MemoryStore(), 1.0)):
        host = Host(store, objective_s, WAL_START + 20 * GIB)
        host.outlook.look()
        assert host.asked == 0
        host.runner.run(threading.Event())
        assert host.taken == [(SCHEDULED_LABEL, "auto")]
