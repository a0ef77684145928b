"""Findings: what a report found wrong, whose it is and until when, and what became of it since.  Pure.

A report is immutable, so it only ever says what was so when it was made.  A finding is opened by the report
that has it first, as ``F-CHECK``, ``F-RTO`` or ``F-RPO``; later reports name it ``NUMBER/F-…`` after that
one.  Where it stands is what the last report says that names it.  Reference: docs/drills.md, "Findings".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pitr.pipeline.sign import encode_time
from verifiers.check import Outcome
from verifiers.check_maker import clean
from verifiers.statement import Predicate, verdicts

FINDINGS_MAX: Final = 100
_OBJECTIVES: Final = (("RTO", "recovery took {} ms; the objective is {} ms"),
                      ("RPO", "{} ms were lost, or could have been; the objective is {} ms"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Care:
    """Who is to see to new findings, and until when; None is nobody yet."""

    owner: str | None = None
    due_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class FindingState:
    """Where a finding stands after a series of reports: ``told_in`` is the number of the last one with it."""

    ref: str
    severity: str
    status: str
    description: str
    owner: str | None
    due_at: datetime | None
    root_cause: str | None
    corrective_action: str | None
    retest_report_id: str | None
    told_in: int

    @property
    def id(self) -> str:
        """What its first report calls it."""
        return self.ref.rpartition("/")[2]

    @property
    def opened_in(self) -> int:
        """The number of the report that has it first."""
        return int(self.ref.partition("/")[0])

    def is_overdue(self, now: datetime) -> bool:
        """Tell whether it is open past its date."""
        return self.status == "open" and self.due_at is not None and self.due_at < now


@dataclass(frozen=True, slots=True)
class Retest:
    """An earlier finding that a run tries again; None: nobody says what was done, or why it came about."""

    finding: FindingState
    corrective_action: str | None = None
    root_cause: str | None = None


def findings_of(
    predicate: Predicate, report_id: str, care: Care, retests: Sequence[Retest] = ()
) -> list[dict[str, Any]]:
    """Return the findings of a report that is being made, the retested first.

    A retested one that is still so stays the one it was; what is found beside it is new.
    """
    wrong = {one["id"]: one for one in _wrong(predicate, care)}
    found = []
    for retest in retests:
        old = retest.finding
        again = wrong.pop(old.id, None)
        is_good = again is None and _is_proved(predicate, old.id)
        found.append(
            {
                "id": old.ref,
                "severity": old.severity,
                "description": old.description if again is None else again["description"],
                "root_cause": _said(retest.root_cause) or old.root_cause,
                "owner": old.owner,
                "due_at": None if old.due_at is None else encode_time(old.due_at),
                "status": "closed" if is_good else "open",
                "corrective_action": _said(retest.corrective_action) or old.corrective_action,
                "retest_report_id": report_id,
            }
        )
    return [*found, *wrong.values()][:FINDINGS_MAX]


def _said(text: str | None) -> str | None:
    return None if text is None else clean(text)


def _wrong(predicate: Predicate, care: Care) -> Iterable[dict[str, Any]]:
    met = verdicts(predicate)
    measured = {
        "RTO": (met.rto_met, predicate["timings"]["recovery_time_ms"], predicate["policy"]["rto_ms"]),
        "RPO": (met.rpo_met, predicate["data_loss"]["data_loss_ms"], predicate["policy"]["rpo_ms"]),
    }
    for name, words in _OBJECTIVES:
        is_met, figure, objective = measured[name]
        if is_met is False:
            yield _finding(f"F-{name}", "high", words.format(figure, objective), care)
    for check in predicate["checks"]:
        if check["result"] in (Outcome.FAILED, Outcome.WARNED):
            severity = "high" if check["result"] == Outcome.FAILED else "medium"
            yield _finding(f"F-{check['id']}", severity, f"{check['title']}: {check['reason']}", care)


def _finding(name: str, severity: str, description: str, care: Care) -> dict[str, Any]:
    return {
        "id": name,
        "severity": severity,
        "description": clean(description),
        "root_cause": None,
        "owner": care.owner,
        "due_at": None if care.due_at is None else encode_time(care.due_at),
        "status": "open",
        "corrective_action": None,
        "retest_report_id": None,
    }


def _is_proved(predicate: Predicate, finding_id: str) -> bool:
    """Tell whether a report shows that it is right now: what was not measured or skipped shows nothing."""
    what = finding_id.removeprefix("F-")
    if what in ("RTO", "RPO"):
        met = verdicts(predicate)
        return (met.rto_met if what == "RTO" else met.rpo_met) is True
    return any(one["id"] == what and one["result"] == Outcome.PASSED for one in predicate["checks"])


def finding_states(reports: Iterable[Predicate]) -> list[FindingState]:
    """Return where each finding stands after the reports of one cluster, in the series' order."""
    states: dict[str, FindingState] = {}
    for predicate in reports:
        number = int(predicate["identity"]["series_seq"])
        for one in predicate["findings"]:
            ref = one["id"] if "/" in one["id"] else f"{number}/{one['id']}"
            states[ref] = _state(ref, number, one)
    return sorted(states.values(), key=lambda one: (one.opened_in, one.id))


def _state(ref: str, number: int, one: Mapping[str, Any]) -> FindingState:
    return FindingState(
        ref,
        one["severity"],
        one["status"],
        one["description"],
        one["owner"],
        None if one["due_at"] is None else datetime.fromisoformat(one["due_at"]),
        one["root_cause"],
        one["corrective_action"],
        one["retest_report_id"],
        number,
    )
