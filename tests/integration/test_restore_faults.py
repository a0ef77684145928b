"""Restores that meet a fault: recovery stops, nothing is promoted short, and the same call goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, PostgresHouse
from fix_restore import HISTORY_SETTINGS, RESTORE_POINT, History, Judge, make_history
from fix_stores import FaultyStore

from pitr.errors import (
    AlreadyRunning,
    KeyMissing,
    NotAuthentic,
    PitrError,
    RecoveryFailed,
    RestoreRefused,
    WalMissing,
)
from pitr.layout import segment_prefix
from pitr.pipeline.keys import Identity
from pitr.postgres.processes import postmaster_pid
from pitr.recover import ArrivedElsewhere, ReplayProgress
from pitr.recovery import RecoveryTarget
from pitr.restore import restore
from pitr.restore_files import FileProgress
from pitr.restore_plan import RestorePlan
from pitr.restore_request import Progress, RestoreRequest, RestoreResult
from pitr.wal.segment import SegmentName
from storage.memory import MemoryStore
from storage.regions import Region
from storage.replicated import ReplicatedStore

LATEST = RecoveryTarget("latest")


@pytest.fixture(scope="module")
def history(module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse) -> History:
    server = module_postgres_factory(17, settings=HISTORY_SETTINGS, name="faults")
    return make_history(server, postgres_house.user, MemoryStore())


@pytest.fixture
def faulty(history: History) -> FaultyStore:
    """What the reader reads through; every test has its own."""
    history.restores.wrong_identity = None
    store = FaultyStore(history.restores.backups.store)
    history.restores.store = store
    return store


@pytest.fixture
def request_latest(history: History, faulty: FaultyStore, server_tmp_path: Path) -> RestoreRequest:
    plan = history.restores.plan(LATEST)
    return history.restores.request(plan, server_tmp_path / "data", history.server, keep_running=True)


def run(history: History, request: RestoreRequest, on_progress: Callable[[Progress], None]) -> RestoreResult:
    house = history.restores
    return restore(request, house.repository, house.data_keys, on_progress=on_progress)


def middle_segment(history: History, plan: RestorePlan) -> SegmentName:
    """Return the second segment of three or more."""
    backup = plan.backup
    number = backup.start_lsn.offset // backup.segment_bytes + 1
    assert plan.segments >= 3
    return SegmentName.of(backup.timeline, number, backup.segment_bytes)


def keys_of(history: History, segment: SegmentName) -> list[str]:
    backups = history.restores.backups
    return [info.key for info in backups.store.list_objects(segment_prefix(backups.archive, segment))]


def assert_not_promoted(target: Path) -> None:
    """Assert that no server runs there, and that recovery is not over."""
    assert postmaster_pid(target) is None
    assert (target / "recovery.signal").exists()
    assert not list((target / "pg_wal").glob("*.history"))


def test_a_segment_that_vanished_after_planning_refuses_the_restore(
    history: History, request_latest: RestoreRequest
) -> None:
    backups = history.restores.backups
    copy = MemoryStore()
    gone = set(keys_of(history, middle_segment(history, request_latest.plan)))
    for info in backups.store.list_objects(""):
        if info.key not in gone:
            copy.put(info.key, backups.store.get(info.key))
    history.restores.store = copy
    with pytest.raises(WalMissing, match=str(middle_segment(history, request_latest.plan))):
        history.restores.restore(request_latest)
    assert not request_latest.target.exists()


def test_a_segment_that_vanishes_during_the_restore_stops_recovery(
    history: History, faulty: FaultyStore, request_latest: RestoreRequest, judge: Judge
) -> None:
    segment = middle_segment(history, request_latest.plan)

    def lose(progress: Progress) -> None:
        for key in keys_of(history, segment) if isinstance(progress, FileProgress) else ():
            faulty.lose(key)

    with pytest.raises(RecoveryFailed, match="before its target") as failed:
        run(history, request_latest, lose)
    assert str(segment) in (failed.value.detail or "")
    assert_not_promoted(request_latest.target)
    # The region comes back, and the same restore goes on where it stopped.
    faulty.heal()
    assert judge.tables(history.restores.restore(request_latest)) == history.end


def test_a_store_that_goes_down_during_recovery_stops_it_and_it_can_go_on(
    history: History, faulty: FaultyStore, request_latest: RestoreRequest, judge: Judge
) -> None:
    def go_down(progress: Progress) -> None:
        if isinstance(progress, ReplayProgress):
            faulty.go_down()

    # A spool of two segments, so that the outage is met before all WAL has been fetched.
    narrow = replace(request_latest, ahead_bytes_max=1)
    with pytest.raises(RecoveryFailed) as failed:
        run(history, narrow, go_down)
    assert "region is down" in (failed.value.detail or "")
    assert_not_promoted(request_latest.target)
    faulty.heal()
    assert judge.tables(history.restores.restore(narrow)) == history.end


def test_a_store_that_is_down_from_the_start_leaves_nothing_at_the_target(
    history: History, faulty: FaultyStore, request_latest: RestoreRequest
) -> None:
    house = history.restores
    repository, data_keys = house.repository, house.data_keys
    faulty.go_down()
    with pytest.raises(Exception, match="region is down"):
        restore(request_latest, repository, data_keys)
    assert not request_latest.target.exists()


def test_flipped_wal_stops_recovery(
    history: History, faulty: FaultyStore, request_latest: RestoreRequest
) -> None:
    for key in keys_of(history, middle_segment(history, request_latest.plan)):
        faulty.damage(key)
    with pytest.raises(RecoveryFailed, match="before its target"):
        history.restores.restore(request_latest)
    assert_not_promoted(request_latest.target)


def test_damage_in_one_region_costs_nothing_but_another_read(
    history: History, request_latest: RestoreRequest, judge: Judge
) -> None:
    near, far = (FaultyStore(history.restores.backups.store) for _ in range(2))
    backup = request_latest.plan.backup
    bad = [backup.packs[0].key, backup.indexes[0].key]
    bad += keys_of(history, middle_segment(history, request_latest.plan))
    for number, key in enumerate(bad):
        (near.damage if number % 2 else near.lose)(key)
    regions = [Region("near", near), Region("far", far)]
    with contextlib.closing(ReplicatedStore(regions, quorum=2)) as store:
        history.restores.store = store
        assert judge.tables(history.restores.restore(request_latest)) == history.end
        damaged = {copy.key for copy in store.damaged()}
    # Every bad copy was met, or was not needed: a segment has a whole object and pieces.
    assert damaged
    assert damaged <= set(bad)


@pytest.mark.parametrize("kind", ["pack", "index"])
def test_a_flipped_object_of_the_backup_leaves_nothing_at_the_target(
    history: History, faulty: FaultyStore, request_latest: RestoreRequest, kind: str
) -> None:
    backup = request_latest.plan.backup
    objects = backup.packs if kind == "pack" else backup.indexes
    faulty.damage(objects[-1].key)
    with pytest.raises(NotAuthentic, match="no region has a good copy"):
        history.restores.restore(request_latest)
    assert not request_latest.target.exists()
    faulty.heal()


def test_another_identity_opens_nothing(history: History, request_latest: RestoreRequest) -> None:
    history.restores.wrong_identity = Identity.generate(lambda size: b"\x07" * size)
    with pytest.raises(KeyMissing):
        history.restores.restore(request_latest)
    assert not request_latest.target.exists()


def test_a_restore_never_writes_over_anything(
    history: History, request_latest: RestoreRequest, server_tmp_path: Path
) -> None:
    target = request_latest.target
    target.mkdir()
    (target / "precious").write_text("data")
    with pytest.raises(RestoreRefused, match="not empty"):
        history.restores.restore(request_latest)
    running = replace(request_latest, target=history.server.data_dir)
    with pytest.raises(RestoreRefused, match="server is running"):
        history.restores.restore(running)
    inside = replace(request_latest, target=history.server.data_dir / "base" / "new")
    with pytest.raises(RestoreRefused, match="lies in the data directory"):
        history.restores.restore(inside)
    assert [entry.name for entry in server_tmp_path.iterdir()] == ["data"]
    assert (target / "precious").read_text() == "data"


def test_a_recovery_that_arrives_elsewhere_is_set_aside_and_not_promoted(
    history: History, request_latest: RestoreRequest, judge: Judge
) -> None:
    plan = history.restores.plan(RecoveryTarget("name", name=RESTORE_POINT))
    assert plan.stop is not None
    # A plan that says another end than recovery comes to: what the assertion is for.
    wrong = replace(plan, stop=replace(plan.stop, replay_end=plan.stop.replay_end + 8))
    request = replace(request_latest, plan=wrong)
    with pytest.raises(ArrivedElsewhere, match="elsewhere"):
        history.restores.restore(request)
    target = request.target
    assert not target.exists()
    refused = target.with_name("data.pitr") / "refused"
    assert_not_promoted(refused)
    # The next restore into the same place begins anew.
    again = history.restores.restore(replace(request, plan=plan))
    assert again.replay_end == plan.stop.replay_end
    assert judge.tables(again) == history.moments[1].tables


def test_a_directory_that_pg_verifybackup_refuses_is_set_aside(
    history: History, request_latest: RestoreRequest
) -> None:
    def spoil(progress: Progress) -> None:
        if isinstance(progress, FileProgress) and progress.written_bytes == progress.total_bytes:
            version = request_latest.target.with_name("data.pitr") / "partial" / "PG_VERSION"
            version.write_text("71\n")

    with pytest.raises(RecoveryFailed, match="pg_verifybackup"):
        run(history, request_latest, spoil)
    assert not request_latest.target.exists()


def test_a_second_restore_into_the_same_place_is_refused_while_the_first_runs(
    history: History, request_latest: RestoreRequest, judge: Judge
) -> None:
    refusals: list[PitrError] = []

    def start_another(progress: Progress) -> None:
        if isinstance(progress, ReplayProgress) and not refusals:
            try:
                history.restores.restore(request_latest)
            except PitrError as refusal:
                refusals.append(refusal)

    result = run(history, request_latest, start_another)
    assert isinstance(refusals[0], AlreadyRunning)
    assert judge.tables(result) == history.end
