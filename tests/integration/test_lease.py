"""Two base backups of one server at once: one is taken, the other is told, what was fenced is not listed."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from fix_backup import fill, house_for, in_thread, threads_left
from fix_postgres import PostgresFactory

from pitr.catalogue.backup_record import BackupManifest
from pitr.catalogue.lease_record import Holder
from pitr.errors import AlreadyRunning, BackupFailed
from pitr.layout import backup_lease
from pitr.lease import Lease, newest_record
from pitr.lease_terms import LeaseTerms
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId

HOLDERS = [Holder("db1", 10, "1" * 16), Holder("db2", 20, "2" * 16)]


def test_a_second_backup_is_refused_while_the_first_is_taken(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory()
    fill(source, 1000)
    house = house_for(source)
    reached, go_on = threading.Event(), threading.Event()

    def hold(_timeline: TimelineId, _start: LSN, _end: LSN, _timeout_s: float) -> bool:
        reached.set()
        return go_on.wait(60)

    first = in_thread(lambda: house.back_up(source.dsn, wait_for_wal=hold, holder=HOLDERS[0]))
    assert reached.wait(60)
    before = {info.key for info in house.store.list_objects("")}
    with pytest.raises(AlreadyRunning) as refused:
        house.back_up(source.dsn, holder=HOLDERS[1])
    assert "process 10 on db1" in str(refused.value.detail)
    assert {info.key for info in house.store.list_objects("")} == before
    go_on.set()
    assert isinstance(first(), BackupManifest)
    # It let the lease go, so nobody waits.
    house.back_up(source.dsn, holder=HOLDERS[1])
    assert len(house.listed()) == 2
    assert threads_left() == []


def test_of_two_that_begin_together_one_is_listed_or_they_follow_each_other(
    postgres_factory: PostgresFactory,
) -> None:
    source = postgres_factory()
    fill(source, 1000)
    house = house_for(source)
    outcomes = [in_thread(lambda own=own: house.back_up(source.dsn, holder=own)) for own in HOLDERS]
    results = [outcome() for outcome in outcomes]
    taken = [result for result in results if isinstance(result, BackupManifest)]
    assert all(isinstance(result, BackupManifest | AlreadyRunning) for result in results), results
    assert len(house.listed()) == len(taken) >= 1
    if len(taken) == 2:
        first, second = sorted(taken, key=lambda manifest: manifest.started_at)
        assert first.stopped_at <= second.started_at


def test_a_backup_that_was_fenced_while_it_slept_is_not_listed(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory()
    fill(source, 1000)
    house = house_for(source)

    def sleep(_timeline: TimelineId, _start: LSN, _end: LSN, _timeout_s: float) -> bool:
        """Stand for a host that is stopped for eleven minutes, in which another one takes the lease."""
        late = datetime.now(UTC) + timedelta(minutes=11)
        Lease(
            house.repository,
            house.signer,
            house.archive,
            backup_lease(house.archive),
            HOLDERS[1],
            terms=LeaseTerms(),
            clock=lambda: late,
            cancel=threading.Event(),
        ).take()
        return True

    with pytest.raises(BackupFailed, match="has taken the lease"):
        house.back_up(source.dsn, wait_for_wal=sleep, holder=HOLDERS[0])
    assert house.listed() == []
    newest = newest_record(house.repository, house.archive, backup_lease(house.archive))
    assert newest is not None
    assert (newest.holder, newest.is_released) == (HOLDERS[1], False)


def test_a_long_backup_renews_its_lease(postgres_factory: PostgresFactory) -> None:
    source = postgres_factory()
    house = house_for(source)
    name = backup_lease(house.archive)

    def wait(_timeline: TimelineId, _start: LSN, _end: LSN, _timeout_s: float) -> bool:
        newest = newest_record(house.repository, house.archive, name)
        return newest is not None and newest.number >= 4

    house.back_up(source.dsn, wait_for_wal=wait, lease=LeaseTerms(renew_s=0.1))
    newest = newest_record(house.repository, house.archive, name)
    assert newest is not None
    assert newest.is_released
