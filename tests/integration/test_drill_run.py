"""Drills on a real server: clients while it is rebuilt, parts that are broken, the signs of an attack."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from fix_postgres import PostgresFactory, PostgresHouse
from fix_restore import HISTORY_SETTINGS, History, make_history
from fix_stores import FaultyStore
from fix_verify import put_head, run_verification

from pitr.catalogue.backup_record import BackupManifest
from pitr.layout import PieceKey, SegmentKey
from pitr.pipeline.keys import DataKey, Identity
from pitr.pipeline.sign import Signer
from pitr.postgres.load_client import LoadClient, probe_latencies_us
from pitr.recovery import RecoveryTarget
from pitr.repository import Repository
from storage.memory import MemoryStore
from storage.regions import Region
from verifiers.base import Finding, Severity
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker
from verifiers.client_load import ClientLoad
from verifiers.drill_components import check_findings, check_keys, check_piece, check_regions, choose_piece
from verifiers.drill_report import degradation_limits
from verifiers.drill_scenario import Action, DrillKind, Scenario, Step
from verifiers.drill_steps import DrillSteps
from verifiers.ransomware import first_alarming, last_clean, ransomware_group
from verifiers.report_shape import REPORT, check_shape
from verifiers.store_probes import probe_envelope
from verifiers.verify_values import Verified

MAKER = CheckMaker("test")
DAY = date(2026, 11, 30)


@pytest.fixture(scope="module")
def history(module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse) -> History:
    server = module_postgres_factory(17, HISTORY_SETTINGS)
    history = make_history(server, postgres_house.user, MemoryStore())
    put_head(history)
    return history


def drill(history: History, folder: Path, *live: Step) -> tuple[Verified, dict[str, CheckResult], ClientLoad]:
    """Restore the latest moment while two clients try all the while."""
    steps = (
        Step("declare", Action.MARK_FAILURE),
        Step("restore", Action.RESTORE),
        Step("promote", Action.START_SERVICE, deadline_s=600.0),
        *live,
        Step("checks", Action.CHECKS),
    )

    def make() -> LoadClient:
        return LoadClient(database="postgres", query="SELECT count(*) FROM ledger", timeout_s=5.0)

    load = ClientLoad(2, make)
    run = DrillSteps(Scenario("test", DrillKind.FULL, steps), MAKER, load, threading.Event())
    run.before()
    try:
        found = run_verification(history, folder, service=run, deadline_s=3000.0)
    finally:
        run.stop()
    return found, {one.id.partition(".")[2]: one for one in run.results(found)}, load


def test_clients_are_served_by_the_restored_server_and_leave_nothing_in_it(
    history: History, server_tmp_path: Path
) -> None:
    found, results, load = drill(
        history,
        server_tmp_path,
        Step("load", Action.LOAD, duration_s=3.0, clients=2, errors_permille_max=200),
        Step("rows", Action.SQL, query="SELECT n FROM ledger WHERE n > 4", database="postgres"),
        Step("wrong", Action.SQL, query="SELECT n FROM ledger WHERE n = 4", database="postgres"),
    )
    assert found.failure is None
    outcomes = {name: str(one.outcome) for name, one in results.items()}
    assert outcomes.pop("wrong") == "FAILED", "the query finds a row"
    assert outcomes == dict.fromkeys(outcomes, "PASSED")
    required = {one.id: one.outcome for one in found.checks if one.is_required and one.id != "C19"}
    assert set(required.values()) == {Outcome.PASSED}, required
    degradation = load.fields()
    _, shape = REPORT["degradation"]
    assert isinstance(shape, dict)
    check_shape(degradation, shape)
    service, errors = degradation["service_degradation"], degradation["error_rate"]
    classes = {one["class"]: one["count"] for one in errors["errors"]}
    assert classes["no service"] > 0, "clients tried before there was a server"
    assert service["latency_us_after"]["p50"] > 0
    assert service["window_ms"] >= results["restore"].duration_ms
    assert errors["requests"] - sum(classes.values()) > 0
    # The checks of the target stood in the way of the first write, and are no part of the recovery.
    assert 0 < found.paused_ms < service["window_ms"]
    assert degradation_limits(degradation, found.paused_ms)[0].startswith(
        f"service degradation and errors include {found.paused_ms} ms"
    )


def test_a_server_that_went_away_is_an_error_and_nothing_is_read_in_production(history: History) -> None:
    client = LoadClient(database="postgres", query="SELECT 1", timeout_s=5.0)
    assert client.request("host=/nonexistent") == "no connection"
    assert client.request(history.server.dsn) is None
    client.close()
    broken = LoadClient(database="postgres", query="SELECT 1/0", timeout_s=5.0)
    assert broken.request(history.server.dsn) == "SQLSTATE 22012"
    found = probe_latencies_us(history.server.dsn, count=5, pause_s=0.0, sleep=lambda _s: None)
    assert len(found) == 5
    assert min(found) > 0
    assert probe_latencies_us("host=/nonexistent", count=5, pause_s=0.0, sleep=lambda _s: None) == []


# -- parts


def region_check(store: FaultyStore) -> CheckResult:
    verifier = Signer(bytes(32)).public
    (found,) = check_regions({"eu": lambda: Region("eu", store)}, "0" * 32, verifier, DAY, MAKER)
    assert found.id == "D01.eu"
    return found


def test_a_region_passes_again_on_the_same_day_and_fails_when_it_is_down() -> None:
    store = FaultyStore(MemoryStore())
    assert region_check(store).outcome is region_check(store).outcome is Outcome.PASSED
    assert len(list(store.list_objects("probe/"))) == 1
    assert not [name for name, _ in store.calls if "delete" in name]
    store.go_down()
    found = region_check(store)
    assert (found.outcome, found.observed) == (Outcome.FAILED, "done: nothing")
    assert "region is down" in (found.reason or "")


def test_a_region_that_gives_other_bytes_back_fails() -> None:
    store = FaultyStore(MemoryStore())
    region_check(store)
    (key,) = [info.key for info in store.list_objects("probe/")]
    store.damage(key)
    assert region_check(store).outcome is Outcome.FAILED


def test_the_key_round_trip_fails_for_another_identity() -> None:
    mine, other = (Identity.generate(lambda count, sign=sign: bytes([sign]) * count) for sign in (1, 2))
    for identity, outcome in ((mine, Outcome.PASSED), (other, Outcome.FAILED)):
        found = check_keys(
            partial(
                probe_envelope,
                [mine.recipient()],
                identity,
                "0" * 32,
                now=datetime.now(UTC),
                random=lambda count: bytes(range(count)),
            ),
            MAKER,
        )
        assert found.outcome is outcome


class WrongKeys:
    """Data keys that open nothing."""

    def get(self, _archive: object, _key_id: bytes) -> DataKey:
        return DataKey(bytes(32))


def test_a_piece_of_wal_fails_when_it_is_damaged_missing_or_does_not_open(history: History) -> None:
    house = history.restores
    store = FaultyStore(house.store)
    alone = Repository(store, house.repository.repository_id, house.repository.root)
    keys: list[PieceKey | SegmentKey] = list(
        dict.fromkeys(link.unit.key for link in house.plan(RecoveryTarget("latest")).links)
    )
    key = choose_piece(keys, "a run")
    assert choose_piece(keys, "a run") == key
    assert {choose_piece(keys, f"run {number}") for number in range(100)} == set(keys)

    def piece(data_keys: object = house.data_keys) -> CheckResult:
        return check_piece(alone, "eu", lambda: key, data_keys, MAKER)  # type: ignore[arg-type]

    assert piece().outcome is Outcome.PASSED
    assert piece(WrongKeys()).outcome is Outcome.FAILED
    store.damage(str(key))
    assert piece().outcome is Outcome.FAILED
    store.heal()
    store.lose(str(key))
    assert piece().outcome is Outcome.FAILED
    none = check_piece(alone, "eu", lambda: choose_piece([], "a run"), house.data_keys, MAKER)
    assert none.outcome is Outcome.FAILED


def test_what_doctor_says_decides_and_who_is_not_asked_is_skipped() -> None:
    def said(*severities: Severity) -> Outcome:
        findings = [Finding("server.slot", one, "pitr", "text") for one in severities]
        return check_findings("D04", findings, "", MAKER).outcome

    assert said(Severity.OK) is Outcome.PASSED
    assert said(Severity.OK, Severity.WARN) is Outcome.WARNED
    assert said(Severity.WARN, Severity.FAIL) is Outcome.FAILED
    assert said() is Outcome.WARNED, "a probe that looked at nothing proves nothing"
    skipped = check_findings("D05", None, "it is another machine", MAKER)
    assert (skipped.outcome, skipped.reason) == (Outcome.SKIPPED, "it is another machine")


# -- an attack


def test_the_last_clean_backup_is_the_one_before_the_first_sign(history: History) -> None:
    (real,) = history.restores.survey().backups

    def backup(number: int, aliens: int = 0) -> BackupManifest:
        names = ("base/5/README.locked",) if aliens else ()
        return replace(
            real,
            backup=f"{real.backup[:-1]}{number}",
            stop_lsn=type(real.stop_lsn)(real.stop_lsn.offset + number * 4096),
            stopped_at=real.stopped_at + timedelta(hours=number),
            signs=replace(real.signs, alien_files=names, alien_count=aliens),
            packs=(),
            indexes=(),
        )

    backups = [backup(3, 2), backup(1), backup(2), backup(4, 2)]
    bad = first_alarming(backups)
    assert bad is not None
    assert bad.backup == backup(3, 2).backup
    clean = last_clean(backups, bad)
    assert clean is not None
    assert clean.backup == backup(2).backup
    assert first_alarming([backup(1), backup(2)]) is None
    assert last_clean([backup(3, 2)], backup(3, 2)) is None
    group = ransomware_group(backups, "2026-11-30T12:00:00.000000Z")
    _, shape = REPORT["ransomware"]
    check_shape(group, shape)  # type: ignore[arg-type]
    assert any("README.locked" in one["name"] for one in group["indicators"])
    assert group["indicators"][1]["value"] == "2"
