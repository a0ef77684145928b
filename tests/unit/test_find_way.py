"""How a search comes to a moment: on from where it stands if it can, and by a restore if that is shorter."""

from __future__ import annotations

from dataclasses import replace

import fix_archive as fix

from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan, StopPoint
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from verifiers.find_way import Cost, Way, cheapest, forward_bytes, restore_bytes

MIB = 1 << 20


def plan(end: int, *, backup_at: int = 0, timeline: int = 1) -> RestorePlan:
    """A plan that ends ``end`` MiB into the WAL, from a backup of 1 GiB begun at ``backup_at`` MiB."""
    start = LSN((1 << 32) + backup_at * MIB)
    backup = fix.backup_of(start, start + 100, stopped_at=fix.at_second(1))
    stop = LSN((1 << 32) + end * MIB)
    return RestorePlan(
        target=RecoveryTarget("lsn", lsn=stop),
        archive=backup.archive,
        timeline=TimelineId(timeline),
        backup=replace(backup, size_bytes=1 << 30),
        spans=(),
        links=(),
        candidates=(),
        is_past_end=False,
        stop=StopPoint(stop, False, stop, stop),
    )


def way(here: RestorePlan, wanted: RestorePlan) -> Way:
    forward = forward_bytes(here, wanted)
    offers = [Cost(Way.RESTORE, restore_bytes(wanted))]
    return cheapest([*offers, *([] if forward is None else [Cost(Way.FORWARD, forward)])])


def test_it_goes_on_from_where_it_stands() -> None:
    assert way(plan(100), plan(500)) is Way.FORWARD
    assert way(plan(100), plan(100)) is Way.FORWARD


def test_a_newer_backup_that_is_nearer_is_restored() -> None:
    assert way(plan(100), plan(50_000, backup_at=49_900)) is Way.RESTORE
    assert way(plan(100), plan(1_000, backup_at=900)) is Way.FORWARD


def test_recovery_goes_neither_back_nor_to_another_timeline() -> None:
    assert forward_bytes(plan(100), plan(99)) is None
    assert forward_bytes(plan(100), plan(200, timeline=2)) is None
