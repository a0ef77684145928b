"""Reports as OSCAL assessment results: what NIST's own schema accepts, and what it says."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import fix_reports as fix
import pytest
from fix_schema import OSCAL_SCHEMA, schema_errors

from storage.memory import MemoryStore
from verifiers.audit_log import AuditLog
from verifiers.controls import CONTROLS
from verifiers.oscal import OSCAL_VERSION, assessment_results
from verifiers.statement import SignedStatement


def reports() -> list[SignedStatement]:
    log = AuditLog(MemoryStore(), fix.REPOSITORY, fix.VERIFIER)
    made = [fix.run_week(log, number, fails=number == 2) for number in (1, 2)]
    bare = fix.draft(3, fix.BEGIN + fix.WEEK * 3) | {"checks": []}
    bare["scope"] |= {"org": "", "system_name": "", "excluded": []}
    bare["source"] |= {"encryption": None, "regions": [], "backup_id": None}
    bare["timings"]["recovery_time_ms"] = None
    at = fix.BEGIN + fix.WEEK * 3
    return [*made, fix.issue_report(log, fix.intend(log, 3, at), bare, at + timedelta(minutes=6))]


@pytest.fixture(scope="module")
def made() -> list[SignedStatement]:
    return reports()


@pytest.fixture(scope="module")
def document(made: list[SignedStatement]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(assessment_results(made)))
    return found


def test_nists_schema_accepts_it(made: list[SignedStatement], document: dict[str, Any]) -> None:
    assert f"/{OSCAL_VERSION}/" in json.loads(OSCAL_SCHEMA.read_text())["$id"]
    assert schema_errors(OSCAL_SCHEMA, document) == []
    for one in made:
        assert schema_errors(OSCAL_SCHEMA, assessment_results([one])) == []


@pytest.mark.parametrize("name", ["uuid", "metadata", "import-ap", "results"])
def test_nists_schema_refuses_what_lacks_something(document: dict[str, Any], name: str) -> None:
    less = {key: value for key, value in document["assessment-results"].items() if key != name}
    assert schema_errors(OSCAL_SCHEMA, {"assessment-results": less})


def test_the_same_reports_give_the_same_file(made: list[SignedStatement], document: dict[str, Any]) -> None:
    assert assessment_results(made) == document == assessment_results(reports())


def test_each_check_that_ran_is_an_observation_with_the_reports_digest(
    made: list[SignedStatement], document: dict[str, Any]
) -> None:
    for report, result in zip(made, document["assessment-results"]["results"], strict=True):
        ran = [one["id"] for one in report.predicate["checks"] if one["result"] != "SKIPPED"]
        observed = result.get("observations", [])
        assert [one["props"][0]["value"] for one in observed] == ran
        for one in observed:
            assert one["methods"] == ["TEST"]
            properties = one["relevant-evidence"][0]["props"]
            assert {"name": "report-sha256", "value": report.payload_sha256}.items() <= properties[0].items()


def test_each_control_of_nist_that_was_touched_is_a_finding(
    made: list[SignedStatement], document: dict[str, Any]
) -> None:
    objectives = {(one.framework, one.control): one.objective for one in CONTROLS if one.objective}
    for report, result in zip(made, document["assessment-results"]["results"], strict=True):
        wanted = {
            objectives[row["framework"], row["control"]]: row["status"] == "satisfied"
            for row in report.predicate["mapping"]
            if (row["framework"], row["control"]) in objectives and row["status"] != "not-tested"
        }
        targets = [one["target"] for one in result.get("findings", [])]
        assert {one["target-id"]: one["status"]["state"] == "satisfied" for one in targets} == wanted
        assert {one["type"] for one in targets} <= {"objective-id"}
    assert "findings" not in document["assessment-results"]["results"][2]


def test_what_is_referred_to_is_there_and_no_name_stands_for_two(document: dict[str, Any]) -> None:
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "uuid" in value:
                found.append(value["uuid"])
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(document)
    assert len(found) == len(set(found))
    text = json.dumps(document)
    for result in document["assessment-results"]["results"]:
        for finding in result.get("findings", []):
            for related in finding.get("related-observations", []):
                assert related["observation-uuid"] in found
    for reference in text.split('"#')[1:]:
        assert reference[:36] in found
