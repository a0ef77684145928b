"""``pitr find`` as people run it: hundreds of commits, one of them wrong, found to the transaction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_backup import REPOSITORY_ID, BackupHouse
from fix_cli import Done, PitrProgram, end_servers, wait_until
from fix_postgres import PostgresFactory, RunningPostgres
from fix_restore import HISTORY_SETTINGS, HandArchiver, archive_of, take_test_backup

from cli.key_files import write_secret
from pitr.catalogue.records import HeadRecord
from pitr.pipeline.keys import IdentityFile
from pitr.quorum import WriteQuorum
from storage.local import DirectoryStore

FIND_TIMEOUT_S = 900.0
HEALTHY = "SELECT count(*) > 0 FROM patients WHERE id <= 50"
COMMITS = 150


@dataclass
class Crime:
    """An archive where one of hundreds of commits was wrong, and what is known of that one."""

    region: Path
    identity: Path
    before: datetime
    after: datetime
    end: str
    xid: int
    drop_xid: int

    @property
    def source(self) -> list[object]:
        return ["--source", f"file://{self.region}", "--identity", self.identity]


def now_of(server: RunningPostgres) -> datetime:
    at = server.value("SELECT clock_timestamp()")
    assert isinstance(at, datetime)
    return at.astimezone(UTC)


def commit_many(server: RunningPostgres, since: int) -> None:
    """Commit to the table in question and to one that the query does not read, in turn."""
    with psycopg.connect(server.dsn, autocommit=True) as session:
        for number in range(since, since + COMMITS):
            session.execute("INSERT INTO patients VALUES (%s, 'p')", [number])
            session.execute("UPDATE bystanders SET n = n + 1 WHERE id = %s", [number % 10])


def commit_one(server: RunningPostgres, *statements: str) -> int:
    """Run statements in one transaction and return its id."""
    with psycopg.connect(server.dsn) as session:
        row = session.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        assert row is not None
        for statement in statements:
            session.execute(statement.encode())
        return int(row[0])


def sign_end(archiver: HandArchiver) -> None:
    """Sign where the archive ends, and that one region is all there is: a reader asks for no other."""
    house = archiver.house
    head = HeadRecord(
        repository=REPOSITORY_ID,
        archive=house.archive,
        sequence=1,
        previous=None,
        at=datetime.now(UTC),
        timeline=archiver.timeline,
        wal_start=None,
        wal_end=None,
        piece_sequence=archiver.sequence,
        piece_sha256=archiver.previous,
        backups_count=1,
        backups_sha256=bytes(32),
        quorum=WriteQuorum(1, 1),
    )
    house.repository.put_head(head, house.signer)


@pytest.fixture(scope="module")
def crime(module_postgres_factory: PostgresFactory, tmp_path_factory: pytest.TempPathFactory) -> Crime:
    server = module_postgres_factory(17, HISTORY_SETTINGS)
    folder = tmp_path_factory.mktemp("crime")
    server.execute("CREATE TABLE patients (id int PRIMARY KEY, name text NOT NULL)")
    server.execute("CREATE TABLE bystanders (id int PRIMARY KEY, n int)")
    server.execute("INSERT INTO bystanders SELECT n, 0 FROM generate_series(0, 9) n")
    house = BackupHouse(DirectoryStore.create(folder / "eu"), archive_of(server))
    keys = IdentityFile(house.identity, REPOSITORY_ID, house.identity.root_signer().public)
    write_secret(folder / "reader.key", keys.render())
    archiver = HandArchiver(house, server)
    archiver.begin()
    server.execute("INSERT INTO patients SELECT n, 'old' FROM generate_series(1, 50) n")
    take_test_backup(archiver)
    before = now_of(server)
    commit_many(server, 1000)
    xid = commit_one(
        server,
        "INSERT INTO bystanders VALUES (77, 7), (78, 8)",
        "SAVEPOINT inner_one",
        "DELETE FROM patients WHERE id <= 50",
        "RELEASE inner_one",
    )
    commit_many(server, 5000)
    after = now_of(server)
    server.execute("INSERT INTO patients VALUES (9998, 'before the last')")
    drop_xid = commit_one(server, "DROP TABLE bystanders")
    server.execute("INSERT INTO patients VALUES (9999, 'last')")
    end = archiver.ship()
    sign_end(archiver)
    return Crime(folder / "eu", folder / "reader.key", before, after, str(end), xid, drop_xid)


@pytest.fixture
def program(server_tmp_path: Path) -> Iterator[PitrProgram]:
    """Whoever has a region's address and the identity, and no configuration."""
    yield PitrProgram(server_tmp_path)
    end_servers([server_tmp_path / "undone"])


def find(program: PitrProgram, crime: Crime, *words: object, exit_code: int = 0, sql: str = HEALTHY) -> Done:
    scratch = ["--scratch", program.folder / "scratch"]
    return program(
        *["find", "--json", "--sql", sql, *scratch, *crime.source, *words],
        exit_code=exit_code,
        timeout_s=FIND_TIMEOUT_S,
    )


def left_in_scratch(program: PitrProgram) -> list[str]:
    return sorted(path.name for path in (program.folder / "scratch").glob("find-*"))


def test_the_one_delete_among_hundreds_of_commits_is_found_and_undone(
    program: PitrProgram, crime: Crime
) -> None:
    done = find(program, crime, "--from", crime.before.isoformat(), "--to", crime.after.isoformat())
    culprit: dict[str, Any] = done.data["transaction"]
    assert culprit["xid"] & 0xFFFF_FFFF == crime.xid & 0xFFFF_FFFF
    touched = {one["relation"]: one["rows"] for one in culprit["touched"]}
    assert touched["public.patients"] == {"delete": 50}
    assert touched["public.bystanders"] == {"insert": 2}
    assert culprit["is_complete"]
    assert culprit["subtransactions"] == 1
    assert done.data["commits"] > 4 * COMMITS
    assert done.data["candidates"] <= 2 * COMMITS + 20
    assert len(done.data["looks"]) <= 10
    # One restore, unless the disk was so slow that keeping a copy was not worth it.
    assert done.data["restores"] == 1 or done.data["kept_copies"] <= 2
    sides = [one for one in done.data["looks"] if one["lsn"] == done.data["last_good"]["replay_end"]]
    assert [one["is_healthy"] for one in sides] == [True]
    assert left_in_scratch(program) == []
    words = [*done.data["restore_command"][1:]]
    into = program.folder / "undone"
    words[-1] = str(into)
    assert "--exclusive" in words
    program(*words, "--yes", "--start", "--json", timeout_s=FIND_TIMEOUT_S)
    socket = (into / "postmaster.pid").read_text().splitlines()[4]
    with psycopg.connect(host=socket, user="postgres", dbname="postgres") as session:
        rows = session.execute("SELECT count(*) FILTER (WHERE id <= 50), max(id) FROM patients").fetchone()
        others = session.execute("SELECT count(*) FROM bystanders").fetchone()
    assert rows == (50, 1000 + COMMITS - 1)
    assert others == (10,)


def test_what_is_wrong_at_the_first_moment_already_is_refused_in_words(
    program: PitrProgram, crime: Crime
) -> None:
    sql = "SELECT count(*) = 50 FROM patients WHERE id <= 49"
    ends = ["--from", crime.before.isoformat(), "--to", crime.after.isoformat()]
    done = find(program, crime, *ends, sql=sql, exit_code=4)
    assert "not healthy at --from already" in done.error["message"]
    assert "it returned false" in done.error["why"]
    assert "earlier --from" in done.error["next"]
    done = find(program, crime, "--from", ends[1], "--to", ends[1], exit_code=4)
    assert "no WAL lies between" in done.error["message"]
    assert left_in_scratch(program) == []


@pytest.mark.slow
def test_a_dropped_table_is_an_error_that_counts_as_unhealthy_unless_said_otherwise(
    program: PitrProgram, crime: Crime
) -> None:
    sql = "SELECT count(*) >= 0 FROM bystanders"
    ends = ["--from", crime.after.isoformat(), "--to", f"lsn:{crime.end}"]
    done = find(program, crime, *ends, sql=sql)
    assert done.data["transaction"]["xid"] == crime.drop_xid
    rows = {one["relation"]: one["rows"] for one in done.data["transaction"]["touched"]}
    assert "files removed" in rows["public.bystanders"]
    assert rows["pg_catalog.pg_class"]["delete"] > 0
    assert done.data["looks"][1]["answer"] == 'relation "bystanders" does not exist'
    # Right before the end of the DROP that has the table locked, and right after it.
    assert [one["is_healthy"] for one in done.data["looks"]] == [True, False, True, False]
    assert done.data["opened"] == 1
    done = find(program, crime, *ends, "--errors", "healthy", sql=sql, exit_code=4)
    assert "still healthy at --to" in done.error["message"]


@pytest.mark.parametrize("sql", ["SELEC true"])
def test_what_is_no_query_is_refused_before_anything_is_restored(
    program: PitrProgram, crime: Crime, sql: str
) -> None:
    done = find(
        program, crime, "--from", crime.before.isoformat(), "--to", f"lsn:{crime.end}", sql=sql, exit_code=2
    )
    assert done.error["message"] == "this is not a query"
    assert "syntax error" in done.error["why"]
    assert "look 1" not in done.stderr
    assert left_in_scratch(program) == []


def test_a_query_of_another_form_is_refused(program: PitrProgram, crime: Crime) -> None:
    ends = ["--from", crime.before.isoformat(), "--to", f"lsn:{crime.end}"]
    done = find(program, crime, *ends, sql="SELECT count(*) FROM patients", exit_code=2)
    assert "one column, of the type boolean" in done.error["message"]
    assert left_in_scratch(program) == []


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that ended and whose parent does not look counts for nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_what_a_killed_search_left_is_wiped_by_the_next(
    program: PitrProgram, crime: Crime, tmp_path: Path
) -> None:
    words: list[object] = ["find", "--sql", HEALTHY, "--scratch", program.folder / "scratch", *crime.source]
    words += ["--from", crime.before.isoformat(), "--to", crime.after.isoformat()]
    log = tmp_path / "killed.log"
    process = program.begin(*words, log=log)
    wait_until(lambda: "look 2" in log.read_text(), "the second look", timeout_s=300)
    process.kill()
    process.wait(timeout=30)
    (left,) = left_in_scratch(program)
    place = program.folder / "scratch" / left
    pids = [int(file.read_text().split()[0]) for file in place.glob("data/postmaster.pid")]
    done = find(program, crime, *words[-4:], sql="SELEC true", exit_code=2)
    assert f"search {left} was killed" in done.stderr
    assert left_in_scratch(program) == []
    assert not [pid for pid in pids if is_running(pid)]
