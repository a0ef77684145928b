"""The lease: who may take it, who is fenced, and how little of the store is read for it."""

from __future__ import annotations

import contextlib
import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fix_archive as fix
import pytest
from fix_repository import RepositoryHouse
from fix_stores import FaultyStore

from pitr.catalogue.lease_record import Holder, LeaseRecord
from pitr.errors import AlreadyRunning, BackupFailed, MalformedValue, NotAuthentic
from pitr.layout import ArchiveId, backup_lease, lease_key, lease_number
from pitr.lease import BAD_RECORDS_MAX, Lease, newest_record
from pitr.lease_terms import LeaseTerms, held_until
from pitr.pipeline.sign import sign_record
from storage.memory import MemoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from storage.store import StoreUnavailable

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
TERMS = LeaseTerms()
NAME = "backup/1/00000001"
A = Holder("a", 1, "a" * 16)
B = Holder("b", 2, "b" * 16)


def record(
    holder: Holder = A, *, taken_at: datetime = NOW, number: int = 1, is_released: bool = False
) -> LeaseRecord:
    until = taken_at + timedelta(seconds=TERMS.length_s)
    return LeaseRecord(fix.REPOSITORY, ArchiveId(1, 1), NAME, number, holder, taken_at, until, is_released)


class Clock:
    """A host's clock, which a test sets."""

    def __init__(self, at: datetime = NOW) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at

    def pass_by(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class ForgetfulStore(FaultyStore):
    """A store that puts, and then says that it gave no answer; meanwhile a second goes by."""

    def __init__(self, inner: MemoryStore, clock: Clock) -> None:
        super().__init__(inner)
        self._clock = clock
        self.answers_lost = 0

    def put(self, key: str, body: bytes, *, sha256: bytes | None = None, after_all: bool = False) -> None:
        super().put(key, body, sha256=sha256, after_all=after_all)
        if self.answers_lost:
            self.answers_lost -= 1
            self._clock.pass_by(1)
            raise StoreUnavailable("the answer was lost")


class House:
    """A store with a lease in it, and hosts with clocks of their own."""

    def __init__(self, store: FaultyStore | None = None) -> None:
        self.store = store or FaultyStore(MemoryStore())
        self.written = RepositoryHouse(self.store)
        self.archive = self.written.archive
        self.name = backup_lease(self.archive)

    def lease(self, holder: Holder, clock: Clock, terms: LeaseTerms = TERMS) -> Lease:
        repository = self.written.repository
        return Lease(
            repository,
            self.written.host,
            self.archive,
            self.name,
            holder,
            terms=terms,
            clock=clock,
            cancel=threading.Event(),
        )

    @property
    def newest(self) -> LeaseRecord:
        found = newest_record(self.written.repository, self.archive, self.name)
        assert found is not None
        return found


@pytest.mark.parametrize(
    ("newest", "free"),
    [
        (None, True),
        (record(), False),
        (record(is_released=True), True),
        (record(Holder("b", 7, "b" * 16)), True),
        (record(Holder("other", 2, "b" * 16)), False),
        (record(taken_at=NOW - timedelta(seconds=629)), False),
        (record(taken_at=NOW - timedelta(seconds=630)), True),
        (record(taken_at=NOW + timedelta(seconds=600)), False),
        (record(taken_at=NOW + timedelta(days=900)), True),
    ],
    ids=[
        *("nobody", "held", "released", "the own dead predecessor", "the same place of another host"),
        *("ran out within the skew", "ran out", "a clock ahead", "a clock years ahead"),
    ],
)
def test_a_lease_is_free_when_it_ended_or_its_holder_is_known_to_be_dead(
    newest: LeaseRecord | None, free: bool
) -> None:
    assert (held_until(newest, B, TERMS, NOW) is None) == free


def test_a_record_reads_as_it_was_written_and_newer_ones_list_first() -> None:
    one = record(number=7)
    assert LeaseRecord.from_payload(one.to_payload()) == one
    assert lease_number(lease_key(NAME, 7)) == 7
    assert lease_key(NAME, 8) < lease_key(NAME, 7)
    for bad in ({"number": 0}, {"holder": "a/b"}, {"until_at": "2026-11-25T11:00:00.000000Z"}):
        with pytest.raises(MalformedValue):
            LeaseRecord.from_payload({**one.to_payload(), **bad})
    assert Holder.parse(str(Holder.of_host("db 1/x\n", 3, "0" * 16))).host == "db-1-x-"


def test_a_second_taker_is_told_who_holds_it_and_until_when() -> None:
    house = House()
    first = house.lease(A, Clock())
    first.take()
    with pytest.raises(AlreadyRunning) as refused:
        house.lease(B, Clock(NOW + timedelta(minutes=9))).take()
    assert "process 1 on a" in str(refused.value.detail)
    assert "12:10:00" in str(refused.value.detail)
    first.confirm()
    first.release()
    assert house.newest.is_released
    second = house.lease(B, Clock())
    second.take()
    second.release()


@pytest.mark.parametrize("round_number", range(20))
def test_of_two_that_race_exactly_one_takes_it(round_number: int) -> None:
    house = House()
    results: list[bool] = []
    won: list[Lease] = []
    barrier = threading.Barrier(2)

    def race(holder: Holder) -> None:
        lease = house.lease(holder, Clock())
        barrier.wait(20)
        try:
            lease.take()
        except AlreadyRunning:
            results.append(False)
        else:
            results.append(True)
            won.append(lease)

    threads = [threading.Thread(target=race, args=(holder,)) for holder in (A, B)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(results) == [False, True], round_number
    won[0].release()


@pytest.mark.parametrize("round_number", range(10))
def test_where_most_regions_must_agree_no_two_take_it(tmp_path: Path, round_number: int) -> None:
    regions = [Region(name, MemoryStore()) for name in ("north", "south", "west")]
    held: list[Lease] = []
    barrier = threading.Barrier(2)
    with ExitStack() as ending:
        houses: list[House] = []
        for number in range(2):
            queue = ending.enter_context(closing(RepairQueue(tmp_path / f"queue{number}")))
            # Each host has another region nearest.
            near = regions[number:] + regions[:number]
            store = ending.enter_context(closing(ReplicatedStore(near, quorum=2, queue=queue)))
            houses.append(House(FaultyStore(store)))

        def race(house: House, holder: Holder) -> None:
            lease = house.lease(holder, Clock())
            barrier.wait(20)
            with contextlib.suppress(AlreadyRunning):
                lease.take()
                held.append(lease)

        threads = [threading.Thread(target=race, args=each) for each in zip(houses, (A, B), strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        # Three regions can be shared by two that both lose; never by two that both win.
        assert len(held) <= 1, round_number
        for lease in held:
            lease.confirm()
            lease.release()


def test_two_that_saw_the_same_free_lease_cannot_both_take_it() -> None:
    house = House()
    gate = house.store.hold("put", lease_key(house.name, 1))
    results: list[Exception | None] = []
    is_decided = threading.Event()

    def take(holder: Holder) -> None:
        lease = house.lease(holder, Clock())
        try:
            lease.take()
        except AlreadyRunning as refused:
            results.append(refused)
            is_decided.set()
        else:
            results.append(None)
            # Only once the other one has lost: it would take what was let go.
            is_decided.wait(20)
            lease.release()

    threads = [threading.Thread(target=take, args=(holder,)) for holder in (A, B)]
    for thread in threads:
        thread.start()
    while sum(call == ("put", lease_key(house.name, 1)) for call in house.store.calls) < 2:
        assert gate.entered.wait(20)
    house.store.heal()
    for thread in threads:
        thread.join(20)
    assert len(results) == 2
    (refused,) = [each for each in results if each is not None]
    assert isinstance(refused, AlreadyRunning)


def test_a_holder_that_slept_until_it_ran_out_is_fenced() -> None:
    house, clock = House(), Clock()
    sleeper = house.lease(A, clock)
    sleeper.take()
    clock.pass_by(TERMS.length_s + TERMS.skew_s)
    other = house.lease(B, clock)
    other.take()
    with pytest.raises(BackupFailed, match="has taken the lease"):
        sleeper.confirm()
    # It must not end what is another's now.
    sleeper.release()
    other.confirm()
    assert house.newest.holder == B
    other.release()


def test_a_holder_that_slept_and_was_not_missed_goes_on() -> None:
    house, clock = House(), Clock()
    sleeper = house.lease(A, clock)
    sleeper.take()
    clock.pass_by(10 * TERMS.length_s)
    sleeper.confirm()
    assert house.newest.until_at == clock.at + timedelta(seconds=TERMS.length_s)
    sleeper.release()


def test_the_renewing_thread_learns_that_it_was_fenced() -> None:
    house, clock = House(), Clock()
    sleeper = house.lease(A, clock, LeaseTerms(renew_s=0.02))
    gate = house.store.hold("put", lease_key(house.name, 2))
    sleeper.take()
    assert gate.entered.wait(20)
    theirs = replace(record(B, number=2), name=house.name, archive=house.archive)
    house.store.inner.put(lease_key(house.name, 2), sign_record(theirs.to_payload(), house.written.host))
    house.store.heal()
    sleeper.release()
    assert sleeper.lost is not None
    with pytest.raises(BackupFailed):
        sleeper.confirm()


def test_a_renewal_in_the_midst_of_a_confirmation_does_not_pass_for_a_fence() -> None:
    house = House()
    lease = house.lease(A, Clock(), LeaseTerms(renew_s=0.001))
    lease.take()
    try:
        for _ in range(300):
            lease.confirm()
    finally:
        lease.release()
    assert lease.lost is None


def test_a_taker_whose_clock_is_ahead_takes_it_and_the_holder_is_fenced() -> None:
    house = House()
    holder, ahead = house.lease(A, Clock()), house.lease(B, Clock(NOW + timedelta(hours=1)))
    holder.take()
    ahead.take()
    with pytest.raises(BackupFailed):
        holder.confirm()
    ahead.confirm()
    ahead.release()
    holder.release()


def test_a_holder_whose_clock_jumps_back_keeps_it() -> None:
    house, clock = House(), Clock()
    holder = house.lease(A, clock)
    holder.take()
    clock.pass_by(-3600)
    holder.confirm()
    holder.release()
    assert house.newest.is_released


def test_a_put_whose_answer_was_lost_is_repeated_as_it_was() -> None:
    clock = Clock()
    store = ForgetfulStore(MemoryStore(), clock)
    house = House(store)
    lease = house.lease(A, clock)
    lease.take()
    store.answers_lost = 1
    lease.confirm()
    assert house.newest.number == 3
    lease.release()


def test_bad_records_are_passed_over_and_a_listing_is_read_to_its_first_good_line() -> None:
    house, clock = House(), Clock()
    lease = house.lease(A, clock)
    lease.take()
    for _ in range(40):
        lease.confirm()
    lease.release()
    house.store.calls.clear()
    assert house.newest.number == 42
    assert [call for call, _ in house.store.calls].count("get") == 1
    assert [call for call, _ in house.store.calls].count("list-next") == 1
    for number in (43, 44, 46, 1000, (1 << 63) - 2):
        house.store.put(lease_key(house.name, number), b"no record")
    house.store.put(f"leases/{house.name}/0-no-number", b"no record")
    again = house.lease(B, clock)
    again.take()
    assert house.newest.number == 45
    with pytest.raises(AlreadyRunning):
        house.lease(A, clock).take()
    again.confirm()
    assert house.newest.number == 47
    again.release()
    for number in range(60, 60 + BAD_RECORDS_MAX):
        house.store.put(lease_key(house.name, number), b"no record")
    with pytest.raises(NotAuthentic, match="all bad"):
        house.lease(B, clock).take()
