"""The published schemas say what the program checks: a library that we did not write agrees with it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import fix_reports as fix
import pytest
from fix_audit import leaves
from fix_period import a_busy_log, issued
from fix_schema import PERIOD_SCHEMA, REPORT_SCHEMA, schema_errors

from pitr.errors import MalformedValue
from pitr.pipeline.sign import payload_of
from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog
from verifiers.period_shape import PERIOD
from verifiers.report_shape import REPORT, Shape, check_shape

# What a field may be changed to: of each JSON type, at the edges of what our kinds allow.
VALUES = (
    None, True, False, 0, 1, -1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, "", "x", "PASSED", "latest", "0/0",
    "0" * 64, "0" * 63, "0" * 64 + "\n", "A" * 64, "2026-01-01T00:00:00.000000Z", "2026-01-01", "\x00", "\n",
    "x" * 300, "x" * 301, "y" * 8001, [], {}, [None], ["x"], {"x": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def statements() -> dict[str, Any]:
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    run = fix.run_week(log, 1, is_random=True)
    period = issued(a_busy_log())
    return {"run": json.loads(payload_of(run.envelope)), "period": json.loads(payload_of(period.envelope))}


CASES: list[tuple[str, Path, Shape]] = [("run", REPORT_SCHEMA, REPORT), ("period", PERIOD_SCHEMA, PERIOD)]


@pytest.mark.parametrize(("name", "path", "shape"), CASES, ids=["run", "period"])
def test_what_is_signed_fits_its_published_schema(
    statements: dict[str, Any], name: str, path: Path, shape: Shape
) -> None:
    assert schema_errors(path, statements[name]) == []
    for field in statements[name]:
        assert schema_errors(path, {key: one for key, one in statements[name].items() if key != field})


@pytest.mark.parametrize(("name", "path", "shape"), CASES, ids=["run", "period"])
@pytest.mark.parametrize("number", range(4))
def test_the_library_and_our_own_check_agree_on_each_mutation(
    statements: dict[str, Any], name: str, path: Path, shape: Shape, number: int
) -> None:
    drawn = random.Random(f"{name} {number}")
    statement = statements[name]
    places = leaves(statement["predicate"])
    refused = 0
    for _ in range(60):
        where, mutated = drawn.choice(places), fix.changed(statement)
        holder: Any = mutated["predicate"]
        for part in where[:-1]:
            holder = holder[part]
        how = drawn.choice(("change", "change", "change", "remove", "add"))
        if how == "remove":
            del holder[where[-1]]
        elif how == "add" and isinstance(holder, dict):
            holder["one_more"] = drawn.choice(VALUES)
        else:
            holder[where[-1]] = drawn.choice(VALUES)
        try:
            check_shape(mutated["predicate"], shape)
            is_ours = True
        except MalformedValue:
            is_ours = False
        errors = schema_errors(path, mutated)
        assert is_ours == (not errors), (where, how, errors)
        refused += not is_ours
    assert 10 < refused < 60
