"""The auditor's tool as an auditor runs it: alone, beside openssl, and over what is honest but bad."""

from __future__ import annotations

import ast
import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import fix_reports as fix
import pytest
from fix_apt import AptProgram
from fix_audit import TOOL, Forgery, audit
from hypothesis import given, settings
from hypothesis import strategies as st

from pitr.errors import MalformedValue
from pitr.layout import report_prefix
from pitr.pipeline.sign import Signer, Verifier, encode_time, payload_of
from storage.memory import MemoryStore
from verifiers import pitr_audit, report_shape
from verifiers.audit_log import AuditLog
from verifiers.log_entry import EntryKind
from verifiers.public_key import from_pem, to_pem
from verifiers.report_blocks import shown_text
from verifiers.report_export import export_reports
from verifiers.report_series import settle_report
from verifiers.statement import sign_report
from verifiers.trend import trend_row

# RFC 8032 §7.1: key, message, signature.
RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
            "387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
            "4a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> fix.ReportHouse:
    return fix.ReportHouse(tmp_path_factory.mktemp("audit") / "reports", weeks=2)


def folder_of(log: AuditLog, folder: Path) -> tuple[Path, Path]:
    """Export a log's reports; return the folder and the key."""
    export_reports(log.store, fix.REPOSITORY, fix.VERIFIER.public, folder)
    key = folder.parent / "key.pem"
    key.write_text(to_pem(fix.VERIFIER.public))
    return folder, key


def new_log() -> AuditLog:
    return AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_signatures_are_those_of_rfc_8032(key: str, message: str, signature: str) -> None:
    tool = pitr_audit.Key(bytes.fromhex(key))
    tool.verify(bytes.fromhex(signature), bytes.fromhex(message))
    for at in range(0, 64, 7):
        wrong = bytearray.fromhex(signature)
        wrong[at] ^= 1
        with pytest.raises(pitr_audit.Refused):
            tool.verify(bytes(wrong), bytes.fromhex(message))
    # The same signature with S + L, which RFC 8032 §5.1.7 refuses.
    s = int.from_bytes(bytes.fromhex(signature)[32:], "little") + pitr_audit.ORDER
    with pytest.raises(pitr_audit.Refused):
        tool.verify(bytes.fromhex(signature)[:32] + s.to_bytes(32, "little"), bytes.fromhex(message))


@given(seed=st.binary(min_size=32, max_size=32), message=st.binary(max_size=200), flip=st.integers(0, 511))
@settings(max_examples=15, deadline=None)
def test_it_accepts_what_the_program_signs_and_nothing_beside_it(
    seed: bytes, message: bytes, flip: int
) -> None:
    signer = Signer(seed)
    tool, signature = pitr_audit.Key(signer.public.public_key), signer.sign(message)
    assert (tool.id, tool.text) == (signer.public.key_id, str(signer.public))
    tool.verify(signature, message)
    wrong = bytearray(signature)
    wrong[flip // 8] ^= 1 << flip % 8
    with pytest.raises(pitr_audit.Refused):
        tool.verify(bytes(wrong), message)
    with pytest.raises(pitr_audit.Refused):
        tool.verify(signature, message + b"x")


@pytest.mark.parametrize("raw", [b"", bytes(31), b"\xff" * 32, bytes(33), (2).to_bytes(32, "little")])
def test_what_is_no_point_is_no_key(raw: bytes) -> None:
    with pytest.raises((pitr_audit.Refused, IndexError)):
        pitr_audit.Key(raw)


def test_it_knows_the_same_shapes_and_names_as_the_program() -> None:
    for name in ("TYPES_TEXT", "REPORT_SHAPE", "CERTIFICATION_SHAPE"):
        assert getattr(pitr_audit, name) == getattr(report_shape, name)
    assert pitr_audit.STATEMENT == report_shape.STATEMENT_TYPE
    assert pitr_audit.VERIFICATION == report_shape.VERIFICATION_TYPE
    assert pitr_audit.VERIFICATION_1 == report_shape.VERIFICATION_TYPE_1
    assert pitr_audit.TREND_MAX == report_shape.TREND_MAX
    assert pitr_audit.CERTIFICATION == report_shape.CERTIFICATION_TYPE
    assert pitr_audit.TEST_RESULT == report_shape.TEST_RESULT_TYPE
    for report_type, shape in report_shape.REPORTS.items():
        assert pitr_audit.SHAPES[report_type] == shape
    assert pitr_audit.SHAPES[pitr_audit.CERTIFICATION] == report_shape.CERTIFICATION
    for value, unit in ((None, ""), (True, ""), (False, "ms"), (93_784_005, "ms"), (7, ""), ("x", "")):
        assert pitr_audit.Audit.shown_text(None, value, unit) == shown_text(value, unit)
    at = "2026-11-30T09:08:07.654321Z"
    assert (
        pitr_audit.Audit.shown_text(None, at, "time") == shown_text(at, "time") == "2026-11-30 09:08:07 UTC"
    )
    assert shown_text(93_784_005, "ms") == "26:03:04.005"


def test_it_is_one_file_that_needs_the_standard_library_alone() -> None:
    tree = ast.parse(TOOL.read_text())
    named = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {
        alias.name if isinstance(node, ast.Import) else node.module for node in named for alias in node.names
    }
    assert {str(name).partition(".")[0] for name in modules} <= set(sys.stdlib_module_names)
    assert not modules & {"socket", "urllib", "http", "subprocess", "ctypes"}


def test_alone_it_says_good(house: fix.ReportHouse, tmp_path: Path) -> None:
    tool = shutil.copy(TOOL, tmp_path / "elsewhere.py")
    words = [sys.executable, "-I", "-S", str(tool), "--key", str(house.key), str(house.folder)]
    done = subprocess.run(
        [*words, "--now", encode_time(house.now)],
        capture_output=True,
        text=True,
        cwd="/",
        env={},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("good: 2 reports, 1 certifications,")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--key", "nowhere.pem", "."], "No such file"),
        (["--key", str(TOOL), "."], "pitr-audit"),
        (["."], "--key"),
        ([], "required"),
        (["--unknown"], "required"),
    ],
)
def test_wrong_usage_is_two(words: list[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(TOOL), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_none_is_wrong_usage(house: fix.ReportHouse, tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", TOOL):
        assert audit(folder, house.key).code == 2
    assert audit(house.folder, house.key, now="tomorrow").code == 2
    assert "log.jsonl: is missing" in audit(tmp_path, house.key).texts("error")


def test_what_changes_nothing_is_accepted(house: fix.ReportHouse, tmp_path: Path) -> None:
    """Names of folders, modes, times, files that are no evidence, and a checkpoint that later ones cover."""
    folder = tmp_path / "renamed"
    shutil.copytree(house.folder, folder)
    (folder / "README").write_text("what this is")
    for path in folder.iterdir():
        path.chmod(0o444)
        os.utime(path, (1, 1))
    notes = (folder / "checkpoints.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "checkpoints.jsonl").chmod(0o644)
    (folder / "checkpoints.jsonl").write_bytes(b"".join(notes[::2] if len(notes) % 2 else notes[1::2]))
    found = audit(folder, house.key, now=encode_time(house.now))
    assert (found.code, found.texts("error", "warning")) == (0, "")
    assert "README" in found.texts("note")


def test_a_failed_verification_is_good_evidence_and_is_told(tmp_path: Path) -> None:
    log = new_log()
    fix.run_week(log, 1, fails=True)
    folder, key = folder_of(log, tmp_path / "reports")
    found = audit(folder, key)
    assert found.code == 0
    assert "the verification FAILED" in found.texts("note")


@pytest.mark.parametrize("days", [0, 700])
def test_a_log_that_tells_of_no_report_is_no_good_evidence(days: int, tmp_path: Path) -> None:
    log = new_log()
    # Whatever is logged first begins the log with an entry of its own.
    fix.observe(log, 0)
    folder, key = folder_of(log, tmp_path / "reports")
    found = audit(folder, key, now=encode_time(fix.BEGIN + timedelta(days=days)))
    assert (found.code, found.result["reports"], found.texts("error")) == (1, 0, "")
    assert f"tells of no report since it began: {encode_time(log.entries()[0].at)}" in found.texts("warning")


def late(log: AuditLog) -> None:
    fix.run_week(log, 3)


def missed(log: AuditLog) -> None:
    log.append(
        EntryKind.VERIFICATION_MISSED, "run-2", {"reason": "the host was off"}, fix.BEGIN + fix.WEEK * 2
    )


def abandoned(log: AuditLog) -> None:
    intent = fix.intend(log, 2, fix.BEGIN + fix.WEEK * 2)
    log.abandon(intent.entry, "it was killed", fix.BEGIN + fix.WEEK * 2 + timedelta(hours=2))


def vanished(log: AuditLog) -> None:
    fix.intend(log, 2, fix.BEGIN + fix.WEEK + timedelta(days=1))
    fix.run_week(log, 2)


def rewritten_past(log: AuditLog) -> None:
    fix.observe(log, 2)
    facts = {"archive": f"{fix.SYSTEM}/00000001", "head_sequence": 20, "head_sha256": fix.digest("another")}
    log.append(EntryKind.OBSERVED, "run-3", facts, fix.BEGIN + fix.WEEK * 2)


def past_went_back(log: AuditLog) -> None:
    fix.observe(log, 2)
    facts = {"archive": f"{fix.SYSTEM}/00000001", "head_sequence": 19, "head_sha256": fix.digest("head 2")}
    log.append(EntryKind.OBSERVED, "run-3", facts, fix.BEGIN + fix.WEEK * 2)


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (late, "14.0 days from 2026-01-11 to report 2"),
        (missed, "a run was missed: the host was off"),
        (abandoned, "was abandoned: it was killed"),
        (vanished, "run run-2 has no outcome"),
        (rewritten_past, "the host rewrote what log entry"),
        (past_went_back, "the host rewrote what log entry"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_honest_and_not_as_it_should_be_is_a_finding(
    happens: Callable[[AuditLog], None], told: str, tmp_path: Path
) -> None:
    log = new_log()
    fix.run_week(log, 1)
    if happens is vanished:
        # Another run of the same name would hide it; this one is of its own.
        intent = fix.intend(log, 9, fix.BEGIN + fix.WEEK + timedelta(days=1))
        assert intent.entry.run_id == "run-9"
        fix.run_week(log, 2)
        told = "run run-9 has no outcome"
    else:
        happens(log)
    folder, key = folder_of(log, tmp_path / "reports")
    found = audit(folder, key)
    assert found.code == 1
    assert told in found.texts("error", "warning")


def test_a_run_that_ended_twice_is_a_finding_and_all_else_is_checked(tmp_path: Path) -> None:
    """As logs of before 2026-11-30 may have it: given up by a run beside it, and then it had its report."""

    def given_up(entries: list[dict[str, Any]]) -> None:
        facts = {"outcome": "ABANDONED", "reason": "the run was killed", "report_id": None}
        entries.insert(2, {**entries[2], "facts": facts})
        entries[3]["sequence"] = 3

    key = Forgery(entries=given_up).write(tmp_path / "reports")
    found = audit(tmp_path / "reports", key)
    assert (found.code, found.result["reports"]) == (1, 1)
    assert found.texts("error") == "log entry 3: run run-1 ended twice, or was never intended"
    assert "was abandoned: the run was killed" in found.texts("warning")


def test_an_rpo_that_was_met_by_a_moment_in_the_past_is_told(tmp_path: Path) -> None:
    """As reports of before 2026-11-30 have it: it is well signed, and nothing was measured."""

    def claims(report: dict[str, Any]) -> None:
        report["data_loss"]["data_loss_ms"] = 0
        report["result"]["rpo_met"] = True

    key = Forgery(predicate=claims, is_random=True).write(tmp_path / "reports")
    found = audit(tmp_path / "reports", key)
    assert (found.code, found.texts("error", "warning")) == (0, "")
    assert "its rpo_met is of a moment in the past, which measures no data loss" in found.texts("note")
    key = Forgery(is_random=True).write(tmp_path / "others")
    assert "rpo_met" not in audit(tmp_path / "others", key).texts("note")


def test_a_run_that_still_goes_on_is_no_finding(tmp_path: Path) -> None:
    log = new_log()
    fix.run_week(log, 1)
    fix.intend(log, 2, fix.BEGIN + fix.WEEK * 2)
    folder, key = folder_of(log, tmp_path / "reports")
    found = audit(folder, key)
    assert found.code == 0
    assert "run run-2 has no outcome" in found.texts("note")


def test_a_test_that_is_overdue_now_is_a_finding(house: fix.ReportHouse) -> None:
    last = fix.BEGIN + fix.WEEK * 2
    for days, code in ((7, 0), (8, 0), (9, 1), (400, 1)):
        assert audit(house.folder, house.key, now=encode_time(last + timedelta(days=days))).code == code


def test_certification_can_be_required(house: fix.ReportHouse) -> None:
    now = encode_time(house.now)
    found = audit(house.folder, house.key, "--require-certification", now=now)
    assert found.code == 1
    assert found.texts("warning").count("no person has certified it") == 1


def test_two_people_certify_one_report(tmp_path: Path) -> None:
    house = fix.ReportHouse(tmp_path / "reports", weeks=1)
    fix.certify(house.log, 1, fix.SECOND)
    house.export()
    found = audit(house.folder, house.key, "--require-certification", now=encode_time(house.now))
    assert (found.code, found.result["certifications"]) == (0, 2)
    (folder_file,) = house.folder.glob("*.certification-2.json")
    folder_file.unlink()
    assert audit(house.folder, house.key, now=encode_time(house.now)).code == 1


def test_a_kept_report_or_checkpoint_is_a_witness(house: fix.ReportHouse, tmp_path: Path) -> None:
    report = next(house.folder.glob("00000001-*[0-9].json"))
    note = tmp_path / "note"
    note.write_text(json.loads((house.folder / "checkpoints.jsonl").read_text().splitlines()[2]))
    words = ["--witness", str(report), "--witness", str(note)]
    assert audit(house.folder, house.key, *words, now=encode_time(house.now)).code == 0


@pytest.mark.needs_apt
@pytest.mark.usefixtures("openssl")
def test_openssl_says_the_same_by_hand(house: fix.ReportHouse, tmp_path: Path) -> None:
    """The steps of docs/audit.md, as an auditor types them."""
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    script = page.split("```sh\n# by hand\n", 1)[1].split("```", 1)[0]
    report = next(house.folder.glob("00000001-*[0-9].json"))
    env = {"PATH": os.environ["PATH"], "REPORT": str(report), "KEY": str(house.key)}
    words = ["sh", "-eu", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert "Signature Verified Successfully" in done.stdout, done.stderr
    assert (tmp_path / "payload.json").read_bytes() == payload_of(report.read_bytes())
    body = bytearray(report.read_bytes())
    body[100] ^= 1
    (tmp_path / "changed.json").write_bytes(body)
    env["REPORT"] = str(tmp_path / "changed.json")
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert "Verified Successfully" not in done.stdout


@pytest.mark.needs_apt
@pytest.mark.usefixtures("openssl")
def test_the_commands_on_a_page_check_its_report(house: fix.ReportHouse, tmp_path: Path) -> None:
    page = next(house.folder.glob("00000002-*.html")).read_text()
    (commands,) = re.findall(r'<pre class="type">([^<]*)</pre>', page)
    shutil.copy(next(house.folder.glob("00000002-*[0-9].json")), tmp_path / "REPORT.json")
    shutil.copy(house.key, tmp_path / "verifier.pub.pem")
    words = ["sh", "-eu", "-c", html.unescape(commands)]
    env = {"PATH": os.environ["PATH"]}
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert "Signature Verified Successfully" in done.stdout, done.stderr
    (shown,) = re.findall(r'data-f="payload_sha256"[^>]*>([0-9a-f]{64})<', page)
    assert done.stdout.split()[-1] == shown


@pytest.mark.needs_apt
def test_openssl_reads_our_public_keys(tmp_path: Path, openssl: AptProgram) -> None:
    path = tmp_path / "key.pem"
    path.write_text(to_pem(fix.VERIFIER.public))
    words = [openssl.path, "pkey", "-pubin", "-in", str(path), "-outform", "DER"]
    raw = subprocess.run(words, capture_output=True, check=True).stdout
    assert raw[-32:] == fix.VERIFIER.public.public_key
    assert from_pem(path.read_text()) == Verifier.parse(str(fix.VERIFIER.public)) == fix.VERIFIER.public
    assert pitr_audit.Key.read(str(path)).raw == fix.VERIFIER.public.public_key
    body = base64.b64encode(raw[:-1]).decode()
    for wrong in ("", "x", f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n", "ed25519:AAAA"):
        with pytest.raises(MalformedValue):
            from_pem(wrong)


def test_a_report_repeats_the_runs_before_it_and_no_more_than_a_year_of_them() -> None:
    log = new_log()
    reports = [fix.run_week(log, number, fails=number == 2) for number in range(1, 57)]
    rows = reports[-1].predicate["trend"]
    assert [row["series_seq"] for row in rows] == [*range(3, 56)]
    assert reports[0].predicate["trend"] == []
    assert [row["overall"] for row in reports[2].predicate["trend"]] == ["PASSED", "FAILED"]
    assert rows[-1] == trend_row(reports[-2])


def test_a_report_that_no_region_can_give_is_told_and_is_in_the_trend_again_when_one_can(
    tmp_path: Path,
) -> None:
    log = new_log()
    for number in (1, 2, 3):
        fix.run_week(log, number)
    key = f"{report_prefix(log.key_id, fix.SYSTEM, 3)}report"
    body = log.store.get(key)
    log.store.delete(key)
    without = fix.run_week(log, 4).predicate
    assert [row["series_seq"] for row in without["trend"]] == [1, 2]
    assert "report 3 cannot be read, and is not in the trend" in without["result"]["limits"][-1]
    log.store.put(key, body)
    assert [row["series_seq"] for row in fix.run_week(log, 5).predicate["trend"]] == [1, 2, 3, 4]
    folder, public = folder_of(log, tmp_path / "reports")
    found = audit(folder, public, now=encode_time(fix.BEGIN + fix.WEEK * 6))
    assert (found.code, found.texts("error")) == (1, "")
    assert "its trend leaves out reports" in found.texts("warning")
    assert found.texts("warning").count("its trend") == 1


def forged_trend(change: Callable[[list[dict[str, object]]], object], folder: Path) -> tuple[Path, Path]:
    """A verifier's second report, well signed and logged, that tells of the first what is not so."""
    honest, log, at = new_log(), new_log(), fix.BEGIN + fix.WEEK * 2
    fix.run_week(honest, 1)
    predicate = fix.changed(fix.run_week(honest, 2).predicate)
    fix.run_week(log, 1)
    fix.intend(log, 2, at)
    change(predicate["trend"])
    forged = sign_report(predicate, fix.VERIFIER)
    log.store.put(f"{report_prefix(log.key_id, fix.SYSTEM, 2)}report", forged.envelope)
    assert settle_report(log, fix.SYSTEM, at + timedelta(minutes=6)) is not None
    return folder_of(log, folder)


@pytest.mark.parametrize("name", ["recovery_time_ms", "data_loss_ms", "rto_ms", "bytes", "series_seq"])
def test_a_trend_that_is_not_what_earlier_reports_say_is_refused(name: str, tmp_path: Path) -> None:
    def change(trend: list[dict[str, object]]) -> None:
        trend[0][name] = 7

    found = audit(*forged_trend(change, tmp_path / "reports"))
    assert "its trend is not what the reports before it say" in found.texts("error")


def test_a_trend_that_leaves_a_run_out_or_tells_it_twice_is_a_finding(tmp_path: Path) -> None:
    changes: list[Callable[[list[dict[str, object]]], object]] = [list.clear, lambda one: one.append(one[0])]
    for at, change in enumerate(changes):
        folder = tmp_path / str(at)
        folder.mkdir()
        found = audit(*forged_trend(change, folder / "reports"))
        assert "its trend leaves out reports" in found.texts("warning")
    found = audit(*forged_trend(lambda _trend: None, tmp_path / "reports"))
    assert "trend" not in found.texts("warning", "error")
