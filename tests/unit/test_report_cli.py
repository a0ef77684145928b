"""``pitr report``: listed, shown, exported and certified, over a repository in two directories."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import fix_reports as fix
import pytest
from fix_audit import audit, audit_alone
from fix_schema import OSCAL_SCHEMA, schema_errors

from cli.config_template import NewConfig, NewRegion, render_config
from cli.main import run_cli
from pitr.catalogue.records import RepositoryRecord
from pitr.pipeline.keys import Identity, best_suite
from pitr.pipeline.sign import Signer, encode_time
from pitr.repository import Repository
from storage.local import DirectoryStore
from storage.regions import Region
from storage.repair import RepairQueue
from storage.replicated import ReplicatedStore
from verifiers.audit_log import AuditLog
from verifiers.public_key import to_pem
from verifiers.report_series import close_run, settle_report

IDENTITY = Identity(bytes(range(32)))
ROOT = IDENTITY.root_signer()


class Desk:
    """A configuration, and the verifier's keys beside it."""

    def __init__(self, folder: Path, *, weeks: int = 2) -> None:
        self.folder = folder
        regions = [Region(name, DirectoryStore.create(folder / name)) for name in ("north", "south")]
        recipient = str(IDENTITY.recipient(best_suite()))
        record = RepositoryRecord(fix.REPOSITORY, fix.BEGIN, str(ROOT.public), (recipient,))
        for region in regions:
            Repository.create(region.store, record, ROOT)
        queue = RepairQueue(folder / "repair.sqlite")
        store = ReplicatedStore(regions, quorum=2, queue=queue)
        self.log = AuditLog(store, fix.REPOSITORY, fix.VERIFIER)
        for number in range(1, weeks + 1):
            fix.run_week(self.log, number)
        store.close(10)
        queue.close()
        self.config = folder / "pitr.toml"
        self.config.write_text(
            render_config(
                NewConfig(
                    cluster="main",
                    dsn="host=/run/nowhere user=postgres",
                    slot="pitr",
                    repository=fix.REPOSITORY,
                    root=str(ROOT.public),
                    recipients=(recipient,),
                    quorum=2,
                    regions=tuple(NewRegion(one.name, f"file://{folder / one.name}") for one in regions),
                    signing_key_file=folder / "signing.key",
                    state_dir=folder / "state",
                )
            )
        )
        (folder / "verifier.pub.pem").write_text(to_pem(fix.VERIFIER.public))
        self.secret("verifier.key", fix.VERIFIER)
        self.secret("manager.key", fix.MANAGER)

    def secret(self, name: str, signer: Signer) -> None:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(signer.text())

    def run(self, *words: str, code: int = 0) -> dict[str, Any]:
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            found = run_cli(["--json", "--config", str(self.config), *words])
        assert found == code, stdout.getvalue() + stderr.getvalue()
        result: dict[str, Any] = json.loads(stdout.getvalue())
        return result


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_reports_are_listed_with_what_was_missed(desk: Desk) -> None:
    found = desk.run("report", "list")["data"]
    assert [(one["number"], one["outcome"], one["certified_by"]) for one in found["reports"]] == [
        (1, "PASSED", None),
        (2, "PASSED", None),
    ]
    assert found["key_id"] == fix.VERIFIER.public.key_id


def test_a_report_is_shown_by_its_number_its_id_or_as_the_newest(desk: Desk) -> None:
    newest = desk.run("report", "show")["data"]
    assert newest["predicate"]["identity"]["series_seq"] == 2
    assert desk.run("report", "show", "2")["data"] == newest
    assert desk.run("report", "show", newest["predicate"]["identity"]["report_id"])["data"] == newest
    error = desk.run("report", "show", "3", code=2)["error"]
    assert (error["next"], error["message"]) == ("pitr report list", "there is no report '3'")


def test_what_a_person_reads_has_the_verdict_and_what_was_not_tested(desk: Desk) -> None:
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert run_cli(["--config", str(desk.config), "report", "show", "1"]) == 0
    for words in (
        "PASSED",
        "recovery time: 4 min 05 s (objective 5 min 00 s, met)",
        ", weekly verification, ",
        "limit: Kafka offsets were not compared.",
        "no Kafka is configured",
    ):
        assert words in stdout.getvalue()
    assert " of ," not in stdout.getvalue()


def test_the_export_is_what_the_auditors_tool_accepts_and_may_be_repeated(desk: Desk) -> None:
    folder = desk.folder / "out"
    for _ in range(2):
        found = desk.run("report", "export", str(folder))["data"]
        assert (found["reports"], found["uncovered"]) == (2, 0)
    now = encode_time(fix.BEGIN + fix.WEEK * 2)
    assert audit(folder, desk.folder / "verifier.pub.pem", now=now).code == 0


def test_a_report_that_is_there_and_differs_is_not_written_over(desk: Desk) -> None:
    folder = desk.folder / "out"
    desk.run("report", "export", str(folder))
    path = next(folder.glob("00000001-*[0-9].json"))
    path.write_bytes(b"{}")
    assert "is another report" in desk.run("report", "export", str(folder), code=1)["error"]["message"]
    assert path.read_bytes() == b"{}"


def test_a_person_certifies_a_report_once(desk: Desk) -> None:
    words = ["report", "certify", "1", "--key", str(desk.folder / "manager.key"), "--name", "A. Manager"]
    words += ["--role", "head of IT", "--reviewed-by", "B. Reviewer", "DBA"]
    first = desk.run(*words)["data"]
    assert desk.run(*words)["data"] == first
    rows = desk.run("report", "list")["data"]["reports"]
    assert [row["certified_by"] for row in rows] == ["A. Manager", None]
    shown = desk.run("report", "show", "1")["data"]["certifications"]
    assert shown[0]["reviewed_by"] == {"name": "B. Reviewer", "role": "DBA"}
    desk.run("report", "export", str(desk.folder / "out"))
    certifier = desk.folder / "manager.pem"
    certifier.write_text(to_pem(fix.MANAGER.public))
    done = audit_alone(desk.folder / "out", desk.folder / "verifier.pub.pem", "--certifier", str(certifier))
    assert "2 reports, 1 certifications" in done.stdout
    assert "error:" not in done.stdout


def test_the_verifier_does_not_certify_itself(desk: Desk) -> None:
    words = [
        "report",
        "certify",
        "1",
        "--key",
        str(desk.folder / "verifier.key"),
        "--name",
        "x",
        "--role",
        "y",
    ]
    assert "cannot certify its own" in desk.run(*words, code=1)["error"]["message"]


def test_without_a_public_key_the_log_names_it_and_that_is_said(desk: Desk) -> None:
    (desk.folder / "verifier.pub.pem").unlink()
    found = desk.run("report", "list")
    assert "taken from its own log" in found["warnings"][0]
    assert len(found["data"]["reports"]) == 2


def test_another_verifiers_key_finds_nothing(desk: Desk) -> None:
    (desk.folder / "verifier.pub.pem").write_text(to_pem(fix.STRANGER.public))
    assert desk.run("report", "list")["data"]["reports"] == []
    (desk.folder / "verifier.pub.pem").write_text("no key")
    assert desk.run("report", "list", code=8)["error"]["code"] == "PITR-8002"


def test_a_period_is_reported_signed_logged_exported_and_audited(desk: Desk) -> None:
    words = ["--from", "2026-01-01", "--to", "2026-01-14", "--tz", "Europe/Berlin"]
    first = desk.run("report", *words)["data"]
    said = first["predicate"]
    assert [one["series_seq"] for one in said["reports"]] == [1]
    assert said["identity"]["period_start"] == "2025-12-31T23:00:00.000000Z"
    # A date at the end means its whole day.
    assert said["identity"]["period_end"] == "2026-01-14T23:00:00.000000Z"
    second = desk.run("report", "period", "--from", "2026-01-01 00:00 UTC", "--to", "2026-02-01 00:00 UTC")
    assert [one["series_seq"] for one in second["data"]["predicate"]["reports"]] == [1, 2]
    folder = desk.folder / "out"
    assert desk.run("report", "export", str(folder))["data"]["period_reports"] == 2
    assert (folder / f"period-{first['report_id']}.html").stat().st_size > 0
    found = audit(folder, desk.folder / "verifier.pub.pem", now=encode_time(fix.BEGIN + fix.WEEK * 2))
    assert found.texts("error") == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--from", "2026-01-01"], "a period needs --from and --to"),
        (["--from", "2026-01-02", "--to", "2026-01-01"], "ends before it begins"),
        (["--from", "2026-01-02", "--to", "2026-02-30"], "there is no day 2026-02-30"),
        (["--from", "latest", "--to", "2026-02-01"], "not a time: 'latest'"),
        (["--from", "2026-01-01", "--to", "2026-02-01", "--system", "5"], "tells of no cluster 5"),
        (["--from", "2026-01-01", "list"], "stand after its command"),
    ],
)
def test_a_period_that_cannot_be_meant_is_refused(desk: Desk, words: list[str], told: str) -> None:
    assert told in desk.run("report", *words, code=2)["error"]["message"]


def test_without_a_command_or_a_period_the_help_is_shown(desk: Desk) -> None:
    found = desk.run("report", code=2)["error"]
    assert (found["message"], found["next"]) == ("no command is given", "pitr report --help")


def test_reports_are_written_as_oscal(desk: Desk) -> None:
    file = desk.folder / "results.json"
    assert desk.run("report", "oscal", str(file))["data"]["reports"] == 2
    assert schema_errors(OSCAL_SCHEMA, json.loads(file.read_text())) == []
    assert desk.run("report", "oscal", str(file), "2")["data"]["reports"] == 1
    (result,) = json.loads(file.read_text())["assessment-results"]["results"]
    assert result["title"] == "Report 2: PASSED"
    assert desk.run("report", "oscal", str(file), "7", code=2)["error"]["next"] == "pitr report list"


class KillingStore(fix.MemoryStore):
    """Interrupts whoever puts an object whose key holds ``stop_at``."""

    stop_at = ""

    def put(self, key: str, body: bytes, **other: Any) -> None:
        if self.stop_at and self.stop_at in key:
            raise KeyboardInterrupt
        super().put(key, body, **other)


def test_a_report_of_a_run_that_was_killed_before_it_was_logged_is_settled_by_the_next(
    tmp_path: Path,
) -> None:
    """The put of the report is the last thing that a killed run did: the next run finishes its work."""

    for stop_at in ("/report", "/test-result", "/html-", "/entry/", "/checkpoint/"):
        store = KillingStore()
        log = AuditLog(store, fix.REPOSITORY, fix.VERIFIER)
        fix.run_week(log, 1)
        at = fix.BEGIN + fix.WEEK * 2
        intent = fix.intend(log, 2, at)
        store.stop_at = stop_at
        with pytest.raises(KeyboardInterrupt):
            fix.issue_report(log, intent, fix.draft(2, at), at + timedelta(minutes=6))
        store.stop_at = ""
        again = AuditLog(store, fix.REPOSITORY, fix.VERIFIER)
        if stop_at == "/report":
            assert settle_report(again, fix.SYSTEM, at + timedelta(hours=1)) is None
            again.abandon(again.open_intents()[0], "it was killed", at + timedelta(hours=1))
        fix.run_week(again, 3)
        folder = tmp_path / stop_at.strip("/-")
        fix.export_reports(store, fix.REPOSITORY, fix.VERIFIER.public, folder)
        key = tmp_path / "key.pem"
        key.write_text(to_pem(fix.VERIFIER.public))
        found = audit(folder, key, now=encode_time(fix.BEGIN + fix.WEEK * 3))
        assert found.texts("error") == ""
        assert found.result["reports"] == (2 if stop_at == "/report" else 3)
        assert ("abandoned: it was killed" in found.texts("warning")) == (stop_at == "/report")


def test_reports_are_written_as_pdf_and_only_where_there_is_none_yet(desk: Desk) -> None:
    path = desk.folder / "one.pdf"
    assert desk.run("report", "show", "2", "--pdf", str(path), "--paper", "us-letter")["data"]["pdf"] == str(
        path
    )
    assert path.read_bytes().startswith(b"%PDF-")
    folder = desk.folder / "out"
    assert desk.run("report", "export", str(folder), "--pdf")["data"]["pdfs"] == 2
    names = sorted(one.name for one in (folder / "pdf").iterdir())
    assert [name[:8] for name in names] == ["00000001", "00000002"]
    kept = folder / "pdf" / names[0]
    kept.write_bytes(b"kept")
    words = ["report", "certify", "2", "--key", str(desk.folder / "manager.key"), "--name", "A. Manager"]
    desk.run(*words, "--role", "head of IT")
    desk.run("report", "export", str(folder), "--pdf")
    certified = names[1].replace(".pdf", "-certified.pdf")
    assert {one.name for one in (folder / "pdf").iterdir()} == {*names, certified}
    assert kept.read_bytes() == b"kept"
    now = encode_time(fix.BEGIN + fix.WEEK * 2)
    found = audit(folder, desk.folder / "verifier.pub.pem", now=now)
    assert (found.code, found.texts("error", "warning")) == (0, "")


def test_without_the_library_a_pdf_is_refused_in_three_lines_and_nothing_is_written(desk: Desk) -> None:
    path = desk.folder / "one.pdf"
    script = f"""
import sys
sys.modules["typst"] = None
from cli.main import run_cli
sys.exit(run_cli(["--config", {str(desk.config)!r}, "report", "show", "--pdf", {str(path)!r}]))
"""
    root = Path(__file__).parents[2]
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, check=False, timeout=60)
    assert done.returncode == 1
    what, why, what_next = done.stderr.strip().splitlines()[-3:]
    assert "a PDF needs the library typst, and it is not installed" in what
    assert "why:" in why
    assert what_next.strip() == "next: pip install 'pitr[pdf]'"
    assert not path.exists()


@pytest.mark.parametrize("stop_at", ["/report", "/test-result", "/html-", "/entry/", "/checkpoint/"])
def test_a_run_that_is_interrupted_once_its_report_was_put_has_that_one_outcome(
    tmp_path: Path, stop_at: str
) -> None:
    store = KillingStore()
    log = AuditLog(store, fix.REPOSITORY, fix.VERIFIER)
    at = fix.BEGIN + fix.WEEK
    intent = fix.intend(log, 1, at)
    store.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        fix.issue_report(log, intent, fix.draft(1, at), at + timedelta(minutes=6))
    store.stop_at = ""
    for _ in range(2):
        close_run(log, intent.entry, "it was interrupted", at + timedelta(minutes=7))
    ends = [one.text("outcome") for one in log.entries() if one.kind == "verification-ended"]
    assert ends == ["ABANDONED" if stop_at == "/report" else "PASSED"]
    fix.run_week(log, 2)
    fix.export_reports(store, fix.REPOSITORY, fix.VERIFIER.public, tmp_path / "reports")
    (tmp_path / "key.pem").write_text(to_pem(fix.VERIFIER.public))
    now = encode_time(fix.BEGIN + fix.WEEK * 2)
    assert audit(tmp_path / "reports", tmp_path / "key.pem", now=now).texts("error") == ""


def test_a_second_key_does_not_write_over_the_public_half_of_the_first(desk: Desk) -> None:
    """Auditors compare what they were given with that file, and the reports of the first are found by it."""
    there = (desk.folder / "verifier.pub.pem").read_bytes()
    key = desk.folder / "second.key"
    refused = desk.run("verifier", "init", "--key", str(key), code=2)["error"]
    assert "not this key's public half" in refused["message"]
    assert "--public" in refused["next"]
    assert not key.exists()
    assert (desk.folder / "verifier.pub.pem").read_bytes() == there
    desk.run("verifier", "init", "--key", str(key), "--public", str(desk.folder / "second.pub.pem"))
    assert (desk.folder / "second.pub.pem").read_bytes() != there
    assert desk.run("verifier", "init")["data"]["is_new"] is False
    # A person's key is made like that, too.
    words = ("--key", str(key), "--name", "B. Deputy", "--role", "deputy")
    desk.run("report", "certify", "1", *words)
    assert desk.run("report", "list")["data"]["reports"][0]["certified_by"] == "B. Deputy"
