"""The demo, whole; and its judge, who must not be easy to please."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_cli import CHECKOUT, Done, PitrProgram, wait_until
from fix_postgres import PostgresFactory, RunningPostgres
from fix_s3 import S3Server

from cli.context import App
from cli.demo import show_report
from cli.demo_hospital import (
    PATIENTS_AT_FIRST,
    Acknowledged,
    Clerk,
    Moment,
    Verdict,
    break_things,
    judge,
    open_hospital,
)
from cli.demo_run import DemoResult, DemoStep
from pitr.postgres.server_user import as_user, hand_over, server_user
from pitr.wal.lsn import LSN

DEMO_TIMEOUT_S = 240.0


def _is_left(folder: Path) -> bool:
    """Tell whether a process still names the folder on its command line."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            if os.fsencode(folder) in entry.read_bytes():
                return True
    return False


def _check(done: Done) -> None:
    data = done.data
    assert data["is_right"] is True
    assert data["commits_before_moment"] > 50
    assert data["commits"] > data["commits_before_moment"]
    assert (data["missing"], data["unexpected"]) == (0, 0)
    assert 0 < data["rpo_p50_s"] <= data["rpo_max_s"]
    assert data["rto_s"] > 0
    spent = {step["step"]: step["seconds"] for step in data["steps"]}
    for part in ("PostgreSQL starts", "pitr backup", "DELETE FROM", "is destroyed", "pitr restore"):
        (seconds,) = [spent[name] for name in spent if part in name]
        assert seconds > 0, part
    assert data["rto_s"] <= sum(spent.values()) <= data["total_s"]


def test_the_demo_of_whoever_is_not_root_restores_every_acknowledged_commit_and_keeps_all_in_its_folder(
    server_tmp_path: Path,
) -> None:
    # As root, become somebody who can run this Python; who is not root is somebody already.
    user = server_user(must_run=[sys.executable, "-c", ""])
    plain = server_tmp_path / "plain"
    plain.mkdir()
    hand_over(plain, user)
    prefix, options = as_user(user)
    folder = plain / "demo"
    pitr = PitrProgram(plain)
    ended = subprocess.run(
        [*prefix, *pitr.words("demo", "--keep", folder, "--json")],
        cwd=plain,
        env={**pitr.env(), "TMPDIR": str(plain)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
        check=False,
        **options,
    )
    done = Done(("demo",), ended.returncode, ended.stdout, ended.stderr)
    _check(done)
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert len(ledger) == done.data["commits"]
    assert (folder / "restored" / "PG_VERSION").read_text() == "17\n"
    assert not (folder / "regions" / "eu-central").exists()
    assert not _is_left(folder)
    assert "is not empty" in pitr("demo", "--keep", folder, exit_code=2).stderr


def test_the_demo_runs_on_a_real_s3_server_and_leaves_nothing(
    server_tmp_path: Path, s3_server: S3Server
) -> None:
    environment = {"PITR_VERSITYGW": str(s3_server.program), "TMPDIR": str(server_tmp_path)}
    pitr = PitrProgram(server_tmp_path, environment)
    before = set(server_tmp_path.iterdir())
    _check(pitr("demo", "--s3", "--pg", 18, "--json", timeout_s=DEMO_TIMEOUT_S))
    left = {path.name for path in set(server_tmp_path.iterdir()) - before}
    # Only the copy of PostgreSQL's programs may stay, which the next restore uses again.
    assert left <= {f"pitr-postgres-{os.geteuid()}"}
    assert not _is_left(server_tmp_path)


def test_the_demo_ends_with_a_verification_that_an_auditor_can_check_alone(server_tmp_path: Path) -> None:
    folder = server_tmp_path / "demo"
    pitr = PitrProgram(server_tmp_path)
    done = pitr("demo", "--keep", folder, "--verify", "--json", timeout_s=2 * DEMO_TIMEOUT_S)
    _check(done)
    verified = done.data["verified"]
    assert verified["verdict"] == "PASSED", [one for one in verified["checks"] if one["result"] != "PASSED"]
    (report,) = folder.glob(f"reports/00000001-{verified['report']}.json")
    assert report.stat().st_size > 0
    assert "host" not in {path.parent.name for path in folder.rglob("verifier.key")}
    key, tool = folder / "keys" / "verifier.pub.pem", CHECKOUT / "verifiers" / "pitr_audit.py"
    words = [sys.executable, "-I", "-S", str(tool), "--key", str(key), str(folder / "reports")]
    audited = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert audited.returncode == 0, audited.stdout + audited.stderr
    assert list((folder / "v").glob("0*")) == []
    assert not _is_left(folder)


def test_a_folder_with_too_long_a_path_is_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 80)
    assert "too long" in PitrProgram(tmp_path)("demo", "--keep", folder, exit_code=2).stderr


@pytest.fixture(scope="module")
def hospital(module_postgres_factory: PostgresFactory) -> RunningPostgres:
    server = module_postgres_factory()
    open_hospital(server.dsn)
    return server


@pytest.fixture(scope="module")
def worked(hospital: RunningPostgres, tmp_path_factory: pytest.TempPathFactory) -> tuple[Clerk, Moment]:
    """The clerk's work up to a moment, and some more after it."""
    clerk = Clerk(hospital.dsn, tmp_path_factory.mktemp("ledger") / "ledger.jsonl")
    clerk.start()
    wait_until(lambda: len(clerk.acknowledged) >= 20, "the clerk works")
    moment = clerk.moment()
    wait_until(lambda: len(clerk.acknowledged) >= moment.count + 5, "the clerk works on")
    clerk.stop()
    return clerk, moment


def _verdict(hospital: RunningPostgres, worked: tuple[Clerk, Moment], *statements: str) -> Verdict:
    """Judge the state at the moment, after ``statements``; everything is put back then."""
    clerk, moment = worked
    hospital.execute("DROP SCHEMA IF EXISTS kept CASCADE")
    hospital.execute("CREATE SCHEMA kept")
    for table in ("patients", "appointments", "billing"):
        hospital.execute(f"CREATE TABLE kept.{table} AS TABLE public.{table}")
    for table in ("appointments", "billing"):
        hospital.execute(f"DELETE FROM kept.{table} WHERE id > {moment.last.number}")
    later = [1 + done.number * 7919 % PATIENTS_AT_FIRST for done in clerk.acknowledged[moment.count :]]
    hospital.execute("UPDATE kept.patients SET note = repeat(md5(id::text), 8) WHERE id = ANY(%s)", later)
    for statement in statements:
        hospital.execute(statement)
    return judge(hospital.dsn + " options='-c search_path=kept'", clerk.acknowledged, moment)


def test_the_judge_accepts_exactly_what_was_acknowledged(
    hospital: RunningPostgres, worked: tuple[Clerk, Moment]
) -> None:
    verdict = _verdict(hospital, worked)
    assert verdict.is_right, verdict
    assert verdict.expected == verdict.found == worked[1].count


@pytest.mark.parametrize(
    ("statement", "field"),
    [
        ("DELETE FROM kept.appointments WHERE id = 7", "missing"),
        ("INSERT INTO kept.appointments SELECT 10000000, 1, now(), 'ward 1'", "unexpected"),
        ("UPDATE kept.billing SET cents = 0 WHERE id = 3", "bills_differ"),
        ("DELETE FROM kept.billing WHERE id = 3", "bills_differ"),
        # Visit 1 was of patient 7920: as if it had left no note, and a note of a visit that never was.
        ("UPDATE kept.patients SET note = repeat(md5(id::text), 8) WHERE id = 7920", "notes_differ"),
        ("UPDATE kept.patients SET note = md5(note) WHERE id = 1", "notes_differ"),
    ],
)
def test_the_judge_sees_one_wrong_row(
    hospital: RunningPostgres, worked: tuple[Clerk, Moment], statement: str, field: str
) -> None:
    verdict = _verdict(hospital, worked, statement)
    assert getattr(verdict, field) == 1
    assert not verdict.is_right


def test_the_judge_counts_the_patients(hospital: RunningPostgres, worked: tuple[Clerk, Moment]) -> None:
    verdict = _verdict(hospital, worked, "DELETE FROM kept.patients WHERE id = 5")
    assert verdict.patients == PATIENTS_AT_FIRST - 1
    assert not verdict.is_right


def test_the_moment_lies_between_two_commits(hospital: RunningPostgres, worked: tuple[Clerk, Moment]) -> None:
    clerk, moment = worked
    assert clerk.acknowledged[moment.count - 1] == moment.last
    rows = hospital.execute("SELECT id FROM appointments WHERE at <= %s", moment.at)
    assert {row[0] for row in rows} == {done.number for done in clerk.acknowledged[: moment.count]}


def test_a_bad_day_deletes_a_table_and_drops_another_amid_the_work(
    postgres_factory: PostgresFactory, tmp_path: Path
) -> None:
    server = postgres_factory()
    open_hospital(server.dsn)
    clerk = Clerk(server.dsn, tmp_path / "ledger.jsonl")
    clerk.start()
    wait_until(lambda: len(clerk.acknowledged) >= 5, "the clerk works")
    end = break_things(server.dsn, clerk)
    clerk.stop()
    assert server.value("SELECT to_regclass('billing') IS NULL") is True
    assert server.value("SELECT %s::pg_lsn <= pg_current_wal_flush_lsn()", str(end)) is True


def test_the_report_shows_each_steps_time_and_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime(2026, 11, 23, 13, 5, tzinfo=UTC)
    steps = (DemoStep("pitr daemon starts", 1.2, "2 of 3"), DemoStep("pitr restore", 61.0, "accepted"))
    verdict = Verdict(70, 70, 0, 0, 0, PATIENTS_AT_FIRST, 0)
    moment = Moment(at, Acknowledged(70, LSN(8), 0.0), 70)
    show_report(App(), DemoResult(steps, moment, verdict, 90, 0.5, 1.03, 61.0, {}), 75.0)
    shown = capsys.readouterr().out
    expected = [r"pitr daemon starts .* 1\.2 s .* 2 of 3", r"pitr restore .* 1 min 01 s"]
    expected += [r"RPO.* 1\.03 s .* 0\.50 s", r"RTO.* 1 min 01 s"]
    for line in expected:
        assert re.search(line, shown), f"{line}\n{shown}"
    assert "2026-11-23T13:05:00+00:00: every acknowledged commit before it is there" in shown
