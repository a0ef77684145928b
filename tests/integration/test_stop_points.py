"""Stops found in pieces cut anywhere, against a walk over all of a real server's WAL."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

import fix_archive as fix
import psycopg
import pytest
from fix_postgres import PostgresFactory, PostgresHouse

from pitr.catalogue.records import EpochRecord
from pitr.catalogue.wal_records import TransactionTimes, WalUnit
from pitr.commits_around import EndLimits, StopLimits, stop_limits
from pitr.errors import NotAuthentic, TargetRefused
from pitr.planner import plan_restore
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan, TargetNotRestorable
from pitr.stop import resolve_plan, resolve_stop
from pitr.survey import ArchiveEnd, ArchiveSurvey
from pitr.wal.lsn import LSN
from pitr.wal.records import WalRecord, iter_records
from pitr.wal.transactions import EndKind, RestorePoint, TransactionEnd, restore_points, transaction_ends

TICK = timedelta(microseconds=1)
SEG = fix.SEGMENT_BYTES
_END = ArchiveEnd(None, True, "3 of 3 regions answered")


@dataclass
class Truth:
    """All WAL of a server from a segment's start to a place within a segment, and what is in it."""

    start: LSN
    wal: bytes
    stop_lsn: LSN
    stopped_at: datetime
    records: list[WalRecord]
    ends: list[TransactionEnd]
    points: list[RestorePoint]

    def survey(self, cuts: list[int]) -> ArchiveSurvey:
        """The WAL in units cut at these offsets and at segment boundaries; exact times for each."""
        size = len(self.wal)
        places = sorted({0, size, *cuts, *range(0, size, SEG)})
        units = [
            fix.unit_of(self.start + a, self.start + b, self._times(a, b), sequence=n)
            for n, (a, b) in enumerate(pairwise(places), 1)
        ]
        backup = fix.backup_of(self.start + 40, self.stop_lsn, stopped_at=self.stopped_at)
        epoch = EpochRecord(fix.REPOSITORY, fix.archive_of(1), fix.BEGIN, "ed25519:x")
        return ArchiveSurvey(fix.archive_of(1), (epoch,), {}, (backup,), tuple(units), _END)

    def _times(self, first: int, last: int) -> TransactionTimes | None:
        # The archiver counts a record where its last byte lies, which alignment may put 7 bytes later.
        at = [e.at for e in self.ends if first < e.end - self.start <= last]
        return TransactionTimes(min(at), max(at), is_exact=True) if at else None

    def read(self, unit: WalUnit) -> bytes:
        return self.wal[unit.start - self.start : unit.end - self.start]

    def record_before(self, lsn: LSN) -> WalRecord:
        return [r for r in self.records if r.start < lsn][-1]


@pytest.fixture(scope="module", params=[17, 18])
def truth(
    request: pytest.FixtureRequest, module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse
) -> Truth:
    server = module_postgres_factory(
        installation=postgres_house.installation(request.param),
        settings={"max_prepared_transactions": "5", "autovacuum": "off"},
        initdb=("--wal-segsize=1",),
    )
    server.switch_wal()
    start = LSN.parse(str(server.value("SELECT pg_current_wal_lsn()")))
    start = LSN(start.offset - start.offset % SEG)
    server.execute("CREATE TABLE t (id int, filler text)")
    stop_lsn = LSN.parse(str(server.value("SELECT pg_current_wal_lsn()")))
    stopped_at = server.value("SELECT clock_timestamp()")
    assert isinstance(stopped_at, datetime)
    with psycopg.connect(server.dsn, autocommit=True) as one, psycopg.connect(server.dsn) as two:
        two.execute("INSERT INTO t VALUES (-1, 'long')")
        for number in range(120):
            one.execute("INSERT INTO t VALUES (%s, repeat(md5(%s::text), %s))", (number, number, number % 40))
            if number % 17 == 3:
                one.execute("BEGIN; INSERT INTO t VALUES (0, 'gone'); ROLLBACK")
            if number in (40, 80):
                one.execute("SELECT pg_create_restore_point('twice')")
        one.execute("SELECT pg_create_restore_point('once')")
        one.execute("BEGIN; INSERT INTO t VALUES (7, 'two'); PREPARE TRANSACTION 'p'")
        one.execute("COMMIT PREPARED 'p'")
        two.commit()
        # Records of more than a page, so that the cuts lie within them.
        for size in range(1000, 100_000, 1500):
            one.execute("SELECT pg_logical_emit_message(true, 'filler', repeat('x', %s))", (size,))
        one.execute("SELECT pg_switch_wal()")
        one.execute("INSERT INTO t VALUES (8, 'after the switch')")
    end = LSN.parse(str(server.value("SELECT pg_current_wal_flush_lsn()")))
    server.stop()
    names = sorted(p for p in (server.data_dir / "pg_wal").iterdir() if len(p.name) == 24)
    wal = b"".join(p.read_bytes() for p in names if int(p.name[8:16] + p.name[16:], 16) >= 0)
    first = int(names[0].name[8:16], 16) * (1 << 32) + int(names[0].name[16:], 16) * SEG
    wal = wal[start.offset - first : end.offset - first]
    records = list(iter_records([(start, wal)], segment_bytes=SEG))
    return Truth(
        start,
        wal,
        stop_lsn,
        stopped_at,
        records,
        list(transaction_ends(records)),
        list(restore_points(records)),
    )


def cuts_of(truth: Truth, seed: int) -> list[int]:
    return random.Random(seed).sample(range(1, len(truth.wal)), 40)


def resolve(truth: Truth, target: RecoveryTarget, seed: int, **options: str) -> RestorePlan:
    return resolve_plan(target, truth.survey(cuts_of(truth, seed)), truth.read, **options)


def check_stop_before(truth: Truth, plan: RestorePlan, record_start: LSN) -> None:
    """PostgreSQL reports the end of the record before as replayed; the target record must be readable."""
    stop = plan.stop
    assert stop is not None
    assert (stop.target_lsn, stop.is_inclusive) == (record_start, False)
    assert stop.replay_end == truth.record_before(record_start).end
    record = next(r for r in truth.records if r.start == record_start)
    assert plan.wal_end == stop.read_end == record.end


def test_the_wal_holds_what_the_test_needs(truth: Truth) -> None:
    assert len(truth.wal) > 2 * SEG
    assert len(truth.ends) > 120
    assert [p.name for p in truth.points] == ["twice", "twice", "once"]
    assert any(r.end - r.start > 8192 for r in truth.records)


@pytest.mark.few_seeds(3, parts=3)
@pytest.mark.parametrize("is_inclusive", [True, False])
def test_a_time_stops_before_the_first_later_transaction(truth: Truth, seed: int, is_inclusive: bool) -> None:
    usable = [e for e in truth.ends if e.start >= truth.stop_lsn]
    chosen = random.Random(seed).sample(usable[1:], 25)
    for instant in [e.at + d for e in chosen for d in (-TICK, timedelta(), TICK)]:
        if instant <= truth.stopped_at:
            continue
        later = [e for e in usable if e.at > instant or (not is_inclusive and e.at == instant)]
        plan = resolve(truth, RecoveryTarget("time", instant=instant, is_inclusive=is_inclusive), seed)
        if later:
            check_stop_before(truth, plan, later[0].start)
            assert plan.stop is not None
            assert plan.stop.next_commit == later[0]
        else:
            assert plan.stop is not None
            assert plan.stop.replay_end == truth.records[-1].end


@pytest.mark.few_seeds(3, parts=3)
def test_an_lsn_stops_by_the_start_of_records_as_postgresql_does(truth: Truth, seed: int) -> None:
    dice = random.Random(seed)
    last = truth.start + len(truth.wal)
    places = [LSN(dice.randrange(truth.stop_lsn.offset, last.offset)) for _ in range(25)]
    places += [r.start for r in dice.sample(truth.records[20:], 10)] + [r.end for r in truth.records[-3:]]
    for place in places:
        if place < truth.stop_lsn:
            continue
        following = [r for r in truth.records if r.start >= place]
        exact = resolve(truth, RecoveryTarget("lsn", lsn=place), seed).stop
        before = resolve(truth, RecoveryTarget("lsn", lsn=place, is_inclusive=False), seed)
        assert exact is not None
        if following:
            assert (exact.target_lsn, exact.replay_end) == (following[0].start, following[0].end)
            check_stop_before(truth, before, following[0].start)
        else:
            final = truth.records[-1]
            for stop in (exact, before.stop):
                assert stop is not None
                assert (stop.target_lsn, stop.is_inclusive, stop.replay_end) == (
                    final.start,
                    True,
                    final.end,
                )


@pytest.mark.few_seeds(3, parts=3)
def test_latest_stops_after_the_last_complete_record_however_it_is_cut(truth: Truth, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(6):
        size = dice.randrange(truth.stop_lsn - truth.start + 9000, len(truth.wal))
        complete = list(iter_records([(truth.start, truth.wal[:size])], segment_bytes=SEG))
        shorter = Truth(
            truth.start, truth.wal[:size], truth.stop_lsn, truth.stopped_at, complete, [], truth.points
        )
        cuts = [c for c in cuts_of(truth, seed) if c < size]
        plan = resolve_plan(RecoveryTarget("latest"), shorter.survey(cuts), shorter.read)
        assert plan.stop is not None
        assert (plan.stop.target_lsn, plan.stop.replay_end) == (complete[-1].start, complete[-1].end)


def test_a_transaction_is_found_by_its_id_also_if_another_session_ended_it(truth: Truth) -> None:
    prepared = next(e for e in truth.ends if e.is_prepared)
    for end in (truth.ends[30], prepared, truth.ends[-1]):
        plan = resolve(truth, RecoveryTarget("xid", xid=end.xid), seed=1)
        assert plan.stop is not None
        assert (plan.stop.target_lsn, plan.stop.replay_end) == (end.start, end.end)
        assert plan.target.kind == "xid"
        without = resolve(truth, RecoveryTarget("xid", xid=end.xid, is_inclusive=False), seed=1)
        check_stop_before(truth, without, end.start)


def test_a_restore_point_is_found_and_an_ambiguous_or_unknown_one_is_refused(truth: Truth) -> None:
    plan = resolve(truth, RecoveryTarget("name", name="once"), seed=2)
    assert plan.stop is not None
    assert plan.stop.replay_end == truth.points[-1].end
    with pytest.raises(TargetRefused, match="more than once") as refused:
        resolve(truth, RecoveryTarget("name", name="twice"), seed=2)
    for point in truth.points[:2]:
        assert f"lsn:{point.start}" in str(refused.value.detail)
    for target in (RecoveryTarget("name", name="never"), RecoveryTarget("xid", xid=4_000_000_000)):
        with pytest.raises(TargetNotRestorable, match="is not in the WAL") as unknown:
            resolve(truth, target, seed=2)
        assert "is in no region" not in str(unknown.value.detail)
        assert ("name:twice, name:once" in str(unknown.value.hint)) == (target.name is not None)


def test_a_search_that_ends_at_a_hole_says_so(truth: Truth) -> None:
    whole = truth.survey(cuts_of(truth, 3))
    behind = next(n for n, unit in enumerate(whole.units) if unit.start >= truth.stop_lsn) + 1
    lost = whole.units[behind]
    survey = replace(whole, units=(*whole.units[:behind], *whole.units[behind + 1 :]))
    for target in (RecoveryTarget("name", name="never"), RecoveryTarget("xid", xid=4_000_000_000)):
        with pytest.raises(TargetNotRestorable, match="is not in the WAL") as refused:
            resolve_plan(target, survey, truth.read)
        assert f"WAL from {lost.start} to {lost.end} is in no region" in str(refused.value.detail)


def test_immediate_stops_at_the_backups_consistency_point(truth: Truth) -> None:
    plan = resolve(truth, RecoveryTarget("immediate"), seed=1)
    assert plan.stop is not None
    assert (plan.stop.target_lsn, plan.stop.replay_end) == (None, truth.stop_lsn)
    assert plan.wal_end == truth.stop_lsn


def targets_of(truth: Truth, seed: int) -> list[RecoveryTarget]:
    """Times and LSNs all over the WAL that can be restored, both ways; and the other kinds."""
    dice = random.Random(seed)
    last = truth.start + len(truth.wal)
    usable = [e for e in truth.ends if e.start >= truth.stop_lsn and e.at > truth.stopped_at]
    targets = [RecoveryTarget("latest"), RecoveryTarget("immediate"), RecoveryTarget("name", name="once")]
    targets += [RecoveryTarget("xid", xid=e.xid) for e in dice.sample(usable, 3)]
    for is_inclusive in (True, False):
        targets += [
            RecoveryTarget("time", instant=e.at + d, is_inclusive=is_inclusive)
            for e in [*dice.sample(usable, 12), usable[-1]]
            for d in (-TICK, timedelta(), TICK)
            if e.at - TICK > truth.stopped_at
        ]
        places = [LSN(dice.randrange(truth.stop_lsn.offset, last.offset)) for _ in range(12)]
        places += [e.start for e in dice.sample(usable, 4)] + [e.end for e in dice.sample(usable, 4)]
        targets += [RecoveryTarget("lsn", lsn=at, is_inclusive=is_inclusive) for at in places]
    return targets


def test_the_commits_around_every_kind_of_target_are_the_nearest_ones(truth: Truth, seed: int) -> None:
    found = 0
    commits = [e for e in truth.ends if e.kind is EndKind.COMMIT]
    for target in targets_of(truth, seed):
        plan = resolve(truth, target, seed)
        assert plan.stop is not None
        assert plan.commits is not None
        kept = [e for e in commits if plan.links[0].start <= e.start < plan.stop.replay_end]
        gone = [e for e in commits if plan.stop.replay_end <= e.start]
        assert plan.commits.before == (kept[-1] if kept else None), target
        assert plan.commits.after == (gone[0] if gone else None), target
        assert plan.commits.is_searched
        found += bool(kept) + bool(gone)
    assert found > 100


def _holds(limits: EndLimits, end: TransactionEnd) -> bool:
    is_early = limits.since_at is not None and end.at < limits.since_at
    is_late = limits.until_at is not None and end.at > limits.until_at
    return limits.since <= end.end and end.end <= limits.until + 8 and not is_early and not is_late


def test_signed_headers_alone_limit_the_stop_and_the_transactions_around_it(truth: Truth, seed: int) -> None:
    """The host cannot open WAL; whatever it says must hold for what the reader finds."""
    told = narrow = 0
    for target in targets_of(truth, seed):
        survey = truth.survey(cuts_of(truth, seed))
        limits = stop_limits(plan_restore(target, survey))
        exact = resolve_plan(target, survey, truth.read).stop
        assert exact is not None
        if target.kind in ("xid", "name"):
            assert limits is None
            continue
        assert isinstance(limits, StopLimits)
        assert limits.since <= exact.replay_end <= limits.until, target
        kept = [e for e in truth.ends if e.start < exact.replay_end]
        gone = [e for e in truth.ends if exact.replay_end <= e.start]
        if limits.before is not None:
            assert kept
            assert _holds(limits.before, kept[-1]), target
        if limits.after is not None:
            assert gone
            assert _holds(limits.after, gone[0]), target
        told += (limits.before is not None) + (limits.after is not None)
        narrow += limits.until - limits.since < len(truth.wal) // 4
    assert told > 80
    assert narrow > 40


def test_only_the_units_that_decide_are_read(truth: Truth) -> None:
    """A time late in a long archive costs a few units, not all of them."""
    survey = truth.survey(cuts_of(truth, 5))
    opened: list[WalUnit] = []

    def read(unit: WalUnit) -> bytes:
        opened.append(unit)
        return truth.read(unit)

    resolve_plan(RecoveryTarget("time", instant=truth.ends[-2].at - TICK), survey, read)
    assert len({u.key for u in opened}) < len(survey.units) // 2


def test_a_header_that_promises_what_its_wal_does_not_hold_is_refused(truth: Truth) -> None:
    late = truth.ends[-1].at + timedelta(hours=1)
    survey = truth.survey([])
    lying = [
        WalUnit(u.key, u.start, u.end, u.segment_bytes, TransactionTimes(late, late, is_exact=True))
        for u in survey.units[1:2]
    ]
    survey = ArchiveSurvey(
        survey.archive,
        survey.epochs,
        survey.histories,
        survey.backups,
        (survey.units[0], *lying),
        survey.end,
    )
    plan = plan_restore(RecoveryTarget("time", instant=late - TICK), survey)
    with pytest.raises(NotAuthentic, match="not what its signed header says"):
        resolve_stop(plan, truth.read)


def test_wal_of_the_wrong_length_is_refused(truth: Truth) -> None:
    short: Callable[[WalUnit], bytes] = lambda unit: truth.read(unit)[:-8]  # noqa: E731
    with pytest.raises(NotAuthentic):
        resolve_plan(RecoveryTarget("latest"), truth.survey([]), short)
