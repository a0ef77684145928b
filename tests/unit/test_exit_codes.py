"""The published exit codes, and how errors are told."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.errors import (
    EXIT_MEANINGS,
    RULES,
    ConfigRefused,
    ExitCode,
    UsageRefused,
    describe,
    rule_for,
)
from cli.exit_code_page import exit_code_table
from cli.output import Output
from pitr import errors as domain
from storage import store

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (UsageRefused("x"), 2),
        (ConfigRefused("x"), 2),
        (domain.TargetRefused("x"), 4),
        (domain.WalMissing("x"), 4),
        (domain.AlreadyRunning("x"), 6),
        (domain.RecoveryFailed("x"), 7),
        (domain.NotAuthentic("x"), 8),
        (domain.KeyMissing("x"), 8),
        (store.StoreUnavailable("x"), 9),
        (store.StoreRefused("x"), 9),
        (domain.NotInitialised("x"), 10),
        (domain.BackupFailed("x"), 1),
        (domain.PitrError("x"), 1),
        (PermissionError(13, "denied"), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("x"), 1),
    ],
)
def test_each_error_has_its_published_exit_code(error: BaseException, exit_code: int) -> None:
    assert describe(error).exit_code == exit_code


def test_every_leaf_of_the_domain_and_of_the_store_has_a_rule_of_its_own() -> None:
    leaves = [
        value
        for module in (domain, store)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert len(leaves) > 10
    for leaf in leaves:
        assert any(leaf in (rule.type, *rule.also) for rule in RULES), leaf


def test_error_numbers_are_unique_and_begin_with_the_exit_code() -> None:
    numbers = [rule.number for rule in RULES]
    assert len(set(numbers)) == len(numbers)
    for rule in RULES:
        if rule.exit_code is not ExitCode.INTERRUPTED:
            assert rule.number // 1000 == int(rule.exit_code) % 10, rule
    assert set(EXIT_MEANINGS) == set(ExitCode)


def test_a_subclass_is_told_by_the_rule_of_its_nearest_parent() -> None:
    class SlotLost(domain.WalMissing):
        pass

    assert rule_for(SlotLost("gone")).type is domain.WalMissing


def test_what_is_damaged_everywhere_is_told_as_that_and_not_as_a_wrong_signature() -> None:
    for error in (domain.NoGoodCopy("no copy of epochs/1 can be used"), store.CopyDamaged("x")):
        assert describe(error).code == "PITR-8003"
    assert describe(domain.NotAuthentic("x")).code == "PITR-8001"


def test_an_error_is_three_lines_what_why_next() -> None:
    error = domain.TargetRefused(
        "12:00 is not restorable", detail="WAL is missing\nin eu", hint="ask for 11:59"
    )
    assert "\n".join(describe(error).lines()).splitlines() == [
        "error[PITR-4001]: 12:00 is not restorable",
        "  why:  WAL is missing",
        "        in eu",
        "  next: ask for 11:59",
    ]


def test_why_falls_back_to_the_causes() -> None:
    error = store.StoreUnavailable("put failed")
    error.__cause__ = OSError("connection refused")
    assert describe(error).why == "connection refused"


def test_json_failure_is_one_object_with_the_error() -> None:
    output = Output(command="plan", is_json=True, stdout=io.StringIO(), stderr=io.StringIO())
    output.warn("one region is late")
    output.fail(describe(domain.TargetRefused("no", detail="because", hint="do")), {"seen": 1})
    assert isinstance(output.stdout, io.StringIO)
    answer = json.loads(output.stdout.getvalue())
    assert answer == {
        "schema": "pitr/1",
        "command": "plan",
        "ok": False,
        "data": {"seen": 1},
        "warnings": ["one region is late"],
        "error": {"code": "PITR-4001", "exit": 4, "message": "no", "why": "because", "next": "do"},
    }


def test_lines_and_tables_do_not_disturb_the_json_object() -> None:
    output = Output(command="x", is_json=True, stdout=io.StringIO(), stderr=io.StringIO())
    output.line("for people")
    output.table(["a"], [["b"]], empty="none")
    output.finish({"n": 1})
    assert isinstance(output.stdout, io.StringIO)
    assert json.loads(output.stdout.getvalue())["data"] == {"n": 1}


def test_docs_list_exactly_the_exit_codes_and_errors_of_the_table() -> None:
    assert exit_code_table() in (ROOT / "docs/exit-codes.md").read_text()


def test_an_error_is_told_and_keeps_its_code_where_the_result_cannot_be_written() -> None:
    words = ["-c", "/nowhere/pitr.toml", "status", "--json"]
    with Path("/dev/full").open("wb", buffering=0) as full:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            timeout=60,
            check=False,
        )
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith(b"error[PITR-2001]: there is no configuration file /nowhere/pitr.toml\n")
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
