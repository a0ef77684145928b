"""Each check of a verification, on something that is sound and on something that is broken on purpose."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from fix_postgres import PostgresFactory, PostgresHouse, RunningPostgres
from fix_restore import HISTORY_SETTINGS, History, Judge, make_history, restore_to
from fix_stores import FaultyStore
from fix_verify import facts_of, outcome_of, put_head, run_verification

from pitr.catalogue.backup_signs import BackupSigns
from pitr.errors import NotAuthentic
from pitr.layout import ArchiveId, head_key, manifest_key
from pitr.pipeline.keys import DataKey
from pitr.postgres.cut_off import why_not_cut_off
from pitr.postgres.scratch_session import ROWS_MAX, QueryFailed
from pitr.recovery import RecoveryTarget
from pitr.repository import Repository
from pitr.restore_directory import FilesDiffer, verify_directory
from pitr.restore_plan import CommitsAround, RestorePlan
from pitr.wal.lsn import LSN
from pitr.wal.segment import SegmentName
from pitr.wal.timeline import TimelineId
from storage.memory import MemoryStore
from verifiers.check import CheckResult, Outcome
from verifiers.check_maker import CheckMaker
from verifiers.checks_data import (
    QUERY_BYTES_MAX,
    Assertion,
    check_assertions,
    check_constraints,
    check_relations,
    read_assertions,
    unseen_indexes,
)
from verifiers.checks_files import check_control, check_files, check_page_checksums
from verifiers.checks_safety import (
    Isolation,
    check_isolation,
    check_signs,
    check_wiped,
    look_at_network,
)
from verifiers.checks_schema import check_roles, check_schema, check_versions
from verifiers.checks_store import StoreScope, StoreSeen, check_objects, check_signatures
from verifiers.checks_target import (
    Marker,
    Reached,
    check_last_commit,
    check_marker,
    check_reached,
    check_replayed_wal,
    left_at,
    look_at_target,
)
from verifiers.scratch_server import ScratchServer
from verifiers.table_digests import cluster_digests
from verifiers.verify_report import draft_report
from verifiers.verify_values import DeadlinePassed

MAKER = CheckMaker("test")
CUT_OFF = Isolation(True, "a namespace of its own")


@pytest.fixture(scope="module")
def history(module_postgres_factory: PostgresFactory, postgres_house: PostgresHouse) -> History:
    server = module_postgres_factory(17, settings=HISTORY_SETTINGS, name="checked")
    # C08 knows nothing of it, and the report says so.
    server.execute("CREATE TABLE hashed (n int)")
    server.execute("CREATE INDEX ON hashed USING hash (n)")
    history = make_history(server, postgres_house.user, MemoryStore())
    put_head(history)
    return history


@pytest.fixture
def server(history: History) -> ScratchServer:
    """The source itself, for checks that ask any server."""
    return scratch(history.server)


def scratch(server: RunningPostgres) -> ScratchServer:
    return ScratchServer(server.instance, "postgres", lambda: 120.0)


@dataclass
class Database:
    server: RunningPostgres
    name: str

    def execute(self, *statements: str) -> None:
        with psycopg.connect(self.server.dsn, dbname=self.name, autocommit=True) as session:
            for statement in statements:
                session.execute(statement.encode())


@pytest.fixture
def database(history: History) -> Iterator[Database]:
    """A database that a test breaks; it is dropped, for other checks look at all of them."""
    history.server.execute("CREATE DATABASE broken")
    yield Database(history.server, "broken")
    history.server.execute("DROP DATABASE broken WITH (FORCE)")


def assert_passed(result: CheckResult) -> None:
    assert result.outcome is Outcome.PASSED, result
    assert result.command_sha256


def assert_failed(result: CheckResult, *words: str) -> None:
    assert result.outcome is Outcome.FAILED, result
    for word in words:
        assert word in f"{result.observed} {result.reason}", result


# -- C01 to C03: the store


def scope_of(history: History, store: FaultyStore, plan: RestorePlan | None = None) -> StoreScope:
    house = history.restores
    plan = plan or house.plan(RecoveryTarget("latest"))
    alone = Repository(store, house.repository.repository_id, house.repository.root)
    # Long after: nothing that is missing is on its way.
    began_at = datetime.now(UTC) + timedelta(days=1)
    return StoreScope(plan, house.repository, alone, "eu", house.data_keys, began_at)


def test_a_sound_store_passes_and_its_objects_are_evidence(history: History) -> None:
    scope = scope_of(history, FaultyStore(history.restores.store))
    seen = StoreSeen(len(scope.chain))
    signed = check_signatures(scope, MAKER, seen)
    digests, seals = check_objects(scope, MAKER, seen)
    for result in (signed, digests, seals):
        assert_passed(result)
        assert result.evidence_sha256 is not None
    assert [one.manifest for one in seen.listed] == [scope.plan.backup]
    assert (seen.manifests_ok, seen.commitment_ok) == (True, True)


@pytest.mark.parametrize("kind", ["manifest", "head", "wal"])
def test_c01_fails_for_a_record_that_was_changed(history: History, kind: str) -> None:
    store = FaultyStore(history.restores.store)
    scope = scope_of(history, store)
    backup = scope.plan.backup
    keys = {
        "manifest": manifest_key(backup.archive, backup.backup),
        "head": head_key(backup.archive, 1),
        "wal": str(scope.wal_keys[0]),
    }
    store.damage(keys[kind])
    seen = StoreSeen(len(scope.chain))
    assert check_signatures(scope, MAKER, seen).outcome is Outcome.FAILED
    # Only of a manifest is it said that its signature is wrong.
    assert seen.manifests_ok is (kind != "manifest")


def test_c01_fails_for_a_manifest_that_says_another_thing_than_the_plan(history: History) -> None:
    scope = scope_of(history, FaultyStore(history.restores.store))
    other = replace(scope.plan, backup=replace(scope.plan.backup, label="another"))
    result = check_signatures(replace(scope, plan=other), MAKER)
    assert_failed(result, "differs")


def test_c02_and_c03_fail_for_a_flipped_bit_in_a_pack_and_in_an_index(history: History) -> None:
    store = FaultyStore(history.restores.store)
    scope = scope_of(history, store)
    for stored in (scope.plan.backup.packs[0], scope.plan.backup.indexes[0]):
        store.heal()
        store.damage(stored.key)
        seen = StoreSeen(len(scope.chain))
        digests, seals = check_objects(scope, MAKER, seen)
        assert_failed(digests, "damaged", stored.key)
        assert_failed(seals, stored.key)
        # A tag is wrong; the key is the one that the container is committed to.
        assert seen.commitment_ok is True


def test_c02_fails_for_a_missing_pack_and_for_missing_wal(history: History) -> None:
    store = FaultyStore(history.restores.store)
    scope = scope_of(history, store)
    store.lose(scope.plan.backup.packs[0].key)
    digests, _ = check_objects(scope, MAKER)
    assert_failed(digests, "missing")
    store.heal()
    store.lose(str(scope.wal_keys[0]))
    digests, _ = check_objects(scope, MAKER)
    assert_failed(digests, "missing", str(scope.wal_keys[0]))


def test_c02_fails_for_damaged_wal(history: History) -> None:
    store = FaultyStore(history.restores.store)
    scope = scope_of(history, store)
    store.damage(str(scope.wal_keys[-1]))
    digests, _ = check_objects(scope, MAKER)
    assert_failed(digests, "damaged")


def test_wal_of_the_last_minutes_may_be_on_its_way_to_a_region(history: History) -> None:
    store = FaultyStore(history.restores.store)
    scope = replace(scope_of(history, store), began_at=datetime.now(UTC))
    store.lose(str(scope.wal_keys[-1]))
    digests, _ = check_objects(scope, MAKER)
    assert_passed(digests)
    assert "1 of the last" in digests.observed


def test_wal_that_is_on_its_way_is_in_the_limits_of_the_report(
    history: History, server_tmp_path: Path
) -> None:
    house = history.restores
    store = FaultyStore(house.store)
    store.lose(str(scope_of(history, store).wal_keys[-1]))
    alone = Repository(store, house.repository.repository_id, house.repository.root)
    found = run_verification(history, server_tmp_path, alone=alone)
    assert outcome_of(found, "C02").outcome is Outcome.PASSED
    limits = draft_report(facts_of(history), found)["result"]["limits"]
    (said,) = [one for one in limits if "yet" in one]
    assert said.startswith("1 WAL objects of the last minutes were not in region eu yet")
    (unseen,) = [one for one in limits if one.startswith("C08 looks into tables and B-trees alone")]
    assert unseen.endswith(": 1 hash")
    assert (
        "data was read from region eu, what it lacks from others; C01 to C03 read region eu alone" in limits
    )


@pytest.mark.parametrize("objects", [0, 1])
def test_c03_says_nothing_of_containers_that_nobody_read(history: History, objects: int) -> None:
    left = iter(range(objects))

    def check_time() -> None:
        if next(left, None) is None:
            raise DeadlinePassed("the time is up")

    scope = replace(scope_of(history, FaultyStore(history.restores.store)), check_time=check_time)
    seen = StoreSeen(len(scope.chain))
    digests, seals = check_objects(scope, MAKER, seen)
    assert_failed(digests, "the time is up")
    assert (seals.outcome, seals.is_required) == (Outcome.SKIPPED, True)
    assert f"{objects} containers opened" in str(seals.reason)
    assert seen.commitment_ok is None


class WrongKeys:
    """Data keys that open nothing."""

    def get(self, _archive: ArchiveId, _key_id: bytes) -> DataKey:
        return DataKey(bytes(32))


def test_c03_fails_for_a_key_that_the_containers_are_not_committed_to(history: History) -> None:
    scope = scope_of(history, FaultyStore(history.restores.store))
    wrong = replace(scope, data_keys=WrongKeys())
    seen = StoreSeen(len(scope.chain))
    _, seals = check_objects(wrong, MAKER, seen)
    assert_failed(seals, "do not open")
    assert (seen.manifests_ok, seen.commitment_ok) == (None, False)


# -- C04: the files


def test_c04_fails_for_a_flipped_byte_in_a_restored_file(history: History, server_tmp_path: Path) -> None:
    result = restore_to(history, RecoveryTarget("latest"), server_tmp_path, action="none", verify_files=False)
    installation, user = history.server.instance.installation, history.restores.user
    verify_directory(installation, result.target, user)
    assert_passed(check_files(installation.version, None, result.files, MAKER))
    victim = next(path for path in sorted((result.target / "base").rglob("*")) if path.stat().st_size > 8192)
    content = bytearray(victim.read_bytes())
    content[5000] ^= 1
    victim.write_bytes(content)
    with pytest.raises(FilesDiffer) as refusal:
        verify_directory(installation, result.target, user)
    assert_failed(check_files(installation.version, refusal.value, result.files, MAKER), victim.name)


# -- C05: the WAL that was replayed


def certificate_of(history: History, folder: Path) -> tuple[RestorePlan, Path]:
    plan = history.restores.plan(RecoveryTarget("latest"))
    assert plan.stop is not None
    file = folder / "certificate.json"
    size = plan.backup.segment_bytes
    numbers = range(plan.backup.wal_start.offset // size, plan.stop.read_end.last_segment_number(size) + 1)
    names = [str(SegmentName.of(TimelineId(1), number, size)) for number in numbers]
    assert len(names) > 2
    stated = {
        "format": "pitr-recovery-certificate/1",
        "backup": plan.backup.backup,
        "wal": {
            "segments": len(names),
            "delivered": [{"segment": name} for name in names],
            "fetched_alone_after_a_crash": [],
        },
        "holes": "none",
        "replay": {"end": str(plan.stop.replay_end)},
    }
    file.write_text(json.dumps(stated))
    return plan, file


@pytest.mark.parametrize(
    "fault", ["segment", "segment and count", "another's", "end", "backup", "unnoted", "cut"]
)
def test_c05_fails_for_a_certificate_that_lacks_something(
    history: History, tmp_path: Path, fault: str
) -> None:
    plan, file = certificate_of(history, tmp_path)
    assert_passed(check_replayed_wal(file, plan, MAKER))
    stated = json.loads(file.read_text())
    if fault == "segment":
        del stated["wal"]["delivered"][0]
    elif fault == "segment and count":
        # What says of itself that it is whole is compared with the way that was planned.
        del stated["wal"]["delivered"][1]
        stated["wal"]["segments"] -= 1
    elif fault == "another's":
        stated["wal"]["delivered"][1]["segment"] = "0000000200000000000000FF"
    elif fault == "end":
        stated["replay"]["end"] = "0/1"
    elif fault == "backup":
        stated["backup"] = "another"
    elif fault == "unnoted":
        stated["wal"]["fetched_alone_after_a_crash"] = [stated["wal"]["delivered"].pop()["segment"]]
    text = json.dumps(stated)
    file.write_text(text[:-20] if fault == "cut" else text)
    assert check_replayed_wal(file, plan, MAKER).outcome is Outcome.FAILED


def test_c05_fails_for_a_plan_whose_objects_leave_a_hole(history: History, tmp_path: Path) -> None:
    plan, file = certificate_of(history, tmp_path)
    assert len(plan.links) > 2
    for links in ((*plan.links[:1], *plan.links[2:]), plan.links[:-1], plan.links[1:]):
        assert_failed(check_replayed_wal(file, replace(plan, links=links), MAKER), "leave", "out")


# -- C06 to C08: the data directory


def test_c06_fails_while_a_server_runs_and_for_another_cluster(
    history: History, server: ScratchServer
) -> None:
    system = history.restores.plan(RecoveryTarget("latest")).archive.system_identifier
    assert_failed(check_control(server, system, None, MAKER), "in production")
    assert_failed(check_control(server, system + 1, None, MAKER), str(system))
    assert_failed(check_control(server, system, TimelineId(7), MAKER), "TimeLineID: 1")


def test_c06_and_c07_pass_when_sound_and_c07_fails_for_a_flipped_page(
    postgres_factory: PostgresFactory, history: History
) -> None:
    own = postgres_factory(17)
    own.execute("CREATE TABLE t AS SELECT n, repeat('x', 500) FROM generate_series(1, 500) n")
    own.checkpoint()
    file = own.data_dir / str(own.value("SELECT pg_relation_filepath('t')"))
    system = int(str(own.value("SELECT system_identifier FROM pg_control_system()")))
    backup = history.restores.plan(RecoveryTarget("latest")).backup
    own.stop()
    assert_passed(check_control(scratch(own), system, None, MAKER))
    assert_passed(check_page_checksums(scratch(own), backup, MAKER))
    with file.open("r+b") as stream:
        stream.seek(8192 + 4000)
        byte = stream.read(1)
        stream.seek(8192 + 4000)
        stream.write(bytes([byte[0] ^ 1]))
    assert_failed(check_page_checksums(scratch(own), backup, MAKER), "Bad checksums")


def test_c07_is_skipped_and_not_required_where_the_cluster_has_no_checksums(
    history: History, server: ScratchServer
) -> None:
    backup = replace(history.restores.plan(RecoveryTarget("latest")).backup, page_checksums=False)
    result = check_page_checksums(server, backup, MAKER)
    assert (result.outcome, result.is_required) == (Outcome.SKIPPED, False)


def test_c08_fails_for_an_index_that_lacks_a_row(server: ScratchServer, database: Database) -> None:
    database.execute("CREATE TABLE t (n int)", "CREATE INDEX i ON t (n)", "INSERT INTO t VALUES (1)")
    assert_passed(check_relations(server, MAKER))
    database.execute(
        "UPDATE pg_index SET indisready = false WHERE indexrelid = 'i'::regclass",
        "INSERT INTO t VALUES (2)",
        "UPDATE pg_index SET indisready = true WHERE indexrelid = 'i'::regclass",
    )
    assert_failed(check_relations(server, MAKER), "lacks matching index tuple")


def test_indexes_that_pg_amcheck_does_not_know_are_counted(server: ScratchServer, database: Database) -> None:
    assert str(unseen_indexes(server)).endswith("kinds were not looked into: 1 hash")
    database.execute(
        "CREATE TABLE t (n int, a int[])",
        "CREATE INDEX tree ON t (n)",
        "CREATE INDEX ON t USING hash (n)",
        "CREATE INDEX ON t USING gin (a)",
        "CREATE INDEX ON t USING gin (a) WHERE n > 0",
    )
    assert str(unseen_indexes(server)).endswith(": 2 gin, 2 hash")


# -- C09 and C10: the target


def test_c09_fails_by_one_transaction_and_c10_for_a_commit_that_is_not_there(history: History) -> None:
    house = history.restores
    second, third = history.moments[1:3]
    plan = house.plan(RecoveryTarget("time", instant=second.at + (third.at - second.at) / 2))
    assert plan.stop is not None
    # The source itself has all transactions: what comes after the target is there.
    reached = look_at_target(scratch(history.server), plan, plan.stop.replay_end)
    assert_failed(check_reached(plan, reached, MAKER), "after the target is there")
    assert_passed(check_last_commit(plan, reached, MAKER))
    exact = replace(reached, after_status="future")
    assert_passed(check_reached(plan, exact, MAKER))
    before = house.plan(RecoveryTarget("time", instant=second.at, is_inclusive=False))
    assert before.stop is not None
    assert_failed(check_reached(plan, replace(exact, replay_lsn=before.stop.replay_end), MAKER), "elsewhere")
    assert_failed(check_last_commit(plan, replace(reached, before_status="future"), MAKER), "not there")
    moved = replace(reached, before_at=second.at + timedelta(microseconds=1))
    assert_failed(check_last_commit(plan, moved, MAKER), "another time")


def test_c09_fails_at_another_lsn_where_no_commit_tells(history: History) -> None:
    plan = history.restores.plan(RecoveryTarget("latest"))
    reached = look_at_target(scratch(history.server), plan, LSN(1))
    assert_failed(check_reached(plan, reached, MAKER), "elsewhere")


def test_c09_of_a_server_that_opened_by_itself_goes_by_where_its_timeline_left_the_old_one(
    history: History, server_tmp_path: Path, judge: Judge
) -> None:
    plan = history.restores.plan(RecoveryTarget("latest"))
    assert plan.stop is not None
    restore_to(history, RecoveryTarget("latest"), server_tmp_path, action="promote")
    instance = judge.start(history, server_tmp_path / "data")
    opened = ScratchServer(instance, "postgres", lambda: 120.0)
    try:
        found = left_at(opened, plan)
        assert found == plan.stop.replay_end
        assert_passed(check_reached(plan, look_at_target(opened, plan, found), MAKER))
        history_file = server_tmp_path / "data" / "pg_wal" / "00000002.history"
        history_file.write_text("1\t0/2000028\tnobody knows\n")
        elsewhere = look_at_target(opened, plan, left_at(opened, plan))
        assert_failed(check_reached(plan, elsewhere, MAKER), "elsewhere", "0/2000028")
        history_file.unlink()
        assert left_at(opened, plan) is None
    finally:
        instance.stop("immediate")
    # A server that is still what it was never left its timeline.
    assert left_at(scratch(history.server), plan) is None


def test_c10_fails_where_the_wal_was_not_searched_and_passes_where_nothing_was_committed(
    history: History,
) -> None:
    plan = history.restores.plan(RecoveryTarget("latest"))
    reached = Reached(None, None, None, None, None)
    nothing = replace(plan, commits=CommitsAround(None, None, is_searched=True))
    assert_passed(check_last_commit(nothing, reached, MAKER))
    unsearched = replace(plan, commits=CommitsAround(None, None, is_searched=False))
    assert_failed(check_last_commit(unsearched, reached, MAKER), "not searched")


def test_c10_fails_for_a_row_of_the_owners_heart_that_is_too_old_or_too_new(
    history: History, server: ScratchServer, database: Database
) -> None:
    plan = history.restores.plan(RecoveryTarget("latest"))
    assert plan.commits is not None
    last = plan.commits.before
    assert last is not None
    database.execute("CREATE TABLE beats (at timestamptz)")

    def marked(at: datetime | None, sql: str = "SELECT max(at) FROM beats") -> CheckResult:
        database.execute("TRUNCATE beats")
        if at is not None:
            database.execute(f"INSERT INTO beats VALUES ('{at.isoformat()}')")
        result, found = check_marker(server, plan, Marker(sql, "broken", 10.0), MAKER)
        assert (found is None) == (at is None or sql != "SELECT max(at) FROM beats")
        assert (result.id, result.is_required) == ("C10.marker", True)
        return result

    assert_passed(marked(last.at))
    assert_passed(marked(last.at - timedelta(seconds=10)))
    assert_failed(marked(last.at - timedelta(seconds=11)), "older than it may be")
    assert_failed(marked(last.at + timedelta(microseconds=1)), "after the last commit")
    assert_failed(marked(None), "no time with a zone")
    assert_failed(marked(last.at, "SELECT 'now'"), "no time with a zone")
    assert_failed(marked(last.at, "SELECT at FROM nosuch"), "nosuch")
    silent = replace(plan, commits=CommitsAround(None, None, is_searched=True))
    result, _ = check_marker(server, silent, Marker("SELECT now()", "broken", 10.0), MAKER)
    assert result.outcome is Outcome.SKIPPED


# -- C12, C13, C18: the schema


def test_c12_fails_for_a_schema_that_cannot_be_read(server: ScratchServer, database: Database) -> None:
    assert_passed(check_schema(server, MAKER))
    database.execute(
        "CREATE SCHEMA gone", "CREATE TABLE gone.t ()", "DELETE FROM pg_namespace WHERE nspname = 'gone'"
    )
    assert check_schema(server, MAKER).outcome is Outcome.FAILED


def test_c12_has_one_digest_for_one_schema_and_another_for_another(
    server: ScratchServer, database: Database
) -> None:
    first, again = check_schema(server, MAKER), check_schema(server, MAKER)
    assert first.evidence_sha256 == again.evidence_sha256
    database.execute("CREATE TABLE p (n int PRIMARY KEY)", "CREATE TABLE c (n int REFERENCES p)")
    with_key = check_schema(server, MAKER)
    database.execute("ALTER TABLE c DROP CONSTRAINT c_n_fkey")
    assert check_schema(server, MAKER).evidence_sha256 != with_key.evidence_sha256


def test_a_schema_is_compared_to_its_last_column(server: ScratchServer, database: Database) -> None:
    """Once only the first 100,000 were, without a word."""
    columns = ", ".join(f"c{number} int" for number in range(1599))
    database.execute(*(f"CREATE TABLE t{number:02} ({columns})" for number in range(63)))
    with server.session("broken") as session:
        count = session.value("SELECT count(*) FROM pg_attribute WHERE attname ~ '^c[0-9]+$'")
        assert int(str(count)) > ROWS_MAX
        with pytest.raises(QueryFailed, match=f"more than {ROWS_MAX} rows"):
            session.rows("SELECT attname FROM pg_attribute")
    before = cluster_digests(["broken"], server.session).schemas
    assert cluster_digests(["broken"], server.session).schemas == before
    database.execute("ALTER TABLE t62 ALTER c1598 SET NOT NULL")
    assert cluster_digests(["broken"], server.session).schemas != before


def test_c13_fails_for_an_extension_that_is_not_installed(server: ScratchServer, database: Database) -> None:
    assert_passed(check_versions(server, MAKER))
    database.execute(
        "INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)"
        " VALUES (90000, 'nosuch', 10, 'public'::regnamespace, false, '1.0')"
    )
    assert_failed(check_versions(server, MAKER), "nosuch 1.0")


def test_c13_warns_of_an_extension_or_a_collation_of_another_version(
    server: ScratchServer, database: Database
) -> None:
    database.execute("UPDATE pg_extension SET extversion = '0.9' WHERE extname = 'plpgsql'")
    result = check_versions(server, MAKER)
    assert (result.outcome, "plpgsql 0.9" in str(result.reason)) == (Outcome.WARNED, True)
    database.execute("UPDATE pg_extension SET extversion = '1.0' WHERE extname = 'plpgsql'")
    assert_passed(check_versions(server, MAKER))
    database.execute("UPDATE pg_database SET datcollversion = '1.2' WHERE datname = 'broken'")
    with psycopg.connect(database.server.dsn, dbname="broken") as session:
        actual = session.execute(
            "SELECT pg_database_collation_actual_version(oid) FROM pg_database WHERE datname = 'broken'"
        ).fetchone()
    expected = Outcome.PASSED if actual == ("1.2",) else Outcome.WARNED
    assert check_versions(server, MAKER).outcome is expected


def test_c18_fails_for_an_owner_who_is_no_role(server: ScratchServer, database: Database) -> None:
    assert_passed(check_roles(server, MAKER))
    database.server.execute("CREATE ROLE owner")
    database.execute("CREATE TABLE t ()", "ALTER TABLE t OWNER TO owner")
    database.server.execute("DELETE FROM pg_authid WHERE rolname = 'owner'")
    assert_failed(check_roles(server, MAKER), "pg_class.relowner of public.t")


def test_c18_fails_for_a_grant_to_who_is_no_role(server: ScratchServer, database: Database) -> None:
    database.server.execute("CREATE ROLE reader")
    database.execute("CREATE TABLE t ()", "GRANT SELECT ON t TO reader")
    database.server.execute("DELETE FROM pg_authid WHERE rolname = 'reader'")
    assert_failed(check_roles(server, MAKER), "pg_class.relacl of public.t")


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("GRANT USAGE ON SCHEMA s TO gone", "pg_namespace.nspacl of s"),
        ("ALTER SCHEMA s OWNER TO gone", "pg_namespace.nspowner of s"),
        ("GRANT EXECUTE ON FUNCTION f() TO gone", "pg_proc.proacl of public.f()"),
        ("ALTER FUNCTION f() OWNER TO gone", "pg_proc.proowner of public.f()"),
        ("GRANT CONNECT ON DATABASE broken TO gone", "pg_database.datacl of broken"),
        ("ALTER DATABASE broken OWNER TO gone", "pg_database.datdba of broken"),
        ("GRANT USAGE ON TYPE d TO gone", "pg_type.typacl of d"),
        ("ALTER TYPE d OWNER TO gone", "pg_type.typowner of d"),
        ("GRANT SELECT (n) ON t TO gone", "pg_attribute.attacl of public.t.n"),
        ("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO gone", "pg_default_acl.defaclacl of"),
        ("ALTER DEFAULT PRIVILEGES FOR ROLE gone REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC", "defaclrole of"),
        ("GRANT USAGE ON LANGUAGE plpgsql TO gone", "pg_language.lanacl of plpgsql"),
        ("GRANT SET ON PARAMETER work_mem TO gone", "pg_parameter_acl.paracl of"),
        ("CREATE POLICY p ON t TO gone", "pg_policy.polroles of p"),
        ("ALTER ROLE gone SET work_mem = '1MB'", "pg_db_role_setting.setrole of"),
        ("GRANT pg_monitor TO gone", "pg_auth_members.member of"),
        ("SELECT lo_create(4711); ALTER LARGE OBJECT 4711 OWNER TO gone", "pg_largeobject_metadata.lomowner"),
    ],
)
def test_c18_fails_wherever_a_role_that_is_gone_is_named(
    server: ScratchServer, database: Database, statement: str, told: str
) -> None:
    database.server.execute("CREATE ROLE gone")
    number = database.server.value("SELECT oid FROM pg_authid WHERE rolname = 'gone'")
    database.execute(
        "CREATE SCHEMA s",
        "CREATE TABLE t (n int)",
        "CREATE DOMAIN d AS int",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql RETURN 1",
        *statement.split("; "),
    )
    assert_passed(check_roles(server, MAKER))
    database.server.execute("DELETE FROM pg_authid WHERE rolname = 'gone'")
    try:
        assert_failed(check_roles(server, MAKER), told)
    finally:
        # What the cluster shares outlives the test's database.
        for table, column in (
            ("pg_db_role_setting", "setrole"),
            ("pg_auth_members", "member"),
        ):
            database.server.execute(f"DELETE FROM {table} WHERE {column} = {number}")
        database.server.execute("DELETE FROM pg_parameter_acl WHERE parname = 'work_mem'")
        database.execute("UPDATE pg_language SET lanacl = NULL WHERE lanname = 'plpgsql'")


def test_c18_knows_what_names_no_role(server: ScratchServer, database: Database) -> None:
    """PUBLIC is no role, nor is whoever a setting of a whole database is for."""
    database.execute(
        "CREATE TABLE t (n int)",
        "GRANT SELECT ON t TO PUBLIC",
        "CREATE POLICY p ON t TO PUBLIC",
        "ALTER DATABASE broken SET work_mem = '1MB'",
        "CREATE FOREIGN DATA WRAPPER w",
        "CREATE SERVER far FOREIGN DATA WRAPPER w",
        "CREATE USER MAPPING FOR PUBLIC SERVER far",
    )
    assert_passed(check_roles(server, MAKER))


# -- C14 and C15: the rows


def test_c14_passes_for_every_kind_of_sound_constraint(server: ScratchServer, database: Database) -> None:
    database.execute(
        'CREATE TABLE "P t" (a int, "B b" text, PRIMARY KEY (a, "B b"))',
        'CREATE TABLE c (x int, y text, z int NOT NULL CHECK (z > 0), FOREIGN KEY (x, y) REFERENCES "P t")',
        "INSERT INTO \"P t\" VALUES (1, 'one')",
        "INSERT INTO c VALUES (1, 'one', 1), (NULL, 'two', 2), (3, NULL, 3)",
        "CREATE TABLE parts (n int PRIMARY KEY) PARTITION BY RANGE (n)",
        "CREATE TABLE part1 PARTITION OF parts FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE r (n int REFERENCES parts)",
        "INSERT INTO parts VALUES (1)",
        "INSERT INTO r VALUES (1), (NULL)",
    )
    assert_passed(check_constraints(server, MAKER, asks_unique=True))


def test_databases_that_no_check_looks_into_are_named(server: ScratchServer, database: Database) -> None:
    assert server.closed_databases() == []
    template1 = replace(database, name="template1")
    try:
        database.execute(
            "CREATE DATABASE shut ALLOW_CONNECTIONS false", "CREATE DATABASE mould IS_TEMPLATE true"
        )
        closed = [("mould", "it is a template"), ("shut", "it lets nobody in")]
        assert server.closed_databases() == closed
        template1.execute("CREATE TABLE kept_there (n int)")
        assert server.closed_databases() == [*closed, ("template1", "it is a template")]
    finally:
        template1.execute("DROP TABLE IF EXISTS kept_there")
        database.execute(
            "ALTER DATABASE mould IS_TEMPLATE false", "DROP DATABASE mould", "DROP DATABASE shut"
        )


def test_c14_asks_what_postgresql_asks_of_tables_that_inherit(
    server: ScratchServer, database: Database
) -> None:
    database.execute(
        # As tables were partitioned before there was PARTITION BY.
        "CREATE TABLE old (n int)",
        "CREATE TABLE old1 (CHECK (n < 10)) INHERITS (old)",
        "ALTER TABLE old ADD CONSTRAINT empty CHECK (false) NO INHERIT",
        "INSERT INTO old1 VALUES (1)",
        # A foreign key is not inherited: the child's row refers to nothing.
        "CREATE TABLE p (n int PRIMARY KEY)",
        "CREATE TABLE c (n int REFERENCES p)",
        "CREATE TABLE c1 () INHERITS (c)",
        "INSERT INTO c1 VALUES (7)",
    )
    result = check_constraints(server, MAKER, asks_unique=True)
    assert_passed(result)


def test_c14_leaves_out_foreign_tables_and_says_so(server: ScratchServer, database: Database) -> None:
    database.execute(
        "CREATE FOREIGN DATA WRAPPER nobody",
        "CREATE SERVER elsewhere FOREIGN DATA WRAPPER nobody",
        "CREATE FOREIGN TABLE f (n int CHECK (n > 0)) SERVER elsewhere",
        "CREATE TABLE parts (n int CHECK (n > 1)) PARTITION BY RANGE (n)",
        "CREATE FOREIGN TABLE part1 PARTITION OF parts FOR VALUES FROM (0) TO (10) SERVER elsewhere",
        "CREATE TABLE t (n int CHECK (n > 2))",
        "CREATE FOREIGN TABLE t1 () INHERITS (t) SERVER elsewhere",
    )
    result = check_constraints(server, MAKER, asks_unique=True)
    assert_passed(result)
    assert "; 3 of foreign tables left out" in result.observed


BROKEN = {
    "key in a child of the referenced table": (
        "CREATE TABLE p (n int PRIMARY KEY)",
        "CREATE TABLE p1 () INHERITS (p)",
        "CREATE TABLE c (n int REFERENCES p)",
        "INSERT INTO p1 VALUES (7)",
        "SET session_replication_role = replica",
        "INSERT INTO c VALUES (7)",
    ),
    "check of a partition": (
        "CREATE TABLE c (n int) PARTITION BY RANGE (n)",
        "CREATE TABLE c1 PARTITION OF c FOR VALUES FROM (-9) TO (9)",
        "INSERT INTO c VALUES (-1)",
        "ALTER TABLE c ADD CONSTRAINT c_n_check CHECK (n > 0) NOT VALID",
        "UPDATE pg_constraint SET convalidated = true WHERE conname = 'c_n_check'",
    ),
    "foreign key of a partitioned table": (
        "CREATE TABLE p (n int PRIMARY KEY) PARTITION BY RANGE (n)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (9)",
        "CREATE TABLE c (n int REFERENCES p) PARTITION BY RANGE (n)",
        "CREATE TABLE c1 PARTITION OF c FOR VALUES FROM (0) TO (9)",
        "SET session_replication_role = replica",
        "INSERT INTO c VALUES (7)",
    ),
    "foreign key": (
        "CREATE TABLE p (n int PRIMARY KEY)",
        "CREATE TABLE c (n int REFERENCES p)",
        "SET session_replication_role = replica",
        "INSERT INTO c VALUES (7)",
    ),
    "full match": (
        "CREATE TABLE p (a int, b int, PRIMARY KEY (a, b))",
        "CREATE TABLE c (a int, b int, CONSTRAINT c_n_fkey FOREIGN KEY (a, b) REFERENCES p MATCH FULL)",
        "SET session_replication_role = replica",
        "INSERT INTO c VALUES (7, NULL)",
    ),
    "check": (
        "CREATE TABLE c (n int)",
        "INSERT INTO c VALUES (-1)",
        "ALTER TABLE c ADD CONSTRAINT c_n_check CHECK (n > 0) NOT VALID",
        "UPDATE pg_constraint SET convalidated = true WHERE conname = 'c_n_check'",
    ),
    "not null": (
        "CREATE TABLE c (n int)",
        "INSERT INTO c VALUES (NULL)",
        "UPDATE pg_attribute SET attnotnull = true WHERE attrelid = 'c'::regclass AND attname = 'n'",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_c14_fails_for_a_row_that_breaks_a_constraint(
    server: ScratchServer, database: Database, kind: str
) -> None:
    database.execute(*BROKEN[kind])
    assert_failed(check_constraints(server, MAKER, asks_unique=True), "broken: ")


def let_in(index: str, table: str, *rows: str) -> tuple[str, ...]:
    """Write rows that an index does not look at, as one whose order is wrong does not see them."""
    return (
        f"UPDATE pg_index SET indisready = false WHERE indexrelid = '{index}'::regclass",
        *(f"INSERT INTO {table} VALUES {row}" for row in rows),
        f"UPDATE pg_index SET indisready = true WHERE indexrelid = '{index}'::regclass",
    )


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ("(n)", ["(1, 'a')", "(1, 'b')"]),
        ("(lower(s)) WHERE n > 0", ["(1, 'a')", "(2, 'A')"]),
        ("(n, s) NULLS NOT DISTINCT", ["(1, NULL)", "(1, NULL)"]),
        ('(s COLLATE "C") INCLUDE (n)', ["(1, 'a')", "(2, 'a')"]),
    ],
)
def test_c14_fails_for_two_rows_of_one_unique_key(
    server: ScratchServer, database: Database, index: str, rows: list[str]
) -> None:
    database.execute(
        "CREATE TABLE t (n int, s text)",
        f"CREATE UNIQUE INDEX i ON t {index}",
        "INSERT INTO t VALUES (5, 'e'), (-6, NULL)",
    )
    assert_passed(check_constraints(server, MAKER, asks_unique=True))
    database.execute(*let_in("i", "t", *rows))
    assert_failed(check_constraints(server, MAKER, asks_unique=True), "unique key public.i of public.t")
    assert_passed(check_constraints(server, MAKER, asks_unique=False))


def test_c14_lets_nulls_of_a_unique_key_be_and_says_what_it_does_not_ask(
    server: ScratchServer, database: Database
) -> None:
    database.execute(
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
        "CREATE TABLE t (n int UNIQUE, p positive, during tsrange, EXCLUDE USING gist (during WITH &&))",
        "INSERT INTO t (n) VALUES (NULL), (NULL), (1)",
    )
    result = check_constraints(server, MAKER, asks_unique=True)
    assert_passed(result)
    assert result.observed.endswith("; 1 EXCLUDE not asked; 1 of domains not asked")


def test_c14_warns_of_a_constraint_that_is_not_valid(server: ScratchServer, database: Database) -> None:
    database.execute(
        "CREATE TABLE p (n int PRIMARY KEY)",
        "CREATE TABLE c (n int)",
        "INSERT INTO c VALUES (7)",
        "ALTER TABLE c ADD FOREIGN KEY (n) REFERENCES p NOT VALID",
    )
    result = check_constraints(server, MAKER, asks_unique=True)
    assert (result.outcome, "NOT VALID" in str(result.reason)) == (Outcome.WARNED, True)


def asked(server: ScratchServer, sql: str, database: str = "broken") -> CheckResult:
    (result,) = check_assertions(server, [Assertion("own", sql, database)], MAKER)
    return result


def test_c15_fails_for_rows_for_errors_and_for_writing(server: ScratchServer, database: Database) -> None:
    database.execute("CREATE TABLE t (n serial)", "INSERT INTO t VALUES (1)")
    good = asked(server, "SELECT * FROM t WHERE n > 1")
    assert_passed(good)
    assert (good.id, good.is_required) == ("C15.own", True)
    assert_failed(asked(server, "SELECT * FROM t"), "1 rows")
    assert_failed(asked(server, "SELECT * FROM t WHERE n > 1; SELECT * FROM t"), "multiple commands")
    assert_failed(asked(server, "SELECT * FROM nosuch"), "nosuch")
    assert_failed(asked(server, "DELETE FROM t"), "syntax error")
    assert_failed(asked(server, "SELECT nextval('t_n_seq')"), "read-only")
    assert asked(server, "SELECT * FROM t").evidence_sha256 is not None


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "-- database: app\n",
        "COPY (SELECT 1) TO PROGRAM 'touch {0}'",
        "BEGIN; SET transaction_read_only = off; DELETE FROM t; COMMIT; SELECT 1 WHERE false",
        "SET default_transaction_read_only = off; SELECT 1 WHERE false",
        "DO 'BEGIN END'",
    ],
)
def test_c15_fails_for_what_is_no_query_and_runs_none_of_it(
    server: ScratchServer, database: Database, server_tmp_path: Path, sql: str
) -> None:
    database.execute("DROP TABLE IF EXISTS t; CREATE TABLE t AS SELECT 1 AS n")
    mark = server_tmp_path / "mark"
    result = asked(server, sql.format(mark))
    assert (result.outcome, result.is_required) == (Outcome.FAILED, True)
    assert not mark.exists()
    assert_failed(asked(server, "SELECT * FROM t"), "1 rows")


def test_c15_fails_for_a_file_that_holds_no_query(server: ScratchServer, tmp_path: Path) -> None:
    """A pipe is not waited for, and a query that is cut would be another one."""
    os.mkfifo(tmp_path / "pipe.sql")
    (tmp_path / "folder.sql").mkdir()
    (tmp_path / "bytes.sql").write_bytes(b"\xff\xfe")
    (tmp_path / "gone.sql").symlink_to(tmp_path / "nowhere")
    (tmp_path / "long.sql").write_text("SELECT 1 WHERE false --" + "x" * QUERY_BYTES_MAX + "\nOR true")
    found = {one.id: one for one in check_assertions(server, read_assertions(tmp_path), MAKER)}
    assert len(found) == 5
    for name, why in (
        ("pipe", "not a plain file"),
        ("folder", "cannot be read"),
        ("bytes", "not UTF-8"),
        ("gone", "cannot be read"),
        ("long", "longer than"),
    ):
        assert_failed(found[f"C15.{name}"], why)


def test_c15_shows_no_row_in_the_report(server: ScratchServer, database: Database) -> None:
    result = asked(server, "SELECT 'a patient''s name'")
    assert "patient" not in f"{result.observed}{result.reason}{result.expected}"


def test_c15_reads_queries_and_their_database_from_files(tmp_path: Path) -> None:
    (tmp_path / "No Orphans.sql").write_text("-- database: app\nSELECT 1")
    (tmp_path / "totals.sql").write_text("SELECT 2")
    found = read_assertions(tmp_path)
    assert found is not None
    assert [(one.name, one.database) for one in found] == [("no-orphans", "app"), ("totals", "postgres")]


def test_c15_fails_where_the_folder_of_queries_has_lost_them(server: ScratchServer, tmp_path: Path) -> None:
    (lost,) = check_assertions(server, read_assertions(tmp_path), MAKER)
    assert_failed(lost, "has no *.sql file")
    (none_wanted,) = check_assertions(server, read_assertions(None), MAKER)
    assert (lost.is_required, none_wanted.is_required) == (True, False)
    assert none_wanted.outcome is Outcome.SKIPPED


# -- C17, C19, C20: safety


def test_c17_fails_for_files_that_do_not_belong(history: History) -> None:
    backup = history.restores.plan(RecoveryTarget("latest")).backup
    assert_passed(check_signs(backup, [backup], MAKER))
    alien = replace(backup, signs=BackupSigns(("base/5/README.locked",), 1))
    assert_failed(check_signs(alien, [backup], MAKER), "README.locked")


def test_c19_fails_for_a_server_that_archives_or_is_connected(postgres_factory: PostgresFactory) -> None:
    own = postgres_factory(17, {"archive_mode": "on", "archive_command": "false", "listen_addresses": ""})
    assert_failed(
        check_isolation(scratch(own), CUT_OFF, [], MAKER), "archive_mode", "archive_command", "archiver"
    )


CLOSED = {"listen_addresses": "", "max_logical_replication_workers": "0", "archive_mode": "off"}


def test_c19_warns_where_only_settings_keep_it_from_going_out(postgres_factory: PostgresFactory) -> None:
    own = postgres_factory(17, CLOSED)
    assert_passed(check_isolation(scratch(own), CUT_OFF, [], MAKER))
    seen = look_at_network(own.instance.pid, "operation not permitted")
    result = check_isolation(scratch(own), seen, [], MAKER)
    assert (result.outcome, "operation not permitted" in str(result.reason)) == (Outcome.WARNED, True)


def test_c19_fails_for_a_library_that_is_not_allowed(postgres_factory: PostgresFactory) -> None:
    own = postgres_factory(17, {**CLOSED, "shared_preload_libraries": "auto_explain"})
    assert_failed(check_isolation(scratch(own), CUT_OFF, [], MAKER), "auto_explain")
    assert_passed(check_isolation(scratch(own), CUT_OFF, ["auto_explain"], MAKER))


def test_a_server_can_be_cut_off_here_or_it_is_said_why_not(postgres_house: PostgresHouse) -> None:
    assert why_not_cut_off(postgres_house.user) is None


def test_c20_fails_for_what_is_left_and_for_who_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    file = folder / "left"
    file.write_text("data")
    assert_failed(check_wiped(folder, 0, MAKER), "still there")
    with file.open():
        shutil.rmtree(folder)
        assert_failed(check_wiped(folder, 1, MAKER), "still holds")
    assert_passed(check_wiped(folder, 1, MAKER))


def test_an_unforeseen_error_of_a_check_is_its_failure(history: History) -> None:
    def judge() -> Sequence[str]:
        raise NotAuthentic("signature is wrong", detail="of somebody else")

    result = MAKER.run("C01", "x", judge)  # type: ignore[arg-type]
    assert_failed(result, "of somebody else")
