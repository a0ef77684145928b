"""A whole verification on a real server: restored, judged by every check, measured, and wiped."""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import fix_reports as fix
import pytest
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres, majors
from fix_restore import HISTORY_SETTINGS, History, make_history
from fix_standby import make_standby
from fix_stores import FaultyStore
from fix_verify import RUN, facts_of, outcome_of, put_head, run_verification

from pitr.errors import (
    AlreadyRunning,
    NoGoodCopy,
    RecoveryFailed,
    RestoreRefused,
    ServerRefused,
    TargetRefused,
)
from pitr.postgres.paused_replay import paused_replay
from pitr.postgres.scratch_session import QueryFailed, ScratchSession, databases_of
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan
from pitr.wal.lsn import LSN
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from storage.store import CopyCheck, StoreUnavailable
from verifiers.audit_log import AuditLog
from verifiers.check import Outcome, overall
from verifiers.check_maker import CheckMaker, failed, passed
from verifiers.checks_source import Comparison, choose_comparison
from verifiers.fingerprint import Fingerprint, get_fingerprint, next_fingerprints, put_fingerprint
from verifiers.report_series import issue_report
from verifiers.scratch import MARK_NAME, ScratchRoot, check_room
from verifiers.scratch_server import ScratchServer
from verifiers.table_digests import ClusterDigests, TableDigest, cluster_digests, differences
from verifiers.verify_report import draft_report
from verifiers.verify_values import Verified

MUST_NOT_BE = Path("/tmp/pitr-a-command-of-the-source-ran")
STRANGE_SETTINGS = {
    "archive_mode": "on",
    "archive_command": f"touch {MUST_NOT_BE}",
    "restore_command": f"touch {MUST_NOT_BE}; false",
    "recovery_end_command": f"touch {MUST_NOT_BE}",
    "primary_conninfo": "host=192.0.2.1",
    "shared_preload_libraries": "auto_explain",
    "listen_addresses": "*",
}


@pytest.fixture(scope="module")
def history(module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse) -> History:
    server = module_postgres_factory(17, HISTORY_SETTINGS)
    # In the data directory, and so in the restored one: none of it may be obeyed there.
    for name, value in STRANGE_SETTINGS.items():
        server.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    history = make_history(server, postgres_house.user, MemoryStore())
    put_head(history)
    return history


@pytest.fixture
def standby(history: History, postgres_factory: PostgresFactory) -> RunningPostgres:
    history.server.execute("ALTER SYSTEM RESET ALL")
    return make_standby(postgres_factory, history.server, HISTORY_SETTINGS)


def test_a_sound_archive_passes_every_required_check_and_leaves_nothing(
    history: History, server_tmp_path: Path
) -> None:
    found = run_verification(history, server_tmp_path)
    assert found.failure is None
    not_passed = {one.id: one.reason for one in found.checks if one.outcome is not Outcome.PASSED}
    assert sorted(not_passed) == ["C11", "C15", "C16"], not_passed
    assert overall(found.checks) is Outcome.PASSED
    assert [one.id for one in found.checks] == [f"C{number:02d}" for number in range(1, 22)]
    assert [path.name for path in (server_tmp_path / "scratch").iterdir()] == ["slot-1.lock"]
    order = ["decide", "provision", "fetch_first_byte", "base_done", "accept_reads", "wal_replay_done"]
    order += ["accept_writes", "checks_done"]
    assert [found.marks[step].ms for step in order] == sorted(found.marks[step].ms for step in order)
    assert found.recovery_time_ms is not None
    assert 0 < found.recovery_time_ms <= found.marks["accept_writes"].ms
    assert not MUST_NOT_BE.exists()


def test_a_given_moment_is_reached_exactly(history: History, server_tmp_path: Path) -> None:
    second, third = history.moments[1:3]
    middle = RecoveryTarget("time", instant=second.at + (third.at - second.at) / 2)
    found = run_verification(history, server_tmp_path, middle)
    assert overall(found.checks) is Outcome.PASSED
    assert f"transaction {third.xid}" in outcome_of(found, "C09").expected
    assert f"transaction {second.xid}" in outcome_of(found, "C10").observed


def test_a_pack_that_rotted_fails_the_run_and_every_other_check_says_that_it_did_not_run(
    history: History, server_tmp_path: Path
) -> None:
    house = history.restores
    store = FaultyStore(house.store)
    plan = house.plan(RecoveryTarget("latest"))
    store.damage(plan.backup.packs[0].key)
    repository = type(house.repository)(store, house.repository.repository_id, house.repository.root)
    found = run_verification(history, server_tmp_path, repository=repository, alone=repository)
    assert overall(found.checks) is Outcome.FAILED
    assert outcome_of(found, "C02").outcome is Outcome.FAILED
    assert outcome_of(found, "C08").outcome is Outcome.SKIPPED
    assert outcome_of(found, "C20").outcome is Outcome.PASSED
    assert found.failure is not None


def test_a_verification_past_its_deadline_ends_and_is_wiped(history: History, server_tmp_path: Path) -> None:
    found = run_verification(history, server_tmp_path, deadline_s=0.0)
    assert "longer than 0 s" in str(found.failure)
    assert overall(found.checks) is Outcome.FAILED
    assert "longer than 0 s" in str(outcome_of(found, "C21").reason)
    assert outcome_of(found, "C20").outcome is Outcome.PASSED


class FailingService:
    """Fails as it is told to when the server has opened: all that was looked at before then stands."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause

    def reached(self, dsn: str) -> None:
        assert dsn

    def opened(self, server: ScratchServer) -> None:
        assert server.databases()
        raise self.cause


@pytest.mark.parametrize(
    "cause",
    [
        RestoreRefused("pg_verifybackup could not be run"),
        ServerRefused("no way in"),
        StoreUnavailable("no region answers"),
        OSError(errno.ENOSPC, "No space left on device"),
        QueryFailed("a query was too slow", is_timeout=True),
        RecoveryFailed("the server was not promoted"),
    ],
    ids=lambda cause: type(cause).__name__,
)
def test_whatever_ends_a_restore_after_its_target_fails_the_run(
    history: History, server_tmp_path: Path, cause: Exception
) -> None:
    found = run_verification(history, server_tmp_path, service=FailingService(cause))
    assert found.failure is not None
    assert outcome_of(found, "C09").outcome is Outcome.PASSED
    ended = outcome_of(found, "C21")
    assert (ended.outcome, ended.is_required, overall(found.checks)) == (
        Outcome.FAILED,
        True,
        Outcome.FAILED,
    )
    assert str(cause) in str(ended.reason)
    assert outcome_of(found, "C12").outcome is Outcome.SKIPPED


# -- the report


def test_a_database_may_have_any_name_and_the_report_is_signed(history: History) -> None:
    names = ["shop\tcopy", "two\nlines", "\x9b31m", "a\u202eb", "\udce4" * 400, "plain"]
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    intent = fix.intend(log, 1, fix.BEGIN)
    facts = facts_of(history)
    report = issue_report(log, intent, draft_report(facts, Verified(databases=names)), facts.created_at)
    said = report.predicate["scope"]["databases"]
    assert said == ["shop?copy", "two?lines", "?31m", "a?b", "?" * 299 + "…", "plain"]


def test_databases_that_were_left_out_are_excluded_from_the_scope(history: History) -> None:
    closed = [(f"shop{number}", "it is a template") for number in range(102)]
    for found, count in ((Verified(), 0), (Verified(closed=closed), 101)):
        excluded = draft_report(facts_of(history), found)["scope"]["excluded"]
        said = [one["item"] for one in excluded if "database" in one["item"]]
        assert len(said) == count
    assert (said[0], said[-1]) == ("the inside of database shop0", "2 more databases")


def test_what_was_at_the_target_of_a_server_that_never_opened_is_not_recovered(history: History) -> None:
    maker = CheckMaker("test")
    good = [maker.run(check, "look", lambda: passed("so", "so")) for check in ("C09", "C10", "C21")]
    ended = maker.run("C21", "look", lambda: failed("so", "not so", "the server was not promoted"))
    for checks, loss_ms in ((good, 1000), ([*good[:2], ended], None)):
        loss = draft_report(facts_of(history), Verified(checks=checks))["data_loss"]
        assert (loss["data_loss_ms"], loss["last_recovered"] is None) == (loss_ms, loss_ms is None)


# -- fingerprints


def fingerprint_of(history: History, standby: RunningPostgres) -> Fingerprint:
    def session(database: str) -> ScratchSession:
        return ScratchSession(standby.dsn, superuser=None, database=database, timeout_s=60.0)

    with paused_replay(standby.dsn) as at:
        digests = cluster_digests(databases_of(standby.dsn, superuser=None, timeout_s=60.0), session)
        assert standby.value("SELECT pg_is_wal_replay_paused()") is True
    assert standby.value("SELECT pg_is_wal_replay_paused()") is False
    return Fingerprint(
        history.restores.repository.repository_id,
        at.system_identifier,
        at.timeline,
        at.lsn,
        datetime.now(UTC),
        at.server_version,
        digests,
    )


def test_a_run_goes_on_to_the_fingerprint_and_finds_a_row_that_differs(
    history: History, standby: RunningPostgres, server_tmp_path: Path
) -> None:
    caught_up(history, standby)
    taken = fingerprint_of(history, standby)
    history.archiver.ship()
    house = history.restores
    second, third = history.moments[1:3]
    middle = RecoveryTarget("time", instant=second.at + (third.at - second.at) / 2)
    backup = house.plan(middle).backup.backup
    target = RecoveryTarget("lsn", lsn=taken.lsn, is_inclusive=False)
    onward = house.plan(target, backup=backup)
    assert onward.stop is not None
    assert onward.stop.replay_end == taken.lsn
    found = run_verification(history, server_tmp_path, middle, comparison=Comparison(taken, onward))
    compared = outcome_of(found, "C11")
    assert compared.outcome is Outcome.PASSED, compared
    assert (compared.is_required, overall(found.checks)) == (True, Outcome.PASSED)
    first, *rest = taken.digests.tables
    wrong = replace(first, digest="1")
    tampered = replace(taken, digests=ClusterDigests((wrong, *rest), taken.digests.schemas))
    found = run_verification(history, server_tmp_path, middle, comparison=Comparison(tampered, onward))
    compared = outcome_of(found, "C11")
    assert (compared.outcome, overall(found.checks)) == (Outcome.FAILED, Outcome.FAILED)
    assert first.table in str(compared.reason)


def caught_up(history: History, standby: RunningPostgres) -> None:
    end = LSN.parse(str(history.server.value("SELECT pg_current_wal_flush_lsn()")))
    for _ in range(600):
        if LSN.parse(str(standby.value("SELECT pg_last_wal_replay_lsn()"))) >= end:
            return
        time.sleep(0.1)
    raise AssertionError("the standby does not catch up")


def test_no_fingerprint_is_taken_on_a_primary(history: History) -> None:
    with pytest.raises(ServerRefused, match="standby"), paused_replay(history.server.dsn):
        pass


def test_differences_name_what_is_wrong() -> None:
    one, other = TableDigest("d.s.t", 2, "10"), TableDigest("d.s.u", 1, "7")
    source = ClusterDigests((one, other), (("d", "aa"),))
    assert differences(source, source) == []
    found = ClusterDigests((replace(one, rows=3), TableDigest("d.s.v", 1, "1")), (("d", "bb"),))
    said = "; ".join(differences(source, found))
    for words in ("d.s.t has 3 rows", "d.s.u is missing", "d.s.v is there", "schema of database d"):
        assert words in said
    assert differences(source, ClusterDigests((replace(one, digest="11"), other), source.schemas)) == [
        "table d.s.t has other rows than the source"
    ]


def test_fingerprints_are_found_by_their_lsn_and_only_as_they_were_signed(history: History) -> None:
    store, signer = FaultyStore(MemoryStore()), history.archiver.house.signer
    digests = ClusterDigests((TableDigest("d.s.t", 2, "10"),), (("d", "aa"),))
    timeline = history.archiver.timeline
    made = Fingerprint("0" * 32, 7, timeline, LSN(0x300), datetime.now(UTC), 170000, digests)
    key = put_fingerprint(store, made, signer)
    public = signer.public
    assert next_fingerprints(store, public, 7, LSN(0x301)) == []
    assert next_fingerprints(store, public, 7, LSN(0x300)) == [LSN(0x300)]
    of_epoch = replace(made, lsn=LSN(0x400), epoch=3)
    put_fingerprint(store, of_epoch, signer)
    assert get_fingerprint(store, public, "0" * 32, 7, LSN(0x400)) == of_epoch
    # Records of before 2026-12 name no epoch.
    old = {name: value for name, value in made.to_payload().items() if name != "epoch"}
    assert Fingerprint.from_payload(old) == made
    assert next_fingerprints(store, public, 7, LSN(0x1)) == [LSN(0x300)]
    assert next_fingerprints(store, public, 7, LSN(0x1), count_max=9) == [LSN(0x300), LSN(0x400)]
    assert get_fingerprint(store, public, "0" * 32, 7, LSN(0x300)) == made
    store.damage(key)
    with pytest.raises(NoGoodCopy):
        get_fingerprint(store, public, "0" * 32, 7, LSN(0x300))


def test_the_first_fingerprint_on_the_way_is_compared_with_and_none_of_another_timeline(
    history: History,
) -> None:
    plan = history.restores.plan(RecoveryTarget("latest"))
    (span,) = plan.spans
    # As if a failover had left this timeline there.
    left = LSN(span.start.offset + 0x2000)
    way = replace(
        plan,
        spans=(
            replace(span, end=left),
            replace(span, timeline=TimelineId(span.timeline.number + 1), start=left),
        ),
    )
    digests = ClusterDigests((), ())

    def choose(*taken: tuple[int, TimelineId]) -> Comparison | str:
        found = {
            LSN(span.start.offset + at): Fingerprint(
                "0" * 32, 7, timeline, LSN(span.start.offset + at), datetime.now(UTC), 170000, digests
            )
            for at, timeline in taken
        }
        return choose_comparison(found, found.__getitem__, lambda _lsn: way)

    old, new = span.timeline, TimelineId(span.timeline.number + 1)
    # The old primary's standby lived on; so did nothing of the new timeline before it began.
    for wrong in ((0x3000, old), (0x1000, new)):
        said = choose(wrong)
        assert f"on timeline {wrong[1]}, which is not on the way" in str(said)
        chosen = choose(wrong, (0x4000, new))
        assert isinstance(chosen, Comparison)
        assert chosen.fingerprint.lsn == LSN(span.start.offset + 0x4000)
    for right in ((0x1000, old), (0x2000, old), (0x2000, new)):
        assert isinstance(choose(right), Comparison)
    assert "no fingerprint of the source" in str(choose())
    mine = replace(taken_at(span.timeline, LSN(span.start.offset + 0x1000)), epoch=span.archive.epoch)
    other = replace(mine, epoch=span.archive.epoch + 1)
    assert isinstance(choose_comparison([left], lambda _lsn: mine, lambda _lsn: way), Comparison)
    said = choose_comparison([left], lambda _lsn: other, lambda _lsn: way)
    assert f"of writer epoch {other.epoch}, which is not on the way" in str(said)

    def refuse(lsn: LSN) -> RestorePlan:
        raise TargetRefused(f"{lsn} is not archived")

    assert "no way leads to the fingerprint" in str(
        choose_comparison([left], lambda _lsn: taken_nowhere(), refuse)
    )


def taken_at(timeline: TimelineId, lsn: LSN) -> Fingerprint:
    return Fingerprint("0" * 32, 7, timeline, lsn, datetime.now(UTC), 170000, ClusterDigests((), ()))


def taken_nowhere() -> Fingerprint:
    raise AssertionError("what no way leads to is not read")


# -- scratch places


def test_two_verifications_run_at_once_and_a_third_is_refused(tmp_path: Path) -> None:
    root = ScratchRoot(tmp_path / "scratch")
    root.prepare()
    with root.slot() as one, root.slot() as other:
        assert {one, other} == {1, 2}
        with pytest.raises(AlreadyRunning), root.slot():
            pass
    with root.slot() as again:
        assert again == 1


def test_only_what_nobody_holds_is_abandoned_and_only_that_is_wiped(tmp_path: Path) -> None:
    root = ScratchRoot(tmp_path / "scratch")
    root.prepare()
    (root.path / "somebody's").mkdir()
    with root.place(RUN, datetime.now(UTC)) as place:
        (place.path / "data").mkdir()
        (place.path / "data" / "file").write_text("x")
        assert root.abandoned() == []
        assert root.is_held(RUN)
        root.drop_locks()
        assert root.is_held(RUN)
    (left,) = root.abandoned()
    assert (left.run_id, root.is_held(RUN)) == (RUN, False)
    assert left.place.wipe() == 2
    assert sorted(path.name for path in root.path.iterdir()) == ["somebody's"]


def test_a_run_is_held_after_its_place_was_wiped_until_it_has_ended(tmp_path: Path) -> None:
    root = ScratchRoot(tmp_path / "scratch")
    root.prepare()
    with root.place(RUN, datetime.now(UTC)) as place:
        place.wipe()
        assert root.is_held(RUN)
    assert not root.is_held(RUN)
    assert list(root.path.iterdir()) == []


def test_the_lock_of_a_killed_run_holds_nothing_and_is_removed(tmp_path: Path) -> None:
    root = ScratchRoot(tmp_path / "scratch")
    root.prepare()
    # As a process leaves it that was killed: the file, and nobody who has it locked.
    lock = root.path / f"run-{RUN}.lock"
    lock.touch(mode=0o600)
    assert not root.is_held(RUN)
    root.drop_locks()
    assert not lock.exists()


def test_a_place_whose_mark_was_never_whole_is_abandoned_too_and_nothing_else_is(tmp_path: Path) -> None:
    root = ScratchRoot(tmp_path / "scratch")
    root.prepare()
    empty, begun, other = (RUN[:-1] + end for end in "abc")
    (root.path / empty).mkdir()
    (root.path / begun).mkdir()
    (root.path / begun / f"{MARK_NAME}.new").write_text("{")
    (root.path / other).mkdir()
    (root.path / other / "data").mkdir()
    (root.path / "nobody's").mkdir()
    assert [one.run_id for one in root.abandoned()] == [empty, begun]
    for one in root.abandoned():
        one.place.wipe()
    assert sorted(path.name for path in root.path.iterdir()) == [other, "nobody's"]


def test_a_verification_that_will_not_fit_is_refused(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(RestoreRefused, match="lacks room"):
        check_room(tmp_path, 1 << 60)


def test_a_cancelled_verification_ends_soon_and_is_wiped(history: History, server_tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    found = run_verification(history, server_tmp_path, cancel=cancel)
    assert "cancelled" in str(found.failure)
    assert [path.name for path in (server_tmp_path / "scratch").iterdir()] == ["slot-1.lock"]


class InterruptedStore(FaultyStore):
    """Somebody presses Ctrl-C as soon as this is read."""

    def get(self, key: str, *, check: CopyCheck | None = None) -> bytes:
        raise KeyboardInterrupt


def test_who_interrupts_the_reading_of_the_store_leaves_nothing_restored(
    history: History, server_tmp_path: Path
) -> None:
    alone = history.restores.repository.alone(InterruptedStore(history.restores.store))
    with pytest.raises(KeyboardInterrupt):
        run_verification(history, server_tmp_path, alone=alone)
    assert [path.name for path in (server_tmp_path / "scratch").iterdir()] == ["slot-1.lock"]


@pytest.mark.parametrize(
    "major", [one for one in majors(slow=[18]) if one != 17], ids=["pg18", "pg15", "pg16"]
)
def test_other_majors_are_verified_by_their_own_programs(
    major: int, postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path
) -> None:
    server = postgres_factory(major, HISTORY_SETTINGS)
    history = make_history(server, postgres_house.user, MemoryStore())
    put_head(history)
    found = run_verification(history, server_tmp_path)
    assert found.failure is None
    not_passed = {one.id: one.reason for one in found.checks if one.outcome is not Outcome.PASSED}
    # The package of 16 that the tests have comes without the extension that C08 asks for.
    expected = ["C08", "C11", "C15", "C16"] if major == 16 else ["C11", "C15", "C16"]
    assert sorted(not_passed) == expected, not_passed
    assert overall(found.checks) is (Outcome.WARNED if major == 16 else Outcome.PASSED)
