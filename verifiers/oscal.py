"""Reports as OSCAL assessment results, for programs that read NIST's format.  Pure.

Each report is a result, each check that ran an observation with the report's digest as its evidence, and
each control of NIST SP 800-53 that it touches a finding.  Derived: the signed report is the record.  The same
reports always give the same file; its UUIDs follow from the reports' ids.
Reference: NIST OSCAL, assessment results model, https://pages.nist.gov/OSCAL/.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from verifiers.controls import CONTROLS, Control, Status
from verifiers.statement import Predicate, SignedStatement

OSCAL_VERSION: Final = "1.2.3"
# Of names that this module makes.
_SPACE: Final = uuid.UUID("6f1c1a52-6a0e-5d0f-9d0e-6d1d6a3c2f11")
_NAMESPACE: Final = "https://pitr.invalid/ns/oscal"
_NO_PLAN: Final = "no assessment plan in OSCAL is known here; the policy is named in each result"
_MEDIA_TYPE: Final = "application/vnd.in-toto+json"


def assessment_results(reports: Sequence[SignedStatement]) -> dict[str, Any]:
    """Return the document of at least one report, the oldest first."""
    assert reports, "OSCAL wants at least one result"
    newest = reports[-1].predicate
    origin = newest["log"]["log_origin"]
    digests = ",".join(report.payload_sha256 for report in reports)
    organisation = _name(newest["scope"]["org"] or "the operator of the cluster")
    return {
        "assessment-results": {
            "uuid": _uuid(f"document/{digests}"),
            "metadata": {
                "title": _line(f"Restore verification of {newest['scope']['system_name'] or 'a cluster'}"),
                "last-modified": newest["identity"]["created_at"],
                "version": str(newest["identity"]["series_seq"]),
                "oscal-version": OSCAL_VERSION,
                "roles": [{"id": "assessor", "title": "Verifier"}],
                "parties": [
                    {"uuid": _uuid(f"party/{organisation}"), "type": "organization", "name": organisation}
                ],
                "responsible-parties": [
                    {"role-id": "assessor", "party-uuids": [_uuid(f"party/{organisation}")]}
                ],
                "remarks": f"Made from signed reports, which are the record. Log: {origin}.",
            },
            "import-ap": {"href": f"#{_uuid('plan')}", "remarks": _NO_PLAN},
            "results": [_result(report) for report in reports],
            "back-matter": {
                "resources": [
                    {"uuid": _uuid("plan"), "title": "Assessment plan", "description": _NO_PLAN},
                    *(_resource(report) for report in reports),
                ]
            },
        }
    }


def _result(report: SignedStatement) -> dict[str, Any]:
    said = report.predicate
    identity, timings = said["identity"], said["timings"]
    report_id = identity["report_id"]
    observations = [_observation(report, check) for check in said["checks"] if check["result"] != "SKIPPED"]
    findings = [_finding(report, control, row) for control, row in _tested(said)]
    result: dict[str, Any] = {
        "uuid": _uuid(f"result/{report_id}"),
        "title": _line(f"Report {identity['series_seq']}: {said['result']['overall']}"),
        "description": "\n\n".join(
            [
                f"Restore from {said['source']['backup_id'] or 'no backup'}, {identity['report_type']}.",
                *(f"Not tested: {limit}" for limit in said["result"]["limits"]),
            ]
        ),
        "start": said["trigger"]["started_at"],
        "end": identity["created_at"],
        "props": [
            _property("verdict", said["result"]["overall"]),
            _property("report-id", report_id),
            _property("report-sha256", report.payload_sha256),
            _property("policy-id", said["policy"]["policy_id"]),
            *(
                _property(name, str(value))
                for name, value in (
                    ("recovery-time-ms", timings["recovery_time_ms"]),
                    ("data-loss-ms", said["data_loss"]["data_loss_ms"]),
                )
                if value is not None
            ),
        ],
        "reviewed-controls": _reviewed(said),
    }
    # OSCAL wants a list that is there to have something in it.
    return result | {
        name: value for name, value in (("observations", observations), ("findings", findings)) if value
    }


def _reviewed(said: Predicate) -> dict[str, Any]:
    tested = [control for control, _ in _tested(said)]
    if not tested:
        nist = [control for control in CONTROLS if control.objective is not None]
        selection: dict[str, Any] = {
            "description": "Nothing was tested.",
            "include-all": {},
            "exclude-controls": [{"control-id": _control_id(control)} for control in nist],
        }
        return {"control-selections": [selection]}
    return {
        "control-selections": [
            {"include-controls": [{"control-id": _control_id(control)} for control in tested]}
        ],
        "control-objective-selections": [
            {"include-objectives": [{"objective-id": control.objective} for control in tested]}
        ],
    }


def _tested(said: Predicate) -> Iterator[tuple[Control, Mapping[str, Any]]]:
    """Yield each control of NIST that a report is evidence for, with what its mapping says."""
    known = {(one.framework, one.control): one for one in CONTROLS if one.objective is not None}
    for row in said["mapping"]:
        control = known.get((row["framework"], row["control"]))
        if control is not None and row["status"] != Status.NOT_TESTED:
            yield control, row


def _observation(report: SignedStatement, check: Mapping[str, Any]) -> dict[str, Any]:
    report_id = report.predicate["identity"]["report_id"]
    lines = [f"Expected: {check['expected']}", f"Observed: {check['observed']}", check["reason"]]
    evidence = _line(f"{check['tool']} {check['tool_version']}, signed report {report_id}")
    return {
        "uuid": _uuid(f"observation/{report_id}/{check['id']}"),
        "title": _line(f"{check['id']} {check['title']}"),
        "description": "\n\n".join(line for line in lines if line),
        "props": [
            _property("check-id", check["id"]),
            _property("result", check["result"]),
            _property("command-sha256", check["command_sha256"]),
        ],
        "methods": ["TEST"],
        "types": ["control-objective"],
        "relevant-evidence": [
            {
                "href": f"#{_uuid(f'resource/{report_id}')}",
                "description": evidence,
                "props": [
                    _property(name, digest)
                    for name, digest in (
                        ("report-sha256", report.payload_sha256),
                        ("evidence-sha256", check["evidence_sha256"]),
                    )
                    if digest is not None
                ],
            }
        ],
        "collected": check["started_at"],
    }


def _finding(report: SignedStatement, control: Control, row: Mapping[str, Any]) -> dict[str, Any]:
    said = report.predicate
    report_id = said["identity"]["report_id"]
    is_satisfied = row["status"] == Status.SATISFIED
    used = [
        check["id"]
        for check in said["checks"]
        if check["result"] != "SKIPPED" and check["id"].partition(".")[0] in (*control.core, *control.more)
    ]
    finding: dict[str, Any] = {
        "uuid": _uuid(f"finding/{report_id}/{control.objective}"),
        "title": _line(f"{control.control}: {control.title}"),
        "description": f"The report is {row['status']} evidence, in its fields {', '.join(row['fields'])}.",
        "target": {
            "type": "objective-id",
            "target-id": control.objective,
            "status": {"state": "satisfied" if is_satisfied else "not-satisfied"},
        },
    }
    if not is_satisfied:
        finding["target"]["status"]["remarks"] = (
            "Partial: some of what the control needs is not in this report, or speaks against it."
        )
    if used:
        finding["related-observations"] = [
            {"observation-uuid": _uuid(f"observation/{report_id}/{check}")} for check in used
        ]
    return finding


def _resource(report: SignedStatement) -> dict[str, Any]:
    identity = report.predicate["identity"]
    name = f"{identity['series_seq']:08d}-{identity['report_id']}.json"
    return {
        "uuid": _uuid(f"resource/{identity['report_id']}"),
        "title": f"Signed report {identity['series_seq']}",
        "rlinks": [{"href": name, "media-type": _MEDIA_TYPE}],
        "props": [_property("payload-sha256", report.payload_sha256)],
    }


def _control_id(control: Control) -> str:
    assert control.objective is not None
    return control.objective.removesuffix("_obj")


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": name, "ns": _NAMESPACE, "value": _name(value)}


def _line(text: str) -> str:
    """Return text as one line that is not empty."""
    return " ".join(text.split()) or "-"


def _name(text: str) -> str:
    return _line(re.sub(r"[\x00-\x1f\x7f]", " ", text))


def _uuid(name: str) -> str:
    return str(uuid.uuid5(_SPACE, name))
