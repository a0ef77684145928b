"""A hole at every position of an archive of 100 segments: recovery stops there, and is never promoted short.

First the decisions, at every position: the plan, the program, and the script with its feeder.  Then real
recoveries, at some positions always and at every position in ``make test-all``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import TypeAlias

import pytest
from fix_backup import BackupHouse
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres, majors, table_digests
from fix_restore import KEEP_WAL, HandArchiver, History, Judge, RestoreHouse, archive_of, take_test_backup
from fix_stores import FaultyStore
from fix_wal_path import WalShelf, lsn_in, segment_name, span, write_test_plan

from pitr.errors import NotAuthentic, RecoveryFailed, TargetRefused, WalMissing
from pitr.fetch_desk import Desk, fetch_script
from pitr.layout import segment_prefix
from pitr.postgres.processes import postmaster_pid
from pitr.prefetch import Prefetcher
from pitr.recovery import RecoveryTarget
from pitr.restore_plan import RestorePlan
from pitr.restore_request import RestoreRequest
from pitr.stop import resolve_plan
from pitr.wal.segment import SegmentName
from pitr.wal_fetch import WalFetchRequest, fetch_wal
from storage.local import DirectoryStore
from storage.store import ObjectMissing, StoreUnavailable

SEGMENTS = 100
MIB = 1024 * 1024
FIRST = 3
LAST = FIRST + SEGMENTS - 1
SPANS = [span(lsn_in(FIRST), lsn_in(LAST, 900))]
HOLES = {
    "gone": ObjectMissing("gone"),
    "damaged": NotAuthentic("wrong tag"),
    "unreachable": StoreUnavailable("region down"),
}
# The backup's first and second segment, the middle, the last whole one, and the target's own.
POSITIONS = (0, 1, 50, SEGMENTS - 2, SEGMENTS - 1)
STOP_TIMEOUT_S = 60.0
CHILD = Path(__file__).parents[1] / "restore_child.py"

# Asks for a segment by name; returns restore_command's exit code.
Ask: TypeAlias = Callable[[str], int]


def replay(ask: Ask, first: int) -> tuple[str, int]:
    """Ask as PostgreSQL's recovery does; return what it takes the answer for, and at which segment.

    Codes 1 to 125 are the end of WAL, where it opens the cluster; those above stop it.
    """
    for number in range(first, LAST + 1):
        code = ask(str(segment_name(number)))
        if code != 0:
            return ("stopped" if code > 125 else "opened"), number
    return "arrived", LAST


@pytest.fixture(scope="module")
def whole_shelf() -> WalShelf:
    shelf = WalShelf()
    for number in range(FIRST, LAST):
        shelf.add_whole(segment_name(number))
    shelf.add_piece(segment_name(LAST), 0, 900)
    return shelf


@pytest.fixture
def shelf(whole_shelf: WalShelf) -> WalShelf:
    return WalShelf(dict(whole_shelf.objects))


@pytest.fixture
def plan(tmp_path: Path, shelf: WalShelf) -> Path:
    (tmp_path / "data" / "pg_wal").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    file = write_test_plan(tmp_path / "work", shelf, SPANS)
    desk = Desk(file.parent)
    desk.script.write_text(fetch_script(desk, file, []))
    return file


def test_a_hole_at_any_position_refuses_the_plan(tmp_path: Path, shelf: WalShelf) -> None:
    for key in list(shelf.objects):
        content = shelf.objects.pop(key)
        with pytest.raises(WalMissing, match=str(key.segment)):
            write_test_plan(tmp_path, shelf, SPANS)
        shelf.objects[key] = content
    assert write_test_plan(tmp_path, shelf, SPANS)


@pytest.mark.parametrize("kind", HOLES)
def test_the_program_calls_a_hole_at_any_position_doubt_and_nothing_but_the_hole(
    plan: Path, shelf: WalShelf, kind: str
) -> None:
    def fetch(name: str, *, is_standby: bool = False) -> int:
        place = plan.parents[1] / "data" / "RECOVERYXLOG"
        request = WalFetchRequest(name, place, plan, is_standby, lambda _header: shelf.read)
        return fetch_wal(request).exit_code

    for key in list(shelf.objects):
        shelf.faults = {key: HOLES[kind]}
        number = int(key.segment.number(MIB))
        assert replay(fetch, max(FIRST, number - 1)) == ("stopped", number)
        # Not now; and it never promotes by itself.
        assert fetch(str(key.segment), is_standby=True) == 1
    shelf.faults = {}
    assert replay(fetch, LAST - 1) == ("arrived", LAST)


def test_the_script_calls_a_hole_at_any_position_doubt_while_it_is_fed(plan: Path, shelf: WalShelf) -> None:
    def ask(name: str) -> int:
        script = str(Desk(plan.parent).script)
        words = ["/bin/sh", script, name, "pg_wal/RECOVERYXLOG"]
        done = subprocess.run(words, cwd=plan.parents[1] / "data", check=False, stderr=subprocess.DEVNULL)
        return done.returncode

    for key, fault in zip(list(shelf.objects), cycle(HOLES.values()), strict=False):
        shelf.faults = {key: fault}
        number = int(key.segment.number(MIB))
        with Prefetcher(
            plan, shelf.read, data_dir=plan.parent, user=None, patience_s=0.01, ahead_bytes_max=4 * MIB
        ):
            assert replay(ask, max(FIRST, number - 1)) == ("stopped", number)
            # A server that is started again asks again.
            assert ask(str(key.segment)) > 125
    shelf.faults = {}
    with Prefetcher(plan, shelf.read, data_dir=plan.parent, user=None, ahead_bytes_max=4 * MIB):
        assert replay(ask, LAST - 1) == ("arrived", LAST)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("region") / "store"


@pytest.fixture(scope="module", params=majors(), ids=lambda major: f"pg{major}")
def history(
    request: pytest.FixtureRequest,
    module_postgres_factory: PostgresFactory,
    postgres_house: PostgresHouse,
    region: Path,
) -> History:
    """A backup and 100 segments of 1 MiB on the way from it, each with a commit of its own."""
    server = module_postgres_factory(
        installation=postgres_house.installation(request.param),
        settings=KEEP_WAL,
        name=f"holes-{request.param}",
        initdb=("--wal-segsize=1",),
    )
    store = DirectoryStore.create(region / str(request.param))
    house = BackupHouse(store, archive_of(server))
    archiver = HandArchiver(house, server, segment_bytes=MIB)
    server.execute("CREATE TABLE ledger (n int PRIMARY KEY)")
    archiver.begin()
    base = table_digests(server.dsn)
    first = take_test_backup(archiver).start_lsn.offset // MIB
    while (number := _current_segment(server)) < first + SEGMENTS - 1:
        server.execute("INSERT INTO ledger VALUES (%s)", number)
        server.switch_wal()
    server.execute("INSERT INTO ledger VALUES (0)")
    archiver.ship()
    return History(
        server, archiver, RestoreHouse(house, postgres_house.user), base, [], table_digests(server.dsn)
    )


def _current_segment(server: RunningPostgres) -> int:
    return int(str(server.value("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"))) // MIB


@pytest.fixture
def faulty(history: History) -> Iterator[FaultyStore]:
    inner = history.restores.backups.store
    store = FaultyStore(inner)
    history.restores.store = store
    yield store
    history.restores.store = inner


@pytest.fixture(scope="module")
def latest(history: History) -> RestorePlan:
    plan = history.restores.plan(RecoveryTarget("latest"))
    assert plan.segments == SEGMENTS
    return plan


def segment_at(plan: RestorePlan, position: int) -> SegmentName:
    number = plan.backup.start_lsn.offset // MIB + position
    return SegmentName.of(plan.backup.timeline, number, MIB)


def keys_of(history: History, segment: SegmentName) -> list[str]:
    backups = history.restores.backups
    return [info.key for info in backups.store.list_objects(segment_prefix(backups.archive, segment))]


def request_for(history: History, plan: RestorePlan, folder: Path) -> RestoreRequest:
    return history.restores.request(
        plan, folder / "data", history.server, keep_running=True, ahead_bytes_max=16 * MIB
    )


def assert_not_promoted(request: RestoreRequest) -> None:
    """Assert that no server runs there, that recovery is not over, and that nothing certifies it."""
    assert postmaster_pid(request.target) is None
    assert (request.target / "recovery.signal").exists()
    assert not list((request.target / "pg_wal").glob("*.history"))
    assert not request.certificate_file.exists()


def test_a_plan_over_a_hole_at_any_position_of_a_real_archive_is_refused(
    history: History, latest: RestorePlan
) -> None:
    house = history.restores
    survey, data_keys, repository = house.survey(), house.data_keys, house.repository
    for position in range(SEGMENTS):
        segment = segment_at(latest, position)
        units = tuple(unit for unit in survey.units if unit.key.segment != segment)
        assert len(units) < len(survey.units)
        if position == SEGMENTS - 1:
            # What was never archived is no hole, so ask for what the head's end promises.
            target = RecoveryTarget("lsn", lsn=latest.stop.replay_end if latest.stop else None)
        else:
            target = RecoveryTarget("latest")
        with pytest.raises((WalMissing, TargetRefused)):
            resolve_plan(
                target,
                replace(survey, units=units),
                lambda unit: repository.read_wal(unit.key, data_keys),
            )


@pytest.mark.parametrize("damage", ["lose", "damage"])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_recovery_over_a_hole_stops_and_is_not_promoted(
    history: History,
    latest: RestorePlan,
    faulty: FaultyStore,
    server_tmp_path: Path,
    position: int,
    damage: str,
) -> None:
    check_hole(history, latest, faulty, server_tmp_path, position, damage)


@pytest.mark.slow
@pytest.mark.parametrize("history", [17], indirect=True, ids=["pg17"])
@pytest.mark.parametrize(
    "position",
    [
        pytest.param(number, id=f"{number}-part{number % 4}")
        for number in range(SEGMENTS)
        if number not in POSITIONS
    ],
)
def test_a_recovery_over_a_hole_at_any_other_position_stops_and_is_not_promoted(
    history: History, latest: RestorePlan, faulty: FaultyStore, server_tmp_path: Path, position: int
) -> None:
    check_hole(history, latest, faulty, server_tmp_path, position, ("lose", "damage")[position % 2])


def check_hole(
    history: History, latest: RestorePlan, faulty: FaultyStore, folder: Path, position: int, damage: str
) -> None:
    segment = segment_at(latest, position)
    for key in keys_of(history, segment):
        getattr(faulty, damage)(key)
    request = request_for(history, latest, folder)
    with pytest.raises(RecoveryFailed, match="before its target") as failed:
        history.restores.restore(request)
    assert str(segment) in (failed.value.detail or "")
    assert_not_promoted(request)


def test_a_recovery_without_a_hole_takes_every_segment_without_starting_a_program(
    history: History, latest: RestorePlan, server_tmp_path: Path, judge: Judge
) -> None:
    record = server_tmp_path / "record"
    record.mkdir(mode=0o777)
    record.chmod(0o777)
    # It stands for `pitr wal fetch`; the script becomes it where it has to.
    program = ["/bin/sh", "-c", f'touch {record}/"$1"; exit 200', "fetch"]
    request = replace(request_for(history, latest, server_tmp_path), fetch_command=program)
    result = history.restores.restore(request)
    assert judge.tables(result) == history.end
    assert not list(record.iterdir())
    said = json.loads(request.certificate_file.read_text())
    assert len(said["wal"]["delivered"]) == said["wal"]["segments"] == SEGMENTS
    assert not said["wal"]["fetched_alone_after_a_crash"]


@pytest.mark.parametrize("point", ["replay:1", "answered:1"])
def test_a_recovery_whose_feeder_is_killed_stops_and_goes_on_with_the_next_restore(
    history: History, latest: RestorePlan, region: Path, server_tmp_path: Path, judge: Judge, point: str
) -> None:
    installation = history.server.instance.installation
    request = request_for(history, latest, server_tmp_path)
    words = [str(region / str(installation.major)), history.restores.identity.text(), str(request.target)]
    words += [str(installation.major), str(installation.bin_dir), point, "narrow"]
    done = subprocess.run([sys.executable, str(CHILD), *words], capture_output=True, check=False, timeout=120)
    assert done.returncode == -9, done.stderr.decode()[-2000:]
    deadline = time.monotonic() + STOP_TIMEOUT_S
    # A server that was only just begun has no process id in its file yet.
    quiet = 0
    while quiet < 20 and time.monotonic() < deadline:
        quiet = quiet + 1 if postmaster_pid(request.target) is None else 0
        time.sleep(0.1)
    assert_not_promoted(request)
    assert judge.tables(history.restores.restore(request)) == history.end
