"""How a verification and a drill end: with what their verdict asks for, in the same words."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from cli.context import App
from cli.errors import ChecksFailed, ExitCode, describe
from cli.output import Output
from cli.verdict_view import finish_verdict, show_checks


def predicate_of(verdict: str, *results: str) -> dict[str, Any]:
    checks = [
        {"id": f"C0{number}", "title": "a check", "result": result, "observed": "seen", "reason": None}
        for number, result in enumerate(results, 1)
    ]
    return {"checks": checks, "result": {"overall": verdict}, "identity": {"series_seq": 17}}


def app_of(*, is_json: bool = False) -> App:
    return App(output=Output(stdout=io.StringIO(), stderr=io.StringIO(), is_json=is_json))


def finish(app: App, verdict: str, *results: str) -> tuple[str, str]:
    predicate = predicate_of(verdict, *results)
    show_checks(app.output, predicate)
    finish_verdict(
        app,
        predicate,
        {"verdict": verdict},
        reports_dir=None,
        lagging=["ap"],
        failed="it did not prove right",
        hint="read the checks above",
    )
    stdout, stderr = app.output.stdout, app.output.stderr
    assert isinstance(stdout, io.StringIO)
    assert isinstance(stderr, io.StringIO)
    return stdout.getvalue(), stderr.getvalue()


def test_a_verdict_that_passed_is_a_result_and_a_region_that_lags_a_warning() -> None:
    stdout, stderr = finish(app_of(), "PASSED", "PASSED")
    assert stdout.splitlines()[0] == "PASSED  C01  a check: seen"
    assert stderr == "warning: region ap lacks a part of the report yet: pitr repair\n"
    stdout, _ = finish(app_of(is_json=True), "PASSED", "PASSED")
    assert json.loads(stdout)["data"] == {"verdict": "PASSED"}


def test_a_warned_one_says_that_the_proof_is_not_complete() -> None:
    _, stderr = finish(app_of(), "WARNED", "PASSED", "WARNED")
    assert "warning: the proof is not complete: a required check did not pass" in stderr


def test_a_failed_one_names_what_failed_and_keeps_the_result_for_programs() -> None:
    app = app_of()
    with pytest.raises(ChecksFailed, match="it did not prove right") as caught:
        finish(app, "FAILED", "PASSED", "FAILED", "FAILED")
    assert caught.value.detail == "failed: C02, C03; report 17 is signed and says so"
    assert describe(caught.value).exit_code is ExitCode.NOT_VERIFIED
    assert app.partial_result == {"verdict": "FAILED"}
