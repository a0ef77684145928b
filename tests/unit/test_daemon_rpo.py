"""The daemon's figures: how old is what would be lost, at quorum and for each region."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from cli.backup_runner import BackupRunner
from cli.daemon_state import DaemonState
from cli.put_bill import PutBill
from cli.snapshot import RegionSnapshot
from pitr.archive_values import ArchiveStatus
from pitr.backup_pace import Pace, PaceLimits
from pitr.catalogue.backup_record import BackupManifest
from pitr.protection import Level
from pitr.wal.lsn import LSN
from storage.regions import RegionStatus

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
STREAMS = ArchiveStatus(True, None, None, None, None, None, 0, 0, 0, 0, 0, 0, None, None, None)


def region(name: str, pending: int = 0, oldest: timedelta | None = None) -> RegionStatus:
    return RegionStatus(name, True, pending, 0, None if oldest is None else NOW - oldest, None, None)


def no_backup(*_: object) -> BackupManifest:
    raise AssertionError("none is taken here")


@dataclass
class World:
    """An archiver and regions, as far as the daemon's figures see them."""

    archiver: ArchiveStatus = STREAMS
    regions: list[RegionStatus] = field(default_factory=lambda: [region(name) for name in "abc"])
    now_s: float = 1000.0

    def __post_init__(self) -> None:
        self.state = DaemonState(
            cluster="main",
            archive="1/00000001",
            quorum=2,
            started_at=NOW,
            now=lambda: NOW,
            monotonic=lambda: self.now_s,
            backups=BackupRunner(no_backup),
            pace=Pace(PaceLimits(None, 2)),
            archiver=self,
            regions=lambda: self.regions,
            tasks=lambda: (),
            is_catalogue_complete=lambda: True,
            put_bill=PutBill(price_per_1000=0.005, regions=3),
            events_waiting=lambda: 0,
            level=lambda: Level.QUORUM,
            tally=lambda _kind: None,
        )
        self.state.observe()

    def status(self) -> ArchiveStatus:
        return self.archiver

    def region(self, name: str) -> RegionSnapshot:
        (found,) = [one for one in self.state.snapshot().regions if one.name == name]
        return found


def test_a_region_that_lacks_something_is_as_far_behind_as_the_oldest_of_it() -> None:
    world = World(regions=[region("a"), region("b", 7, timedelta(seconds=90)), region("c")])
    assert (world.region("b").rpo_s, world.region("b").pending_repairs) == (90.0, 7)
    assert (world.region("a").rpo_s, world.region("a").pending_repairs) == (0.0, 0)
    # The quorum has it all.
    assert world.state.snapshot().rpo_s == 0.0


def test_what_no_quorum_has_no_region_is_ahead_of() -> None:
    world = World(regions=[region("a"), region("b", 1, timedelta(seconds=90)), region("c")])
    world.archiver = replace(STREAMS, oldest_unshipped_age_s=30.0)
    assert world.state.snapshot().rpo_s == 30.0
    assert [world.region(name).rpo_s for name in "abc"] == [30.0, 90.0, 30.0]


def test_a_clock_that_went_back_makes_no_region_better_than_well() -> None:
    world = World(regions=[region("a", 1, timedelta(seconds=-5))])
    assert world.region("a").rpo_s == 0.0


@pytest.mark.parametrize("is_streaming", [True, False])
def test_the_age_at_quorum_grows_while_the_server_is_ahead_or_silent(is_streaming: bool) -> None:
    ahead = replace(STREAMS, durable=LSN(100), server_end=LSN(200 if is_streaming else 100))
    world = World(archiver=ahead)
    world.archiver = replace(ahead, is_streaming=is_streaming)
    world.now_s += 61.0
    world.state.observe()
    assert world.state.snapshot().rpo_s == 61.0
    world.archiver = replace(ahead, durable=LSN(200))
    world.state.observe()
    assert world.state.snapshot().rpo_s == 0.0
