"""Restores of real servers, at every kind of target: exactly what was there, and nothing after it."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres, majors
from fix_restore import (
    HISTORY_SETTINGS,
    RESTORE_POINT,
    History,
    Judge,
    make_history,
    restore_to,
)

from pitr.errors import RestoreRefused
from pitr.postgres.instance import readable_installation, server_user
from pitr.postgres.replay import ReplayMonitor
from pitr.prefetch import Prefetcher
from pitr.recovery import RecoveryTarget
from pitr.recovery_certificate import BEGIN_BYTES
from pitr.restore_plan import RestorePlan
from pitr.restore_request import RestoreResult
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from pitr.wal_fetch import WalFetchRequest, fetch_wal
from pitr.wal_plan_file import read_header
from storage.memory import MemoryStore


@pytest.fixture(scope="module", params=majors(), ids=lambda major: f"pg{major}")
def history(
    request: pytest.FixtureRequest, module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse
) -> History:
    server = module_postgres_factory(request.param, settings=HISTORY_SETTINGS, name="ledger")
    return make_history(server, postgres_house.user, MemoryStore())


Expect = Callable[[History], dict[str, str]]
Aim = Callable[[History], RecoveryTarget]


def halfway(history: History) -> RecoveryTarget:
    second, third = history.moments[1:3]
    return RecoveryTarget("time", instant=second.at + (third.at - second.at) / 2)


TARGETS: dict[str, tuple[Aim, Expect]] = {
    "between two commits": (halfway, lambda h: h.moments[1].tables),
    "at a commit, exclusive": (
        lambda h: RecoveryTarget("time", instant=h.moments[2].at, is_inclusive=False),
        lambda h: h.moments[2].tables_before,
    ),
    "an LSN": (lambda h: RecoveryTarget("lsn", lsn=h.moments[1].after), lambda h: h.moments[1].tables),
    "an LSN, exclusive": (
        lambda h: RecoveryTarget("lsn", lsn=h.moments[3].before, is_inclusive=False),
        lambda h: h.moments[3].tables_before,
    ),
    "a transaction": (lambda h: RecoveryTarget("xid", xid=h.moments[2].xid), lambda h: h.moments[2].tables),
    "a transaction, exclusive": (
        lambda h: RecoveryTarget("xid", xid=h.moments[0].xid, is_inclusive=False),
        lambda h: h.moments[0].tables_before,
    ),
    "a restore point": (
        lambda h: RecoveryTarget("name", name=RESTORE_POINT),
        lambda h: h.moments[1].tables,
    ),
    "latest": (lambda h: RecoveryTarget("latest"), lambda h: h.end),
    # PostgreSQL by itself would end in an error: no transaction comes that it could stop before.
    "after the last commit": (
        lambda h: RecoveryTarget("time", instant=h.moments[-1].at + timedelta(days=1)),
        lambda h: h.end,
    ),
    "immediate": (lambda h: RecoveryTarget("immediate"), lambda h: h.base),
}


def wait_for_pause(dsn: str) -> None:
    """Return once replay pauses: hot standby begins at consistency, before the target."""
    with ReplayMonitor(dsn, major=15) as monitor:
        deadline = time.monotonic() + 60
        while (state := monitor.look()) is None or not state.is_paused:
            assert time.monotonic() < deadline, "replay does not pause"
            time.sleep(0.05)


def check_certificate(result: RestoreResult, plan: RestorePlan, server: RunningPostgres) -> None:
    """The statement names each segment of the way, with the digest of what the server itself wrote."""
    assert result.certificate is not None
    assert plan.stop is not None
    stated = json.loads(result.certificate.read_text())
    assert stated["holes"] == "none"
    assert stated["replay"] == {"planned_end": str(plan.stop.replay_end), "end": str(result.replay_end)}
    left_at, segment_bytes = result.replay_end, plan.backup.segment_bytes
    assert left_at is not None
    name = str(SegmentName.of(TimelineId(2), left_at.offset // segment_bytes, segment_bytes))
    begin = (result.target / "pg_wal" / name).read_bytes()[left_at.offset % segment_bytes :][:BEGIN_BYTES]
    assert stated["promoted"] == {
        "timeline": "00000002",
        "left_at": str(left_at),
        "begin_sha256": hashlib.sha256(begin).hexdigest(),
    }
    last = plan.stop.last_commit
    assert (stated["last_commit"] is None) == (last is None)
    if last is not None:
        assert stated["last_commit"]["xid"] == last.xid
    (span,) = stated["timelines"]
    segments = stated["wal"]["delivered"]
    assert span["segments"] == stated["wal"]["segments"] == len(segments) == plan.segments
    assert (segments[0]["segment"], segments[-1]["segment"]) == (span["first_segment"], span["last_segment"])
    for segment in segments:
        written = (server.data_dir / "pg_wal" / segment["segment"]).read_bytes()[: segment["bytes"]]
        assert segment["sha256"] == hashlib.sha256(written).hexdigest()


# A target becomes an LSN before PostgreSQL hears of it, in the same way on each major.
ON_EACH_MAJOR = {"between two commits", "a transaction, exclusive", "latest"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ON_EACH_MAJOR else pytest.mark.mostly_17) for name in TARGETS],
)
def test_each_kind_of_target_gives_exactly_what_was_there(
    history: History, server_tmp_path: Path, judge: Judge, name: str
) -> None:
    aim, expect = TARGETS[name]
    plan = history.restores.plan(aim(history))
    request = history.restores.request(plan, server_tmp_path / "data", history.server, keep_running=True)
    result = history.restores.restore(request)
    assert judge.tables(result) == expect(history)
    assert plan.stop is not None
    assert result.replay_end == plan.stop.replay_end
    assert result.timeline == TimelineId(2)
    assert result.has_paused
    check_certificate(result, plan, history.server)


def test_postgresqls_own_tools_accept_what_was_restored_to_a_time(
    history: History, server_tmp_path: Path, judge: Judge
) -> None:
    second = history.moments[1]
    result = restore_to(history, RecoveryTarget("time", instant=second.at), server_tmp_path)
    assert result.last_xact_at == second.at
    assert judge.examine(history, result.target) == second.tables
    steps = ["prepare", "fetch", "place", "verify", "recover", "promote", "stop"]
    assert [timing.step for timing in result.timings] == steps
    assert b"restore_command" not in (result.target / "postgresql.auto.conf").read_bytes()
    # Nothing of ours stays in the cluster, and beside it only the certificate.
    certified = "data.recovery-certificate.json"
    assert {entry.name for entry in server_tmp_path.iterdir()} == {"data", "judge", "judge.log", certified}


@pytest.mark.mostly_17
def test_all_files_are_durable_before_they_come_to_their_place(
    history: History, server_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut must leave a whole cluster there or none; the page cache would hide that there is not."""
    seen: list[tuple[str, bool]] = []

    class Library(ctypes.CDLL):
        """The C library, which tells what is synced, and whether anything is in its place by then."""

        def __init__(self, name: str | None, **options: bool) -> None:
            super().__init__(name, **options)
            self._sync = self["syncfs"]

        def syncfs(self, descriptor: int) -> int:
            staged = Path(f"/proc/self/fd/{descriptor}").readlink()
            assert (staged / "global" / "pg_control").stat().st_size == 8192
            seen.append((staged.parent.name, (server_tmp_path / "data" / "PG_VERSION").exists()))
            return int(self._sync(descriptor))

    monkeypatch.setattr(ctypes, "CDLL", Library)
    result = restore_to(history, RecoveryTarget("latest"), server_tmp_path, action="none")
    assert (result.target / "PG_VERSION").exists()
    assert seen == [("data.pitr", False)]


def test_a_restore_may_stop_and_wait_before_promotion(
    history: History, server_tmp_path: Path, judge: Judge
) -> None:
    result = restore_to(history, RecoveryTarget("latest"), server_tmp_path, action="pause")
    with psycopg.connect(judge.adopt(result).dsn, autocommit=True) as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        assert connection.execute("SELECT max(n) FROM ledger").fetchone() == (4,)


def test_a_prepared_directory_recovers_to_the_target_when_its_owner_starts_it(
    history: History, server_tmp_path: Path, judge: Judge
) -> None:
    third = history.moments[2]
    result = restore_to(
        history, RecoveryTarget("time", instant=third.at), server_tmp_path, action="none", verify_files=True
    )
    assert result.next_steps
    plan_file = server_tmp_path / "data.pitr" / "wal-plan.json"
    house = history.restores
    with Prefetcher(
        plan_file,
        lambda key: house.repository.read_wal(key, house.data_keys),
        data_dir=result.target,
        user=house.user,
    ):
        instance = judge.start(history, result.target, archive_mode="off")
        wait_for_pause(instance.dsn)
        with psycopg.connect(instance.dsn, autocommit=True) as connection:
            state = connection.execute("SELECT pg_is_in_recovery(), max(n) FROM ledger").fetchone()
    assert state == (True, 3)


@pytest.mark.mostly_17
def test_a_server_whose_user_cannot_run_our_python_recovers_all_the_same(
    history: History, server_tmp_path: Path, judge: Judge
) -> None:
    user = server_user()
    found = history.server.instance.installation
    with tempfile.TemporaryDirectory(prefix="pitr-pg-") as cache:
        Path(cache).chmod(0o755)
        plan = history.restores.plan(RecoveryTarget("latest"))
        request = history.restores.request(plan, server_tmp_path / "data", history.server)
        request = dataclasses.replace(
            request,
            user=user,
            installation=readable_installation(found, user, lambda: Path(cache)),
            fetch_command=("/no/such/program",),
            keep_running=True,
        )
        assert judge.tables(history.restores.restore(request)) == history.end


@pytest.mark.mostly_17
def test_one_fetch_alone_gives_the_very_segment_that_the_server_wrote(
    history: History, server_tmp_path: Path
) -> None:
    restore_to(history, RecoveryTarget("latest"), server_tmp_path, action="none", verify_files=False)
    plan_file = server_tmp_path / "data.pitr" / "wal-plan.json"
    path = read_header(plan_file).path
    house = history.restores
    for name in path.segment_names():
        outcome = fetch_wal(
            WalFetchRequest(
                str(name),
                server_tmp_path / "got",
                plan_file,
                False,
                lambda header: lambda key: house.repository.read_wal(key, house.data_keys),
            )
        )
        assert outcome.exit_code == 0
        written = (history.server.data_dir / "pg_wal" / str(name)).read_bytes()
        got = (server_tmp_path / "got").read_bytes()
        end = len(got) if name != path.last_segment else path.end.offset % len(got)
        assert got[:end] == written[:end]


@pytest.mark.mostly_17
def test_a_tablespace_that_the_backup_has_not_is_refused_before_anything_is_written(
    history: History, server_tmp_path: Path
) -> None:
    plan = history.restores.plan(RecoveryTarget("latest"))
    request = history.restores.request(plan, server_tmp_path / "data", history.server)
    moved = dataclasses.replace(request, tablespace_mapping={"fast": Path("/nowhere")})
    with pytest.raises(RestoreRefused, match="no tablespace"):
        history.restores.restore(moved)
    assert not list(server_tmp_path.iterdir())


def test_tablespaces_go_where_they_are_mapped_to(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path, judge: Judge
) -> None:
    server = postgres_factory(17, settings=HISTORY_SETTINGS, name="spaces")
    old = server_tmp_path / "old space"
    old.mkdir()
    old.chmod(0o777)
    server.execute(f"CREATE TABLESPACE fast LOCATION '{old}'")
    server.execute("CREATE TABLE placed (n int PRIMARY KEY) TABLESPACE fast")
    server.execute("INSERT INTO placed SELECT generate_series(1, 5000)")
    history = make_history(server, postgres_house.user, MemoryStore())
    new = server_tmp_path / "new space"
    result = restore_to(history, RecoveryTarget("latest"), server_tmp_path, tablespace_mapping={"fast": new})
    server.stop()
    assert judge.examine(history, result.target) == history.end
    (link,) = (result.target / "pg_tblspc").iterdir()
    assert link.readlink() == new
    assert [entry.name[:6] for entry in new.iterdir()] == ["PG_17_"]


def test_a_restore_follows_the_way_across_a_timeline_switch(
    postgres_factory: PostgresFactory, postgres_house: PostgresHouse, server_tmp_path: Path, judge: Judge
) -> None:
    server = postgres_factory(17, settings=HISTORY_SETTINGS, name="switch")
    history = make_history(server, postgres_house.user, MemoryStore())
    server.stop()
    (server.data_dir / "standby.signal").touch()
    server.start(HISTORY_SETTINGS)
    server.instance.promote()
    history.archiver.follow(TimelineId(2))
    server.execute("INSERT INTO ledger VALUES (5, 'on timeline 2')")
    server.switch_wal()
    server.execute("INSERT INTO ledger VALUES (6, 'on timeline 2')")
    history.archiver.ship()
    expected = {**history.end, "postgres.public.ledger": ""}
    result = restore_to(history, RecoveryTarget("latest"), server_tmp_path, keep_running=True)
    assert result.timeline == TimelineId(3)
    with psycopg.connect(judge.adopt(result).dsn) as connection:
        assert connection.execute("SELECT array_agg(n ORDER BY n) FROM ledger").fetchone() == (
            [1, 2, 3, 4, 5, 6],
        )
    tables = judge.tables(result)
    assert {**tables, "postgres.public.ledger": ""} == expected
