"""Which controls a report is evidence for: one table, and what must be there for each.  Pure.

A report is evidence; whether a control is met is for an auditor to say.  ``mapping`` in a report, and the
same over a period, follow from this table, and docs/controls.md is made from it.  Reference: docs/audit.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pitr.wal.lsn import LSN

# Of the proposed rule: "within 72 hours".
_HOURS_72_MS: Final = 72 * 3_600_000
CHECK_ID: Final = re.compile(r"C[0-9]{2}")


class Status(StrEnum):
    """What the evidence comes to."""

    SATISFIED = "satisfied"
    PARTIAL = "partial"
    NOT_TESTED = "not-tested"


class Held(StrEnum):
    """What became of one need: it is there, it speaks against, or there is nothing of it."""

    YES = "yes"
    NO = "no"
    ABSENT = "absent"


PERIOD_NEEDS: Final = {
    "schedule": "over a period: no planned test was missed or came to nothing",
    "certified": "over a period: a person has certified each report",
    "findings": "over a period: no finding is open without an owner, a due date and a corrective action",
    "backups": "over a period: backups were taken, and no manifest was refused",
    "deletions": "over a period: each deletion has a signed expire record, in an unbroken chain",
}
"""What only a period can show; in one report a control that needs any of them is partial at best."""


@dataclass(frozen=True, slots=True)
class Control:
    """One control.

    ``core`` and ``more`` are needs: a check's id (it, and all of its kind, PASSED), the path of a field (it
    is there, and not false), ``path=a|b`` (it is one of these), ``path<=n``.  Satisfied: all hold.  Not
    tested: nothing of ``core`` is there.  Partial: anything else.  ``over`` is of ``PERIOD_NEEDS``.
    ``objective`` is the id in NIST's catalogue of assessment objectives, in OSCAL.
    """

    framework: str
    control: str
    title: str
    fields: tuple[str, ...]
    core: tuple[str, ...]
    more: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    rule: str = "in force"
    objective: str | None = None


_HIPAA: Final = "HIPAA 45 CFR"
_NPRM: Final = "HIPAA 45 CFR, proposed in 90 FR 898"
_SOC: Final = "SOC 2 (TSC 2017)"
_ISO: Final = "ISO/IEC 27001:2022"
_NIST: Final = "NIST SP 800-53 rev. 5"
_PCI: Final = "PCI DSS 4.0.1"
_GDPR: Final = "GDPR (EU) 2016/679"
_DORA: Final = "DORA (EU) 2022/2554"
_STORE: Final = ("C01", "C02", "C03")
_EXACT: Final = ("C04", "C05", "C06", "C08")
_DRILL: Final = "identity.report_type=monthly_drill|quarterly_drill|actual_recovery"
_RECOVERED: Final = "timings.recovery_time_ms"
_RPO_MET: Final = "result.rpo_met"
SECOND_REGION: Final = "recoverability.regions>=2"
"""Two regions hold, each alone, what this run restored, or it was restored while one was cut off (D11).

Not ``source.regions``, which are those of the configuration: a region that is empty stands there, too.
"""

CONTROLS: Final = (
    Control(
        _HIPAA, "164.308(a)(7)(ii)(A)", "data backup plan: retrievable exact copies",
        ("subject", "source", "checks"), _STORE, (*_EXACT, "C11"), ("backups",),
    ),
    Control(
        _HIPAA, "164.308(a)(7)(ii)(B)", "disaster recovery plan: restores tested, documented, certified",
        ("request", "timings", "checks", "findings"), (_RECOVERED,),
        ("C09", "C10", "C21", "result.rto_met"),
        ("certified", "findings"),
    ),
    Control(
        _HIPAA, "164.308(a)(7)(ii)(C)", "emergency mode: service while recovering",
        ("degradation",), ("degradation.service_degradation",), (_DRILL,),
    ),
    Control(
        _HIPAA, "164.308(a)(7)(ii)(D)", "testing and revision of contingency plans",
        ("policy", "trigger", "findings"), ("trigger.scheduled_at",),
        ("policy.required_frequency_ms", "policy.plan_document"), ("schedule", "findings"),
    ),
    Control(
        _HIPAA, "164.308(a)(7)(ii)(E)", "criticality of applications and data",
        ("scope",), ("scope.criticality_tier",), ("scope.asset_id", "scope.data_classes"),
    ),
    Control(
        _HIPAA, "164.310(d)(2)(iii)", "accountability: what becomes of copies that a test restored",
        ("target",), ("C20",), ("target.wiped_after",),
    ),
    Control(
        _HIPAA, "164.310(d)(2)(iv)", "data backup and storage: a retrievable exact copy",
        ("subject", "source", "checks"), ("C02", "C04"), ("C05", "C08", "C11"),
    ),
    Control(
        _HIPAA, "164.312(a)(2)(iv)", "encryption and decryption",
        ("source.encryption",), ("source.encryption",), ("C03", "source.encryption.commitment_ok"),
    ),
    Control(
        _HIPAA, "164.312(b)", "audit controls",
        ("log", "trigger.intent_log_index"), ("log.checkpoint",), ("C01",), ("deletions",),
    ),
    Control(
        _HIPAA, "164.312(c)(1)", "integrity: no improper alteration or destruction",
        ("checks",), ("C02", "C04"), ("C03", "C05", "C07", "C08", "C14"),
    ),
    Control(
        _NPRM, "164.308, restoration", "critical systems restored within 72 hours",
        ("timings", "scope.criticality_tier"), (_RECOVERED,), (f"{_RECOVERED}<={_HOURS_72_MS}", "C09"),
        rule="proposed, not in force",
    ),
    Control(
        _SOC, "A1.2", "backup processes and recovery infrastructure",
        ("source", "subject", "checks"), _STORE, ("source.encryption", SECOND_REGION), ("backups",),
    ),
    Control(
        _SOC, "A1.3", "recovery plan tested; integrity and completeness of backup data",
        ("checks", "timings", "data_loss"), _EXACT,
        (_RECOVERED, "data_loss.method", "C09", "C11", "C14", "C21"), ("schedule",),
    ),
    Control(
        _SOC, "CC7.5", "recovery from incidents: restored, cause found, lessons drawn",
        ("findings", "ransomware", "timings"), (_DRILL,), (_RECOVERED, "C17"), ("findings",),
    ),
    Control(
        _ISO, "A.8.13", "information backup: maintained and regularly tested",
        ("scope", "checks", "policy"), (*_STORE, *_EXACT), ("policy.policy_id", "C11", "C21"),
        ("backups", "schedule"),
    ),
    Control(
        _ISO, "A.8.14", "redundancy of information processing facilities",
        ("source.regions", "recoverability"), (SECOND_REGION,), ("C02", "source.region"),
    ),
    Control(
        _NIST, "CP-4", "contingency plan testing",
        ("identity", "trigger", "findings"), (_DRILL,), ("policy.plan_document",), ("findings", "schedule"),
        objective="cp-4_obj",
    ),
    Control(
        _NIST, "CP-9", "system backup: conducted, and protected in confidentiality and integrity",
        ("subject", "source", "checks"), _STORE, ("source.encryption",), ("backups",), objective="cp-9_obj",
    ),
    Control(
        _NIST, "CP-9(1)", "testing for reliability and integrity, by a sample",
        ("trigger.sampling", "checks"), ("C02", "C04", "C05", "C08"), ("C09", "C10", "C11"), ("schedule",),
        objective="cp-9.1_obj",
    ),
    Control(
        _NIST, "CP-9(2)", "test restoration using sampling, as part of contingency plan testing",
        ("target", "request", "checks"), ("C09",), (_RECOVERED, "C15", "C21", _DRILL),
        objective="cp-9.2_obj",
    ),
    Control(
        _NIST, "CP-9(5)", "transfer to an alternate storage site",
        ("source.regions", "recoverability"), (SECOND_REGION,), ("C02", _RPO_MET),
        objective="cp-9.5_obj",
    ),
    Control(
        _NIST, "CP-9(8)", "cryptographic protection of backup information",
        ("source.encryption",), ("C03",), ("source.encryption.commitment_ok", "C01"), objective="cp-9.8_obj",
    ),
    Control(
        _NIST, "CP-10", "system recovery and reconstitution to a known state",
        ("request", "timings", "checks"), (_RECOVERED,), ("C06", "C09", "C13", "C18", "C21"),
        objective="cp-10_obj",
    ),
    Control(
        _NIST, "CP-10(2)", "transaction recovery",
        ("data_loss", "checks"), ("C09",), ("C10", "data_loss.method", "C05"), objective="cp-10.2_obj",
    ),
    Control(
        _NIST, "CP-10(4)", "restore within time period",
        ("timings", "policy.rto_ms"), (_RECOVERED,), ("policy.rto_ms", "result.rto_met"),
        objective="cp-10.4_obj",
    ),
    Control(
        _PCI, "3.7", "key management: which keys are used, and that they work",
        ("source.encryption",), ("source.encryption.key_ids",), ("C03",),
    ),
    Control(
        _PCI, "10.5.1", "audit log history is retained and available",
        ("log",), ("log.checkpoint",), ("log.object_lock_copy",),
    ),
    Control(
        _PCI, "12.10.2", "the incident response plan, backup included, is tested yearly",
        ("identity", "timings"), (_DRILL,), (_RECOVERED,), ("findings",),
    ),
    Control(
        _GDPR, "32(1)(a)", "encryption of personal data",
        ("source.encryption",), ("source.encryption",), ("C03",),
    ),
    Control(
        _GDPR, "32(1)(c)", "availability and access restored in a timely manner",
        ("timings",), (_RECOVERED,), ("result.rto_met",),
    ),
    Control(
        _GDPR, "32(1)(d)", "regular testing, assessing and evaluating",
        ("identity.series_seq", "policy", "trigger"), ("trigger.scheduled_at",),
        ("policy.required_frequency_ms",), ("schedule",),
    ),
    Control(
        _DORA, "11(6)", "ICT business continuity plans tested at least yearly",
        ("identity", "findings"), (_DRILL,), (_RECOVERED,), ("schedule", "findings"),
    ),
    Control(
        _DORA, "12(2)", "backup and restoration procedures tested periodically",
        ("checks", "trigger"), _EXACT, (_RECOVERED, "trigger.scheduled_at", "C21"), ("schedule",),
    ),
    Control(
        _DORA, "12(3)", "restored on systems segregated from the source",
        ("target.segregation",), ("C19",),
        ("target.segregation.network.is_distinct", "target.segregation.account.is_distinct"),
    ),
    Control(
        _DORA, "12(6)", "recovery time and recovery point objectives",
        ("policy", "result"), ("policy.rto_ms", "policy.rpo_ms"), ("result.rto_met", _RPO_MET),
    ),
    Control(
        _DORA, "12(7)", "checks and reconciliation after recovery",
        ("checks", "kafka"), ("C11",), ("C14", "C16"),
    ),
)  # fmt: skip


def held(need: str, predicate: Mapping[str, Any]) -> Held:
    """Return what became of one need in a report."""
    if CHECK_ID.fullmatch(need):
        results = {
            one["result"]
            for one in predicate["checks"]
            if one["id"] == need or one["id"].startswith(f"{need}.")
        }
        if results <= {"SKIPPED"}:
            return Held.ABSENT
        return Held.YES if results == {"PASSED"} else Held.NO
    if need == _RPO_MET and predicate["request"]["kind"] != "latest":
        # Reports of before 2026-11-30 have it of moments in the past too, and it always was true there.
        return Held.ABSENT
    if need == SECOND_REGION:
        return Held.YES if _has_second_region(predicate) else Held.ABSENT
    path, operator, wanted = need.partition("<=") if "<=" in need else need.partition("=")
    value: Any = predicate
    for name in path.split("."):
        if isinstance(value, (list, tuple)):
            value = value[int(name)] if int(name) < len(value) else None
        else:
            value = None if value is None else value[name]
    if value is False:
        return Held.NO
    if value is None or (value in ("", [], ()) and value is not True):
        return Held.ABSENT
    if operator == "=":
        return Held.YES if value in wanted.split("|") else Held.ABSENT
    if operator == "<=":
        return Held.YES if value <= int(wanted) else Held.NO
    return Held.YES


def _has_second_region(predicate: Mapping[str, Any]) -> bool:
    if any(one["id"] == "D11" and one["result"] == "PASSED" for one in predicate["checks"]):
        return True
    wal = predicate["subject"]["wal"]
    if not wal:
        return False
    timeline, end = wal[-1]["timeline"], LSN.parse(wal[-1]["end_lsn"])
    # Reports of version 1 have no map.
    return any(
        span["state"] == "restorable"
        and span["timeline"] == timeline
        and LSN.parse(span["start_lsn"]) <= end <= LSN.parse(span["end_lsn"])
        and len(span["regions"]) > 1
        for span in predicate.get("recoverability", ())
    )


def status_of(control: Control, predicate: Mapping[str, Any]) -> Status:
    """Return what one report shows of a control."""
    status = _of_run(control, predicate)
    return Status.PARTIAL if status is Status.SATISFIED and control.over else status


def mapping_of(predicate: Mapping[str, Any]) -> list[dict[str, object]]:
    """Return the group ``mapping`` of a report, which needs all its other groups."""
    return [
        {
            "framework": control.framework,
            "control": control.control,
            "status": str(status_of(control, predicate)),
            "fields": list(control.fields),
        }
        for control in CONTROLS
    ]


@dataclass(frozen=True, slots=True)
class PeriodEvidence:
    """What a period shows of one control: how many reports hold every need of it, some, or nothing."""

    control: Control
    complete: int
    partial: int
    not_tested: int
    missing: tuple[str, ...]

    @property
    def status(self) -> Status:
        """What it comes to: satisfied only if no report was short of it and the period holds its own."""
        if not self.complete and not self.partial:
            return Status.NOT_TESTED
        return Status.SATISFIED if not self.partial and not self.missing else Status.PARTIAL


def period_mapping(
    predicates: Sequence[Mapping[str, Any]], holds: Mapping[str, bool]
) -> list[PeriodEvidence]:
    """Return what a period shows; ``holds`` says it of each of ``PERIOD_NEEDS``."""
    found = []
    for control in CONTROLS:
        counts = dict.fromkeys(Status, 0)
        for predicate in predicates:
            counts[_of_run(control, predicate)] += 1
        found.append(
            PeriodEvidence(
                control,
                counts[Status.SATISFIED],
                counts[Status.PARTIAL],
                counts[Status.NOT_TESTED],
                tuple(need for need in control.over if not holds[need]),
            )
        )
    return found


def _of_run(control: Control, predicate: Mapping[str, Any]) -> Status:
    core = {held(need, predicate) for need in control.core}
    if core == {Held.ABSENT}:
        return Status.NOT_TESTED
    needs = core | {held(need, predicate) for need in control.more}
    # A run that FAILED shows of no control that all is well, also of one that does not name what failed.
    is_whole = needs == {Held.YES} and predicate["result"]["overall"] != "FAILED"
    return Status.SATISFIED if is_whole else Status.PARTIAL
