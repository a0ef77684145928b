"""Statements: what a verifier or a person signs, in in-toto's form, in DSSE envelopes.  Pure.

The report is the record; a test-result statement is derived from it for programs that know that one; a
certification is a person's own statement about a report, for a signed report cannot hold what came later.
Reference: in-toto Statement v1, test-result v0.1; docs/audit.md; docs/schema/.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pitr.errors import MalformedValue
from pitr.pipeline.sign import (
    Signer,
    Verifier,
    decode_payload,
    encode_payload,
    encode_time,
    open_typed,
    payload_of,
    sign_typed,
)
from verifiers.check import CheckResult, Outcome, overall_of
from verifiers.period_shape import PERIOD, PERIOD_TYPE
from verifiers.report_shape import (
    CERTIFICATION,
    CERTIFICATION_TYPE,
    REPORTS,
    STATEMENT_TYPE,
    TEST_RESULT_TYPE,
    VERIFICATION_TYPE,
    check_shape,
)

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
# A thousand checks with long words; the auditor's tool reads no larger one.
STATEMENT_BYTES_MAX: Final = 4 << 20

Predicate = Mapping[str, Any]
"""JSON that ``report_shape`` has checked: each field is known to be there, and of its type."""


@dataclass(frozen=True, slots=True)
class SignedStatement:
    """An envelope that was verified, and the predicate in it."""

    envelope: bytes
    predicate: Predicate

    @property
    def payload_sha256(self) -> str:
        """The digest that the log, the next report and a certification name it by."""
        return hashlib.sha256(payload_of(self.envelope)).hexdigest()


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What follows from a report's raw fields; None is: no objective, or not measured."""

    overall: Outcome
    rto_met: bool | None
    rpo_met: bool | None


def check_fields(check: CheckResult) -> dict[str, object]:
    """Return a check as a report states it."""
    return {
        "id": check.id,
        "category": check.category,
        "title": check.title,
        "required": check.is_required,
        "tool": check.tool,
        "tool_version": check.tool_version,
        "command_sha256": check.command_sha256,
        "started_at": encode_time(check.started_at),
        "ms": check.duration_ms,
        "result": str(check.outcome),
        "reason": check.reason,
        "expected": check.expected,
        "observed": check.observed,
        "evidence_sha256": check.evidence_sha256,
    }


def verdicts(predicate: Predicate) -> Verdicts:
    """Return what the raw fields of a report come to."""
    policy, timings, loss = predicate["policy"], predicate["timings"], predicate["data_loss"]
    return Verdicts(
        overall_of((bool(check["required"]), Outcome(check["result"])) for check in predicate["checks"]),
        _met(timings["recovery_time_ms"], policy["rto_ms"]),
        _met(loss["data_loss_ms"], policy["rpo_ms"]),
    )


def _met(measured: int | None, objective: int | None) -> bool | None:
    return None if measured is None or objective is None else measured <= objective


def subjects(predicate: Predicate) -> list[dict[str, object]]:
    """Return what a report is about, of a run or a period: backups, or the policy if there are none."""
    named = [(backup["name"], backup["manifest_sha256"]) for backup in predicate["subject"]["backups"]]
    policy = predicate["policy"]
    return [
        {"name": name, "digest": {"sha256": digest}}
        for name, digest in named or [(f"policy/{policy['policy_id']}", policy["sha256"])]
    ]


def sign_report(predicate: Predicate, signer: Signer) -> SignedStatement:
    """Return the signed report.  Raises MalformedValue, naming the field, if it breaks its own schema."""
    _check_report(predicate, VERIFICATION_TYPE)
    return _sign(VERIFICATION_TYPE, subjects(predicate), predicate, signer)


def open_report(envelope: bytes, verifier: Verifier) -> SignedStatement:
    """Return a report, of any version, that ``verifier`` signed.  Raises NotAuthentic, MalformedValue."""
    statement = _open(envelope, verifier, *REPORTS)
    predicate = statement["predicate"]
    _check_report(predicate, statement["predicateType"])
    if statement["subject"] != subjects(predicate):
        raise MalformedValue("report's subject is not what its predicate says")
    return SignedStatement(envelope, predicate)


def sign_test_result(report: SignedStatement, signer: Signer) -> bytes:
    """Return the envelope of the test-result statement that follows from a report."""
    predicate = report.predicate
    statement = {
        "result": predicate["result"]["overall"],
        "configuration": [
            {
                "name": f"policy/{predicate['policy']['policy_id']}",
                "digest": {"sha256": predicate["policy"]["sha256"]},
            },
            {
                "name": f"report/{predicate['identity']['report_id']}",
                "digest": {"sha256": report.payload_sha256},
            },
        ],
        "passedTests": _named(predicate, "PASSED"),
        # What was skipped is not passed, and this predicate has no word for it.
        "warnedTests": _named(predicate, "WARNED", "SKIPPED"),
        "failedTests": _named(predicate, "FAILED"),
    }
    return _sign(TEST_RESULT_TYPE, subjects(predicate), statement, signer).envelope


def sign_certification(predicate: Predicate, person: Signer) -> SignedStatement:
    """Return a person's statement about a report.  Raises MalformedValue as ``sign_report``."""
    check_shape(predicate, CERTIFICATION)
    if predicate["certified_by"]["key"] != str(person.public):
        raise MalformedValue("a certification names the key that signs it")
    return _sign(CERTIFICATION_TYPE, _certified(predicate), predicate, person)


def open_certification(envelope: bytes, person: Verifier) -> SignedStatement:
    """Return a certification that ``person`` signed.  Raises NotAuthentic, MalformedValue."""
    statement = _open(envelope, person, CERTIFICATION_TYPE)
    predicate = statement["predicate"]
    check_shape(predicate, CERTIFICATION)
    if statement["subject"] != _certified(predicate) or predicate["certified_by"]["key"] != str(person):
        raise MalformedValue("certification is not about what it says, or not by whom")
    return SignedStatement(envelope, predicate)


def sign_period(predicate: Predicate, signer: Signer) -> SignedStatement:
    """Return the signed report of a period.  Raises MalformedValue as ``sign_report``."""
    check_shape(predicate, PERIOD)
    return _sign(PERIOD_TYPE, subjects(predicate), predicate, signer)


def open_period(envelope: bytes, verifier: Verifier) -> SignedStatement:
    """Return a period report that ``verifier`` signed.  Raises NotAuthentic, MalformedValue."""
    statement = _open(envelope, verifier, PERIOD_TYPE)
    predicate = statement["predicate"]
    check_shape(predicate, PERIOD)
    if statement["subject"] != subjects(predicate):
        raise MalformedValue("period report's subject is not what its predicate says")
    return SignedStatement(envelope, predicate)


def _certified(predicate: Predicate) -> list[dict[str, object]]:
    return [{"name": f"report/{predicate['report_id']}", "digest": {"sha256": predicate["report_sha256"]}}]


def _check_report(predicate: Any, report_type: str) -> None:
    check_shape(predicate, REPORTS[report_type])
    said, found = predicate["result"], verdicts(predicate)
    if (said["overall"], said["rto_met"], said["rpo_met"]) != (found.overall, found.rto_met, found.rpo_met):
        raise MalformedValue("report's verdict does not follow from its fields", detail=str(found))
    for check in predicate["checks"]:
        if (check["result"] == Outcome.PASSED) == bool(check["reason"]):
            raise MalformedValue(f"report: check {check['id']} needs a reason, or must have none")


def _named(predicate: Predicate, *results: str) -> list[str]:
    return [check["id"] for check in predicate["checks"] if check["result"] in results]


def _sign(
    predicate_type: str, subject: Sequence[Mapping[str, object]], predicate: Predicate, signer: Signer
) -> SignedStatement:
    content = encode_payload(
        {
            "_type": STATEMENT_TYPE,
            "subject": list(subject),
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )
    if len(content) > STATEMENT_BYTES_MAX:
        raise MalformedValue(f"statement has {len(content)} bytes; the limit is {STATEMENT_BYTES_MAX}")
    # As whoever reads it back has it: lists, and not tuples.
    read = decode_payload(content)["predicate"]
    assert isinstance(read, dict)
    return SignedStatement(sign_typed(content, PAYLOAD_TYPE, signer), read)


def _open(envelope: bytes, verifier: Verifier, *predicate_types: str) -> dict[str, Any]:
    content = open_typed(envelope, verifier, PAYLOAD_TYPE)
    if len(content) > STATEMENT_BYTES_MAX:
        raise MalformedValue(f"statement has {len(content)} bytes; the limit is {STATEMENT_BYTES_MAX}")
    statement = decode_payload(content)
    if set(statement) != {"_type", "subject", "predicateType", "predicate"}:
        raise MalformedValue("not an in-toto statement of ours")
    if statement["_type"] != STATEMENT_TYPE or statement["predicateType"] not in predicate_types:
        raise MalformedValue(f"statement is of another type: {str(statement['predicateType'])[:200]!r}")
    return statement
