"""Patroni's lock as proof of a failover: not where a base backup would be left behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import fix_archive as fix
import pytest
from fix_patroni_rest import IDENTIFIER, rest_member

from cli.adoption import Decision, HostJudge, keep_decision
from pitr.catalogue.backup_record import BackupManifest
from pitr.errors import ServerUnavailable
from pitr.layout import ArchiveId
from pitr.postgres.leader import LeaderAddress
from pitr.postgres.patroni import PatroniMembers
from pitr.wal.follow import ArchiveFork
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.store import StoreUnavailable

ARCHIVE = ArchiveId(IDENTIFIER, 1)
ONE, TWO, THREE = TimelineId(1), TimelineId(2), TimelineId(3)
# The archive ends at 9000 of timeline 2; the leader left it at 7000.
FORK = ArchiveFork(TWO, LSN(7000), TWO, LSN(9000), THREE, LSN(7000))


def backup(start: int, timeline: int) -> BackupManifest:
    return fix.backup_of(LSN(start), LSN(start + 100), stopped_at=fix.at_second(1), timeline=timeline)


@pytest.fixture
def leader() -> Iterator[LeaderAddress]:
    with rest_member() as member:
        member.lead("pg1", "10.0.0.1", 5432, timeline=3)
        address = LeaderAddress("user=postgres", PatroniMembers([member.url]))
        address.find()
        yield address


@pytest.mark.parametrize(
    ("backups", "is_failover"),
    [
        ([], True),
        ([backup(6900, 2)], True),
        ([backup(6900, 2), backup(7100, 2)], False),
        # Of an end that an earlier failover left: the archive's way leads over none of it.
        ([backup(7100, 1)], True),
    ],
)
def test_a_fork_before_a_complete_backup_is_left_to_a_person(
    leader: LeaderAddress, tmp_path: Path, backups: list[BackupManifest], is_failover: bool
) -> None:
    said: list[str] = []
    judge = HostJudge(tmp_path, ARCHIVE, leader, backups=lambda: backups, say=said.append)
    assert (judge.why_failover(FORK) is not None) is is_failover
    assert bool(said) is not is_failover
    if not is_failover:
        assert "restored" in said[0]
        keep_decision(tmp_path, Decision(ARCHIVE, FORK, datetime.now(UTC)))
        assert "the operator decided" in str(judge.why_failover(FORK))


def test_while_the_backups_cannot_be_read_nothing_is_decided(leader: LeaderAddress, tmp_path: Path) -> None:
    def away() -> list[BackupManifest]:
        raise StoreUnavailable("no region answers")

    judge = HostJudge(tmp_path, ARCHIVE, leader, backups=away, say=print)
    with pytest.raises(ServerUnavailable, match="cannot be read"):
        judge.why_failover(FORK)
