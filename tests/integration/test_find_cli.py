"""``pitr find`` as people run it: hundreds of commits, one of them wrong, found to the transaction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from fix_cli import Done, MakeSite, Site

FIND_TIMEOUT_S = 400.0
HEALTHY = "SELECT count(*) > 0 FROM patients WHERE id <= 50"
COMMITS = 150


@dataclass
class Crime:
    """A site where one of hundreds of commits was wrong, and what is known of that one."""

    site: Site
    before_all: str
    before: datetime
    xid: int
    start: str
    after: datetime


def now_of(site: Site) -> datetime:
    at = site.server.value("SELECT clock_timestamp()")
    assert isinstance(at, datetime)
    return at.astimezone(UTC)


def commit_many(site: Site, since: int) -> None:
    """Commit to the table in question and to one that the query does not read, in turn."""
    with psycopg.connect(site.server.dsn, autocommit=True) as session:
        for number in range(since, since + COMMITS):
            session.execute("INSERT INTO patients VALUES (%s, 'p')", [number])
            session.execute("UPDATE bystanders SET n = n + 1 WHERE id = %s", [number % 10])


@pytest.fixture(scope="module")
def crime(module_make_site: MakeSite) -> Crime:
    site = module_make_site(17)
    site.config.write_text(
        site.config.read_text()
        + f"\n[verify]\nidentity_file = {json.dumps(str(site.identity))}\n"
        + f'every = "never"\nscratch_dir = "{site.folder}/scratch"\n'
    )
    site.server.execute("CREATE TABLE patients (id int PRIMARY KEY, name text NOT NULL)")
    site.server.execute("CREATE TABLE bystanders (id int PRIMARY KEY, n int)")
    site.server.execute("INSERT INTO bystanders SELECT n, 0 FROM generate_series(0, 9) n")
    before_all = now_of(site).isoformat()
    site.start_daemon()
    site.server.execute("INSERT INTO patients SELECT n, 'old' FROM generate_series(1, 50) n")
    before = now_of(site)
    commit_many(site, 1000)
    with psycopg.connect(site.server.dsn) as session:
        start_row = session.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        assert start_row is not None
        session.execute("INSERT INTO bystanders VALUES (77, 7), (78, 8)")
        session.execute("SAVEPOINT inner_one")
        session.execute("DELETE FROM patients WHERE id <= 50")
        session.execute("RELEASE inner_one")
    start = str(site.server.value("SELECT pg_current_wal_insert_lsn()"))
    commit_many(site, 5000)
    after = now_of(site)
    site.wait_durable()
    return Crime(site, before_all, before, int(start_row[0]), start, after)


def find(crime: Crime, *words: object, exit_code: int = 0, sql: str = HEALTHY) -> Done:
    site = crime.site
    return site.program(
        "-c",
        site.config,
        "find",
        "--json",
        "--sql",
        sql,
        *words,
        exit_code=exit_code,
        timeout_s=FIND_TIMEOUT_S,
    )


def left_in_scratch(site: Site) -> list[str]:
    return sorted(path.name for path in (site.folder / "scratch").glob("find-*"))


def test_the_one_delete_among_hundreds_of_commits_is_found_and_undone(crime: Crime) -> None:
    done = find(crime, "--from", crime.before.isoformat(), "--to", crime.after.isoformat())
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
    assert left_in_scratch(crime.site) == []
    words = [*done.data["restore_command"][1:]]
    into = crime.site.folder / "undone"
    words[-1] = str(into)
    assert "--exclusive" in words
    crime.site.program(*words, "--yes", "--start", "--json", timeout_s=FIND_TIMEOUT_S)
    socket = (into / "postmaster.pid").read_text().splitlines()[4]
    with psycopg.connect(host=socket, user="postgres", dbname="postgres") as session:
        rows = session.execute("SELECT count(*) FILTER (WHERE id <= 50), max(id) FROM patients").fetchone()
        others = session.execute("SELECT count(*) FROM bystanders").fetchone()
    assert rows == (50, 1000 + COMMITS - 1)
    assert others == (10,)


def test_ends_that_are_not_good_and_bad_are_refused_in_words(crime: Crime) -> None:
    done = find(
        crime,
        "--from",
        crime.before.isoformat(),
        "--to",
        crime.after.isoformat(),
        sql="SELECT count(*) = 50 FROM patients WHERE id <= 49",
        exit_code=4,
    )
    assert "not healthy at --from already" in done.error["message"]
    assert "it returned false" in done.error["why"]
    done = find(
        crime,
        "--from",
        crime.before.isoformat(),
        "--to",
        f"lsn:{crime.site.server.value('SELECT pg_current_wal_insert_lsn()')}"
        if False
        else (crime.before).isoformat(),
        exit_code=4,
    )
    assert "no WAL lies between" in done.error["message"]
    assert left_in_scratch(crime.site) == []
